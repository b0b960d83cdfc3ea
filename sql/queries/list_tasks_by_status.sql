-- As list_tasks, of one status. A statement of its own, because a filter that may be switched off
-- ("status = x OR x is null") is not looked up in the index.
-- Parameters: user_id, status, created_at and id of the task last seen, how many, bytes, user_id.
SELECT
    users.changed_at,
    page.id, page.user_id, page.title, page.description, page.status, page.created_at, page.updated_at
FROM users
LEFT JOIN (
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
) AS page ON bytes - octet_length(title) - coalesce(octet_length(description), 0) < %s
WHERE users.id = %s
ORDER BY page.created_at DESC, page.id DESC;
