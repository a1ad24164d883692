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

-- name: list_tasks_as_bytes
-- Rows by any of the filters, text as bytes: where one row's text cannot be decoded.
SELECT id,
       CAST(type AS BLOB) AS type,
       iif(typeof(priority) = 'text', CAST(priority AS BLOB), priority) AS priority,
       iif(typeof(payload) = 'text', CAST(payload AS BLOB), payload) AS payload,
       CAST(compatibility AS BLOB) AS compatibility,
       CAST(status AS BLOB) AS status,
       iif(typeof(attempts) = 'text', CAST(attempts AS BLOB), attempts) AS attempts,
       iif(typeof(max_attempts) = 'text', CAST(max_attempts AS BLOB), max_attempts) AS max_attempts,
       iif(typeof(run_after_utc) = 'text', CAST(run_after_utc AS BLOB), run_after_utc)
           AS run_after_utc,
       iif(typeof(lease_until_utc) = 'text', CAST(lease_until_utc AS BLOB), lease_until_utc)
           AS lease_until_utc,
       iif(typeof(reserved_at_utc) = 'text', CAST(reserved_at_utc AS BLOB), reserved_at_utc)
           AS reserved_at_utc,
       iif(typeof(processing_started_utc) = 'text', CAST(processing_started_utc AS BLOB), processing_started_utc)
           AS processing_started_utc,
       iif(typeof(finished_at_utc) = 'text', CAST(finished_at_utc AS BLOB), finished_at_utc)
           AS finished_at_utc,
       CAST(locked_by AS BLOB) AS locked_by,
       CAST(error_message AS BLOB) AS error_message,
       CAST(idempotency_key AS BLOB) AS idempotency_key,
       iif(typeof(created_at_utc) = 'text', CAST(created_at_utc AS BLOB), created_at_utc)
           AS created_at_utc,
       iif(typeof(updated_at_utc) = 'text', CAST(updated_at_utc AS BLOB), updated_at_utc)
           AS updated_at_utc,
       CAST(region AS BLOB) AS region,
       CAST(format AS BLOB) AS format,
       CAST(queue AS BLOB) AS queue,
       CAST(task_id AS BLOB) AS task_id,
       CAST(headers AS BLOB) AS headers,
       CAST(properties AS BLOB) AS properties,
       iif(typeof(expires_at_utc) = 'text', CAST(expires_at_utc AS BLOB), expires_at_utc)
           AS expires_at_utc,
       iif(typeof(delivery_no) = 'text', CAST(delivery_no AS BLOB), delivery_no) AS delivery_no,
       iif(typeof(deaths) = 'text', CAST(deaths AS BLOB), deaths) AS deaths,
       iif(typeof(outcome_pending) = 'text', CAST(outcome_pending AS BLOB), outcome_pending)
           AS outcome_pending,
       CAST(writer AS BLOB) AS writer,
       CAST(pad AS BLOB) AS pad,
       iif(typeof(acked_early) = 'text', CAST(acked_early AS BLOB), acked_early) AS acked_early,
       iif(typeof(cancel_requested) = 'text', CAST(cancel_requested AS BLOB), cancel_requested)
           AS cancel_requested,
       iif(typeof(follows) = 'text', CAST(follows AS BLOB), follows) AS follows,
       typeof(payload) = 'blob' AS opaque
FROM task_queue
WHERE id BETWEEN coalesce(:id, -9223372036854775808) AND coalesce(:id, 9223372036854775807)
  AND (:task_id IS NULL OR task_id = :task_id) AND (:key IS NULL OR idempotency_key = :key)
  AND (:format IS NULL OR (headers IS NULL AND format = :format))
  AND (:status IS NULL OR status = :status) AND (:type IS NULL OR type = :type)
  AND (:queue IS NULL OR queue = :queue) AND (:before IS NULL OR id < :before)
ORDER BY id DESC LIMIT coalesce(:limit, 1);

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
    processing_started_utc = NULL, expires_at_utc = NULL
WHERE id = :id AND status IN ('failed', 'cancelled')
RETURNING CAST(queue AS BLOB);

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

-- name: list_workers_as_bytes
-- All workers, text as bytes: where one row's text cannot be decoded.
SELECT CAST(worker_id AS BLOB) AS worker_id,
       CAST(capabilities AS BLOB) AS capabilities,
       iif(typeof(heartbeat_utc) = 'text', CAST(heartbeat_utc AS BLOB), heartbeat_utc)
           AS heartbeat_utc,
       iif(typeof(started_at_utc) = 'text', CAST(started_at_utc AS BLOB), started_at_utc)
           AS started_at_utc,
       CAST(host AS BLOB) AS host,
       iif(typeof(pid) = 'text', CAST(pid AS BLOB), pid) AS pid,
       iif(typeof(lock_byte) = 'text', CAST(lock_byte AS BLOB), lock_byte) AS lock_byte,
       iif(typeof(beat) = 'text', CAST(beat AS BLOB), beat) AS beat,
       iif(typeof(visibility_timeout_s) = 'text', CAST(visibility_timeout_s AS BLOB), visibility_timeout_s)
           AS visibility_timeout_s,
       CAST(hostname AS BLOB) AS hostname,
       iif(typeof(concurrency) = 'text', CAST(concurrency AS BLOB), concurrency) AS concurrency
FROM workers ORDER BY worker_id;

-- name: list_logs
-- The story of one row.
SELECT * FROM task_logs WHERE task_id = :task_id ORDER BY log_id;

-- name: list_logs_as_bytes
-- The story of one row, text as bytes: where some of it cannot be decoded.
SELECT log_id, task_id,
       iif(typeof(at_utc) = 'text', CAST(at_utc AS BLOB), at_utc) AS at_utc,
       CAST(level AS BLOB) AS level,
       CAST(message AS BLOB) AS message,
       CAST(details AS BLOB) AS details
FROM task_logs WHERE task_id = :task_id ORDER BY log_id;
