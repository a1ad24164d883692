-- name: insert_message
-- Publishes one message to one durable queue.
INSERT INTO task_queue (
    type, priority, payload, compatibility, max_attempts, run_after_utc, created_at_utc,
    updated_at_utc, queue, task_id, headers, properties, expires_at_utc, pad)
VALUES (
    :type, :priority, :payload, :compatibility, :max_attempts, :run_after, :now,
    :now, :queue, :task_id, :headers, :properties, :expires_at, :pad);

-- name: insert_task
-- Enqueues a task as other programs do, with its idempotency key.
INSERT INTO task_queue (
    type, priority, payload, compatibility, max_attempts, run_after_utc, created_at_utc,
    updated_at_utc, queue, idempotency_key)
VALUES (
    :type, :priority, :payload, :compatibility, :max_attempts, :run_after, :now,
    :now, :queue, :idempotency_key)
ON CONFLICT (idempotency_key) DO NOTHING
RETURNING id;

-- name: find_ready
-- What a claim of one lane would lease, by priority, then age.
SELECT id, delivery_no, queue, type, priority, payload, headers, properties, task_id,
       attempts, max_attempts, deaths, expires_at_utc, run_after_utc, cancel_requested
FROM task_queue INDEXED BY ix_task_status_prio_time
WHERE queue = :queue AND compatibility = :lane
  AND status = 'queued' AND run_after_utc <= updated_at_utc
ORDER BY priority, id LIMIT :limit;

-- name: find_ready_at_priority
-- As find_ready, within one priority; weighted scheduling chooses it.
SELECT id, delivery_no, queue, type, priority, payload, headers, properties, task_id,
       attempts, max_attempts, deaths, expires_at_utc, run_after_utc, cancel_requested
FROM task_queue INDEXED BY ix_task_status_prio_time
WHERE queue = :queue AND compatibility = :lane AND priority = :priority
  AND status = 'queued' AND run_after_utc <= updated_at_utc
ORDER BY id LIMIT :limit;

-- name: create_age_index
-- What fifo and lifo scheduling need; made when first enabled.
CREATE INDEX IF NOT EXISTS ix_task_ready_age ON task_queue (queue, compatibility, id)
    WHERE status = 'queued' AND run_after_utc <= updated_at_utc;

-- name: find_ready_oldest
-- As find_ready, oldest first (fifo).
SELECT id, delivery_no, queue, type, priority, payload, headers, properties, task_id,
       attempts, max_attempts, deaths, expires_at_utc, run_after_utc, cancel_requested
FROM task_queue INDEXED BY ix_task_ready_age
WHERE queue = :queue AND compatibility = :lane
  AND status = 'queued' AND run_after_utc <= updated_at_utc
ORDER BY id LIMIT :limit;

-- name: find_ready_newest
-- As find_ready, newest first (lifo).
SELECT id, delivery_no, queue, type, priority, payload, headers, properties, task_id,
       attempts, max_attempts, deaths, expires_at_utc, run_after_utc, cancel_requested
FROM task_queue INDEXED BY ix_task_ready_age
WHERE queue = :queue AND compatibility = :lane
  AND status = 'queued' AND run_after_utc <= updated_at_utc
ORDER BY id DESC LIMIT :limit;

-- name: lease_row
-- Leases a row found ready in the same transaction, with a new delivery tag. (With RETURNING and a
-- subquery in one statement a claim of one message costs three times as much.)
-- The pad: a large row is given 250 spaces at its publish and loses one for each character that
-- other columns gain, so that its size stays the same and SQLite rewrites only the pages that
-- differ, not the payload. 256 is the sum kept; 23 characters a time, at least 58 spaces, below
-- which the record's header would shrink.
UPDATE task_queue SET
    status = 'processing', attempts = attempts + 1, delivery_no = delivery_no + 1,
    locked_by = :worker, reserved_at_utc = :now, lease_until_utc = :lease_until,
    processing_started_utc = :started, updated_at_utc = :now,
    pad = CASE WHEN pad IS NULL THEN NULL ELSE printf('%*s', max(58, 200 - length(:worker)
        - coalesce(length(:started), 0) - (attempts > 0) - (delivery_no > 0)), '') END
WHERE id = :id;

