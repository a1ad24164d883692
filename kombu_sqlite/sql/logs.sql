-- name: insert_log
-- Adds a line to a row's story.
INSERT INTO task_logs (task_id, at_utc, level, message, details)
SELECT :id, :now, :level, :message, :details
WHERE EXISTS (SELECT 1 FROM task_queue WHERE id = :id);

-- name: log_leased_of
-- Tells of every row of an owner that is gone what became of it.
INSERT INTO task_logs (task_id, at_utc, level, message, details)
SELECT id, :now, 'warning',
       CASE WHEN processing_started_utc IS NULL THEN 'given back before its start'
            ELSE 'lease lost while running' END, :details
FROM task_queue INDEXED BY ix_task_leased WHERE status = 'processing' AND locked_by = :worker;

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
