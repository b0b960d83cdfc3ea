-- When anything of a user last changed, for clients that ask whether anything has; no row: never.
-- Parameters: user_id.
SELECT changed_at
FROM users
WHERE id = %s;
