-- What changed for a user after a place, oldest first; a place is the time of a change and the id of its
-- task. A change is the task as it is now, or the id of a deleted one with null for its title.
-- One change more than the page may have is read, to see whether there are more. The page ends early when
-- its texts are too long; octet_length() knows their size without reading them.
-- A page has at most 1,000 changes, hence LIMIT 1001: a literal, so that the planner settles on a generic
-- plan. With a parameter there, it would plan each poll of a user with many tasks anew.
-- Every row begins with three columns that say whether the place is still good: when the owner's row was
-- made, the present time, and whether the place is later than everything known of the user (the clock, and
-- what somebody dated later by hand). A user without changes has one row with these alone; a user without a
-- row in users has none.
-- Parameters: user_id, time and id of the place; these three again; how many and one more; user_id, user_id,
-- time of the place; how many, how many bytes, user_id.
WITH page AS (
    SELECT
        id, user_id, title, description, status, created_at, updated_at,
        lead(id) OVER so_far IS NOT NULL AS more,
        row_number() OVER so_far AS number,
        sum(bytes) OVER so_far - bytes AS bytes_before
    FROM (
        (
            SELECT
                id, user_id, title, description, status, created_at, updated_at,
                octet_length(title) + coalesce(octet_length(description), 0) AS bytes
            FROM tasks
            WHERE user_id = %s
                AND (updated_at, id) > (%s::timestamptz, %s::bigint)
            ORDER BY updated_at, id
            LIMIT 1001
        )
        UNION ALL
        (
            SELECT id, user_id, NULL, NULL, NULL, NULL, deleted_at, 0
            FROM deleted_tasks
            WHERE user_id = %s
                AND (deleted_at, id) > (%s::timestamptz, %s::bigint)
            ORDER BY deleted_at, id
            LIMIT 1001
        )
        ORDER BY updated_at, id
        LIMIT %s
    ) AS changes
    WINDOW so_far AS (ORDER BY updated_at, id ROWS UNBOUNDED PRECEDING)
)
SELECT
    users.created_at,
    now(),
    greatest(
        users.changed_at,
        (SELECT max(updated_at) FROM tasks WHERE user_id = %s),
        (SELECT max(deleted_at) FROM deleted_tasks WHERE user_id = %s)
    ) < %s::timestamptz,
    page.more,
    page.id, page.user_id, page.title, page.description, page.status, page.created_at, page.updated_at
FROM users
LEFT JOIN page ON page.number <= %s AND page.bytes_before < %s
WHERE users.id = %s
ORDER BY page.updated_at, page.id;
