-- Spread a database that holds the schema over the nodes of a Citus cluster, by user:
--
--     psql "$DATABASE_URL" -f sql/citus.sql
--
-- On the coordinator, as a superuser, after each init-db, when the worker nodes have been added. Safe to
-- run twice, and after a run that was interrupted. docs/scaling.md says what has been run on Citus.
\set ON_ERROR_STOP on

CREATE EXTENSION IF NOT EXISTS citus;

-- A distributed table may only refer to a table that is distributed already: users come first.
SELECT NOT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = 'users'::regclass) AS missing \gset
\if :missing
    SELECT create_distributed_table('users', 'id');
\endif

-- Co-located: a user's row, tasks, deletions and keys are on the same node, so the foreign keys stay local to it.
SELECT NOT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = 'tasks'::regclass) AS missing \gset
\if :missing
    SELECT create_distributed_table('tasks', 'user_id', colocate_with => 'users');
\endif

SELECT NOT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = 'deleted_tasks'::regclass) AS missing \gset
\if :missing
    SELECT create_distributed_table('deleted_tasks', 'user_id', colocate_with => 'users');
\endif

SELECT NOT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = 'idempotency_keys'::regclass) AS missing \gset
\if :missing
    SELECT create_distributed_table('idempotency_keys', 'user_id', colocate_with => 'users');
\endif

-- The rows were copied to the shards; what is left on the coordinator is a hidden, ageing duplicate.
-- Follows the foreign keys to the others.
SELECT truncate_local_data_after_distributing_table('users');

SELECT table_name, citus_table_type, distribution_column, colocation_id, shard_count
FROM citus_tables
WHERE table_name IN ('users'::regclass, 'tasks'::regclass, 'deleted_tasks'::regclass, 'idempotency_keys'::regclass)
ORDER BY table_name::text;
