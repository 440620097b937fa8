-- Whether what clients connect to serves what was deployed.

-- When it is looked again; null while there is nowhere to look, or nothing is deployed.
ALTER TABLE certificate_targets ADD COLUMN validate_at timestamptz;
CREATE INDEX certificate_targets_validate_idx ON certificate_targets (validate_at, certificate_id, target_id)
    WHERE validate_at IS NOT NULL;

CREATE UNIQUE INDEX jobs_one_open_validation ON jobs (certificate_id, target_id)
    WHERE type = 'Validation' AND status NOT IN ('Completed', 'Failed', 'Cancelled');
CREATE INDEX jobs_validation_idx ON jobs (run_at, id) WHERE type = 'Validation' AND status IN ('Pending', 'Running');

-- What was seen last at each address behind the endpoints of a target.
CREATE TABLE endpoints (
    id                 text PRIMARY KEY,
    certificate_id     text NOT NULL,
    target_id          text NOT NULL,
    -- The endpoint as it is written in the target, and an address that it stands for.
    endpoint           text NOT NULL,
    address            text NOT NULL,
    outcome            text NOT NULL CONSTRAINT endpoints_outcome_check
                       CHECK (outcome IN ('Served', 'Differs', 'Unreachable')),
    -- What is wrong; empty when nothing is.
    detail             text NOT NULL,
    -- Of the certificate that is served, SHA-256.
    fingerprint_sha256 text,
    -- Since when it is so, and when it was seen last.
    since              timestamptz NOT NULL,
    checked_at         timestamptz NOT NULL,
    CONSTRAINT endpoints_address_key UNIQUE (certificate_id, target_id, endpoint, address),
    CONSTRAINT endpoints_placed_fkey FOREIGN KEY (certificate_id, target_id)
        REFERENCES certificate_targets (certificate_id, target_id) ON DELETE CASCADE
);
CREATE INDEX endpoints_checked_idx ON endpoints (checked_at, id);
CREATE INDEX endpoints_outcome_idx ON endpoints (outcome, checked_at, id);
CREATE INDEX endpoints_target_idx ON endpoints (target_id, checked_at, id);
CREATE INDEX endpoints_certificate_idx ON endpoints (certificate_id, checked_at, id);

GRANT SELECT, INSERT, UPDATE, DELETE ON endpoints TO certctl_scheduler;
GRANT SELECT ON endpoints TO certctl_api;
GRANT UPDATE (validate_at) ON certificate_targets TO certctl_scheduler;
