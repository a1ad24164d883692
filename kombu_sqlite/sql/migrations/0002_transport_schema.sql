-- The columns, indexes, triggers and tables the transport needs. The three documented tables are
-- rebuilt (ALTER TABLE cannot add a column whose default is an expression) with their rows and
-- their AUTOINCREMENT positions kept.

DROP VIEW IF EXISTS v_queue_status_summary;
DROP VIEW IF EXISTS v_queue_type_summary;
DROP VIEW IF EXISTS v_worker_status;
DROP VIEW IF EXISTS v_task_performance;
DROP VIEW IF EXISTS v_recent_failures;

CREATE TABLE new_task_queue (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    type TEXT NOT NULL,
    priority INTEGER NOT NULL DEFAULT 100,
    payload TEXT NOT NULL,
    compatibility TEXT NOT NULL DEFAULT '{}',
    status TEXT NOT NULL DEFAULT 'queued',
    attempts INTEGER NOT NULL DEFAULT 0,
    max_attempts INTEGER NOT NULL DEFAULT 5,
    run_after_utc DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    lease_until_utc DATETIME,
    reserved_at_utc DATETIME,
    processing_started_utc DATETIME,
    finished_at_utc DATETIME,
    locked_by TEXT,
    error_message TEXT,
    idempotency_key TEXT,
    created_at_utc DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    updated_at_utc DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    region TEXT GENERATED ALWAYS AS (
        CASE WHEN json_valid(compatibility) THEN json_extract(compatibility, '$.region') END) VIRTUAL,
    format TEXT GENERATED ALWAYS AS (
        CASE WHEN json_valid(payload) THEN json_extract(payload, '$.format') END) VIRTUAL,
    queue TEXT NOT NULL DEFAULT 'celery',
    task_id TEXT,
    headers TEXT,                              -- JSON; NULL in rows written by others
    properties TEXT,                           -- JSON: AMQP properties, content type and encoding
    expires_at_utc DATETIME,                   -- cancelled as expired when still queued then
    delivery_no INTEGER NOT NULL DEFAULT 0,    -- with id the delivery tag; never decremented
    deaths INTEGER NOT NULL DEFAULT 0,         -- executions that died; compared with max_attempts
    outcome_pending INTEGER NOT NULL DEFAULT 0,-- an end made by the broker still owes its result
    writer TEXT DEFAULT (sqlite_version()),    -- which SQLite wrote the row
    pad TEXT                                   -- keeps a large row's size the same as it fills: see lease_row
);

INSERT INTO new_task_queue (
    id, type, priority, payload, compatibility, status, attempts, max_attempts, run_after_utc,
    lease_until_utc, reserved_at_utc, processing_started_utc, finished_at_utc, locked_by,
    error_message, idempotency_key, created_at_utc, updated_at_utc, writer)
SELECT
    id, type, priority, payload, compatibility, status, attempts, max_attempts,
    coalesce(strftime('%Y-%m-%d %H:%M:%f', run_after_utc), run_after_utc),
    lease_until_utc, reserved_at_utc, processing_started_utc, finished_at_utc, locked_by,
    error_message, idempotency_key, created_at_utc,
    max(updated_at_utc, strftime('%Y-%m-%d %H:%M:%f', 'now')), NULL
FROM task_queue;
DELETE FROM sqlite_sequence WHERE name = 'new_task_queue';
INSERT INTO sqlite_sequence (name, seq)
    SELECT 'new_task_queue', seq FROM sqlite_sequence WHERE name = 'task_queue';
DROP TABLE task_queue;
ALTER TABLE new_task_queue RENAME TO task_queue;

CREATE TABLE new_workers (
    worker_id TEXT PRIMARY KEY,
    capabilities TEXT NOT NULL,
    heartbeat_utc DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    started_at_utc DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    host TEXT,
    pid INTEGER,
    lock_byte INTEGER UNIQUE,                  -- of the side file; NULL once the worker is gone
    beat INTEGER NOT NULL DEFAULT 0,           -- counts renewals; no clock is compared
    visibility_timeout_s REAL
);
INSERT INTO new_workers (worker_id, capabilities, heartbeat_utc)
    SELECT worker_id, capabilities, heartbeat_utc FROM workers;
DROP TABLE workers;
ALTER TABLE new_workers RENAME TO workers;

CREATE TABLE new_task_logs (
    log_id INTEGER PRIMARY KEY AUTOINCREMENT,
    task_id INTEGER NOT NULL REFERENCES task_queue(id),
    at_utc DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    level TEXT,
    message TEXT,
    details TEXT
);
INSERT INTO new_task_logs (log_id, task_id, at_utc, level, message, details)
    SELECT log_id, task_id, at_utc, level, message, details FROM task_logs;
DROP TABLE task_logs;
ALTER TABLE new_task_logs RENAME TO task_logs;