-- name: list_priorities
-- The priorities present in one lane, by a loose index scan.
WITH RECURSIVE level(priority) AS (
    SELECT min(priority) FROM task_queue INDEXED BY ix_task_status_prio_time
     WHERE queue = :queue AND compatibility = :lane
       AND status = 'queued' AND run_after_utc <= updated_at_utc
    UNION ALL
    SELECT (SELECT min(t.priority) FROM task_queue t INDEXED BY ix_task_status_prio_time
             WHERE t.queue = :queue AND t.compatibility = :lane AND t.priority > level.priority
               AND t.status = 'queued' AND t.run_after_utc <= t.updated_at_utc)
      FROM level WHERE level.priority IS NOT NULL)
SELECT priority FROM level WHERE priority IS NOT NULL LIMIT 100;

-- name: any_lane
-- Whether any message ever asked for a capability; until then there is one lane only.
SELECT 1 FROM task_queue WHERE compatibility <> '{}' LIMIT 1;

-- name: list_lanes
-- The lanes of one queue that have ready messages, by a loose index scan.
WITH RECURSIVE lane(compatibility) AS (
    SELECT min(compatibility) FROM task_queue INDEXED BY ix_task_status_prio_time
     WHERE queue = :queue AND status = 'queued' AND run_after_utc <= updated_at_utc
    UNION ALL
    SELECT (SELECT min(t.compatibility) FROM task_queue t INDEXED BY ix_task_status_prio_time
             WHERE t.queue = :queue AND t.compatibility > lane.compatibility
               AND t.status = 'queued' AND t.run_after_utc <= t.updated_at_utc)
      FROM lane WHERE lane.compatibility IS NOT NULL)
SELECT CAST(compatibility AS BLOB), typeof(compatibility) FROM lane WHERE compatibility IS NOT NULL;

-- name: peek_ready
-- Whether a queue has a ready message in one lane; the check before sleeping is this read.
SELECT 1 FROM task_queue INDEXED BY ix_task_status_prio_time
WHERE queue = :queue AND compatibility = :lane
  AND status = 'queued' AND run_after_utc <= updated_at_utc LIMIT 1;

-- name: set_task_id
-- Stores the task id minted at the first claim of a row written by others.
UPDATE task_queue SET task_id = :task_id WHERE id = :id;

-- name: mint_task_id
-- Gives a task id to a row that has none.
UPDATE task_queue SET task_id = :task_id WHERE id = :id AND task_id IS NULL;

-- name: get_task_id
-- Celery's id of one row.
SELECT task_id FROM task_queue WHERE id = :id;

-- name: start_delivery
-- Records that execution begins, and whether it is acknowledged with that; no row changed means
-- that the lease was lost or the task cancelled.
UPDATE task_queue SET processing_started_utc = :now, updated_at_utc = :now, acked_early = :early,
    pad = CASE WHEN pad IS NULL THEN NULL ELSE printf('%*s', max(58, 177 - length(locked_by)
        - (attempts > 1) - (delivery_no > 1)), '') END
WHERE id = :id AND delivery_no = :delivery_no AND status = 'processing';

-- name: end_delivery
-- Ends one delivery; no row changed means it is somebody else's, or ended already.
UPDATE task_queue SET
    status = :status, finished_at_utc = :now, updated_at_utc = :now, lease_until_utc = NULL,
    error_message = :error,
    pad = CASE WHEN pad IS NULL THEN NULL ELSE printf('%*s', max(58, 210 - length(:status)
        - coalesce(length(locked_by), 0) - coalesce(length(processing_started_utc), 0)
        - coalesce(length(:error), 0) - (attempts > 1) - (delivery_no > 1)), '') END
WHERE id = :id AND delivery_no = :delivery_no AND status = 'processing';

-- name: cancel_found
-- Cancels a ready row, found expired or beyond its queue's length; its result is still owed.
UPDATE task_queue SET
    status = 'cancelled', finished_at_utc = :now, updated_at_utc = :now,
    error_message = :error, outcome_pending = 1
WHERE id = :id;

-- name: requeue_delivery
-- Puts one delivery back at the front of its queue; :undo takes back the attempt it counted.
UPDATE task_queue SET
    status = 'queued', updated_at_utc = max(:now, run_after_utc), locked_by = NULL,
    lease_until_utc = NULL, reserved_at_utc = NULL, processing_started_utc = NULL,
    acked_early = 0, attempts = attempts - :undo
