-- name: promote_due
-- Makes messages ready whose time has come; touching updated_at_utc moves them between indexes.
UPDATE task_queue SET updated_at_utc = max(:now, run_after_utc)
WHERE id IN (
    SELECT id FROM task_queue INDEXED BY ix_task_waiting
    WHERE status = 'queued' AND run_after_utc > updated_at_utc AND run_after_utc <= :now
    ORDER BY run_after_utc LIMIT :limit)
RETURNING CAST(queue AS BLOB);

-- name: next_due
-- When the next waiting message falls due.
SELECT CAST(min(run_after_utc) AS BLOB) FROM task_queue INDEXED BY ix_task_waiting
WHERE status = 'queued' AND run_after_utc > updated_at_utc;

-- name: cancel_expired
-- Cancels queued messages whose time to live is over. A foreign time in another form does not sort
-- as a time; the claim judges it.
UPDATE task_queue SET
    status = 'cancelled', finished_at_utc = :now, updated_at_utc = :now,
    error_message = 'expired', outcome_pending = 1
WHERE id IN (
    SELECT id FROM task_queue INDEXED BY ix_task_expiring
    WHERE status = 'queued' AND expires_at_utc IS NOT NULL AND expires_at_utc <= :now
      AND length(expires_at_utc) IN (19, 23) AND substr(expires_at_utc, 11, 1) = ' '
    LIMIT :limit);

-- name: list_irregular
-- Rows written by others that no claim can make sense of, with what is odd about them.
SELECT id, CAST(status AS BLOB), typeof(type), typeof(queue), typeof(priority),
       typeof(run_after_utc), typeof(compatibility), CAST(run_after_utc AS BLOB),
       strftime('%Y-%m-%d %H:%M:%f', run_after_utc)
FROM task_queue INDEXED BY ix_task_irregular
WHERE (status <> 'queued' AND status <> 'processing' AND status <> 'completed'
       AND status <> 'failed' AND status <> 'cancelled')
   OR (status = 'queued' AND run_after_utc > updated_at_utc
       AND (substr(run_after_utc, 11, 1) <> ' ' OR length(run_after_utc) > 23))
   OR (status = 'queued' AND headers IS NULL AND (
          typeof(type) <> 'text' OR typeof(queue) <> 'text' OR typeof(priority) <> 'integer'
       OR typeof(run_after_utc) <> 'text' OR typeof(compatibility) <> 'text'))
LIMIT :limit;

-- name: list_queue_names
-- Queues with queued rows, by a loose index scan, as bytes: others may write any text.
WITH RECURSIVE name(queue) AS (
    SELECT min(queue) FROM task_counts
    UNION ALL
    SELECT (SELECT min(c.queue) FROM task_counts c WHERE c.queue > name.queue)
      FROM name WHERE name.queue IS NOT NULL)
SELECT CAST(queue AS BLOB), typeof(queue) FROM name
WHERE EXISTS (SELECT 1 FROM task_counts c
               WHERE c.queue = name.queue AND c.status = 'queued' AND c.tasks > 0);

-- name: list_queued_in
-- Rows queued in a queue whose name is given as bytes, and whether they are text or blob.
SELECT id FROM task_queue INDEXED BY ix_task_status_prio_time
WHERE queue = CASE :kind WHEN 'blob' THEN :queue ELSE CAST(:queue AS TEXT) END
  AND status = 'queued' AND run_after_utc <= updated_at_utc
UNION ALL
SELECT id FROM task_queue INDEXED BY ix_task_waiting
WHERE queue = CASE :kind WHEN 'blob' THEN :queue ELSE CAST(:queue AS TEXT) END
  AND status = 'queued' AND run_after_utc > updated_at_utc
LIMIT :limit;

-- name: list_ready_in_lane
-- Ready rows of one lane, whose name is given as bytes, and whether they are text or blob.
SELECT id FROM task_queue INDEXED BY ix_task_status_prio_time
WHERE queue = :queue
  AND compatibility = CASE :kind WHEN 'blob' THEN :lane ELSE CAST(:lane AS TEXT) END
  AND status = 'queued' AND run_after_utc <= updated_at_utc LIMIT :limit;

-- name: normalise_run_after
-- Rewrites a time in the file's form; it becomes ready or waits like any other.
UPDATE task_queue SET run_after_utc = :run_after, updated_at_utc = :now WHERE id = :id;

-- name: prune_finished
-- Deletes rows that ended long ago; one that somebody has queued again by SQL may still say so.
DELETE FROM task_queue WHERE id IN (
    SELECT id FROM task_queue INDEXED BY ix_task_finished
    WHERE finished_at_utc IS NOT NULL AND finished_at_utc < :before
      AND status NOT IN ('queued', 'processing')
    ORDER BY finished_at_utc LIMIT :limit)
RETURNING id;

-- name: prune_logs
-- Deletes the story of rows about to be deleted.
DELETE FROM task_logs WHERE task_id IN (
    SELECT id FROM task_queue INDEXED BY ix_task_finished
    WHERE finished_at_utc IS NOT NULL AND finished_at_utc < :before
      AND status NOT IN ('queued', 'processing')
    ORDER BY finished_at_utc LIMIT :limit);

-- name: give_back_pages
-- Returns free pages at the end of the file to the disk.
PRAGMA incremental_vacuum(256);

-- name: count_free_pages
-- How many pages of the file are unused.
PRAGMA freelist_count;

-- name: data_version
-- Changes whenever another connection committed.
PRAGMA data_version;

-- name: any_cancel_expired
-- Whether cancel_expired has something to do.
SELECT 1 FROM task_queue INDEXED BY ix_task_expiring
WHERE status = 'queued' AND expires_at_utc IS NOT NULL AND expires_at_utc <= :now
  AND length(expires_at_utc) IN (19, 23) AND substr(expires_at_utc, 11, 1) = ' ' LIMIT 1;

-- name: any_delete_expired_transient
-- Whether delete_expired_transient has something to do.
SELECT 1 FROM transient_messages
WHERE expires_at_utc IS NOT NULL AND expires_at_utc <= :now AND locked_by IS NULL LIMIT 1;

-- name: any_finished_before
-- Whether prune_finished has something to do.
SELECT 1 FROM task_queue INDEXED BY ix_task_finished
WHERE finished_at_utc IS NOT NULL AND finished_at_utc < :before
  AND status NOT IN ('queued', 'processing') LIMIT 1;

-- name: any_gone_worker
-- Whether prune_workers has something to do.
SELECT 1 FROM workers WHERE lock_byte IS NULL AND heartbeat_utc < :before LIMIT 1;

-- name: find_used_up
-- A table whose last row id is given away: AUTOINCREMENT then reports a full database.
SELECT name FROM sqlite_sequence WHERE seq >= 9223372036854775807 LIMIT 1;