-- What can be claimed now. Serves claim_ready, peek_ready and list_lanes.
-- A claim never compares with the clock: a row is ready when it was due at its last update.
CREATE INDEX ix_task_status_prio_time ON task_queue (queue, compatibility, priority, id)
    WHERE status = 'queued' AND run_after_utc <= updated_at_utc;
-- What waits for its time. Serves promote_due and next_due.
CREATE INDEX ix_task_waiting ON task_queue (run_after_utc)
    WHERE status = 'queued' AND run_after_utc > updated_at_utc;
-- What is leased, by its owner. Serves list_leased_of, list_owners.
CREATE INDEX ix_task_leased ON task_queue (locked_by) WHERE status = 'processing';
-- What expires while queued. Serves cancel_expired.
CREATE INDEX ix_task_expiring ON task_queue (expires_at_utc)
    WHERE status = 'queued' AND expires_at_utc IS NOT NULL;
-- What has ended, by when. Serves prune_finished and v_recent_failures.
CREATE INDEX ix_task_finished ON task_queue (finished_at_utc) WHERE finished_at_utc IS NOT NULL;
-- Failures and cancellations by type. Serves list_tasks with a type.
CREATE INDEX ix_task_type_status ON task_queue (type, status)
    WHERE status IN ('failed', 'cancelled');
-- Messages that ask for a capability. Serves any_lane. No JSON function: their results differ
-- between SQLite versions, and an index over them is then corrupt.
CREATE INDEX ix_task_region ON task_queue (compatibility) WHERE compatibility <> '{}';
-- Rows written by other programs, where the format column has a meaning. Serves list_tasks_of_format.
CREATE INDEX ix_task_format ON task_queue (type) WHERE headers IS NULL;
-- One row per key. Plain, not partial, so that others' ON CONFLICT(idempotency_key) works.
CREATE UNIQUE INDEX uq_task_idempotency ON task_queue (idempotency_key);
-- Celery's id. Serves get_by_task_id.
CREATE INDEX ix_task_task_id ON task_queue (task_id);
-- Rows no claim could make sense of. Serves list_irregular.
CREATE INDEX ix_task_irregular ON task_queue (id)
    WHERE status NOT IN ('queued', 'processing', 'completed', 'failed', 'cancelled')
       OR (status = 'queued' AND run_after_utc > updated_at_utc
           AND (substr(run_after_utc, 11, 1) <> ' ' OR length(run_after_utc) > 23))
       OR (headers IS NULL AND status = 'queued' AND (
              typeof(type) <> 'text' OR typeof(queue) <> 'text' OR typeof(priority) <> 'integer'
           OR typeof(run_after_utc) <> 'text' OR typeof(compatibility) <> 'text'));
-- A task's story. Serves list_logs.
CREATE INDEX ix_logs_task ON task_logs (task_id);

-- Counts kept exact by plain SQL, so that rows written by any program are counted.
CREATE TABLE task_counts (
    queue TEXT NOT NULL,
    type TEXT NOT NULL,
    status TEXT NOT NULL,
    tasks INTEGER NOT NULL,
    PRIMARY KEY (queue, type, status)
) WITHOUT ROWID;
INSERT INTO task_counts
    SELECT queue, type, status, count(*) FROM task_queue GROUP BY queue, type, status;

CREATE TRIGGER tr_task_count_insert AFTER INSERT ON task_queue BEGIN
    INSERT INTO task_counts VALUES (NEW.queue, NEW.type, NEW.status, 1)
        ON CONFLICT (queue, type, status) DO UPDATE SET tasks = tasks + 1;
END;
CREATE TRIGGER tr_task_count_update AFTER UPDATE OF status, queue, type ON task_queue
WHEN OLD.status IS NOT NEW.status OR OLD.queue IS NOT NEW.queue OR OLD.type IS NOT NEW.type BEGIN
    UPDATE task_counts SET tasks = tasks - 1
        WHERE queue = OLD.queue AND type = OLD.type AND status = OLD.status;
    INSERT INTO task_counts VALUES (NEW.queue, NEW.type, NEW.status, 1)
        ON CONFLICT (queue, type, status) DO UPDATE SET tasks = tasks + 1;
END;
CREATE TRIGGER tr_task_count_delete AFTER DELETE ON task_queue BEGIN
    UPDATE task_counts SET tasks = tasks - 1
        WHERE queue = OLD.queue AND type = OLD.type AND status = OLD.status;
END;

