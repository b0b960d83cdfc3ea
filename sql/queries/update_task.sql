-- Change the fields that were sent, leave the others. A null title or status means "not sent". As
-- null is a legal description, a flag of its own says whether one was sent.
-- updated_at is the version that If-Match compares. now() may stand still or be set back between
-- two changes; the sum makes updated_at grow all the same. It is taken in UTC, where it does not
-- depend on the session's time zone: Citus refuses an UPDATE whose sum could.
-- Parameters: title, description sent, description, status, user_id, id, versions (null: any), versions,
-- versions that it must not be (null: none).
UPDATE tasks
SET title = coalesce(%s, title),
    description = CASE WHEN %s THEN %s ELSE description END,
    status = coalesce(%s, status),
    updated_at = greatest(now(), (updated_at AT TIME ZONE 'UTC' + interval '1 microsecond') AT TIME ZONE 'UTC')
WHERE user_id = %s
    AND id = %s
    AND (%s::timestamptz[] IS NULL OR updated_at = ANY (%s::timestamptz[]))
    AND (updated_at = ANY (%s::timestamptz[])) IS NOT TRUE
RETURNING id, user_id, title, description, status, created_at, updated_at;
