-- How many connections this session's role may open: what the server has beyond its reserve, or the
-- limit of the database or of the role, where one is set. Plans with a handful of connections on a
-- large shared server are limited by the role, and max_connections says nothing about them.
-- reserved_connections is new in PostgreSQL 16.
SELECT least(
    current_setting('max_connections')::integer
        - current_setting('superuser_reserved_connections')::integer
        - coalesce(current_setting('reserved_connections', true)::integer, 0),
    nullif(datconnlimit, -1),
    nullif(rolconnlimit, -1)
)
FROM pg_database, pg_roles
WHERE datname = current_database()
    AND rolname = session_user;
