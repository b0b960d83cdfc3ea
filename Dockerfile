# The service, and its commands: docker run ... todo-service flask --app wsgi init-db
FROM python:3.13-slim
ENV PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
COPY requirements.txt .
# Wheels only: nothing is compiled, so no compiler has to be there.
RUN pip install --no-cache-dir --only-binary :all: --root-user-action ignore -r requirements.txt
COPY . .
# A number: Kubernetes cannot tell whether a name is root.
USER 10001:10001
# Run directly, not by a shell, which would keep SIGTERM from gunicorn. It listens on PORT, or 8000.
CMD ["gunicorn", "wsgi:app"]
