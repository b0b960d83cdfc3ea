"""The environment: every variable read, every bad value refused in one line that names it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.conftest import ENVIRON, ROOT, SECRET, Server
from todo_service import create_app
from todo_service.database import complete_conninfo
from todo_service.settings import Settings, SettingsError

MINIMAL = {"DATABASE_URL": "postgres://u:p4ssw0rd@db.example.com/todo", "JWT_SECRET": SECRET}


def test_every_variable_is_read() -> None:
    settings = Settings.from_env(
        {
            "DATABASE_URL": "postgresql://db/todo",
            "OWNER_DATABASE_URL": "postgresql://owner@db/todo",
            "JWT_JWKS_URL": "https://issuer.example.com/jwks",
            "JWT_ISSUER": "https://issuer.example.com",
            "JWT_AUDIENCE": "todo",
            "JWT_USER_CLAIM": "email",
            "PORT": "5000",
            "WEB_CONCURRENCY": "3",
            "DB_POOL_SIZE": "7",
            "DB_POOL_TIMEOUT": "2.5",
            "DB_STATEMENT_TIMEOUT": "0.5",
            "DB_POOLER": "transaction",
            "CORS_ORIGINS": "https://app.example.com, http://localhost:3000,http://[::1]:3000",
            "LOG_LEVEL": "debug",
            "LOG_FORMAT": "JSON",
        }
    )

    assert settings == Settings(
        database_url="postgresql://db/todo",
        owner_database_url="postgresql://owner@db/todo",
        jwt_jwks_url="https://issuer.example.com/jwks",
        jwt_issuer="https://issuer.example.com",
        jwt_audience="todo",
        jwt_user_claim="email",
        port=5000,
        web_concurrency=3,
        db_pool_size=7,
        db_pool_timeout=2.5,
        db_statement_timeout=0.5,
        db_pooler="transaction",
        cors_origins=("https://app.example.com", "http://localhost:3000", "http://[::1]:3000"),
        log_level="DEBUG",
        log_format="json",
    )


def test_an_empty_variable_counts_as_unset() -> None:
    settings = Settings.from_env(MINIMAL | {"PORT": "", "JWT_ISSUER": "", "CORS_ORIGINS": " "})

    assert (settings.port, settings.jwt_issuer, settings.cors_origins) == (8000, None, ())


BAD = [
    ("DATABASE_URL", "mysql://db/todo"),
    ("DATABASE_URL", "postgres://[db/todo"),
    ("DATABASE_URL", "postgres://u:p4ssw0rd@db:port/todo"),
    ("OWNER_DATABASE_URL", "mysql://u:p4ssw0rd@db/todo"),
    ("JWT_SECRET", "p4ssw0rd"),
    ("JWT_SECRET", "-----BEGIN PUBLIC KEY-----\np4ssw0rd\n-----END PUBLIC KEY-----"),
    ("PORT", "http"),
    ("PORT", "0"),
    ("PORT", "65536"),
    ("WEB_CONCURRENCY", "0"),
    ("WEB_CONCURRENCY", "1.5"),
    ("DB_POOL_SIZE", "0"),
    ("DB_POOL_SIZE", "many"),
    ("DB_POOL_TIMEOUT", "0"),
    ("DB_POOL_TIMEOUT", "nan"),
    ("DB_STATEMENT_TIMEOUT", "-1"),
    ("DB_STATEMENT_TIMEOUT", "inf"),
    ("DB_POOLER", "session"),
    ("CORS_ORIGINS", "*"),
    ("CORS_ORIGINS", "https://*.example.com"),
    ("CORS_ORIGINS", "app.example.com"),
    ("CORS_ORIGINS", "https://app.example.com/"),
    ("CORS_ORIGINS", "https://app.example.com/path"),
    ("CORS_ORIGINS", "https://u@app.example.com"),
    ("CORS_ORIGINS", "https://app.example.com:port"),
    ("CORS_ORIGINS", "https://"),
    ("CORS_ORIGINS", "null"),
    ("CORS_ORIGINS", "https://App.example.com"),
    ("CORS_ORIGINS", "https://app.example.com:443"),
    ("CORS_ORIGINS", "http://localhost:80"),
    ("CORS_ORIGINS", "https://app.example.com:"),
    ("CORS_ORIGINS", "https://app.example.com:08443"),
    ("CORS_ORIGINS", "https://ex\u00e4mple.com"),
    ("CORS_ORIGINS", "https://a b.com"),
    ("CORS_ORIGINS", "ftp://app.example.com"),
    ("CORS_ORIGINS", "ws://app.example.com"),
    ("CORS_ORIGINS", "file:///app"),
    ("CORS_ORIGINS", "//app.example.com"),
    ("CORS_ORIGINS", "tauri://localhost/"),
    ("CORS_ORIGINS", "capacitor:localhost"),
    ("CORS_ORIGINS", "Capacitor://localhost"),
    ("LOG_LEVEL", "LOUD"),
    ("LOG_LEVEL", "NOTSET"),
    ("LOG_FORMAT", "xml"),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name} ") as caught:
        Settings.from_env(MINIMAL | {name: value})

    assert "p4ssw0rd" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["DATABASE_URL", "OWNER_DATABASE_URL"])
@pytest.mark.parametrize(
    ("url", "said"),
    [
        # What libpq makes of each: a host ss@db; a host u, a port; a parameter y; an error.
        ("postgres://u:p4@ss@db/todo", "percent-encode it"),
        ("postgres://u:p4@/ss@db/todo", "percent-encode it"),
        ("postgres://u:p4/ss@db/todo", "percent-encode it"),
        ("postgres://u:12/ss@db", "percent-encode it"),
        ("postgres://u:12?ss=/ss@db/todo", "percent-encode it"),
        ("postgres://u:p4@x?ss=1@db/todo", "percent-encode it"),
        ("postgres://u:ss/@db/todo?sslmode=require", "percent-encode it"),
        ("postgres://u:100%@db/todo", "percent-encode it"),
        ("'postgres://u:p4ss@db/todo'", "must not be in quotation marks"),
        ('"postgres://u:p4ss@db/todo"', "must not be in quotation marks"),
        ("postgres://u:p4ss@db/todo?sslmode=require&pgbouncer=true", "parameter pgbouncer: "),
        ("postgres://u:p4ss@db/todo?schema=public", "parameter schema: remove it"),
        ("postgres://u@db/todo?password=p4&ss=1", "is not a valid PostgreSQL connection URL"),
    ],
)
def test_a_url_that_is_not_read_as_it_was_meant_is_refused(name: str, url: str, said: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name} .*{said}") as caught:
        Settings.from_env(MINIMAL | {name: url})

    assert not re.search("p4|ss[@/&=]|ss@|12", str(caught.value))


@pytest.mark.parametrize(
    ("url", "password"),
    [
        ("postgres://u:p4%40s%2Fs@db/todo", "p4@s/s"),
        # libpq takes these as they were meant.
        ("postgres://u:p4:s#s?s@db/todo", "p4:s#s?s"),
        ("postgres://u:p4ss@db/todo?application_name=a@b", "p4ss"),
        ("postgres://u:p4ss@db/todo\n", "p4ss"),
    ],
)
def test_a_url_that_is_read_as_it_was_meant_is_taken(url: str, password: str) -> None:
    taken = Settings.from_env(MINIMAL | {"DATABASE_URL": url}).database_url

    stated = conninfo_to_dict(taken or "")
    assert (stated["password"], stated["host"], stated["dbname"]) == (password, "db", "todo")


@pytest.mark.parametrize(
    "url",
    [
        "http://issuer.example.com/jwks",
        "http://127.0.0.1.example.com/jwks",
        "http://10.0.0.1/jwks",
        "http://2130706433/jwks",
        "http://0x08080808/jwks",
        "http://[2001:db8::1]/jwks",
        "http://auth@issuer.example.com/jwks",
        "http://auth.internal.example.com/jwks",
        "http://.internal/jwks",
        "http://10.0.0.1.internal.example/jwks",
        "file:///etc/passwd",
        "ftp://issuer.example.com/jwks",
        "issuer.example.com/jwks",
        "https:///jwks",
        "https://issuer.example.com:port/jwks",
    ],
)
def test_the_issuers_keys_come_over_https(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^JWT_JWKS_URL "):
        Settings.from_env({"DATABASE_URL": "postgres://db/todo", "JWT_JWKS_URL": url})


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "127.0.0.1", "127.0.0.2", "[::1]"),
        *("auth", "better-auth", "web_1", "4th", "auth.railway.internal", "Auth.svc.INTERNAL"),
    ],
)
def test_an_issuer_on_a_loopback_address_or_in_a_network_of_its_own_may_use_http(
    host: str,
) -> None:
    url = f"http://{host}:3000/api/auth/jwks"

    assert Settings.from_env({"JWT_JWKS_URL": url}).jwt_jwks_url == url


def test_exactly_one_way_to_verify_tokens_must_be_set() -> None:
    both = MINIMAL | {"JWT_JWKS_URL": "https://issuer.example.com/jwks"}
    neither = {"DATABASE_URL": "postgres://db/todo"}

    for environ, said in ((both, "are both set; unset"), (neither, "^neither .* set one of")):
        with pytest.raises(SettingsError, match=said):
            create_app(Settings.from_env(environ))
    create_app(Settings.from_env(neither), authenticate=lambda _: "alice")


def test_a_neon_pooler_is_known_by_its_name() -> None:
    def pooler(host: str) -> str | None:
        return Settings.from_env(MINIMAL | {"DATABASE_URL": f"postgres://u@{host}/d"}).db_pooler

    assert pooler("ep-cool-1-pooler.us-east-2.aws.neon.tech") == "transaction"
    assert pooler("ep-cool-1.us-east-2.aws.neon.tech") is None
    assert pooler("my-pooler.example.com") is None


def test_the_owner_passes_by_a_neon_pooler() -> None:
    def owner(**environ: str) -> str | None:
        return Settings.from_env(MINIMAL | environ).owner_database_url

    pooled = "postgres://u:x-pooler.y@ep-cool-1-pooler.us-east-2.aws.neon.tech/d?sslmode=require"
    direct = pooled.replace("1-pooler", "1")
    found = owner(DATABASE_URL=pooled)
    assert conninfo_to_dict(found or "") == conninfo_to_dict(direct)
    assert owner(DATABASE_URL=pooled, OWNER_DATABASE_URL=direct) == direct
    for other in (direct, "postgres://u@my-pooler.example.com/d"):
        assert owner(DATABASE_URL=other) is None


def test_the_white_space_at_the_end_of_a_secret_is_no_part_of_it() -> None:
    settings = Settings.from_env(MINIMAL | {"JWT_SECRET": f"{SECRET}\r\n"})

    assert settings.jwt_secret == SECRET
    assert settings.warnings == ("jwt_secret_stripped",)
    assert Settings.from_env(MINIMAL).warnings == ()
    with pytest.raises(SettingsError, match=r"^JWT_SECRET must have at least 32 characters"):
        Settings.from_env(MINIMAL | {"JWT_SECRET": "x" * 31 + "\n"})


def test_secrets_stay_out_of_the_repr() -> None:
    owner = {"OWNER_DATABASE_URL": MINIMAL["DATABASE_URL"]}
    text = repr(Settings.from_env(MINIMAL | owner))

    assert "p4ssw0rd" not in text
    assert SECRET not in text


def complete(url: str, **environ: str) -> dict[str, object]:
    return dict(conninfo_to_dict(complete_conninfo(url, Settings.from_env(MINIMAL | environ))))


def test_a_connection_has_its_timeouts() -> None:
    stated = complete("postgres://db.example.com/todo", DB_STATEMENT_TIMEOUT="2.5")

    assert stated["options"] == "-c statement_timeout=2500"
    assert int(str(stated["connect_timeout"])) <= 5


def test_options_of_the_url_are_kept() -> None:
    stated = complete("postgres://db/todo?options=endpoint%3Dcool&application_name=mine")

    assert stated["options"] == "endpoint=cool -c statement_timeout=10000"
    assert stated["application_name"] == "mine"


def test_a_pooler_gets_no_start_up_options() -> None:
    assert "options" not in complete("postgres://db/todo", DB_POOLER="transaction")


@pytest.mark.parametrize(
    ("url", "sslmode"),
    [
        ("postgres://db.example.com/todo", "require"),
        ("postgres://10.0.0.5/todo", "require"),
        ("postgres://db.example.com/todo?sslmode=verify-full", "verify-full"),
        ("postgres://db.example.com/todo?sslmode=disable", "disable"),
        ("postgres://localhost/todo", None),
        ("postgres://127.0.0.1/todo", None),
        ("postgres:///todo?host=/run/postgresql", None),
        ("postgres:///todo", None),
        ("postgres:///todo?hostaddr=10.0.0.5", "require"),
        ("postgres://localhost/todo?hostaddr=10.0.0.5", "require"),
    ],
)
def test_a_database_elsewhere_is_reached_over_tls(url: str, sslmode: str | None) -> None:
    assert complete(url).get("sslmode") == sslmode


@pytest.mark.slow
@pytest.mark.parametrize("command", ["gunicorn wsgi:app", "flask --app wsgi routes"])
@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({"JWT_SECRET": "short"}, "JWT_SECRET"),
        ({"JWT_SECRET": ""}, "JWT_SECRET"),
        ({"DATABASE_URL": "mysql://u:p4ssw0rd@db/todo"}, "DATABASE_URL"),
        ({"PORT": "none"}, "PORT"),
    ],
)
def test_a_bad_value_stops_the_start_with_one_line(
    tmp_path: Path, command: str, environ: dict[str, str], name: str
) -> None:
    program, *arguments = command.split()
    done = subprocess.run(
        [Path(sys.executable).parent / program, *arguments],
        cwd=ROOT,
        env=ENVIRON | MINIMAL | environ,
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert done.returncode != 0
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and name in lines[0], done.stderr
    assert "p4ssw0rd" not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environ", "warnings"),
    [
        ({"JWT_SECRET": SECRET}, []),
        ({"JWT_SECRET": f"{SECRET}\n"}, ["event=jwt_secret_stripped"]),
        ({"JWT_JWKS_URL": "http://127.0.0.1:1/jwks"}, ["event=audience_not_checked"]),
        ({"JWT_JWKS_URL": "http://127.0.0.1:1/jwks", "JWT_AUDIENCE": "todo"}, []),
    ],
)
def test_a_start_warns_once_of_what_is_seldom_meant(
    database_url: str, tmp_path: Path, environ: dict[str, str], warnings: list[str]
) -> None:
    server = Server(tmp_path / "log", DATABASE_URL=database_url, WEB_CONCURRENCY="2", **environ)
    server.wait("/ready")
    assert server.stop() == 0

    log = server.log.read_text()
    assert re.findall(r"level=WARNING .*(event=\w+)$", log, re.MULTILINE) == warnings
    assert SECRET not in log
