-- One thing done to many certificates: which, before anything is done; and what became of each.
CREATE TABLE bulk_operations (
    id          text PRIMARY KEY,
    action      text NOT NULL CONSTRAINT bulk_operations_action_check CHECK (action IN ('renew', 'revoke', 'reassign')),
    dry_run     boolean NOT NULL,
    status      text NOT NULL CONSTRAINT bulk_operations_status_check CHECK (status IN ('Running', 'Completed', 'Cancelled')),
    reason      text,
    owner_id    text,
    team_id     text,
    -- The filter that chose the certificates; none when they were named.
    filter      jsonb,
    total       bigint NOT NULL DEFAULT 0,
    -- Counted when it is finished; until then they are asked of the items.
    done        bigint NOT NULL DEFAULT 0,
    refused     bigint NOT NULL DEFAULT 0,
    actor       text NOT NULL,
    actor_type  text NOT NULL,
    created_at  timestamptz NOT NULL,
    finished_at timestamptz,
    CONSTRAINT bulk_operations_finished_check CHECK ((status = 'Running') = (finished_at IS NULL))
);
CREATE INDEX bulk_operations_created_idx ON bulk_operations (created_at, id);
CREATE INDEX bulk_operations_running_idx ON bulk_operations (id) WHERE status = 'Running';

CREATE TABLE bulk_items (
    bulk_id        text NOT NULL,
    -- As it was named: it need not exist.
    certificate_id text NOT NULL,
    outcome        text NOT NULL DEFAULT 'waiting'
                   CONSTRAINT bulk_items_outcome_check CHECK (outcome IN ('waiting', 'done', 'refused', 'cancelled')),
    message        text,
    finished_at    timestamptz,
    PRIMARY KEY (bulk_id, certificate_id),
    CONSTRAINT bulk_items_bulk_id_fkey FOREIGN KEY (bulk_id) REFERENCES bulk_operations (id) ON DELETE CASCADE,
    CONSTRAINT bulk_items_finished_check CHECK ((outcome = 'waiting') = (finished_at IS NULL))
);
CREATE INDEX bulk_items_outcome_idx ON bulk_items (bulk_id, outcome, certificate_id);
CREATE INDEX bulk_items_waiting_idx ON bulk_items (bulk_id, certificate_id) WHERE outcome = 'waiting';

GRANT SELECT, INSERT, UPDATE ON bulk_operations, bulk_items TO certctl_api;
GRANT SELECT, UPDATE ON bulk_operations, bulk_items TO certctl_scheduler;
