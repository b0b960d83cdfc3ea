-- A new task, and its owner's row if this is the owner's first task, in one round trip.
-- The owner's clock moves first, which locks the owner's row: the user's changes commit in the order of
-- their times. excluded.changed_at holds now(), which Citus does not take in DO UPDATE itself.
-- Parameters: user_id, user_id, title, description, status.
WITH owner AS (
    INSERT INTO users AS known (id, changed_at)
    VALUES (%s, now())
    ON CONFLICT (id) DO UPDATE
        SET changed_at = greatest(
            excluded.changed_at, (known.changed_at AT TIME ZONE 'UTC' + interval '1 microsecond') AT TIME ZONE 'UTC'
        )
    RETURNING changed_at
)
INSERT INTO tasks (user_id, title, description, status, created_at, updated_at)
SELECT %s, %s, %s, %s, changed_at, changed_at
FROM owner
RETURNING id, user_id, title, description, status, created_at, updated_at;
