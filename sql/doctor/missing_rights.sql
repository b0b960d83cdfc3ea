-- The rights that the role of this session lacks, as the start of a GRANT: "INSERT, UPDATE ON tasks". It fails
-- where a table is missing. A sequence counts where a column takes its default from it; the one of an identity
-- column needs no right.
WITH tables (relation) AS (
    VALUES ('users'::regclass), ('tasks'), ('deleted_tasks'), ('idempotency_keys')
)
SELECT string_agg(needed, ', ' ORDER BY number) || ' ON ' || relation
FROM tables, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) WITH ORDINALITY AS list (needed, number)
WHERE NOT has_table_privilege(relation, needed)
GROUP BY relation
UNION ALL
SELECT DISTINCT 'USAGE ON SEQUENCE ' || refobjid::regclass
FROM tables
JOIN pg_attrdef ON adrelid = relation
JOIN pg_depend ON classid = 'pg_attrdef'::regclass AND objid = pg_attrdef.oid
JOIN pg_class ON refclassid = 'pg_class'::regclass AND pg_class.oid = refobjid
-- CASE, because the function fails for what is no sequence, and conditions have no order.
WHERE CASE relkind WHEN 'S' THEN NOT has_sequence_privilege(refobjid, 'USAGE, UPDATE') END
ORDER BY 1;
