# From a bare checkout, with Python 3.11 or newer and make: `make run`; `make help` lists the rest.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
# The browser, the pooler, the proxies, jq and the library for made-up host names that the tests use.
# Where there is no apt-get, name them: CHROMIUM=... PGBOUNCER=... make test
export CHROMIUM ?= /usr/bin/chromium
export PGBOUNCER ?= /usr/sbin/pgbouncer
export NGINX ?= /usr/sbin/nginx
export HAPROXY ?= /usr/sbin/haproxy
JQ ?= /usr/bin/jq
export APACHE ?= /usr/sbin/apache2
export NSS_WRAPPER ?= /usr/lib/$(shell uname -m)-linux-gnu/libnss_wrapper.so

.PHONY: help run check test test-citus lint format psql bench
.DEFAULT_GOAL := run

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

run: .venv/running .env ## serve on port 8000, with an embedded PostgreSQL
	@$(BIN)/python -c "$$ADDRESS"
	@echo "or paste this into another terminal:"
	@echo
	@$(BIN)/flask --app wsgi token alice --curl 2>/dev/null \
		|| echo "(a request with a token of your issuer; docs/identity.md says which)"
	@echo
	@echo "Pages in a browser may call it if CORS_ORIGINS names their origin:"
	@echo "CORS_ORIGINS=http://localhost:3000 make run"
	@echo
	@exec $(BIN)/gunicorn wsgi:app

# On a port that is taken, gunicorn would try for five seconds and not say what to do.
define ADDRESS
import os, socket, sys
from wsgi import settings
port = settings.port
try:
    socket.create_server(("", port)).close()
except OSError as error:
    sys.exit(f"Port {port}: {os.strerror(error.errno)}. Take another: PORT={port + 1} make run")
print(f"When it is listening, try every request at http://localhost:{port}/docs/")
endef
export ADDRESS

check: lint ## ruff, mypy and the fast tests, in under a minute: while you edit
	$(PYTEST) -q -m "not slow"

test: lint $(CHROMIUM) $(PGBOUNCER) $(NGINX) $(HAPROXY) $(APACHE) $(JQ) $(NSS_WRAPPER) ## ruff, mypy and all tests: what CI runs
	$(PYTEST)

lint: .venv/installed ## ruff and mypy alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict todo_service

format: .venv/installed ## rewrite what ruff can put right by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Where the local PostgreSQL has Citus, on a cluster that it makes; else on CITUS_DATABASE_URL's.
test-citus: .venv/installed ## the tests of the API on a Citus cluster of three nodes
	$(BIN)/python -m tests.citus

# The system packages that the tests use, where they are missing: Debian's, by apt-get.
$(CHROMIUM): package = chromium
$(PGBOUNCER): package = pgbouncer
$(NGINX): package = nginx
$(HAPROXY): package = haproxy
$(APACHE): package = apache2-bin
$(JQ): package = jq
$(NSS_WRAPPER): package = libnss-wrapper
$(CHROMIUM) $(PGBOUNCER) $(NGINX) $(HAPROXY) $(APACHE) $(JQ) $(NSS_WRAPPER):
	@test "$$(id -u)" = 0 || sudo=sudo; \
		$$sudo apt-get update -qq \
		&& $$sudo env DEBIAN_FRONTEND=noninteractive \
			apt-get install -y -qq --no-install-recommends $(package) > /dev/null

psql: .venv/running ## psql on the development database
	@$(BIN)/python -c "import sys; from todo_service.ops import commands; sys.exit(commands.psql())"

# ARGS: --quick, --against REF, --only WORKLOAD, --rounds N
bench: .venv-bench/installed ## measure, beside what the README compares with; ARGS=--quick is shorter
	@command -v wrk > /dev/null || { test "$$(id -u)" = 0 && apt-get update -qq \
		&& DEBIAN_FRONTEND=noninteractive apt-get install -y -qq wrk > /dev/null; } \
		|| { echo "make bench needs wrk (https://github.com/wg/wrk): apt-get install wrk"; exit 1; }
	@.venv-bench/bin/python -W ignore:XDG_RUNTIME_DIR -m bench $(ARGS)

PIP_INSTALL := pip install --quiet --disable-pip-version-check

# In two calls: as soon as one requirement has a hash, pip demands one of all.
.venv-bench/installed: requirements.txt bench/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/$(PIP_INSTALL) --require-hashes -r requirements.txt
	.venv-bench/bin/$(PIP_INSTALL) -r bench/requirements.txt
	@touch $@

# What serves. Debian and Ubuntu have a Python without ensurepip, which makes no environment.
.venv/running: requirements-run.txt
	@$(PYTHON) -c "import ensurepip" 2> /dev/null \
		|| { echo "$(PYTHON) cannot make an environment: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/$(PIP_INSTALL) --require-hashes -r requirements-run.txt
	@touch $@

# What tests and checks need on top of it.
.venv/installed: .venv/running requirements-dev.txt
	$(BIN)/$(PIP_INSTALL) --require-hashes -r requirements-dev.txt
	@touch $@

.env:
	@umask 077 && echo "JWT_SECRET=$$($(PYTHON) -c 'import secrets; print(secrets.token_urlsafe(48))')" > $@
	@echo "Wrote $@ with a random JWT_SECRET."
