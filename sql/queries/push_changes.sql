-- What a client has created, changed and deleted, in one statement, done together or not at all.
-- The owner's clock moves first, as in create_task; all changes of one push have one time. A user without
-- a row gets one only if tasks are created.
-- The row of a key decides whether its task is new, not the task: it is inserted here, and its conflict is
-- what holds when two send the same key at once, and after the task was deleted. The task takes its id there.
-- A changed or deleted task is looked up by "id = ANY" as well: by the join alone, PostgreSQL would walk
-- through all tasks of a user with many where most users have few.
-- Changes and deletions stand before the creates: Citus does one after the other, in this order, and a change
-- of a guessed id would find the task that was just created.
-- Keys of more than 90 days ago are forgotten, and deletions as in delete_task, at most 200 at a time. The keys
-- of this push are left out: a statement cannot change a row twice.
-- One row comes back for each key: the digest it first came with, how often it came since, and its task if
-- that is new; one for each changed task, and one for each deleted one, without a title. What is refused has
-- none: its task is as it was before this statement waited for the owner's row, so it is read by get_tasks.
-- Parameters: user_id, whether tasks are created, user_id; new tasks (as JSON); user_id; changes (as JSON),
-- user_id, their ids; deletions (as JSON), user_id, their ids; user_id; user_id; user_id, user_id; user_id,
-- user_id, keys.
WITH owner AS (
    INSERT INTO users AS known (id, changed_at)
    SELECT %s, now()
    WHERE %s
        OR EXISTS (SELECT id FROM users WHERE id = %s)
    ON CONFLICT (id) DO UPDATE
        SET changed_at = greatest(
            excluded.changed_at, (known.changed_at AT TIME ZONE 'UTC' + interval '1 microsecond') AT TIME ZONE 'UTC'
        )
    RETURNING changed_at
),
sent AS (
    SELECT number, key, digest, title, description, status
    FROM json_to_recordset(%s) AS task (number integer, key text, digest text, title text, description text, status text)
),
claimed AS (
    INSERT INTO idempotency_keys AS known (user_id, key, digest, created_at)
    SELECT %s, key, decode(digest, 'hex'), changed_at
    FROM owner, sent
    ORDER BY number
    ON CONFLICT (user_id, key) DO UPDATE
        SET replays = known.replays + 1
    RETURNING key, digest, replays, task_id
),
updated AS (
    UPDATE tasks
    SET title = coalesce(change.title, tasks.title),
        description = CASE WHEN change.describes THEN change.description ELSE tasks.description END,
        status = coalesce(change.status, tasks.status),
        updated_at = greatest(changed_at, (tasks.updated_at AT TIME ZONE 'UTC' + interval '1 microsecond') AT TIME ZONE 'UTC')
    FROM owner, json_to_recordset(%s)
        AS change (id bigint, updated_at timestamptz, title text, describes boolean, description text, status text)
    WHERE tasks.user_id = %s
        AND tasks.id = ANY (%s::bigint[])
        AND tasks.id = change.id
        AND (change.updated_at IS NULL OR tasks.updated_at = change.updated_at)
    RETURNING tasks.id, tasks.user_id, tasks.title, tasks.description, tasks.status, tasks.created_at, tasks.updated_at
),
deleted AS (
    DELETE FROM tasks
    USING owner, json_to_recordset(%s) AS change (id bigint, updated_at timestamptz)
    WHERE tasks.user_id = %s
        AND tasks.id = ANY (%s::bigint[])
        AND tasks.id = change.id
        AND (change.updated_at IS NULL OR tasks.updated_at = change.updated_at)
    RETURNING
        tasks.id,
        greatest(changed_at, (tasks.updated_at AT TIME ZONE 'UTC' + interval '1 microsecond') AT TIME ZONE 'UTC') AS deleted_at
),
created AS (
    INSERT INTO tasks (user_id, id, title, description, status, created_at, updated_at)
    OVERRIDING SYSTEM VALUE
    SELECT %s, task_id, title, description, status, changed_at, changed_at
    FROM owner, claimed
    JOIN sent USING (key)
    WHERE replays = 0
    RETURNING id, user_id, title, description, status, created_at, updated_at
),
noted AS (
    INSERT INTO deleted_tasks (user_id, id, deleted_at)
    SELECT %s, id, deleted_at
    FROM deleted
),
forgotten_tasks AS (
    DELETE FROM deleted_tasks
    WHERE user_id = %s
        AND (deleted_at, id) IN (
            SELECT deleted_at, id
            FROM deleted_tasks
            WHERE user_id = %s
                AND deleted_at < now() - interval '2161 hours'
            ORDER BY deleted_at, id
            LIMIT 200
        )
),
forgotten_keys AS (
    DELETE FROM idempotency_keys
    WHERE user_id = %s
        AND key IN (
            SELECT key
            FROM idempotency_keys
            WHERE user_id = %s
                AND created_at < now() - interval '2161 hours'
                AND key <> ALL (%s::text[])
            ORDER BY created_at, key
            LIMIT 200
        )
)
SELECT key, digest, replays, task_id AS id, created.user_id, title, description, status, created_at, updated_at
FROM claimed
LEFT JOIN created ON created.id = claimed.task_id
UNION ALL
SELECT NULL, NULL, NULL, id, user_id, title, description, status, created_at, updated_at
FROM updated
UNION ALL
SELECT NULL, NULL, NULL, id, NULL, NULL, NULL, NULL, NULL, NULL
FROM deleted;
