# From a bare checkout, with Python 3.11 or newer and make: `make run` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# The browser and the pooler that the tests use. Where there is no apt-get, name them:
# CHROMIUM=... PGBOUNCER=... make test
export CHROMIUM ?= /usr/bin/chromium
export PGBOUNCER ?= /usr/sbin/pgbouncer

.PHONY: run test test-citus lint psql bench
.DEFAULT_GOAL := run

run: .venv/installed .env
	@echo "When it is listening, paste this into another terminal:"
	@echo
	@$(BIN)/flask --app wsgi token alice --curl || echo "(a request with a token of your issuer)"
	@echo
	@exec $(BIN)/gunicorn wsgi:app

test: lint $(CHROMIUM) $(PGBOUNCER)
	$(BIN)/pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict todo_service

# CITUS_DATABASE_URL: the coordinator of a Citus cluster, as a superuser, and a database to write to.
test-citus: .venv/installed
	@test -n "$$CITUS_DATABASE_URL" \
		|| { echo "make test-citus needs CITUS_DATABASE_URL, the coordinator's"; exit 1; }
	@DATABASE_URL="$$CITUS_DATABASE_URL" $(BIN)/python -c "import os; \
		from todo_service import database; database.apply_schema(os.environ['DATABASE_URL'])"
	@DATABASE_URL="$$CITUS_DATABASE_URL" $(BIN)/python -c "import sys; \
		from todo_service import embedded; sys.exit(embedded.psql())" -X -q -f sql/citus.sql
	TEST_DATABASE_URL="$$CITUS_DATABASE_URL" $(BIN)/pytest tests/api

# The two system packages that the tests use, where they are missing: Debian's, by apt-get.
$(CHROMIUM): package = chromium
$(PGBOUNCER): package = pgbouncer
$(CHROMIUM) $(PGBOUNCER):
	@test "$$(id -u)" = 0 || sudo=sudo; \
		$$sudo apt-get update -qq \
		&& $$sudo env DEBIAN_FRONTEND=noninteractive \
			apt-get install -y -qq --no-install-recommends $(package) > /dev/null

psql: .venv/installed
	@$(BIN)/python -c "import sys; from todo_service import embedded; sys.exit(embedded.psql())"

# ARGS: --quick, --latency 2, --growth and more; `.venv-bench/bin/python -m bench --help` lists all.
bench: .venv-bench/installed
	@command -v wrk > /dev/null || { test "$$(id -u)" = 0 && apt-get update -qq \
		&& DEBIAN_FRONTEND=noninteractive apt-get install -y -qq wrk > /dev/null; } \
		|| { echo "make bench needs wrk (https://github.com/wg/wrk): apt-get install wrk"; exit 1; }
	@.venv-bench/bin/python -m bench $(ARGS)

.venv-bench/installed: requirements.txt bench/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --disable-pip-version-check -r bench/requirements.txt
	@touch $@

.venv/installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

.env:
	@umask 077 && echo "JWT_SECRET=$$($(PYTHON) -c 'import secrets; print(secrets.token_urlsafe(48))')" > $@
	@echo "Wrote $@ with a random JWT_SECRET."
