-- One index by what task_counts counts, so that statistics and listings go to the rows of each
-- group at once. It replaces the one of failures and cancellations only; being without a condition
-- it costs less at each write than one of queued rows would.

DROP INDEX ix_task_type_status;
-- Rows by type, state and queue, then age. Serves list_tasks_in_groups and oldest_queued.
CREATE INDEX ix_task_type_status ON task_queue (type, status, queue);
