-- The clock of a user's changes, which every write moves, for clients that ask whether something has
-- changed. No row: the user never had a task.
-- Parameters: user_id.
SELECT changed_at
FROM users
WHERE id = %s;
