-- A user's tasks after a given one, newest first: at most so many rows, and fewer when their texts together
-- reach so many bytes. octet_length() knows the size of a text without reading it.
-- Each row begins with the owner's clock, read at the same instant. A user without tasks has one row, with
-- the clock and nulls; a user who never had any has no row.
-- Parameters: user_id, created_at and id of the task last seen ('infinity' to start), how many,
-- bytes, user_id.
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
        AND (created_at, id) < (%s::timestamptz, %s::bigint)
    ORDER BY created_at DESC, id DESC
    LIMIT %s
) AS page ON bytes - octet_length(title) - coalesce(octet_length(description), 0) < %s
WHERE users.id = %s
ORDER BY page.created_at DESC, page.id DESC;
