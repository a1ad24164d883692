-- name: get_live
-- What a cancel has to know of a row.
SELECT id, status, processing_started_utc IS NOT NULL, CAST(task_id AS BLOB), locked_by
FROM task_queue WHERE id = :id;

-- name: list_rows_of_task
-- The rows of one task id, newest first.
SELECT id FROM task_queue INDEXED BY ix_task_task_id WHERE task_id = :task_id ORDER BY id DESC;

-- name: cancel_unstarted
-- Cancels a row that waits or was only prefetched: its start then finds nothing to start, and its
-- lease was no attempt.
UPDATE task_queue SET
    attempts = CASE WHEN status = 'processing' THEN max(attempts - 1, 0) ELSE attempts END,
    status = 'cancelled', finished_at_utc = :now, updated_at_utc = :now, lease_until_utc = NULL,
    error_message = :error, outcome_pending = 1
WHERE id = :id AND (status = 'queued'
                    OR (status = 'processing' AND processing_started_utc IS NULL));

-- name: request_cancel
-- Marks a running row: it ends cancelled where it would run again.
UPDATE task_queue SET cancel_requested = 1, updated_at_utc = :now
WHERE id = :id AND status = 'processing';

-- name: list_stamped
-- Live rows whose message carries stamps.
SELECT id, CAST(headers AS BLOB) FROM task_queue INDEXED BY ix_task_status_prio_time
WHERE status = 'queued' AND run_after_utc <= updated_at_utc AND headers LIKE '%"stamped_headers": [%'
UNION ALL
SELECT id, CAST(headers AS BLOB) FROM task_queue INDEXED BY ix_task_waiting
WHERE status = 'queued' AND run_after_utc > updated_at_utc AND headers LIKE '%"stamped_headers": [%'
UNION ALL
SELECT id, CAST(headers AS BLOB) FROM task_queue INDEXED BY ix_task_leased
WHERE status = 'processing' AND headers LIKE '%"stamped_headers": [%';

-- name: list_cancellable
-- Live rows that match the filters given, oldest first.
SELECT id FROM task_queue
WHERE status IN ('queued', 'processing') AND (:queue IS NULL OR queue = :queue)
  AND (:type IS NULL OR type = :type) AND (:before IS NULL OR created_at_utc < :before)
ORDER BY id;

-- name: upsert_revocation
-- Revokes a task id or a stamp that has no row yet.
INSERT INTO revocations (header, value, expires_at_utc) VALUES (:header, :value, :expires_at)
ON CONFLICT (header, value) DO UPDATE SET expires_at_utc = max(expires_at_utc, :expires_at);

-- name: delete_revocation
-- Takes a revoked task id back.
DELETE FROM revocations WHERE header = '' AND value = :value;

-- name: get_revocation
-- Whether one task id is revoked.
SELECT 1 FROM revocations WHERE header = '' AND value = :task_id AND expires_at_utc > :now;

-- name: list_revoked_stamps
-- The stamps revoked now.
SELECT header, value FROM revocations WHERE header > '' AND expires_at_utc > :now;

-- name: delete_expired_revocations
-- Forgets revocations whose time is over.
DELETE FROM revocations WHERE expires_at_utc <= :now;
