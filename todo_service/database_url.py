"""DATABASE_URL: what is wrong with it, and why nobody can be reached by it."""

from __future__ import annotations

import re

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo

_PERCENT_ENCODE = (
    "has a character in its user or password that means something else in a URL:"
    " percent-encode it (@ is %40, / is %2F, : is %3A, # is %23, ? is %3F, % is %25)"
)
# What other programs take in the same URL, and what to do about it here.
_FOREIGN = {
    "pgbouncer": ", and set DB_POOLER=transaction",
    "schema": ", and name the schema by options=-csearch_path%3D…",
}

# Why a connection fails: what is looked for in the words of libpq, psycopg, the server or a pooler;
# the reason for the log; and a sentence. A connection that was never made has no SQLSTATE.
_REASONS = (
    (
        "server does not support SSL",
        "the server has no TLS",
        "the server has no TLS. If the network is trusted, add ?sslmode=disable to {name}",
    ),
    (
        "certificate",
        "certificate not accepted",
        "the server's certificate is not accepted: {said}. Check sslmode and sslrootcert in {name}",
    ),
    (
        'database ".*" does not exist',
        "DATABASE_URL is refused: no such database",
        "{name} is refused: {said}",
    ),
    (
        "too many (clients|connections)|remaining connection slots|no more connections",
        "too many connections",
        "too many connections are open: {said}",
    ),
    (
        "starting up|shutting down|recovery mode|accepting connections|not yet accept",
        "the server starts or stops",
        "{said}",
    ),
    (
        "authentication|password|role .* does not exist|not permitted to log in|pg_hba.conf"
        "|permission denied",
        "DATABASE_URL is refused: user or password",
        "{name} is refused: {said}. Check its user and password",
    ),
    ("startup parameter", "a pooler", "a pooler is in the way: {said}"),
    (
        "Connection refused|No such file or directory",
        "nobody listens",
        "nobody listens at {where}. Check the host and port in {name}, and that the server runs",
    ),
    (
        "failed to resolve host|could not translate host name",
        "no host of that name",
        "there is no host of that name. Check the host in {name}",
    ),
    (
        "session is read-only|server is in hot standby",
        "no server that takes writes",
        "no server in {name} takes writes: {said}",
    ),
    ("timeout expired", "no answer", "no answer in time. Check the host and port in {name}"),
    ("No route to host|is unreachable", "no route", "no way leads to {where}"),
)


def fault(url: str) -> str | None:
    """What is wrong with a URL, to be put after the name of its variable; never a part of it.

    libpq ends the password at the first @, and takes all for the host that comes before a /. What
    it then finds instead of a host would be looked up, and be quoted in messages.
    """
    if url[:1] in ("'", '"'):
        return "must not be in quotation marks"
    scheme, _, rest = url.partition("://")
    if scheme not in ("postgres", "postgresql"):
        return "must start with postgres:// or postgresql://"
    # As libpq does: without an @ before the first /, there is no user.
    before, _, after = rest.partition("@")
    if "/" in before or "@" not in rest:
        before, after = "", rest
    location, _, query = after.partition("?")
    try:
        stated = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        # Not in the driver's words, which quote parts of the URL, the password among them.
        if "@" in after or re.search("%(?![0-9A-Fa-f]{2})", before):
            return _PERCENT_ENCODE
        known = {option.keyword.decode() for option in Conninfo.get_defaults()} | {"ssl"}
        names = [pair.partition("=")[0] for pair in query.split("&")]
        for name in names:
            # What follows a password may be its own rest, after a & that is not percent-encoded.
            if name not in known and "password" not in names and re.fullmatch(r"\w{1,40}", name):
                return f"has the unknown parameter {name}: remove it{_FOREIGN.get(name, '')}"
        return "is not a valid PostgreSQL connection URL"
    if "@" in location:
        return _PERCENT_ENCODE
    if not re.fullmatch(r"[\d,]*", str(stated.get("port") or "")):
        return "has a port that is not a number"
    return None


def why_unreachable(error: psycopg.Error, name: str = "DATABASE_URL") -> tuple[str, str]:
    """Why a connection failed: the reason for the log, and a sentence that names the variable.

    The sentence may quote the server, who never repeats a password; the reason quotes nobody.
    """
    said = first_line(error)
    place = re.search(r' at "([^"]+)"(?: \(.*?\))?, port (\d+)| on socket "([^"]+)"', said)
    where = (place[3] or f"{place[1]}:{place[2]}") if place else "the server"
    said = re.sub("^.* failed: (FATAL: +)?", "", said)
    for words, reason, sentence in _REASONS:
        if re.search(words, said):
            return reason, sentence.format(name=name, said=said, where=where)
    return "unknown", f"{said}. Check {name}"


def first_line(error: Exception) -> str:
    """What went wrong, in one line. The driver never quotes a password."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
