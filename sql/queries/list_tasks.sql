-- A user's tasks after a given one, newest first: at most so many rows, and fewer when their texts together
-- reach so many bytes. octet_length() knows the size of a text without reading it.
-- Before them comes a row with the owner's clock as updated_at, read at the same instant, and null for what
-- only a task has: in descending order, null comes first. A user who never had a task has no row at all.
-- Parameters: user_id, user_id, created_at and id of the task last seen ('infinity' to start), how many,
-- bytes.
SELECT NULL AS id, id AS user_id, NULL AS title, NULL AS description, NULL AS status, NULL AS created_at, changed_at AS updated_at
FROM users
WHERE id = %s
UNION ALL
SELECT id, user_id, title, description, status, created_at, updated_at
FROM (
    SELECT
        id, user_id, title, description, status, created_at, updated_at,
        sum(octet_length(title) + coalesce(octet_length(description), 0))
            OVER (ORDER BY created_at DESC, id DESC ROWS UNBOUNDED PRECEDING) AS bytes
    FROM tasks
    WHERE user_id = %s
        AND (created_at, id) < (%s::timestamptz, %s::bigint)
    ORDER BY created_at DESC, id DESC
    LIMIT %s
) AS page
WHERE bytes - octet_length(title) - coalesce(octet_length(description), 0) < %s
ORDER BY created_at DESC, id DESC;
