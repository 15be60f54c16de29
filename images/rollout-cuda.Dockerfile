# A rollout engine on GPUs: vLLM's own image, which has CUDA and the compiler that Triton needs, with our weight transport.
# Its libraries stay as they are; what it lacks comes at the versions that are tested.
ARG BASE=vllm/vllm-openai:v0.32.0

FROM ${BASE}
USER root
RUN groupadd --gid 10001 rlvr \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin rlvr \
 && python3 -m venv --system-site-packages /opt/venv
ENV HOME=/tmp PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements/cpu.lock requirements/learner.lock /opt/venv/requirements/
RUN --mount=type=secret,id=pip,target=/run/secrets/pip.conf \
    PIP_CONFIG_FILE=/run/secrets/pip.conf pip install --no-deps \
    $(grep -E '^(boto3|botocore|s3transfer|jmespath|python-dateutil|six|ruamel-yaml)==' /opt/venv/requirements/learner.lock)
COPY pyproject.toml README.md LICENSE /src/
COPY api /src/api
COPY operator /src/operator
COPY trainer /src/trainer
COPY verifier-service /src/verifier-service
RUN --mount=type=secret,id=pip,target=/run/secrets/pip.conf \
    PIP_CONFIG_FILE=/run/secrets/pip.conf PIP_CONSTRAINT=/opt/venv/requirements/cpu.lock pip install --no-deps /src
ENTRYPOINT []
USER 10001:10001
