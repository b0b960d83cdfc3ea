-- A new task, and its owner's row if this is the owner's first task, in one round trip.
-- A key that the user has used before yields the task it made then, counted as a replay, or no row
-- if the digest of the request differs. DO UPDATE rather than DO NOTHING: it waits for a racing
-- twin to commit, and it returns the row.
-- Parameters: user_id, user_id, title, description, status, idempotency key, request digest.
WITH owner AS (
    INSERT INTO users (id)
    VALUES (%s)
    ON CONFLICT (id) DO NOTHING
)
INSERT INTO tasks (user_id, title, description, status, idempotency_key, idempotency_digest)
VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT (user_id, idempotency_key) WHERE idempotency_key IS NOT NULL
    DO UPDATE SET idempotency_replays = tasks.idempotency_replays + 1
    WHERE tasks.idempotency_digest = excluded.idempotency_digest
RETURNING id, user_id, title, description, status, created_at, updated_at, idempotency_replays;
