-- The truth about the data. Every statement in it is idempotent and none of them drops data.
--
-- `flask --app wsgi init-db` runs this file in one transaction where there are no tables yet. On a
-- database in use it must keep no request waiting: there, it runs what stands before the first CREATE INDEX in
-- one transaction, again if a lock is not free, and then each index by itself, CONCURRENTLY.
--
-- The owner leads every key. One index then serves ownership, look-up and uniqueness, and the
-- same schema can be distributed by user (Citus) without a change.

CREATE TABLE IF NOT EXISTS users (
    id text CONSTRAINT users_pkey PRIMARY KEY,
    email text,
    created_at timestamptz NOT NULL DEFAULT now(),
    changed_at timestamptz NOT NULL DEFAULT now(),
    -- An index entry holds about 2,700 bytes at most; a longer id would fail there, not here.
    CONSTRAINT users_id_length_check CHECK (octet_length(id) BETWEEN 1 AND 1024)
);

-- text with a CHECK rather than varchar(n): a limit can then be raised without rewriting the table.
-- status is text with a CHECK rather than an enum: a value can be added, and taken back, in one ALTER.
CREATE TABLE IF NOT EXISTS tasks (
    user_id text NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY,
    title text NOT NULL,
    description text,
    status text NOT NULL DEFAULT 'incomplete',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT tasks_pkey PRIMARY KEY (user_id, id),
    CONSTRAINT tasks_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT tasks_title_length_check CHECK (char_length(title) BETWEEN 1 AND 255),
    -- White space is spelled out, because '\s' is another set under every collation.
    CONSTRAINT tasks_title_blank_check CHECK (title ~ '[^\t-\r\u001c-\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]'),
    CONSTRAINT tasks_description_length_check CHECK (char_length(description) <= 5000),
    CONSTRAINT tasks_status_check CHECK (status IN ('incomplete', 'complete'))
);

COMMENT ON TABLE users IS 'Owners of tasks. The identity provider owns users; a row appears here with the first task of its user.';
COMMENT ON COLUMN users.id IS 'The user id that the token names (claim "sub" unless configured otherwise), exactly as issued.';
COMMENT ON COLUMN users.email IS 'For operators who fill it in; the service neither reads nor writes it. NULL: not known.';
COMMENT ON COLUMN users.created_at IS 'When the user created a first task.';

COMMENT ON TABLE tasks IS 'To-do tasks. Deleting a user deletes the tasks of that user.';
COMMENT ON COLUMN tasks.user_id IS 'The owner; the only user who can see or change the task.';
COMMENT ON COLUMN tasks.id IS 'Positive number, given by the database and never reused; gaps are normal.';
COMMENT ON COLUMN tasks.title IS '1 to 255 characters, not only white space, stored exactly as sent.';
COMMENT ON COLUMN tasks.description IS 'At most 5000 characters, stored exactly as sent. NULL: none was given.';
COMMENT ON COLUMN tasks.status IS '"incomplete" or "complete".';
COMMENT ON COLUMN tasks.created_at IS 'When the task was created; never changes.';
COMMENT ON COLUMN tasks.updated_at IS 'When the task last changed: changed_at of its owner then. Grows by at least a microsecond with every change.';

-- What 0.1.0 did not have: the clock of a user's changes, what was deleted, and (0.3.0) keys that outlive
-- their tasks.

-- While a change of a table waits for its lock, all requests that come after it wait, too.
SET LOCAL lock_timeout = '300ms';

-- The default is evaluated once, so no row is rewritten. Some tasks may be dated in the future, where the
-- server's clock was wrong once; such users' clocks start there. These tasks are looked for before the
-- table is locked.
DO $$
DECLARE
    owners text[];
    newest timestamptz[];
BEGIN
    IF EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'users'::regclass AND attname = 'changed_at') THEN
        RETURN;
    END IF;
    SELECT array_agg(user_id), array_agg(updated_at)
    INTO owners, newest
    FROM (SELECT user_id, max(updated_at) AS updated_at FROM tasks WHERE updated_at > now() GROUP BY user_id) AS ahead;
    ALTER TABLE users ADD COLUMN changed_at timestamptz NOT NULL DEFAULT now();
    UPDATE users
    SET changed_at = updated_at
    FROM unnest(owners, newest) AS ahead (user_id, updated_at)
    WHERE id = user_id;
