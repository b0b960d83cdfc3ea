-- The tasks of a user that were created in one instant, in the order in which they were sent.
-- Parameters: user_id, created_at.
SELECT id, user_id, title, description, status, created_at, updated_at
FROM tasks
WHERE user_id = %s
    AND created_at = %s
ORDER BY id;
