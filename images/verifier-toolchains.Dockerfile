# The verifier service with what `stdio` needs for programs in C, C++, Go and JavaScript. Large, so it is an image of its own.
ARG BASE=rlvr/verifier

FROM ${BASE}
USER 0:0
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc g++ libc6-dev golang-go nodejs \
 && rm -rf /var/lib/apt/lists/*
USER 10001:10001
