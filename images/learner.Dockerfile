# The learner, with the collector. For GPUs its base is built with another TORCH, see base.Dockerfile.
ARG BASE=rlvr/base-torch
ARG DISTRIBUTION=rlvr/distribution

FROM ${DISTRIBUTION} AS distribution

FROM ${BASE}
COPY --from=distribution /built/ /
USER 10001:10001
