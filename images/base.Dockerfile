# What the roles share, as three targets: `python` (user and environment), `torch` (with the learner's libraries, which engines need, too)
# and `distribution` (this repository, built; roles copy it last, so that a change of code costs one small layer).
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS python
RUN groupadd --gid 10001 rlvr \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin rlvr \
 && python3.11 -m venv /opt/venv \
 && /opt/venv/bin/pip uninstall --quiet --yes setuptools
ENV HOME=/tmp PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
ENTRYPOINT []

FROM python AS torch
# For GPUs another build of the same version: TORCH=torch==2.13.0 brings CUDA's libraries as its requirements.
ARG TORCH
COPY requirements/learner.lock /opt/venv/requirements/
RUN --mount=type=secret,id=pip,target=/run/secrets/pip.conf \
    export PIP_CONFIG_FILE=/run/secrets/pip.conf \
 && sed "s/^torch==.*/${TORCH:-&}/" /opt/venv/requirements/learner.lock > /tmp/learner.lock \
 && pip install --constraint /tmp/learner.lock "$(grep ^torch== /tmp/learner.lock)" \
 && pip install --no-deps --requirement /tmp/learner.lock \
 && rm /tmp/learner.lock

FROM python AS distribution
COPY requirements/cpu.lock /opt/venv/requirements/
RUN --mount=type=secret,id=pip,target=/run/secrets/pip.conf \
    PIP_CONFIG_FILE=/run/secrets/pip.conf pip install --constraint /opt/venv/requirements/cpu.lock hatchling editables
COPY pyproject.toml README.md LICENSE /src/
COPY api /src/api
COPY operator /src/operator
COPY trainer /src/trainer
COPY verifier-service /src/verifier-service
# Compiled here, where it can be written; checked by nothing at run time, since the root file system is read-only.
RUN pip install --no-deps --no-build-isolation --no-compile --root /built /src \
 && python -m compileall -q --invalidation-mode unchecked-hash -s /built -p / /built
