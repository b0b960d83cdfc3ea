-- Delete a task; a row comes back if there was one.
-- Parameters: user_id, id, versions (null: any), versions.
DELETE FROM tasks
WHERE user_id = %s
    AND id = %s
    AND (%s::timestamptz[] IS NULL OR updated_at = ANY (%s::timestamptz[]))
RETURNING id;
