# The operator: watches RLVRJobs and writes their objects.
ARG BASE=rlvr/base-python
ARG DISTRIBUTION=rlvr/distribution

FROM ${DISTRIBUTION} AS distribution

FROM ${BASE}
COPY requirements/operator.lock /opt/venv/requirements/
RUN --mount=type=secret,id=pip,target=/run/secrets/pip.conf \
    PIP_CONFIG_FILE=/run/secrets/pip.conf pip install --no-deps --requirement /opt/venv/requirements/operator.lock
COPY --from=distribution /built/ /
USER 10001:10001
