-- Delete a user with all tasks; the row that comes back says how many, no row: there is no such user.
-- The owner's row goes first, as every write of a task locks it first: no two of them wait for each
-- other. The cascade of the foreign keys would do, but could not count. It takes what is left of deleted
-- tasks, the keys, and the task that somebody is creating meanwhile, which this statement does not see.
-- Parameters: user_id, user_id.
WITH owner AS (
    DELETE FROM users
    WHERE id = %s
    RETURNING id
),
erased AS (
    DELETE FROM tasks
    USING owner
    WHERE user_id = %s
    RETURNING tasks.id
)
SELECT (SELECT count(id) FROM erased) AS tasks
FROM owner;
