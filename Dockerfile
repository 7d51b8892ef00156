# One image for reader, workers, Flower and the operator's commands; the command given at run time selects one.
# A tag can be moved, but a digest cannot. docs/hardening.md (Supply chain) describes how to pin the base image by
# digest.
ARG PYTHON_IMAGE=python:3.11.13-slim-bookworm
FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
COPY deploy/image deploy/image
# Only files with one of the listed hashes are installed, from the index configured in pip. build.txt includes pip,
# because older versions of pip (23.2.1, and Debian's 23.0.1) refuse the list: they treat `google-auth[pyopenssl]`
# as unpinned.
RUN python -m venv /build \
 && /build/bin/pip install --no-cache-dir --only-binary :all: --require-hashes -r deploy/image/build.txt \
 && python -m venv --without-pip /venv \
 && /build/bin/pip --python /venv/bin/python install --no-cache-dir --only-binary :all: --require-hashes \
    -r deploy/image/requirements.txt
COPY pyproject.toml README.md LICENSE celeryconfig.py ./
COPY ingest ingest
COPY tasks tasks
RUN /build/bin/pip wheel --no-cache-dir --no-index --no-deps --no-build-isolation --wheel-dir /wheels . \
 && /build/bin/pip --python /venv/bin/python install --no-cache-dir --no-index --no-deps /wheels/*.whl \
 && /build/bin/pip --python /venv/bin/python check

FROM ${PYTHON_IMAGE}
# A new Docker volume inherits the owner of this folder. The volume holds Flower's task history.
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin replays \
 && install --directory --owner 10001 --group 10001 --mode 700 /var/lib/replays
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    REPLAYS_LOG_FORMAT=json REPLAYS_HTTP_HOST=0.0.0.0 REPLAYS_WORKER_HTTP_HOST=0.0.0.0
WORKDIR /tmp
USER 10001:10001
EXPOSE 9464 9465 5555
CMD ["replays-ingest"]
