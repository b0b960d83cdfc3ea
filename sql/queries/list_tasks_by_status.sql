-- As list_tasks, of one status. A statement of its own, because a filter that may be switched off
-- ("status = x OR x is null") is not looked up in the index.
-- Parameters: user_id, user_id, status, created_at and id of the task last seen, how many, bytes.
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
        AND status = %s
        AND (created_at, id) < (%s::timestamptz, %s::bigint)
    ORDER BY created_at DESC, id DESC
    LIMIT %s
) AS page
WHERE bytes - octet_length(title) - coalesce(octet_length(description), 0) < %s
ORDER BY created_at DESC, id DESC;
