-- When any task of a user last changed, for clients that ask whether something has. No row: never.
-- Parameters: user_id.
SELECT changed_at
FROM users
WHERE id = %s;
