-- A new task, and its owner's row if this is the owner's first task, in one round trip.
-- The owner's clock moves first, which locks the owner's row: the user's changes commit in the order of
-- their times. excluded.changed_at holds now(), which Citus does not take in DO UPDATE itself.
-- A key that the user has used before yields the task it made then, counted as a replay, or no row
-- if the digest of the request differs. DO UPDATE rather than DO NOTHING: it returns the row.
-- Parameters: user_id, user_id, title, description, status, idempotency key, request digest.
WITH owner AS (
    INSERT INTO users AS known (id, changed_at)
    VALUES (%s, now())
    ON CONFLICT (id) DO UPDATE
        SET changed_at = greatest(
            excluded.changed_at, (known.changed_at AT TIME ZONE 'UTC' + interval '1 microsecond') AT TIME ZONE 'UTC'
        )
    RETURNING changed_at
)
INSERT INTO tasks (user_id, title, description, status, created_at, updated_at, idempotency_key, idempotency_digest)
SELECT %s, %s, %s, %s, changed_at, changed_at, %s, %s
FROM owner
ON CONFLICT (user_id, idempotency_key) WHERE idempotency_key IS NOT NULL
    DO UPDATE SET idempotency_replays = tasks.idempotency_replays + 1
    WHERE tasks.idempotency_digest = excluded.idempotency_digest
RETURNING id, user_id, title, description, status, created_at, updated_at, idempotency_replays;
