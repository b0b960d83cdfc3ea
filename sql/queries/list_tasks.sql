-- A user's tasks, newest first, from behind a given one on.
-- Parameters: user_id, created_at and id of the task last seen ('infinity' to start), how many.
SELECT id, user_id, title, description, status, created_at, updated_at
FROM tasks
WHERE user_id = %s
    AND (created_at, id) < (%s::timestamptz, %s::bigint)
ORDER BY created_at DESC, id DESC
LIMIT %s;
