CREATE TABLE jobs (
    id             text PRIMARY KEY,
    type           text NOT NULL CONSTRAINT jobs_type_check
                   CHECK (type IN ('Issuance', 'Renewal', 'Deployment', 'Validation')),
    certificate_id text NOT NULL,
    agent_id       text,
    target_id      text,
    -- The version a deployment puts on its target, or the one an issuance made.
    version_id     text,
    status         text NOT NULL CONSTRAINT jobs_status_check CHECK (status IN (
                       'Pending', 'AwaitingCSR', 'AwaitingApproval', 'Running', 'Completed', 'Failed', 'Cancelled')),
    csr_der        bytea,
    attempts       integer NOT NULL DEFAULT 0,
    max_attempts   integer NOT NULL DEFAULT 3,
    -- What went wrong the last time it was tried; the reason once it is given up or called off.
    last_error     text,
    reason         text,
    run_at         timestamptz NOT NULL,
    -- A worker holds the job until then; whoever claims it next gets a higher token, and only the holder of the
    -- highest can write.
    lease_until    timestamptz,
    lease_token    bigint NOT NULL DEFAULT 0,
    started_at     timestamptz,
    finished_at    timestamptz,
    created_at     timestamptz NOT NULL,
    CONSTRAINT jobs_certificate_id_fkey FOREIGN KEY (certificate_id) REFERENCES certificates (id) ON DELETE RESTRICT,
    CONSTRAINT jobs_agent_id_fkey FOREIGN KEY (agent_id) REFERENCES agents (id) ON DELETE SET NULL,
    CONSTRAINT jobs_target_id_fkey FOREIGN KEY (target_id) REFERENCES targets (id) ON DELETE SET NULL,
    CONSTRAINT jobs_version_id_fkey FOREIGN KEY (version_id) REFERENCES certificate_versions (id),
    CONSTRAINT jobs_reason_check CHECK ((status IN ('Failed', 'Cancelled')) = (reason IS NOT NULL)),
    CONSTRAINT jobs_finished_check
        CHECK ((status IN ('Completed', 'Failed', 'Cancelled')) = (finished_at IS NOT NULL)),
    CONSTRAINT jobs_request_check
        CHECK (type NOT IN ('Issuance', 'Renewal') OR status NOT IN ('Running', 'Completed') OR csr_der IS NOT NULL),
    CONSTRAINT jobs_deployment_check CHECK (type <> 'Deployment' OR version_id IS NOT NULL)
);
-- One open issuance or renewal for each certificate and agent, one open deployment for each target.
CREATE UNIQUE INDEX jobs_one_open_issuance ON jobs (certificate_id, (coalesce(agent_id, '')))
    WHERE type IN ('Issuance', 'Renewal') AND status NOT IN ('Completed', 'Failed', 'Cancelled');
CREATE UNIQUE INDEX jobs_one_open_deployment ON jobs (certificate_id, (coalesce(target_id, '')), version_id)
    WHERE type = 'Deployment' AND status NOT IN ('Completed', 'Failed', 'Cancelled');
-- What a scheduler claims: requests to prepare, and accepted requests to sign.
CREATE INDEX jobs_claim_idx ON jobs (run_at)
    WHERE type IN ('Issuance', 'Renewal') AND status IN ('Pending', 'Running');
-- What an agent fetches.
CREATE INDEX jobs_agent_idx ON jobs (agent_id, created_at) WHERE status IN ('Pending', 'AwaitingCSR', 'Running');
-- Leases that may have run out, deployments of a target, and tries that failed.
CREATE INDEX jobs_lease_idx ON jobs (lease_until) WHERE lease_until IS NOT NULL;
CREATE INDEX jobs_target_idx ON jobs (target_id, created_at) WHERE target_id IS NOT NULL;
CREATE INDEX jobs_failed_idx ON jobs (certificate_id, agent_id, finished_at)
    WHERE type IN ('Issuance', 'Renewal') AND status = 'Failed';
CREATE INDEX jobs_certificate_idx ON jobs (certificate_id, created_at);
CREATE INDEX jobs_created_idx ON jobs (created_at, id);
CREATE INDEX jobs_run_idx ON jobs (run_at, id);

-- How a certificate stands at an instant: the eight statuses as a question put to facts and open jobs.
CREATE FUNCTION certificate_status(c certificates, at timestamptz) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN c.archived_at IS NOT NULL THEN 'Archived'
        WHEN c.revoked_at IS NOT NULL THEN 'Revoked'
        WHEN c.current_version_id IS NULL AND c.failed_at IS NOT NULL THEN 'Failed'
        WHEN c.current_version_id IS NULL THEN 'Pending'
        WHEN EXISTS (SELECT 1 FROM jobs j WHERE j.certificate_id = c.id AND j.type IN ('Issuance', 'Renewal')
                     AND j.status NOT IN ('Completed', 'Failed', 'Cancelled')) THEN 'RenewalInProgress'
        WHEN c.not_after <= at THEN 'Expired'
        WHEN c.failed_at IS NOT NULL THEN 'Failed'
        WHEN c.not_after - at <= least(interval '30 days', (c.not_after - c.not_before) / 3) THEN 'Expiring'
        ELSE 'Active'
    END
$$;

GRANT SELECT, INSERT, UPDATE ON jobs TO certctl_api, certctl_scheduler;
GRANT SELECT ON jobs TO certctl_signer;
