-- Several tasks at once, all or none, and their owner's row if these are the owner's first tasks.
-- The clock moves once, as in create_task: the tasks of one array have the same created_at, which no other
-- task of the user has. So only the first task needs the key. For a key that the user has used before, only
-- that task is returned, counted as a replay, or no row if the digest of the request differs. The others
-- are inserted only if the first is new.
-- Parameters: user_id, titles, descriptions, statuses, user_id, idempotency key, request digest, user_id.
WITH owner AS (
    INSERT INTO users (id, changed_at)
    VALUES (%s, now())
    ON CONFLICT (id) DO UPDATE
        SET changed_at = greatest(
            excluded.changed_at, (users.changed_at AT TIME ZONE 'UTC' + interval '1 microsecond') AT TIME ZONE 'UTC'
        )
    RETURNING changed_at
),
sent AS (
    SELECT title, description, status, number
    FROM unnest(%s::text[], %s::text[], %s::text[]) WITH ORDINALITY AS item (title, description, status, number)
),
first AS (
    INSERT INTO tasks (user_id, title, description, status, created_at, updated_at, idempotency_key, idempotency_digest)
    SELECT %s, title, description, status, changed_at, changed_at, %s, %s
    FROM owner, sent
    WHERE number = 1
    ON CONFLICT (user_id, idempotency_key) WHERE idempotency_key IS NOT NULL
        DO UPDATE SET idempotency_replays = tasks.idempotency_replays + 1
        WHERE tasks.idempotency_digest = excluded.idempotency_digest
    RETURNING id, user_id, title, description, status, created_at, updated_at, idempotency_replays
),
others AS (
    INSERT INTO tasks (user_id, title, description, status, created_at, updated_at)
    SELECT %s, sent.title, sent.description, sent.status, first.created_at, first.created_at
    FROM first, sent
    WHERE first.idempotency_replays = 0
        AND number > 1
    ORDER BY number
    RETURNING id, user_id, title, description, status, created_at, updated_at, idempotency_replays
)
SELECT id, user_id, title, description, status, created_at, updated_at, idempotency_replays
FROM first
UNION ALL
SELECT id, user_id, title, description, status, created_at, updated_at, idempotency_replays
FROM others
ORDER BY id;
