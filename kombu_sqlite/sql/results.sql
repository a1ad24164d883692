-- name: delete_unsuccessful_result
-- Makes way for a newer result; a SUCCESS stays until it expires, whatever comes after it.
DELETE FROM task_results
WHERE task_id = :task_id AND (status <> 'SUCCESS' OR expires_at_utc <= :now);

-- name: insert_result
-- Stores a task's state and result, unless it has succeeded before.
INSERT INTO task_results (task_id, status, meta, stored_at_utc, expires_at_utc)
VALUES (:task_id, :status, :meta, :now, :expires_at) ON CONFLICT (task_id) DO NOTHING;

-- name: get_result
-- A task's state and result, unless it has expired, and when it was stored among the others.
SELECT seq, status, meta FROM task_results
WHERE task_id = :task_id AND (expires_at_utc IS NULL OR expires_at_utc > :now);

-- name: get_result_as_bytes
-- The same, of one whose text cannot be decoded.
SELECT seq, CAST(meta AS BLOB) FROM task_results
WHERE task_id = :task_id AND (expires_at_utc IS NULL OR expires_at_utc > :now);

-- name: list_results_since
-- The tasks whose state was stored after what a watcher has seen, as bytes: one nobody can read
-- must not hide the others.
SELECT seq, CAST(task_id AS BLOB), CAST(status AS BLOB) FROM task_results WHERE seq > :seq ORDER BY seq;

-- name: get_last_seq
-- Where a watcher starts.
SELECT coalesce(max(seq), 0) FROM task_results;

-- name: delete_result
-- Forgets a task's result.
DELETE FROM task_results WHERE task_id = :task_id;

-- name: upsert_group
-- Stores a group's result.
INSERT INTO group_results (group_id, meta, expires_at_utc) VALUES (:group_id, :meta, :expires_at)
ON CONFLICT (group_id) DO UPDATE SET meta = :meta, expires_at_utc = :expires_at;

-- name: get_group
-- A group's result, unless it has expired.
SELECT meta FROM group_results
WHERE group_id = :group_id AND (expires_at_utc IS NULL OR expires_at_utc > :now);

-- name: delete_group
-- Forgets a group's result.
DELETE FROM group_results WHERE group_id = :group_id;

-- name: delete_expired_results
-- Forgets results whose time is over.
DELETE FROM task_results WHERE seq IN (
    SELECT seq FROM task_results INDEXED BY ix_results_expiring
    WHERE expires_at_utc IS NOT NULL AND expires_at_utc <= :now LIMIT :limit);

-- name: any_delete_expired_results
-- Whether delete_expired_results has something to do.
SELECT 1 FROM task_results INDEXED BY ix_results_expiring
WHERE expires_at_utc IS NOT NULL AND expires_at_utc <= :now LIMIT 1;

-- name: delete_expired_groups
-- Forgets group results whose time is over.
DELETE FROM group_results WHERE group_id IN (
    SELECT group_id FROM group_results INDEXED BY ix_groups_expiring
    WHERE expires_at_utc IS NOT NULL AND expires_at_utc <= :now LIMIT :limit);

-- name: any_delete_expired_groups
-- Whether delete_expired_groups has something to do.
SELECT 1 FROM group_results INDEXED BY ix_groups_expiring
WHERE expires_at_utc IS NOT NULL AND expires_at_utc <= :now LIMIT 1;

-- name: any_delete_expired_chords
-- Whether delete_expired_chords has something to do.
SELECT 1 FROM chords INDEXED BY ix_chords_expiring
WHERE expires_at_utc IS NOT NULL AND expires_at_utc <= :now LIMIT 1;

-- name: reset_chord
-- Makes a chord's group id fit for a new run: nothing of an earlier one counts.
DELETE FROM chords WHERE group_id = :group_id;

-- name: delete_chord_parts
-- Forgets the parts of a chord.
DELETE FROM chord_parts WHERE group_id = :group_id;

