-- Give the tasks of one status another one, the oldest 10,000 at most; the row that comes back says how many
-- they were, and whether there are more.
-- The owner's clock moves first, as in create_task; updated_at as in update_task.
-- Tasks that get this status while it waits for the owner's row are not among them.
-- Where they end is looked up once, in the index: a list of 10,000 ids would be joined with all tasks.
-- Parameters: user_id, user_id, status, new status, user_id, status.
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
updated AS (
    UPDATE tasks
    SET status = %s,
        updated_at = greatest(changed_at, (updated_at AT TIME ZONE 'UTC' + interval '1 microsecond') AT TIME ZONE 'UTC')
    FROM owner
    WHERE user_id = %s
        AND status = %s
        AND (created_at, id) < (
            coalesce((SELECT created_at FROM cutoff), 'infinity'),
            coalesce((SELECT id FROM cutoff), 0)
        )
    RETURNING id
)
SELECT count(id), EXISTS (SELECT id FROM cutoff)
FROM updated;
