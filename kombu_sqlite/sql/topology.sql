-- name: get_topology_version
-- Whether the routing known to a process is still what the file says.
SELECT version FROM topology;

-- name: bump_topology
-- Tells all processes to read the routing anew. A random version never comes twice: one that was
-- rolled back must not be taken for another process's.
UPDATE topology SET version = random();

-- name: list_exchanges
-- All exchanges.
SELECT name, type, durable, auto_delete, arguments FROM exchanges;

-- name: list_queues
-- All queues.
SELECT name, durable, auto_delete, exclusive, arguments FROM queues;

-- name: list_bindings
-- All bindings.
SELECT exchange, routing_key, queue FROM bindings;

-- name: list_consumers
-- All consumers with a bell.
SELECT queue, bell, capabilities, worker_id FROM consumers;

-- name: upsert_exchange
-- Declares an exchange.
INSERT INTO exchanges (name, type, durable, auto_delete, arguments)
VALUES (:name, :type, :durable, :auto_delete, :arguments) ON CONFLICT (name) DO NOTHING;

-- name: delete_exchange
-- Deletes an exchange.
DELETE FROM exchanges WHERE name = :name;

-- name: delete_exchange_bindings
-- Deletes the bindings of an exchange.
DELETE FROM bindings WHERE exchange = :name;

-- name: upsert_queue
-- Declares a queue; the newest declaration's arguments hold.
INSERT INTO queues (name, durable, auto_delete, exclusive, arguments, last_used_utc)
VALUES (:name, :durable, :auto_delete, :exclusive, :arguments, :now)
ON CONFLICT (name) DO UPDATE SET arguments = :arguments, last_used_utc = :now,
    had_consumer = EXISTS (SELECT 1 FROM consumers c WHERE c.queue = :name);

-- name: touch_queue
-- Records that a queue is in use; its expiry counts from here.
UPDATE queues SET last_used_utc = :now WHERE name = :name;

-- name: mark_queue_consumed
-- Records a queue's first consumer; auto-delete waits for it.
UPDATE queues SET had_consumer = 1, last_used_utc = :now WHERE name = :name;

-- name: delete_queue
-- Deletes a queue.
DELETE FROM queues WHERE name = :name;

-- name: delete_queue_bindings
-- Deletes the bindings of a queue.
DELETE FROM bindings WHERE queue = :name;

-- name: upsert_binding
-- Binds a queue to an exchange.
INSERT INTO bindings (exchange, routing_key, queue, arguments)
VALUES (:exchange, :routing_key, :queue, :arguments)
ON CONFLICT (exchange, routing_key, queue) DO NOTHING;

-- name: delete_binding
-- Unbinds a queue from an exchange.
DELETE FROM bindings
WHERE exchange = :exchange AND routing_key = :routing_key AND queue = :queue;

-- name: insert_consumer
-- Registers a consumer of one queue and the bell that wakes it.
INSERT OR REPLACE INTO consumers (worker_id, bell, queue, capabilities)
VALUES (:worker, :bell, :queue, :capabilities);

-- name: delete_consumer
-- Removes a consumer of one queue.
DELETE FROM consumers WHERE queue = :queue AND bell = :bell;

-- name: list_bells
-- The bells in use, in order.
SELECT DISTINCT bell FROM consumers ORDER BY bell;

-- name: count_consumers
-- Workers that consume from one queue, once per consumer.
SELECT w.worker_id, w.lock_byte FROM consumers c JOIN workers w USING (worker_id)
WHERE c.queue = :queue;

-- name: delete_consumers_of
-- Removes the consumers of a worker that is gone.
DELETE FROM consumers WHERE worker_id = :worker RETURNING queue, bell;

-- name: list_unused_queues
-- Queues without consumers that delete themselves or expire.
SELECT name, auto_delete, had_consumer, arguments, last_used_utc FROM queues
WHERE (auto_delete OR exclusive OR arguments LIKE '%x-expires%')
  AND NOT EXISTS (SELECT 1 FROM consumers c WHERE c.queue = queues.name);
