# From a bare checkout, with Python 3.11 or newer and make: `make run` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test lint psql
.DEFAULT_GOAL := run

run: .venv/installed .env
	@echo "When it is listening, paste this into another terminal:"
	@echo
	@$(BIN)/flask --app wsgi token alice --curl
	@echo
	@exec $(BIN)/gunicorn wsgi:app

test: lint
	$(BIN)/pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict todo_service

psql: .venv/installed
	@$(BIN)/python -c "import sys; from todo_service import embedded; sys.exit(embedded.psql())"

.venv/installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

.env:
	@umask 077 && echo "JWT_SECRET=$$($(PYTHON) -c 'import secrets; print(secrets.token_urlsafe(48))')" > $@
	@echo "Wrote $@ with a random JWT_SECRET."
