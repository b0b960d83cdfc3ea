-- Delete all tasks of one status, and note each; the row that comes back says how many there were.
-- The owner's clock moves first, and old deletions are forgotten, as in delete_task; as many as are noted
-- and 100 more, so that they do not pile up where tasks are only ever deleted this way.
-- Parameters: user_id, user_id, status, user_id, user_id, user_id.
WITH owner AS (
    UPDATE users
    SET changed_at = greatest(now(), (changed_at AT TIME ZONE 'UTC' + interval '1 microsecond') AT TIME ZONE 'UTC')
    WHERE id = %s
    RETURNING changed_at
),
deleted AS (
    DELETE FROM tasks
    USING owner
    WHERE user_id = %s
        AND status = %s
    RETURNING
        id,
        greatest(changed_at, (updated_at AT TIME ZONE 'UTC' + interval '1 microsecond') AT TIME ZONE 'UTC') AS deleted_at
),
forgotten AS (
    DELETE FROM deleted_tasks
    WHERE user_id = %s
        AND (deleted_at, id) IN (
            SELECT deleted_at, id
            FROM deleted_tasks
            WHERE user_id = %s
                AND deleted_at < now() - interval '2161 hours'
            ORDER BY deleted_at, id
            LIMIT (SELECT count(id) + 100 FROM deleted)
        )
),
noted AS (
    INSERT INTO deleted_tasks (user_id, id, deleted_at)
    SELECT %s, id, deleted_at
    FROM deleted
    RETURNING id
)
SELECT count(id)
FROM noted;
