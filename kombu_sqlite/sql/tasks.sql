-- name: get_task
-- One row.
SELECT * FROM task_queue WHERE id = :id;

-- name: get_by_task_id
-- The newest row of a task id.
SELECT * FROM task_queue INDEXED BY ix_task_task_id WHERE task_id = :task_id
ORDER BY id DESC LIMIT 1;

-- name: get_by_key
-- The row that holds an idempotency key.
SELECT * FROM task_queue WHERE idempotency_key = :key;

-- name: cancel_queued
-- Cancels a row that nobody holds.
UPDATE task_queue SET
    status = 'cancelled', finished_at_utc = :now, updated_at_utc = :now,
    error_message = :error, outcome_pending = 1
WHERE id = :id AND status = 'queued';

-- name: retry_ended
-- Puts a failed or cancelled row back into its queue with its deaths forgotten.
UPDATE task_queue SET
    status = 'queued', updated_at_utc = :now, run_after_utc = min(run_after_utc, :now),
    finished_at_utc = NULL, error_message = NULL, deaths = 0, outcome_pending = 0,
    locked_by = NULL, lease_until_utc = NULL, reserved_at_utc = NULL,
    processing_started_utc = NULL, expires_at_utc = NULL, cancel_requested = 0, acked_early = 0,
    follows = NULL
WHERE id = :id AND status IN ('failed', 'cancelled')
RETURNING queue;

-- name: get_ended
-- What putting a row back has to know of it.
SELECT status, type, payload, CAST(task_id AS BLOB), CAST(headers AS BLOB), idempotency_key
FROM task_queue WHERE id = :id;

-- name: list_workers
-- All workers.
SELECT * FROM workers ORDER BY worker_id;