END
$$;

-- What is left of a deleted task, for clients that keep a copy. The time is part of the key, so that
-- their index is the only one; it also lets a task be put back by hand, and be deleted again.
CREATE TABLE IF NOT EXISTS deleted_tasks (
    user_id text NOT NULL,
    id bigint NOT NULL,
    deleted_at timestamptz NOT NULL,
    CONSTRAINT deleted_tasks_pkey PRIMARY KEY (user_id, deleted_at, id),
    CONSTRAINT deleted_tasks_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE
);

-- A table of its own, because a key has to be known after its task was deleted. The row of a key decides
-- which of two creates makes the task, so the task's id is taken here, by a default that calls nextval().
-- That needs the right to use the sequence. PUBLIC gets it, so that a role needs rights on tables only.
DO $$
BEGIN
    IF to_regclass('idempotency_keys') IS NULL THEN
        GRANT USAGE ON SEQUENCE tasks_id_seq TO PUBLIC;
    END IF;
END
$$;
CREATE TABLE IF NOT EXISTS idempotency_keys (
    user_id text NOT NULL,
    key text NOT NULL,
    digest bytea NOT NULL,
    task_id bigint NOT NULL DEFAULT nextval('tasks_id_seq'),
    created_at timestamptz NOT NULL,
    replays integer NOT NULL DEFAULT 0,
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (user_id, key),
    CONSTRAINT idempotency_keys_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT idempotency_keys_key_length_check CHECK (char_length(key) BETWEEN 1 AND 255)
);

-- A comment's lock keeps a vacuum waiting, and no request.
SET LOCAL lock_timeout TO DEFAULT;

COMMENT ON COLUMN users.changed_at IS 'The clock of the user''s changes: the time of the latest one, moved on and locked by every write of a task before the write itself. Whoever changes tasks by hand moves it by hand (docs/psql.md).';

COMMENT ON TABLE deleted_tasks IS 'Deleted tasks, for clients that keep a copy. Those older than 90 days go with later deletes of the same user; deleting a user deletes all of them.';
COMMENT ON COLUMN deleted_tasks.user_id IS 'The owner of the deleted task.';
COMMENT ON COLUMN deleted_tasks.id IS 'The id that the task had.';
COMMENT ON COLUMN deleted_tasks.deleted_at IS 'When the task was deleted: changed_at of its owner then.';

COMMENT ON TABLE idempotency_keys IS 'The Idempotency-Key of each create that had one, in a header or in a push. Those older than 90 days go with later keys of the same user; deleting a user deletes all of them.';
COMMENT ON COLUMN idempotency_keys.user_id IS 'Who sent the key. Keys of different users never meet.';
COMMENT ON COLUMN idempotency_keys.key IS '1 to 255 visible ASCII characters, made up by the client.';
COMMENT ON COLUMN idempotency_keys.digest IS 'SHA-256 of the validated task that was sent with it.';
COMMENT ON COLUMN idempotency_keys.task_id IS 'The task that was created. Perhaps it was deleted since, so this is no foreign key.';
COMMENT ON COLUMN idempotency_keys.created_at IS 'When the task was created: changed_at of its owner then.';
COMMENT ON COLUMN idempotency_keys.replays IS 'How often the key was sent again.';

-- ops/migrate.py cuts this file at the first CREATE INDEX and before each later one: only indexes follow.

-- Newest first. The trailing status lets a filtered list skip entries inside the index, without
-- a visit to the table; an index of its own per status would make every write pay for it.
CREATE INDEX IF NOT EXISTS tasks_newest_idx ON tasks (user_id, created_at DESC, id DESC, status);

-- What changed, oldest first.
CREATE INDEX IF NOT EXISTS tasks_changes_idx ON tasks (user_id, updated_at, id);

-- The oldest keys, which are forgotten first.
CREATE INDEX IF NOT EXISTS idempotency_keys_created_at_idx ON idempotency_keys (user_id, created_at);
