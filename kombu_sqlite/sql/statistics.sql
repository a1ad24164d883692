-- name: count_groups
-- Tasks by queue, type and state; states that others invented are one (all text may be unreadable).
SELECT CAST(queue AS BLOB), CAST(type AS BLOB),
       CASE WHEN status IN ('queued', 'processing', 'completed', 'failed', 'cancelled')
            THEN status ELSE 'unknown' END,
       tasks
FROM task_counts
WHERE tasks <> 0 AND (:queue IS NULL OR queue = :queue) AND (:type IS NULL OR type = :type);

-- name: count_by_status
-- Tasks by status, of all or one queue or type; what others invented is one status (its text may
-- be unreadable).
SELECT CASE WHEN status IN ('queued', 'processing', 'completed', 'failed', 'cancelled')
            THEN status ELSE 'unknown' END AS known, sum(tasks)
FROM task_counts
WHERE (:queue IS NULL OR queue = :queue) AND (:type IS NULL OR type = :type)
GROUP BY known;

-- name: oldest_queued
-- When the oldest queued row was created: the first of each queue and type, ready or waiting, whose
-- time is one.
SELECT CAST(min(t.created_at_utc) AS BLOB)
FROM task_counts c CROSS JOIN task_queue t ON t.id = (
    SELECT n.id FROM task_queue n INDEXED BY ix_task_type_status
    WHERE n.type = c.type AND n.status = 'queued' AND n.queue = c.queue
      AND n.created_at_utc GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]*'
      AND unixepoch(n.created_at_utc) IS NOT NULL
    ORDER BY n.id LIMIT 1)
WHERE c.status = 'queued' AND c.tasks > 0
  AND (:queue IS NULL OR c.queue = :queue) AND (:type IS NULL OR c.type = :type);

-- name: sample_ended
-- The last rows that ended, the last one first: state, whether they ran more than once, when they
-- were there and due, began and ended. The state is NULL in rows that were not asked for, a time
-- where it is none. (Leaving those rows out by a query around this one costs a tenth more.)
SELECT CASE WHEN status IN ('completed', 'failed', 'cancelled')
             AND (:queue IS NULL OR queue = :queue) AND (:type IS NULL OR type = :type)
            THEN status END,
       attempts > 1,
       max(unixepoch(created_at_utc, 'subsec'), unixepoch(run_after_utc, 'subsec')),
       unixepoch(processing_started_utc, 'subsec'),
       unixepoch(finished_at_utc, 'subsec')
FROM task_queue INDEXED BY ix_task_finished
WHERE finished_at_utc IS NOT NULL AND finished_at_utc >= :since
ORDER BY finished_at_utc DESC LIMIT :window;

-- name: list_monitors
-- Processes that are no workers: without a node name they hold nothing and consume events and
-- replies alone.
SELECT CAST(worker_id AS BLOB) FROM workers w
WHERE hostname IS NULL
  AND EXISTS (SELECT 1 FROM consumers c WHERE c.worker_id = w.worker_id)
  AND NOT EXISTS (SELECT 1 FROM consumers c JOIN queues q ON q.name = c.queue
                   WHERE c.worker_id = w.worker_id AND q.durable AND NOT q.auto_delete)
  AND NOT EXISTS (SELECT 1 FROM task_queue t
                   WHERE t.status = 'processing' AND t.locked_by = w.worker_id);

-- name: list_worker_statuses
-- Whether each worker is active, stale or gone, without counting what it holds.
SELECT CAST(worker_id AS BLOB), status FROM v_worker_status;

-- name: list_worker_states
-- All workers with what they hold; text as bytes, since some of it may be unreadable.
SELECT CAST(worker_id AS BLOB) AS worker_id, CAST(hostname AS BLOB) AS hostname,
       CAST(host AS BLOB) AS host, CAST(pid AS INTEGER) AS pid,
       CAST(concurrency AS INTEGER) AS concurrency, CAST(capabilities AS BLOB) AS capabilities,
       CAST(started_at_utc AS BLOB) AS started_at_utc,
       CAST(heartbeat_utc AS BLOB) AS heartbeat_utc, status, processing,
       lease_until_utc
FROM v_worker_status ORDER BY worker_id;
