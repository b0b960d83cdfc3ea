-- Change the fields that were sent, leave the others. A null title or status means "not sent". As
-- null is a legal description, a flag of its own says whether one was sent.
-- The owner's clock moves first, as in create_task. now() may stand still or be set back between two
-- changes; the sum makes the clock move on all the same. It is taken in UTC, where it does not depend
-- on the session's time zone: Citus refuses an UPDATE whose sum could.
-- updated_at is the version that If-Match compares. It is the clock, unless somebody wrote a later one
-- by hand.
-- Parameters: user_id, title, description sent, description, status, user_id, id, versions (null: any),
-- versions, versions that it must not be (null: none).
WITH owner AS (
    UPDATE users
    SET changed_at = greatest(now(), (changed_at AT TIME ZONE 'UTC' + interval '1 microsecond') AT TIME ZONE 'UTC')
    WHERE id = %s
    RETURNING changed_at
)
UPDATE tasks
SET title = coalesce(%s, title),
    description = CASE WHEN %s THEN %s ELSE description END,
    status = coalesce(%s, status),
    updated_at = greatest(changed_at, (updated_at AT TIME ZONE 'UTC' + interval '1 microsecond') AT TIME ZONE 'UTC')
FROM owner
WHERE user_id = %s
    AND id = %s
    AND (%s::timestamptz[] IS NULL OR updated_at = ANY (%s::timestamptz[]))
    AND (updated_at = ANY (%s::timestamptz[])) IS NOT TRUE
RETURNING id, user_id, title, description, status, created_at, updated_at;
