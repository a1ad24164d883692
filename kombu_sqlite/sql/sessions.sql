-- name: insert_worker
-- Registers a process that consumes, with the byte of the side file it will lock.
INSERT INTO workers (
    worker_id, capabilities, heartbeat_utc, started_at_utc, host, pid, lock_byte,
    visibility_timeout_s)
VALUES (
    :worker, :capabilities, :now, :now, :host, :pid, :lock_byte, :visibility_timeout);

-- name: describe_worker
-- Records a worker's node name and concurrency.
UPDATE workers SET hostname = :hostname, concurrency = :concurrency WHERE worker_id = :worker;

-- name: list_lock_bytes
-- The bytes that rows name.
SELECT lock_byte FROM workers WHERE lock_byte IS NOT NULL;

-- name: get_live_worker
-- The beat of a worker that has not been found gone; a claim under a retired name is refused.
SELECT beat FROM workers WHERE worker_id = :worker AND lock_byte IS NOT NULL;

-- name: get_claim_terms
-- What every claim asks first, at once: whether its worker has not been found gone, whether the
-- routing has changed, whether any message asks for a capability, whether anything is revoked.
SELECT EXISTS (SELECT 1 FROM workers WHERE worker_id = :worker AND lock_byte IS NOT NULL),
       (SELECT version FROM topology),
       EXISTS (SELECT 1 FROM task_queue WHERE compatibility <> '{}'),
       EXISTS (SELECT 1 FROM revocations);

-- name: beat_worker
-- Renews all leases of a worker: one row, however many messages it holds.
UPDATE workers SET beat = beat + 1, heartbeat_utc = :now WHERE worker_id = :worker
    AND lock_byte IS NOT NULL;

-- name: list_live_workers
-- Every worker that has not been found dead, with its sign of life.
SELECT worker_id, lock_byte, beat, visibility_timeout_s FROM workers WHERE lock_byte IS NOT NULL;

-- name: retire_worker
-- Marks a worker as gone.
UPDATE workers SET lock_byte = NULL WHERE worker_id = :worker;

-- name: delete_worker
-- Forgets a worker that left in good order.
DELETE FROM workers WHERE worker_id = :worker;

-- name: prune_workers
-- Forgets workers gone for long.
DELETE FROM workers WHERE lock_byte IS NULL AND heartbeat_utc < :before;

-- name: list_owners
-- Everybody who holds a lease, by a loose index scan.
WITH RECURSIVE owner(locked_by) AS (
    SELECT min(locked_by) FROM task_queue INDEXED BY ix_task_leased WHERE status = 'processing'
    UNION ALL
    SELECT (SELECT min(t.locked_by) FROM task_queue t INDEXED BY ix_task_leased
             WHERE t.status = 'processing' AND t.locked_by > owner.locked_by)
      FROM owner WHERE owner.locked_by IS NOT NULL)
SELECT CAST(locked_by AS BLOB) FROM owner WHERE locked_by IS NOT NULL;

-- name: lose_leased_of
-- Fails what a worker that is gone was running after it had acknowledged it: it is not run again.
-- The delivery number goes on, here and where messages are exhausted: a worker that was only
-- stopped must find its tag superseded, or its late failure would count as this end.
UPDATE task_queue SET
    status = 'failed', deaths = deaths + 1, delivery_no = delivery_no + 1, finished_at_utc = :now, updated_at_utc = :now,
    lease_until_utc = NULL, outcome_pending = 1,
    error_message = 'worker lost: ' || locked_by || ' ended while it ran the task'
WHERE status = 'processing' AND locked_by = :worker
  AND processing_started_utc IS NOT NULL AND acked_early = 1
RETURNING id, CAST(queue AS BLOB), CAST(task_id AS BLOB), delivery_no - 1;

-- name: exhaust_leased_of
-- Fails the started messages of a dead worker that have died too often.
UPDATE task_queue SET
    status = 'failed', deaths = deaths + 1, delivery_no = delivery_no + 1, finished_at_utc = :now, updated_at_utc = :now,
    lease_until_utc = NULL, outcome_pending = 1,
    error_message = 'delivery attempts exhausted: ' || (deaths + 1) || ' of '
                    || max_attempts || ' executions died'
