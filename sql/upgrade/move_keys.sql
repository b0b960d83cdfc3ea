-- The next 10,000 keys of a database of 0.2.0 or earlier, where they stand in tasks, into idempotency_keys: in
-- pieces, so that no request waits. Keys of more than 90 days ago stay behind. One row comes back, the last key
-- of the piece; none, when there are no more.
-- Parameters: user_id and key of the last piece.
WITH piece AS (
    SELECT user_id, idempotency_key, idempotency_digest, id, created_at, idempotency_replays
    FROM tasks
    WHERE idempotency_key IS NOT NULL
        AND (user_id, idempotency_key) > (%s, %s)
    ORDER BY user_id, idempotency_key
    LIMIT 10000
),
moved AS (
    INSERT INTO idempotency_keys (user_id, key, digest, task_id, created_at, replays)
    SELECT user_id, idempotency_key, idempotency_digest, id, created_at, idempotency_replays
    FROM piece
    WHERE created_at > now() - interval '2160 hours'
    ON CONFLICT (user_id, key) DO NOTHING
)
SELECT user_id, idempotency_key
FROM piece
ORDER BY user_id DESC, idempotency_key DESC
LIMIT 1;