-- Routing, shared by all processes. The version tells a producer that its copy is out of date.
CREATE TABLE exchanges (
    name TEXT PRIMARY KEY,
    type TEXT NOT NULL,
    durable INTEGER NOT NULL,
    auto_delete INTEGER NOT NULL,
    arguments TEXT NOT NULL DEFAULT '{}'
) WITHOUT ROWID;
CREATE TABLE queues (
    name TEXT PRIMARY KEY,
    durable INTEGER NOT NULL,
    auto_delete INTEGER NOT NULL,
    exclusive INTEGER NOT NULL DEFAULT 0,
    arguments TEXT NOT NULL DEFAULT '{}',
    had_consumer INTEGER NOT NULL DEFAULT 0,   -- auto-delete waits for the first consumer
    last_used_utc DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now'))
) WITHOUT ROWID;
CREATE TABLE bindings (
    exchange TEXT NOT NULL,
    routing_key TEXT NOT NULL,
    queue TEXT NOT NULL,
    arguments TEXT NOT NULL DEFAULT '{}',
    PRIMARY KEY (exchange, routing_key, queue)
) WITHOUT ROWID;
CREATE INDEX ix_bindings_queue ON bindings (queue);
CREATE TABLE consumers (
    worker_id TEXT NOT NULL,
    bell INTEGER NOT NULL,                     -- which bell wakes it
    queue TEXT NOT NULL,
    capabilities TEXT NOT NULL DEFAULT '{}',
    PRIMARY KEY (queue, bell)
) WITHOUT ROWID;
CREATE INDEX ix_consumers_worker ON consumers (worker_id);
CREATE INDEX ix_consumers_bell ON consumers (bell);
CREATE TABLE topology (version INTEGER NOT NULL);
INSERT INTO topology VALUES (1);
INSERT INTO exchanges (name, type, durable, auto_delete) VALUES
    ('amq.direct', 'direct', 1, 0), ('amq.topic', 'topic', 1, 0), ('amq.fanout', 'fanout', 1, 0);

-- Messages of queues that are not durable or delete themselves: remote control, replies, events.
CREATE TABLE transient_messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    queue TEXT NOT NULL,
    priority INTEGER NOT NULL,
    payload TEXT NOT NULL,
    headers TEXT NOT NULL,
    properties TEXT NOT NULL,
    expires_at_utc DATETIME,
    delivery_no INTEGER NOT NULL DEFAULT 0,
    locked_by TEXT
);
CREATE INDEX ix_transient_ready ON transient_messages (queue, priority, id)
    WHERE locked_by IS NULL;
CREATE INDEX ix_transient_leased ON transient_messages (locked_by) WHERE locked_by IS NOT NULL;
CREATE INDEX ix_transient_expiring ON transient_messages (expires_at_utc)
    WHERE expires_at_utc IS NOT NULL;

CREATE VIEW v_queue_status_summary AS
    SELECT status, sum(tasks) AS tasks FROM task_counts WHERE tasks <> 0 GROUP BY status;
CREATE VIEW v_queue_type_summary AS
    SELECT type,
           sum(tasks) AS total,
           sum(CASE WHEN status = 'queued' THEN tasks ELSE 0 END) AS queued,
           sum(CASE WHEN status = 'processing' THEN tasks ELSE 0 END) AS processing,
           sum(CASE WHEN status = 'completed' THEN tasks ELSE 0 END) AS completed,
           sum(CASE WHEN status = 'failed' THEN tasks ELSE 0 END) AS failed,
           sum(CASE WHEN status = 'cancelled' THEN tasks ELSE 0 END) AS cancelled
    FROM task_counts GROUP BY type;
CREATE VIEW v_worker_status AS
    SELECT w.worker_id, w.host, w.pid, w.capabilities, w.started_at_utc, w.heartbeat_utc,
           CASE WHEN w.lock_byte IS NULL THEN 'gone'
                WHEN (julianday('now') - julianday(w.heartbeat_utc)) * 86400.0
                     > coalesce(w.visibility_timeout_s, 60.0) THEN 'stale'
                ELSE 'active' END AS status,
           (SELECT count(*) FROM task_queue t
             WHERE t.status = 'processing' AND t.locked_by = w.worker_id) AS processing,
           strftime('%Y-%m-%d %H:%M:%f', w.heartbeat_utc,
                    '+' || coalesce(w.visibility_timeout_s, 60.0) || ' seconds')
               AS lease_until_utc
    FROM workers w;
CREATE VIEW v_task_performance AS
    SELECT type, status, count(*) AS tasks,
           avg((julianday(processing_started_utc) - julianday(created_at_utc)) * 86400.0)
               AS avg_wait_seconds,
           avg((julianday(finished_at_utc) - julianday(processing_started_utc)) * 86400.0)
               AS avg_run_seconds,
           max((julianday(finished_at_utc) - julianday(processing_started_utc)) * 86400.0)
               AS max_run_seconds
    FROM task_queue
    WHERE finished_at_utc IS NOT NULL AND processing_started_utc IS NOT NULL
    GROUP BY type, status;
CREATE VIEW v_recent_failures AS
    SELECT id, type, queue, task_id, attempts, deaths, max_attempts, error_message,
           finished_at_utc
    FROM task_queue
    WHERE finished_at_utc IS NOT NULL AND status = 'failed'
    ORDER BY finished_at_utc DESC
    LIMIT 100;
