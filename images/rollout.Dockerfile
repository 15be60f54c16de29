# A rollout engine on CPUs: vLLM with our weight transport. GPUs: rollout-cuda.Dockerfile.
ARG BASE=rlvr/base-torch
ARG DISTRIBUTION=rlvr/distribution

FROM ${DISTRIBUTION} AS distribution

FROM ${BASE}
# Without libnuma vLLM's kernels do not load. There is no compiler: pods set TORCHDYNAMO_DISABLE=1.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libnuma1 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin
# intel-openmp lays libiomp5.so into /opt/venv/lib, where the operator's LD_PRELOAD has it.
COPY requirements/rollout.lock /opt/venv/requirements/
RUN --mount=type=secret,id=pip,target=/run/secrets/pip.conf \
    PIP_CONFIG_FILE=/run/secrets/pip.conf pip install --no-deps --requirement /opt/venv/requirements/rollout.lock \
 && test -f /opt/venv/lib/libiomp5.so
COPY --from=distribution /built/ /
USER 10001:10001