WHERE status = 'processing' AND locked_by = :worker
  AND processing_started_utc IS NOT NULL AND deaths + 1 >= max_attempts
RETURNING id, CAST(queue AS BLOB), CAST(task_id AS BLOB), delivery_no - 1;

-- name: requeue_leased_of
-- Queues the messages of a dead worker again; a death counts only where execution had begun.
UPDATE task_queue SET
    status = 'queued', updated_at_utc = max(:now, run_after_utc),
    deaths = deaths + (processing_started_utc IS NOT NULL),
    attempts = attempts - (processing_started_utc IS NULL),
    locked_by = NULL, lease_until_utc = NULL, reserved_at_utc = NULL,
    processing_started_utc = NULL, acked_early = 0
WHERE status = 'processing' AND locked_by = :worker
RETURNING CAST(queue AS BLOB);

-- name: release_leased_of
-- Gives back all that a worker leaving in good order still holds, as if it had never been leased.
UPDATE task_queue SET
    status = 'queued', updated_at_utc = max(:now, run_after_utc), attempts = attempts - 1,
    locked_by = NULL, lease_until_utc = NULL, reserved_at_utc = NULL,
    processing_started_utc = NULL, acked_early = 0
WHERE status = 'processing' AND locked_by = :worker;

-- name: any_nameless_lease
-- Whether a row is processing without an owner.
SELECT 1 FROM task_queue INDEXED BY ix_task_leased
WHERE status = 'processing' AND locked_by IS NULL LIMIT 1;

-- name: lose_unowned
-- As lose_leased_of, for started messages without a known owner whose lease is over.
UPDATE task_queue SET
    status = 'failed', deaths = deaths + 1, delivery_no = delivery_no + 1, finished_at_utc = :now, updated_at_utc = :now,
    lease_until_utc = NULL, outcome_pending = 1,
    error_message = 'worker lost: its lease ran out while it ran the task'
WHERE status = 'processing' AND (lease_until_utc IS NULL OR lease_until_utc < :now)
  AND (locked_by IS NULL OR locked_by NOT IN (SELECT worker_id FROM workers
                                              WHERE lock_byte IS NOT NULL))
  AND processing_started_utc IS NOT NULL AND acked_early = 1
RETURNING id, CAST(queue AS BLOB), CAST(task_id AS BLOB), delivery_no - 1;

-- name: exhaust_unowned
-- Fails started messages without a known owner whose lease is over and that died too often.
UPDATE task_queue SET
    status = 'failed', deaths = deaths + 1, delivery_no = delivery_no + 1, finished_at_utc = :now, updated_at_utc = :now,
    lease_until_utc = NULL, outcome_pending = 1,
    error_message = 'delivery attempts exhausted: ' || (deaths + 1) || ' of '
                    || max_attempts || ' executions died'
WHERE status = 'processing' AND (lease_until_utc IS NULL OR lease_until_utc < :now)
  AND (locked_by IS NULL OR locked_by NOT IN (SELECT worker_id FROM workers
                                              WHERE lock_byte IS NOT NULL))
  AND processing_started_utc IS NOT NULL AND deaths + 1 >= max_attempts
RETURNING id, CAST(queue AS BLOB), CAST(task_id AS BLOB), delivery_no - 1;

-- name: requeue_unowned
-- Queues messages again whose owner nobody knows and whose lease is over.
UPDATE task_queue SET
    status = 'queued', updated_at_utc = max(:now, run_after_utc),
    deaths = deaths + (processing_started_utc IS NOT NULL),
    attempts = attempts - (processing_started_utc IS NULL AND attempts > 0),
    locked_by = NULL, lease_until_utc = NULL, reserved_at_utc = NULL,
    processing_started_utc = NULL, acked_early = 0
WHERE status = 'processing' AND (lease_until_utc IS NULL OR lease_until_utc < :now)
  AND (locked_by IS NULL OR locked_by NOT IN (SELECT worker_id FROM workers
                                              WHERE lock_byte IS NOT NULL))
RETURNING CAST(queue AS BLOB);
