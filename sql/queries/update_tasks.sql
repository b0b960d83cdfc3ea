-- Give all tasks of one status another one; the row that comes back says how many there were.
-- The owner's clock moves first, as in create_task; updated_at as in update_task.
-- Tasks that get this status while it waits for the owner's row are not among them.
-- Parameters: user_id, new status, user_id, status.
WITH owner AS (
    UPDATE users
    SET changed_at = greatest(now(), (changed_at AT TIME ZONE 'UTC' + interval '1 microsecond') AT TIME ZONE 'UTC')
    WHERE id = %s
    RETURNING changed_at
),
updated AS (
    UPDATE tasks
    SET status = %s,
        updated_at = greatest(changed_at, (updated_at AT TIME ZONE 'UTC' + interval '1 microsecond') AT TIME ZONE 'UTC')
    FROM owner
    WHERE user_id = %s
        AND status = %s
    RETURNING id
)
SELECT count(id)
FROM updated;
