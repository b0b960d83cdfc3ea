-- Some tasks of a user. Parameters: user_id, ids.
SELECT id, user_id, title, description, status, created_at, updated_at
FROM tasks
WHERE user_id = %s
    AND id = ANY (%s::bigint[])
ORDER BY id;
