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

-- name: list_tasks
-- Rows that match the filters given, newest first.
SELECT * FROM task_queue
WHERE (:status IS NULL OR status = :status) AND (:type IS NULL OR type = :type)
  AND (:queue IS NULL OR queue = :queue) AND (:before IS NULL OR id < :before)
ORDER BY id DESC LIMIT :limit;

-- name: list_tasks_of_type
-- Rows of one type that failed or were cancelled, newest first.
SELECT * FROM task_queue INDEXED BY ix_task_type_status
WHERE type = :type AND status = :status AND status IN ('failed', 'cancelled')
  AND (:queue IS NULL OR queue = :queue) AND (:before IS NULL OR id < :before)
ORDER BY id DESC LIMIT :limit;

-- name: list_tasks_of_format
-- Rows written by other programs whose payload names a format, newest first.
SELECT * FROM task_queue INDEXED BY ix_task_format
WHERE headers IS NULL AND format = :format
  AND (:status IS NULL OR status = :status) AND (:type IS NULL OR type = :type)
  AND (:queue IS NULL OR queue = :queue) AND (:before IS NULL OR id < :before)
ORDER BY id DESC LIMIT :limit;

-- name: cancel_queued
-- Cancels a row that nobody holds.
UPDATE task_queue SET
    status = 'cancelled', finished_at_utc = :now, updated_at_utc = :now,
    error_message = :error, outcome_pending = 1
WHERE id = :id AND status = 'queued';

-- name: retry_ended
-- Puts a failed or cancelled row back into its queue with its deaths forgotten. cancel_requested -1:
-- ids and stamps revoked before do not count for it any more.
UPDATE task_queue SET
    status = 'queued', updated_at_utc = :now, run_after_utc = min(run_after_utc, :now),
    finished_at_utc = NULL, error_message = NULL, deaths = 0, outcome_pending = 0,
    locked_by = NULL, lease_until_utc = NULL, reserved_at_utc = NULL,
    processing_started_utc = NULL, expires_at_utc = NULL, cancel_requested = -1, acked_early = 0,
    follows = NULL
WHERE id = :id AND status IN ('failed', 'cancelled')
RETURNING queue;

-- name: get_ended
-- What putting a row back has to know of it.
SELECT status, type, payload, CAST(task_id AS BLOB), CAST(headers AS BLOB), idempotency_key
FROM task_queue WHERE id = :id;

-- name: count_by_status
-- Tasks by status, of all or one queue or type; what others invented is one status (its text may
-- be unreadable).
SELECT CASE WHEN status IN ('queued', 'processing', 'completed', 'failed', 'cancelled')
            THEN status ELSE 'unknown' END AS known, sum(tasks)
FROM task_counts
WHERE (:queue IS NULL OR queue = :queue) AND (:type IS NULL OR type = :type)
GROUP BY known;

-- name: oldest_queued
-- When the oldest queued row was created: the first of each lane and priority, and what waits.
WITH RECURSIVE head(queue, compatibility, priority, id) AS (
    SELECT * FROM (
        SELECT queue, compatibility, priority, id
        FROM task_queue INDEXED BY ix_task_status_prio_time
        WHERE status = 'queued' AND run_after_utc <= updated_at_utc
        ORDER BY queue, compatibility, priority, id LIMIT 1)
    UNION ALL
    SELECT t.queue, t.compatibility, t.priority, t.id
    FROM head JOIN task_queue t ON t.id = (
        SELECT n.id FROM task_queue n INDEXED BY ix_task_status_prio_time
        WHERE n.status = 'queued' AND n.run_after_utc <= n.updated_at_utc
          AND (n.queue, n.compatibility, n.priority)
              > (head.queue, head.compatibility, head.priority)
        ORDER BY n.queue, n.compatibility, n.priority, n.id LIMIT 1))
SELECT CAST(min(created_at_utc) AS BLOB) FROM (
    SELECT t.created_at_utc FROM head JOIN task_queue t USING (id)
    WHERE :queue IS NULL OR t.queue = :queue
    UNION ALL
    SELECT created_at_utc FROM task_queue WHERE id = (
        SELECT min(id) FROM task_queue INDEXED BY ix_task_waiting
        WHERE status = 'queued' AND run_after_utc > updated_at_utc
          AND (:queue IS NULL OR queue = :queue)));

-- name: oldest_queued_of_type
-- When the oldest queued row of one type was created.
SELECT CAST(min(created_at_utc) AS BLOB) FROM (
    SELECT created_at_utc FROM task_queue INDEXED BY ix_task_status_prio_time
    WHERE status = 'queued' AND run_after_utc <= updated_at_utc
      AND type = :type AND (:queue IS NULL OR queue = :queue)
    UNION ALL
    SELECT created_at_utc FROM task_queue INDEXED BY ix_task_waiting
    WHERE status = 'queued' AND run_after_utc > updated_at_utc
      AND type = :type AND (:queue IS NULL OR queue = :queue));

-- name: list_workers
-- All workers.
SELECT * FROM workers ORDER BY worker_id;
