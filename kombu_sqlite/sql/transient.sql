-- name: insert_transient
-- Publishes one message to one transient queue.
INSERT INTO transient_messages (queue, priority, payload, headers, properties, expires_at_utc)
VALUES (:queue, :priority, :payload, :headers, :properties, :expires_at);

-- name: claim_transient
-- Leases up to :limit messages of one transient queue, by priority, then age.
UPDATE transient_messages SET locked_by = :worker, delivery_no = delivery_no + 1
WHERE id IN (
    SELECT id FROM transient_messages
    WHERE queue = :queue AND locked_by IS NULL
      AND (expires_at_utc IS NULL OR expires_at_utc > :now)
    ORDER BY priority, id LIMIT :limit)
RETURNING id, delivery_no, queue, priority, payload, headers, properties;

-- name: get_transient_lease
-- Whether a delivery of a transient message is still its holder's.
SELECT 1 FROM transient_messages
WHERE id = :id AND delivery_no = :delivery_no AND locked_by IS NOT NULL;

-- name: peek_transient
-- Whether a transient queue has a message to deliver.
SELECT 1 FROM transient_messages
WHERE queue = :queue AND locked_by IS NULL
  AND (expires_at_utc IS NULL OR expires_at_utc > :now) LIMIT 1;

-- name: end_transient
-- Ends one delivery of a transient message.
DELETE FROM transient_messages
WHERE id = :id AND delivery_no = :delivery_no AND locked_by IS NOT NULL;

-- name: requeue_transient
-- Puts one delivery of a transient message back at the front of its queue.
UPDATE transient_messages SET locked_by = NULL
WHERE id = :id AND delivery_no = :delivery_no AND locked_by IS NOT NULL
RETURNING queue;

-- name: release_transient_of
-- Puts back all that a worker held.
UPDATE transient_messages SET locked_by = NULL WHERE locked_by = :worker RETURNING queue;

-- name: count_transient
-- How many messages wait in one transient queue.
SELECT count(*) FROM transient_messages
WHERE queue = :queue AND locked_by IS NULL
  AND (expires_at_utc IS NULL OR expires_at_utc > :now);

-- name: count_transient_by_holder
-- How many messages of one transient queue wait, and how many a consumer holds.
SELECT (SELECT count(*) FROM transient_messages
         WHERE queue = :queue AND locked_by IS NULL
           AND (expires_at_utc IS NULL OR expires_at_utc > :now)),
       (SELECT count(*) FROM transient_messages
         WHERE queue = :queue AND locked_by IS NOT NULL);

-- name: purge_transient
-- Deletes all messages of a transient queue that nobody holds.
DELETE FROM transient_messages WHERE queue = :queue AND locked_by IS NULL;

-- name: delete_transient
-- Deletes all messages of a transient queue.
DELETE FROM transient_messages WHERE queue = :queue;

-- name: sum_transient_bytes
-- Bytes of the messages waiting in one transient queue; only with x-max-length-bytes.
SELECT coalesce(sum(length(CAST(payload AS BLOB))), 0) FROM transient_messages
WHERE queue = :queue AND locked_by IS NULL
  AND (expires_at_utc IS NULL OR expires_at_utc > :now);

-- name: drop_transient_overflow
-- Deletes one message of a transient queue: the oldest of the lowest priority.
DELETE FROM transient_messages WHERE id = (
    SELECT id FROM transient_messages
    WHERE queue = :queue AND locked_by IS NULL
      AND (expires_at_utc IS NULL OR expires_at_utc > :now)
      AND priority = (SELECT max(priority) FROM transient_messages
                       WHERE queue = :queue AND locked_by IS NULL
                         AND (expires_at_utc IS NULL OR expires_at_utc > :now))
    ORDER BY id LIMIT 1)
RETURNING length(CAST(payload AS BLOB));

-- name: delete_expired_transient
-- Deletes transient messages whose time to live is over.
DELETE FROM transient_messages WHERE id IN (
    SELECT id FROM transient_messages
    WHERE expires_at_utc IS NOT NULL AND expires_at_utc <= :now AND locked_by IS NULL
    LIMIT :limit);
