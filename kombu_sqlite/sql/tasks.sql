-- name: get_task
-- One row.
SELECT * FROM task_queue WHERE id = :id;

-- name: get_by_task_id
-- The newest row of a task id.
SELECT * FROM task_queue INDEXED BY ix_task_task_id WHERE task_id = :task_id
ORDER BY id DESC LIMIT 1;

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
-- Puts a failed or cancelled row back into its queue with its deaths forgotten. cancel_requested -1:
-- ids and stamps revoked before do not count for it any more. The ETA and expiry that a worker would
-- read in a task's headers do not either.
UPDATE task_queue SET
    status = 'queued', updated_at_utc = :now, run_after_utc = min(run_after_utc, :now),
    headers = CASE
        WHEN json_valid(headers) AND json_type(headers, '$.task') = 'text'
            AND 'text' IN (json_type(headers, '$.eta'), json_type(headers, '$.expires'))
        THEN json_set(headers, '$.eta', NULL, '$.expires', NULL) ELSE headers END,
    finished_at_utc = NULL, error_message = NULL, deaths = 0, outcome_pending = 0,
    locked_by = NULL, lease_until_utc = NULL, reserved_at_utc = NULL,
    processing_started_utc = NULL, expires_at_utc = NULL, cancel_requested = -1, acked_early = 0,
    follows = NULL
WHERE id = :id AND status IN ('failed', 'cancelled')
RETURNING CAST(queue AS BLOB);

-- name: get_ended
-- What putting a row back has to know of it.
SELECT status, type, payload, CAST(task_id AS BLOB), CAST(headers AS BLOB), idempotency_key
FROM task_queue WHERE id = :id;

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
