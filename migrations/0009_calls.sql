-- POSTs that carry an Idempotency-Key. The row is inserted in the unit of work it stands for, so one is there if and
-- only if the other is; the answer follows when the work has committed.
CREATE TABLE idempotency_keys (
    principal  text NOT NULL,
    key        text NOT NULL,
    -- Method, path and query.
    operation  text NOT NULL,
    body_hash  bytea NOT NULL,
    -- Which request it was, so that one with several units of work knows its own.
    claim      text NOT NULL,
    status     smallint,
    -- Absent although there is a status: it held a secret, or was too large.
    answer     bytea,
    created_at timestamptz NOT NULL,
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (principal, key),
    CONSTRAINT idempotency_keys_answer_check CHECK (status IS NOT NULL OR answer IS NULL)
);
CREATE INDEX idempotency_keys_created_idx ON idempotency_keys (created_at);
GRANT SELECT, INSERT, UPDATE, DELETE ON idempotency_keys TO certctl_api;

-- Each filter of the trail finds its rows in their order.
DROP INDEX audit_events_resource_idx, audit_events_actor_idx, audit_events_action_idx;
CREATE INDEX audit_events_actor_idx ON audit_events (actor, at, id);
CREATE INDEX audit_events_action_idx ON audit_events (action, at, id);
CREATE INDEX audit_events_resource_type_idx ON audit_events (resource_type, at, id);
CREATE INDEX audit_events_resource_id_idx ON audit_events (resource_id, at, id);
