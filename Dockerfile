# One image for reader, workers, Flower and the operator's commands; what runs is the command that it is given.
FROM python:3.11-slim AS build
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE celeryconfig.py ./
COPY ingest ingest
COPY tasks tasks
RUN python -m venv /venv \
 && /venv/bin/pip install --no-cache-dir --only-binary :all: --constraint constraints.txt hatchling \
 && /venv/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
 && python -m venv --clear /venv \
 && /venv/bin/pip install --no-cache-dir --only-binary :all: --constraint constraints.txt \
      "$(ls /wheels/*.whl)[otel,sentry]" \
 && /venv/bin/pip uninstall --yes pip setuptools

FROM python:3.11-slim
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin replays
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    REPLAYS_LOG_FORMAT=json REPLAYS_HTTP_HOST=0.0.0.0 REPLAYS_WORKER_HTTP_HOST=0.0.0.0
WORKDIR /tmp
USER 10001:10001
EXPOSE 9464 9465 5555
CMD ["replays-ingest"]
