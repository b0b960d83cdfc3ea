-- Delete a task; a row comes back if there was one.
-- Parameters: user_id, id, versions (null: any), versions, versions that it must not be (null: none).
DELETE FROM tasks
WHERE user_id = %s
    AND id = %s
    AND (%s::timestamptz[] IS NULL OR updated_at = ANY (%s::timestamptz[]))
    AND (updated_at = ANY (%s::timestamptz[])) IS NOT TRUE
RETURNING id;