WHERE id = :id AND delivery_no = :delivery_no AND status = 'processing'
RETURNING queue;

-- name: exhaust_delivery
-- Fails a delivery whose execution died once too often; its result is still owed.
UPDATE task_queue SET
    status = 'failed', deaths = deaths + 1, finished_at_utc = :now, updated_at_utc = :now,
    lease_until_utc = NULL, outcome_pending = 1,
    error_message = 'delivery attempts exhausted: ' || (deaths + 1) || ' of '
                    || max_attempts || ' executions died'
WHERE id = :id AND delivery_no = :delivery_no AND status = 'processing'
  AND deaths + 1 >= max_attempts;

-- name: requeue_died
-- Puts a delivery whose execution died back at the front of its queue.
UPDATE task_queue SET
    status = 'queued', updated_at_utc = max(:now, run_after_utc), locked_by = NULL,
    lease_until_utc = NULL, reserved_at_utc = NULL, processing_started_utc = NULL,
    acked_early = 0, deaths = deaths + 1
WHERE id = :id AND delivery_no = :delivery_no AND status = 'processing'
RETURNING queue;

-- name: get_continued
-- What a publish under a live delivery would continue, and whether somebody else has ended it.
SELECT delivery_no, status, queue, cancel_requested,
       status = 'cancelled' OR (status = 'failed'
           AND (error_message LIKE 'worker lost: %'
                OR error_message LIKE 'delivery attempts exhausted: %')),
       idempotency_key
FROM task_queue WHERE id = :id;

-- name: continue_row
-- Publishes the next run of a task into its own row: a retry, a replacement, a run after a lost
-- process. It supersedes the delivery it was published under.
UPDATE task_queue SET
    type = :type, priority = :priority, payload = :payload, compatibility = :compatibility,
    run_after_utc = :run_after, updated_at_utc = :now, task_id = :task_id, headers = :headers,
    properties = :properties, expires_at_utc = :expires_at, pad = :pad,
    status = 'queued', locked_by = NULL, lease_until_utc = NULL, reserved_at_utc = NULL,
    processing_started_utc = NULL, acked_early = 0
WHERE id = :id;

-- name: renew_delivery
-- Extends the lease of one delivery.
UPDATE task_queue SET lease_until_utc = :lease_until, updated_at_utc = :now
WHERE id = :id AND delivery_no = :delivery_no AND status = 'processing';

-- name: get_delivery_state
-- Tells why a tag matched nothing: its number and state now.
SELECT delivery_no, status, queue, task_id FROM task_queue WHERE id = :id;

-- name: fail_queued
-- Quarantines a queued row that makes no sense, with the reason.
UPDATE task_queue SET
    status = 'failed', finished_at_utc = :now, updated_at_utc = :now, error_message = :error
WHERE id = :id AND status NOT IN ('processing', 'completed', 'failed', 'cancelled');

-- name: list_ready_raw
-- Ready rows as bytes, for finding the one whose text cannot be decoded.
SELECT id,
       CASE WHEN typeof(type) = 'text' THEN CAST(type AS BLOB) END,
       CASE WHEN typeof(payload) = 'text' THEN CAST(payload AS BLOB) END,
       CASE WHEN typeof(headers) = 'text' THEN CAST(headers AS BLOB) END,
       CASE WHEN typeof(properties) = 'text' THEN CAST(properties AS BLOB) END,
       CASE WHEN typeof(task_id) = 'text' THEN CAST(task_id AS BLOB) END,
       CASE WHEN typeof(priority) = 'text' THEN CAST(priority AS BLOB) END,
       CASE WHEN typeof(run_after_utc) = 'text' THEN CAST(run_after_utc AS BLOB) END,
       CASE WHEN typeof(expires_at_utc) = 'text' THEN CAST(expires_at_utc AS BLOB) END,
       CAST(compatibility AS BLOB),
       CASE WHEN typeof(delivery_no) = 'text' THEN CAST(delivery_no AS BLOB) END,
       CASE WHEN typeof(attempts) = 'text' THEN CAST(attempts AS BLOB) END,
       CASE WHEN typeof(max_attempts) = 'text' THEN CAST(max_attempts AS BLOB) END,
       CASE WHEN typeof(cancel_requested) = 'text' THEN CAST(cancel_requested AS BLOB) END,
       CASE WHEN typeof(deaths) = 'text' THEN CAST(deaths AS BLOB) END
