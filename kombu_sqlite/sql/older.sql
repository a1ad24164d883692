-- name: list_columns
-- The columns of a table, generated ones included; none when there is no such table.
SELECT name FROM pragma_table_xinfo(:table) ORDER BY cid;

-- name: list_unique_constraints
-- What a table's UNIQUE constraints are over; an index of its own stands under list_additions.
SELECT group_concat(i.name, ', ') FROM pragma_index_list(:table) l JOIN pragma_index_info(l.name) i
WHERE l.origin = 'u' GROUP BY l.name;

-- name: list_additions
-- Indexes and triggers on the tables that the upgrade makes anew, as their makers wrote them.
SELECT name, sql FROM sqlite_schema
WHERE type IN ('index', 'trigger') AND sql IS NOT NULL
  AND lower(tbl_name) IN ('task_queue', 'workers', 'task_logs')
ORDER BY type, rowid;

-- name: find_shared_key
-- An idempotency key that several rows have, which no unique index can take.
SELECT CAST(idempotency_key AS BLOB), count(*), min(id), max(id) FROM task_queue
WHERE idempotency_key IS NOT NULL
GROUP BY idempotency_key COLLATE BINARY HAVING count(*) > 1 LIMIT 1;

-- name: find_null
-- A row without a value that every row must have.
SELECT id FROM task_queue
WHERE type IS NULL OR priority IS NULL OR payload IS NULL OR compatibility IS NULL
   OR status IS NULL OR attempts IS NULL OR max_attempts IS NULL OR run_after_utc IS NULL
   OR created_at_utc IS NULL OR updated_at_utc IS NULL LIMIT 1;
