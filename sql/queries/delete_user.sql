-- Delete a user with all tasks; the row that comes back says how many, no row: there is no such user.
-- The cascade of the foreign key would do, but could not count. It still takes the task that somebody
-- is creating meanwhile, which this statement does not see.
-- Parameters: user_id, user_id.
WITH erased AS (
    DELETE FROM tasks
    WHERE user_id = %s
    RETURNING id
),
owner AS (
    DELETE FROM users
    WHERE id = %s
    RETURNING id
)
SELECT (SELECT count(id) FROM erased) AS tasks
FROM owner;
