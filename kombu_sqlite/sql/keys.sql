-- name: get_key_holder
-- The row that an idempotency key belongs to, and on which terms.
SELECT t.id, CAST(t.type AS BLOB), CAST(t.task_id AS BLOB), CAST(t.status AS BLOB),
       CAST(t.payload AS BLOB), k.scope, k.expires_at_utc
FROM task_queue t LEFT JOIN idempotency_keys k ON k.key = t.idempotency_key AND k.row_id = t.id
WHERE t.idempotency_key = :key;

-- name: free_row_key
-- Takes a key from a row that no longer holds it.
UPDATE task_queue SET idempotency_key = NULL WHERE id = :id;

-- name: set_row_key
-- Gives a key to a row just published.
UPDATE task_queue SET idempotency_key = :key WHERE id = :id;

-- name: upsert_key
-- Records on which terms a row holds a key.
INSERT INTO idempotency_keys (key, type, row_id, task_id, scope, expires_at_utc)
VALUES (:key, :type, :id, :task_id, :scope, :expires_at)
ON CONFLICT (key) DO UPDATE SET type = :type, row_id = :id, task_id = :task_id, scope = :scope,
    expires_at_utc = :expires_at;

-- name: move_key
-- Lets the terms on which a row holds a key hold for another row.
UPDATE idempotency_keys SET row_id = :to WHERE key = :key AND row_id = :id;

-- name: mark_follower
-- Makes a row just published wait for the end of another one instead of being executed.
UPDATE task_queue SET follows = :follows, run_after_utc = '9999-12-31 23:59:59.000'
WHERE id = :id;

-- name: list_followers
-- Duplicates whose first task has ended, or is gone.
SELECT f.id FROM task_queue f INDEXED BY ix_task_followers
LEFT JOIN task_queue t ON t.id = f.follows
WHERE f.follows IS NOT NULL AND f.status = 'queued'
  AND (t.id IS NULL OR t.status NOT IN ('queued', 'processing'))
LIMIT :limit;

-- name: end_follower
-- Ends a duplicate as its first task has ended; its result is owed.
UPDATE task_queue SET
    status = coalesce((SELECT t.status FROM task_queue t WHERE t.id = task_queue.follows), 'failed'),
    error_message = CASE WHEN EXISTS (SELECT 1 FROM task_queue t WHERE t.id = task_queue.follows)
        THEN (SELECT t.error_message FROM task_queue t WHERE t.id = task_queue.follows)
        ELSE 'the row of the first task with this idempotency key is gone' END,
    finished_at_utc = :now, updated_at_utc = :now, outcome_pending = 1
WHERE id = :id AND status = 'queued' AND follows IS NOT NULL;

-- name: prune_keys
-- Forgets the keys of rows about to be deleted.
DELETE FROM idempotency_keys WHERE key IN (
    SELECT idempotency_key FROM task_queue INDEXED BY ix_task_finished
    WHERE finished_at_utc IS NOT NULL AND finished_at_utc < :before
      AND status NOT IN ('queued', 'processing')
    ORDER BY finished_at_utc LIMIT :limit);

-- name: prune_key_results
-- Forgets the results that were kept for the keys of rows about to be deleted.
DELETE FROM task_results WHERE task_id IN (
    SELECT task_id FROM task_queue INDEXED BY ix_task_finished
    WHERE finished_at_utc IS NOT NULL AND finished_at_utc < :before
      AND status NOT IN ('queued', 'processing') AND headers LIKE '%"idempotency_key": %'
    ORDER BY finished_at_utc LIMIT :limit) AND expires_at_utc IS NULL;
