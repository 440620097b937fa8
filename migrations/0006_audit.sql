-- The trail. Rows are inserted with the change they tell of, and never touched again.
CREATE TABLE audit_events (
    id            text PRIMARY KEY,
    sequence      bigint GENERATED ALWAYS AS IDENTITY,
    actor         text NOT NULL,
    actor_type    text NOT NULL CONSTRAINT audit_events_actor_type_check CHECK (actor_type IN ('User', 'System', 'Agent')),
    action        text NOT NULL,
    resource_type text NOT NULL,
    resource_id   text NOT NULL,
    details       jsonb NOT NULL DEFAULT '{}',
    at            timestamptz NOT NULL
);
CREATE INDEX audit_events_at_idx ON audit_events (at, id);
CREATE INDEX audit_events_resource_idx ON audit_events (resource_id, at);
CREATE INDEX audit_events_actor_idx ON audit_events (actor, at);
CREATE INDEX audit_events_action_idx ON audit_events (action, at);

CREATE FUNCTION audit_events_are_final() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit events are append-only' USING ERRCODE = 'insufficient_privilege';
END
$$;
CREATE TRIGGER audit_events_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_events
    FOR EACH STATEMENT EXECUTE FUNCTION audit_events_are_final();

-- Notifications on their way out.
CREATE TABLE notifications (
    id             text PRIMARY KEY,
    type           text NOT NULL,
    certificate_id text,
    channel        text NOT NULL,
    recipient      text NOT NULL,
    subject        text NOT NULL,
    message        text NOT NULL,
    -- The same news is enqueued once.
    dedup_key      text NOT NULL,
    status         text NOT NULL CONSTRAINT notifications_status_check
                   CHECK (status IN ('pending', 'sent', 'failed', 'skipped')),
    attempts       integer NOT NULL DEFAULT 0,
    not_before     timestamptz NOT NULL,
    lease_until    timestamptz,
    lease_token    bigint NOT NULL DEFAULT 0,
    error          text,
    sent_at        timestamptz,
    read_at        timestamptz,
    created_at     timestamptz NOT NULL,
    CONSTRAINT notifications_dedup_key UNIQUE (dedup_key),
    CONSTRAINT notifications_certificate_id_fkey
        FOREIGN KEY (certificate_id) REFERENCES certificates (id) ON DELETE RESTRICT,
    CONSTRAINT notifications_sent_check CHECK ((status = 'sent') = (sent_at IS NOT NULL))
);
CREATE INDEX notifications_claim_idx ON notifications (channel, not_before) WHERE status = 'pending';
CREATE INDEX notifications_created_idx ON notifications (created_at, id);
CREATE INDEX notifications_certificate_idx ON notifications (certificate_id, created_at);

-- Who runs a periodic loop now. The token grows with each holder; a holder that was asleep has an old one.
CREATE TABLE leases (
    name   text PRIMARY KEY,
    holder text NOT NULL,
    token  bigint NOT NULL,
    until  timestamptz NOT NULL
);

GRANT SELECT, INSERT ON audit_events TO certctl_api;
GRANT INSERT ON audit_events TO certctl_scheduler, certctl_notifier, certctl_signer;
GRANT SELECT, INSERT ON notifications TO certctl_api, certctl_scheduler;
GRANT UPDATE (read_at) ON notifications TO certctl_api;
GRANT SELECT, UPDATE ON notifications TO certctl_notifier;
GRANT SELECT, INSERT, UPDATE ON leases TO certctl_scheduler;