-- name: insert_chord
-- Makes a chord's row when its first part or its size arrives.
INSERT INTO chords (group_id, expires_at_utc) VALUES (:group_id, :expires_at)
ON CONFLICT (group_id) DO NOTHING;

-- name: set_chord_header
-- Keeps the structure of a nested header's result.
UPDATE chords SET header = :header WHERE group_id = :group_id;

-- name: set_chord_size
-- How many parts a chord waits for. Never fewer than it was told before: under Celery 5.6 a group
-- in which a chain of the header ends has the chord's own id, and tells its own size.
UPDATE chords SET size = max(coalesce(size, 0), :size) WHERE group_id = :group_id;

-- name: add_chord_part
-- Lets a chord wait for one part more.
UPDATE chords SET added = added + 1 WHERE group_id = :group_id;

-- name: insert_chord_part
-- Takes a part in; one that has come before changes nothing.
INSERT INTO chord_parts (group_id, task_id, position, part)
SELECT :group_id, :task_id, :position, :part
WHERE EXISTS (SELECT 1 FROM chords WHERE group_id = :group_id AND state = 'waiting')
ON CONFLICT (group_id, position, task_id) DO NOTHING;

-- name: count_chord_part
-- Counts a part taken in.
UPDATE chords SET returned = returned + 1 WHERE group_id = :group_id;

-- name: make_chord_due
-- Marks a chord whose parts are all there, with the body to publish.
UPDATE chords SET state = 'due', due_at_utc = :now, body = coalesce(:body, body)
WHERE group_id = :group_id AND state = 'waiting' AND returned >= size + added;

-- name: keep_chord_body
-- Keeps the body for whoever finds the chord complete.
UPDATE chords SET body = :body WHERE group_id = :group_id AND body IS NULL;

-- name: get_chord
-- A chord as it stands.
SELECT state, size, added, returned, header, body FROM chords WHERE group_id = :group_id;

-- name: list_chord_parts
-- The parts of a chord in the header's order; those without a place come last.
SELECT part FROM chord_parts WHERE group_id = :group_id
ORDER BY position < 0, position, task_id;

-- name: finish_chord
-- Takes a chord's mark; whoever does publishes its body in the same transaction.
UPDATE chords SET state = 'done', header = NULL, body = NULL, expires_at_utc = :expires_at
WHERE group_id = :group_id AND state = 'due';

-- name: list_due_chords
-- Chords that were complete a while ago and whose body nobody has published.
SELECT group_id FROM chords INDEXED BY ix_chords_due
WHERE state = 'due' AND due_at_utc < :before ORDER BY due_at_utc LIMIT 10;

-- name: delete_expired_chords
-- Forgets chords whose time is over.
DELETE FROM chords WHERE group_id IN (
    SELECT group_id FROM chords INDEXED BY ix_chords_expiring
    WHERE expires_at_utc IS NOT NULL AND expires_at_utc <= :now LIMIT :limit)
RETURNING group_id;

-- name: list_owed
-- Rows the broker ended, whose result is still owed.
SELECT id FROM task_queue INDEXED BY ix_task_outcome
WHERE outcome_pending = 1 AND id > :after ORDER BY id LIMIT :limit;

-- name: get_owed
-- One of them, as bytes: other programs may have written what is no text.
SELECT CAST(r.type AS BLOB), CAST(r.queue AS BLOB), CAST(r.task_id AS BLOB), r.status,
       CAST(r.error_message AS BLOB), r.payload, CAST(r.headers AS BLOB),
       CAST(r.properties AS BLOB), r.delivery_no, r.priority, r.follows, CAST(f.task_id AS BLOB)
FROM task_queue r LEFT JOIN task_queue f ON f.id = r.follows
WHERE r.id = :id AND r.outcome_pending = 1;

-- name: pay_owed
-- Records that a row's result is stored.
UPDATE task_queue SET outcome_pending = 0 WHERE id = :id AND outcome_pending = 1;
