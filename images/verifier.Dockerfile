# The verifier service: tasks, verdicts, audits. No torch.
ARG BASE=rlvr/base-python
ARG DISTRIBUTION=rlvr/distribution

FROM ${DISTRIBUTION} AS distribution

# The one library without a wheel that is not plain Python.
FROM ${BASE} AS compiled
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev \
 && { test -f "$(python -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" || apt-get install --yes python3.11-dev; }
COPY requirements/verifier.lock /opt/venv/requirements/
RUN --mount=type=secret,id=pip,target=/run/secrets/pip.conf \
    PIP_CONFIG_FILE=/run/secrets/pip.conf pip install --no-deps --root /built "$(grep ^pycosat== /opt/venv/requirements/verifier.lock)"

# Bubblewrap puts slots of the sandbox into namespaces of their own, for environments that ask for it.
FROM ${BASE}
RUN apt-get update \
 && apt-get install --yes --no-install-recommends bubblewrap util-linux \
 && rm -rf /var/lib/apt/lists/*
# The libraries' own tests are a fifth of them.
COPY --from=compiled /built/ /
COPY requirements/verifier.lock /opt/venv/requirements/
RUN --mount=type=secret,id=pip,target=/run/secrets/pip.conf \
    PIP_CONFIG_FILE=/run/secrets/pip.conf pip install --no-deps --requirement /opt/venv/requirements/verifier.lock \
 && find /opt/venv -type d -name tests -prune -exec rm -r {} +
COPY --from=distribution /built/ /
USER 10001:10001
