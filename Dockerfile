FROM python:3.13-slim AS build
WORKDIR /app
COPY requirements.lock ./
# Wheels alone, each by its hash: nothing is compiled, and the virtual environment that is handed on holds no pip.
RUN python -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python --disable-pip-version-check install --no-cache-dir --root-user-action ignore \
        --require-hashes --only-binary :all: --requirement requirements.lock
# The project is copied, not built: its build backend isn't in the lock, and what runs is what the checkout holds.
COPY metering ./metering
COPY workers ./workers
COPY db ./db
COPY LICENSE ./
COPY deploy/secrets/write.sh ./deploy/secrets/write.sh
# Readable for the user below whatever the checkout's umask was; compiled here, because nothing can be written there.
RUN printf '%s\n' '#!/opt/venv/bin/python' 'from metering.cli.main import main' 'main()' > /opt/venv/bin/metering \
    && chmod 755 /opt/venv/bin/metering \
    && chmod -R a+rX /app \
    && python -m compileall -q --invalidation-mode unchecked-hash metering workers db

FROM python:3.13-slim
# A label can't be read from a file: tests/deploy/test_image.py holds the version against metering/__init__.py, where it stands.
LABEL org.opencontainers.image.title="metering" \
    org.opencontainers.image.version="0.1.0" \
    org.opencontainers.image.description="Prepaid call metering: call events in, exact debits out." \
    org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --system --gid 10001 metering \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin metering \
    # Whose a volume of secrets, or of the demo's Stripe, is that docker-compose.yml mounts here for the first time.
    && for service in postgres valkey migrate operator meter jobs api; do \
        mkdir -p "/secrets/$service" && chown metering:metering "/secrets/$service"; done \
    && mkdir /var/lib/metering && chown metering:metering /var/lib/metering
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
# The safe path: the directory that a command is run in never decides what `import db` means.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONSAFEPATH=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONFAULTHANDLER=1
WORKDIR /app
# By number, so that a platform which forbids root can see that it isn't.
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["metering"]
CMD ["--help"]
