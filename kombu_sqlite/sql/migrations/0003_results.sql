-- Results, chords, idempotency keys and revocations, and what one row per task needs beside them.

ALTER TABLE task_queue ADD COLUMN acked_early INTEGER NOT NULL DEFAULT 0;
ALTER TABLE task_queue ADD COLUMN cancel_requested INTEGER NOT NULL DEFAULT 0;
ALTER TABLE task_queue ADD COLUMN follows INTEGER;
ALTER TABLE workers ADD COLUMN hostname TEXT;
ALTER TABLE workers ADD COLUMN concurrency INTEGER;

-- Ends that still owe a result. Serves list_owed.
CREATE INDEX ix_task_outcome ON task_queue (id) WHERE outcome_pending = 1;
-- Duplicates that end with another row's result. Serves list_followers.
CREATE INDEX ix_task_followers ON task_queue (follows)
    WHERE follows IS NOT NULL AND status = 'queued';

-- Results of tasks. A result written anew gets a higher seq: a watcher reads what it has not seen.
CREATE TABLE task_results (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    task_id TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL,                      -- Celery's state
    meta NOT NULL,                             -- as the backend's serializer wrote it
    stored_at_utc DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    expires_at_utc DATETIME
);
-- Serves delete_expired_results.
CREATE INDEX ix_results_expiring ON task_results (expires_at_utc)
    WHERE expires_at_utc IS NOT NULL;

CREATE TABLE group_results (
    group_id TEXT PRIMARY KEY,
    meta NOT NULL,
    expires_at_utc DATETIME
);
-- Serves delete_expired_groups.
CREATE INDEX ix_groups_expiring ON group_results (expires_at_utc)
    WHERE expires_at_utc IS NOT NULL;

-- Chords that wait for their header. The last part to return marks them due; whoever then deletes
-- the mark publishes the body, in the same transaction.
CREATE TABLE chords (
    group_id TEXT PRIMARY KEY,
    size INTEGER,                              -- NULL until the last header task is published
    added INTEGER NOT NULL DEFAULT 0,          -- parts added by running header tasks
    returned INTEGER NOT NULL DEFAULT 0,
    state TEXT NOT NULL DEFAULT 'waiting',     -- waiting, due or done
    due_at_utc DATETIME,
    header,                                    -- the result's structure, where it is nested
    body,                                      -- the signature to publish
    expires_at_utc DATETIME
);
-- Serves list_due_chords.
CREATE INDEX ix_chords_due ON chords (due_at_utc) WHERE state = 'due';
-- Serves delete_expired_chords.
CREATE INDEX ix_chords_expiring ON chords (expires_at_utc) WHERE expires_at_utc IS NOT NULL;
CREATE TABLE chord_parts (
    group_id TEXT NOT NULL,
    task_id TEXT NOT NULL,                     -- a part delivered twice counts once
    position INTEGER NOT NULL,                 -- in the header; -1 where there is none
    part NOT NULL,
    PRIMARY KEY (group_id, position, task_id)
) WITHOUT ROWID;

-- Who published a key first. The row's own column serves programs that insert by plain SQL.
CREATE TABLE idempotency_keys (
    key TEXT PRIMARY KEY,
    type TEXT NOT NULL,
    row_id INTEGER NOT NULL,
    task_id TEXT,
    scope TEXT NOT NULL DEFAULT 'row',         -- row, end, or seconds
    expires_at_utc DATETIME
) WITHOUT ROWID;

-- Revoked task ids (header '') and stamps that have no row yet; consulted at each claim.
CREATE TABLE revocations (
    header TEXT NOT NULL,
    value TEXT NOT NULL,
    expires_at_utc DATETIME NOT NULL,
    PRIMARY KEY (header, value)
) WITHOUT ROWID;

DROP VIEW v_worker_status;
CREATE VIEW v_worker_status AS
    SELECT w.worker_id, w.hostname, w.host, w.pid, w.concurrency, w.capabilities,
           w.started_at_utc, w.heartbeat_utc,
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
