# The service, and its commands: docker run ... todo-service flask --app wsgi init-db
FROM python:3.13-slim-trixie@sha256:9d2e5553305c7c7b0097999bb17187c69b921ccd6bc9d40e4bb5ebe652c00285
LABEL org.opencontainers.image.title="todo-service" \
    org.opencontainers.image.description="Each user's to-do tasks in PostgreSQL, behind a REST API" \
    org.opencontainers.image.licenses="MIT"
WORKDIR /app
COPY requirements.txt .
# Wheels only: nothing is compiled, so no compiler has to be there.
RUN pip install --no-cache-dir --only-binary :all: --require-hashes --root-user-action ignore -r requirements.txt
COPY . .
# To byte code, as pip does with the packages: the user below could not write it at each start.
RUN python -m compileall -q .
# A number: Kubernetes cannot tell whether a name is root.
USER 10001:10001
EXPOSE 8000
# Run directly, not by a shell, which would keep SIGTERM from gunicorn. It listens on PORT, or 8000.
CMD ["gunicorn", "wsgi:app"]
