-- As list_tasks, of one status. A statement of its own, because a filter that may be switched off
-- ("status = x OR x is null") is not looked up in the index.
-- Parameters: user_id, status, created_at and id of the task last seen, how many.
SELECT id, user_id, title, description, status, created_at, updated_at
FROM tasks
WHERE user_id = %s
    AND status = %s
    AND (created_at, id) < (%s::timestamptz, %s::bigint)
ORDER BY created_at DESC, id DESC
LIMIT %s;
