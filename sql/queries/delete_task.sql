-- Delete a task, and note the deletion for clients that keep a copy; a row comes back if there was one.
-- The owner's clock moves first, as in create_task; a task that somebody dated later by hand is deleted
-- after that date.
-- Deletions of more than 90 days ago are forgotten, at most 100 at a time: nobody waits for what one
-- large deletion left behind. An hour is added because the clocks of service and database differ, and
-- counted in hours because days in some time zones are longer.
-- Parameters: user_id, user_id, id, versions (null: any), versions, versions that it must not be (null:
-- none), user_id, user_id, user_id.
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
        AND id = %s
        AND (%s::timestamptz[] IS NULL OR updated_at = ANY (%s::timestamptz[]))
        AND (updated_at = ANY (%s::timestamptz[])) IS NOT TRUE
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
            LIMIT 100
        )
)
INSERT INTO deleted_tasks (user_id, id, deleted_at)
SELECT %s, id, deleted_at
FROM deleted
RETURNING id;