FROM task_queue INDEXED BY ix_task_status_prio_time
WHERE queue = :queue AND status = 'queued' AND run_after_utc <= updated_at_utc;

-- name: purge_queue
-- Cancels all messages of a durable queue that nobody holds.
UPDATE task_queue SET
    status = 'cancelled', finished_at_utc = :now, updated_at_utc = :now, error_message = :error,
    outcome_pending = 1
WHERE id IN (
    SELECT id FROM task_queue INDEXED BY ix_task_status_prio_time
    WHERE queue = :queue AND status = 'queued' AND run_after_utc <= updated_at_utc
    UNION ALL
    SELECT id FROM task_queue INDEXED BY ix_task_waiting
    WHERE queue = :queue AND status = 'queued' AND run_after_utc > updated_at_utc);

-- name: find_overflow
-- The oldest ready message of the lowest priority of all lanes, by the index alone.
WITH RECURSIVE lane(compatibility) AS (
    SELECT min(compatibility) FROM task_queue INDEXED BY ix_task_status_prio_time
     WHERE queue = :queue AND status = 'queued' AND run_after_utc <= updated_at_utc
    UNION ALL
    SELECT (SELECT min(t.compatibility) FROM task_queue t INDEXED BY ix_task_status_prio_time
             WHERE t.queue = :queue AND t.compatibility > lane.compatibility
               AND t.status = 'queued' AND t.run_after_utc <= t.updated_at_utc)
      FROM lane WHERE lane.compatibility IS NOT NULL),
least(priority) AS MATERIALIZED (
    SELECT max((SELECT max(t.priority) FROM task_queue t INDEXED BY ix_task_status_prio_time
                 WHERE t.queue = :queue AND t.compatibility = lane.compatibility
                   AND t.status = 'queued' AND t.run_after_utc <= t.updated_at_utc))
      FROM lane)
SELECT id, length(CAST(payload AS BLOB)) FROM task_queue WHERE id = (
    SELECT min((SELECT min(t.id) FROM task_queue t INDEXED BY ix_task_status_prio_time
                 WHERE t.queue = :queue AND t.compatibility = lane.compatibility
                   AND t.priority = (SELECT priority FROM least)
                   AND t.status = 'queued' AND t.run_after_utc <= t.updated_at_utc))
      FROM lane);

-- name: list_overflow
-- As find_overflow, several at once: the whole queue is sorted.
SELECT id FROM task_queue INDEXED BY ix_task_status_prio_time
WHERE queue = :queue AND status = 'queued' AND run_after_utc <= updated_at_utc
ORDER BY priority DESC, id LIMIT :excess;

-- name: sum_ready_bytes
-- Bytes of the ready messages of one queue; only queues with x-max-length-bytes ask.
SELECT coalesce(sum(length(CAST(payload AS BLOB))), 0) FROM task_queue
INDEXED BY ix_task_status_prio_time
WHERE queue = :queue AND status = 'queued' AND run_after_utc <= updated_at_utc;

-- name: count_queued
-- How many messages wait in one queue, delayed ones included.
SELECT coalesce(sum(tasks), 0) FROM task_counts WHERE queue = :queue AND status = 'queued';

-- name: count_by_queue
-- How many messages wait in, and are held from, each queue that has any (its name may be
-- unreadable).
SELECT CAST(queue AS BLOB),
       sum(CASE status WHEN 'queued' THEN tasks ELSE 0 END),
       sum(CASE status WHEN 'processing' THEN tasks ELSE 0 END)
FROM task_counts
WHERE status IN ('queued', 'processing') AND tasks > 0
GROUP BY queue ORDER BY queue;

-- name: count_waiting
-- Of the first :limit delayed messages of all queues, how many there are, and of one queue.
SELECT count(*), coalesce(sum(queue = :queue), 0) FROM (
    SELECT queue FROM task_queue INDEXED BY ix_task_waiting
    WHERE status = 'queued' AND run_after_utc > updated_at_utc LIMIT :limit);

-- name: count_ready
-- How many messages of one queue are ready, counted one by one.
SELECT count(*) FROM task_queue INDEXED BY ix_task_status_prio_time
WHERE queue = :queue AND status = 'queued' AND run_after_utc <= updated_at_utc;
