-- Delete the tasks of one status, the oldest 10,000 at most, and note each; the row that comes back says how
-- many they were, and whether there are more. Where they end is looked up as in update_tasks.
-- The owner's clock moves first, and old deletions are forgotten, as in delete_task; as many as are noted
-- and 100 more, so that they do not pile up where tasks are only ever deleted this way.
-- Parameters: user_id, user_id, status, user_id, status, user_id, user_id, user_id.
WITH owner AS (
    UPDATE users
    SET changed_at = greatest(now(), (changed_at AT TIME ZONE 'UTC' + interval '1 microsecond') AT TIME ZONE 'UTC')
    WHERE id = %s
    RETURNING changed_at
),
cutoff AS (
    SELECT created_at, id
    FROM tasks
    WHERE user_id = %s
        AND status = %s
    ORDER BY created_at, id
    OFFSET 10000
    LIMIT 1
),
deleted AS (
    DELETE FROM tasks
    USING owner
    WHERE user_id = %s
        AND status = %s
        AND (created_at, id) < (
            coalesce((SELECT created_at FROM cutoff), 'infinity'),
            coalesce((SELECT id FROM cutoff), 0)
        )
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
SELECT count(id), EXISTS (SELECT id FROM cutoff)
FROM noted;
