-- name: list_tasks
-- The newest rows.
SELECT id FROM task_queue WHERE id <= :newest ORDER BY id DESC LIMIT :limit;

-- name: list_tasks_in_groups
-- Rows of some queue, type or state, newest first: of each group that has such rows the newest, by
-- index alone, however many others there are.
SELECT t.id
FROM task_counts c CROSS JOIN task_queue t INDEXED BY ix_task_type_status
  ON t.type = c.type AND t.status = c.status AND t.queue = c.queue
 AND t.id BETWEEN coalesce((
        SELECT n.id FROM task_queue n INDEXED BY ix_task_type_status
        WHERE n.type = c.type AND n.status = c.status AND n.queue = c.queue AND n.id <= :newest
        ORDER BY n.id DESC LIMIT 1 OFFSET :limit - 1), -9223372036854775808) AND :newest
WHERE c.tasks > 0 AND (:status IS NULL OR c.status = :status)
  AND (:type IS NULL OR c.type = :type) AND (:queue IS NULL OR c.queue = :queue)
ORDER BY t.id DESC LIMIT :limit;

-- name: list_tasks_of_format
-- Rows written by other programs whose payload names a format, newest first.
SELECT id FROM task_queue INDEXED BY ix_task_format
WHERE headers IS NULL AND format = :format AND id <= :newest
  AND (:status IS NULL OR status = :status) AND (:type IS NULL OR type = :type)
  AND (:queue IS NULL OR queue = :queue)
ORDER BY id DESC LIMIT :limit;

-- name: list_waiting
-- Rows that wait for their time, the next to fall due first, from where a row stands in that order.
SELECT id FROM task_queue INDEXED BY ix_task_waiting
WHERE status = 'queued' AND run_after_utc > updated_at_utc
  AND run_after_utc >= :due AND (run_after_utc, id) > (:due, :after)
  AND (:type IS NULL OR type = :type) AND (:queue IS NULL OR queue = :queue)
ORDER BY run_after_utc, id LIMIT :limit;

-- name: list_waiting_in_groups
-- As list_waiting, through the queued rows of a queue or type: quicker where these are few.
SELECT t.id
FROM task_counts c CROSS JOIN task_queue t INDEXED BY ix_task_type_status
  ON t.type = c.type AND t.status = 'queued' AND t.queue = c.queue
WHERE c.status = 'queued' AND c.tasks > 0
  AND (:type IS NULL OR c.type = :type) AND (:queue IS NULL OR c.queue = :queue)
  AND t.run_after_utc > t.updated_at_utc AND (t.run_after_utc, t.id) > (:due, :after)
ORDER BY t.run_after_utc, t.id LIMIT :limit;

-- name: count_queued_in_groups
-- How many rows of a queue or type are queued, ready or waiting.
SELECT coalesce(sum(tasks), 0) FROM task_counts
WHERE status = 'queued' AND (:type IS NULL OR type = :type) AND (:queue IS NULL OR queue = :queue);

-- name: get_due_time
-- When a row is due, whatever has become of it.
SELECT CAST(run_after_utc AS BLOB) FROM task_queue WHERE id = :id;
