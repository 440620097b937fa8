-- Agents and what they deploy to.
CREATE TABLE agents (
    id                text PRIMARY KEY,
    name              text NOT NULL,
    hostname          text NOT NULL,
    os                text NOT NULL DEFAULT '',
    architecture      text NOT NULL DEFAULT '',
    ip_address        text NOT NULL DEFAULT '',
    version           text NOT NULL DEFAULT '',
    capabilities      text[] NOT NULL DEFAULT '{}',
    -- SHA-256 of the agent's key, lower-case hexadecimal.
    api_key_hash      text NOT NULL,
    last_heartbeat_at timestamptz,
    -- Set when the agent was found silent, cleared by its next heartbeat.
    offline_since     timestamptz,
    registered_at     timestamptz NOT NULL,
    updated_at        timestamptz NOT NULL,
    CONSTRAINT agents_name_key UNIQUE (name)
);
CREATE INDEX agents_registered_idx ON agents (registered_at, id);
CREATE INDEX agents_key_idx ON agents (api_key_hash);
CREATE INDEX agents_heartbeat_idx ON agents (last_heartbeat_at) WHERE offline_since IS NULL;

CREATE TABLE targets (
    id         text PRIMARY KEY,
    name       text NOT NULL,
    type       text NOT NULL,
    agent_id   text NOT NULL,
    config     jsonb NOT NULL DEFAULT '{}',
    enabled    boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    CONSTRAINT targets_agent_name_key UNIQUE (agent_id, name),
    CONSTRAINT targets_agent_id_fkey FOREIGN KEY (agent_id) REFERENCES agents (id) ON DELETE RESTRICT
);
CREATE INDEX targets_created_idx ON targets (created_at, id);

-- Managed certificates: facts only. How one stands is asked of them with certificate_status().
CREATE TABLE certificates (
    id                 text PRIMARY KEY,
    name               text NOT NULL,
    common_name        text NOT NULL,
    sans               text[] NOT NULL DEFAULT '{}',
    environment        text NOT NULL DEFAULT '',
    owner_id           text NOT NULL,
    team_id            text NOT NULL,
    issuer_id          text NOT NULL,
    renewal_policy_id  text NOT NULL,
    profile_id         text,
    tags               jsonb NOT NULL DEFAULT '{}',
    current_version_id text,
    -- Of the newest version; with several agents, of the one that ends first.
    not_before         timestamptz,
    not_after          timestamptz,
    -- From when a renewal is due under its policy; null when it never is by itself.
    renew_at           timestamptz,
    -- When and why the last issuance or renewal was given up; cleared by the next success.
    failed_at          timestamptz,
    failure            text,
    revoked_at         timestamptz,
    revocation_reason  text,
    archived_at        timestamptz,
    last_renewal_at    timestamptz,
    last_deployment_at timestamptz,
    created_at         timestamptz NOT NULL,
    updated_at         timestamptz NOT NULL,
    CONSTRAINT certificates_name_key UNIQUE (name),
    CONSTRAINT certificates_owner_id_fkey FOREIGN KEY (owner_id) REFERENCES owners (id) ON DELETE RESTRICT,
    CONSTRAINT certificates_team_id_fkey FOREIGN KEY (team_id) REFERENCES teams (id) ON DELETE RESTRICT,
    CONSTRAINT certificates_issuer_id_fkey FOREIGN KEY (issuer_id) REFERENCES issuers (id) ON DELETE RESTRICT,
    CONSTRAINT certificates_renewal_policy_id_fkey
        FOREIGN KEY (renewal_policy_id) REFERENCES renewal_policies (id) ON DELETE RESTRICT,
    CONSTRAINT certificates_profile_id_fkey FOREIGN KEY (profile_id) REFERENCES profiles (id) ON DELETE RESTRICT,
    CONSTRAINT certificates_issued_check CHECK ((current_version_id IS NULL) = (not_after IS NULL)),
    CONSTRAINT certificates_revoked_check CHECK (revoked_at IS NULL OR current_version_id IS NOT NULL),
    CONSTRAINT certificates_reason_check CHECK ((revoked_at IS NULL) = (revocation_reason IS NULL)),
    CONSTRAINT certificates_failure_check CHECK ((failed_at IS NULL) = (failure IS NULL))
);
CREATE INDEX certificates_created_idx ON certificates (created_at, id);
CREATE INDEX certificates_updated_idx ON certificates (updated_at, id);
CREATE INDEX certificates_not_after_idx ON certificates ((coalesce(not_after, 'infinity')), id);
CREATE INDEX certificates_common_name_idx ON certificates (common_name, id);
CREATE INDEX certificates_environment_idx ON certificates (environment, id);
CREATE INDEX certificates_owner_idx ON certificates (owner_id, id);
CREATE INDEX certificates_team_idx ON certificates (team_id, id);
CREATE INDEX certificates_issuer_idx ON certificates (issuer_id, id);
CREATE INDEX certificates_policy_idx ON certificates (renewal_policy_id, id);
CREATE INDEX certificates_profile_idx ON certificates (profile_id) WHERE profile_id IS NOT NULL;
CREATE INDEX certificates_renewal_idx ON certificates (renew_at)
    WHERE revoked_at IS NULL AND archived_at IS NULL;

CREATE TABLE certificate_targets (
    certificate_id text NOT NULL,
    target_id      text NOT NULL,
    PRIMARY KEY (certificate_id, target_id),
    CONSTRAINT certificate_targets_certificate_id_fkey
        FOREIGN KEY (certificate_id) REFERENCES certificates (id) ON DELETE CASCADE,
    CONSTRAINT certificate_targets_target_id_fkey FOREIGN KEY (target_id) REFERENCES targets (id) ON DELETE CASCADE
);
CREATE INDEX certificate_targets_target_idx ON certificate_targets (target_id);

CREATE TABLE certificate_versions (
    id                 text PRIMARY KEY,
    certificate_id     text NOT NULL,
    job_id             text NOT NULL,
    issuer_id          text NOT NULL,
    -- The agent that holds the key.
    agent_id           text,
    version            integer NOT NULL,
    serial_number      text NOT NULL,
    not_before         timestamptz NOT NULL,
    not_after          timestamptz NOT NULL,
    fingerprint_sha256 text NOT NULL,
    spki_sha256        text NOT NULL,
    cert_pem           text NOT NULL,
    chain_pem          text NOT NULL,
    csr_der            bytea NOT NULL,
    key_algorithm      text NOT NULL,
    key_size           integer NOT NULL,
    created_at         timestamptz NOT NULL,
    CONSTRAINT certificate_versions_certificate_id_fkey
        FOREIGN KEY (certificate_id) REFERENCES certificates (id) ON DELETE RESTRICT,
    CONSTRAINT certificate_versions_number_key UNIQUE (certificate_id, version),
    CONSTRAINT certificate_versions_job_key UNIQUE (job_id),
    CONSTRAINT certificate_versions_fingerprint_key UNIQUE (fingerprint_sha256),
    CONSTRAINT certificate_versions_serial_key UNIQUE (issuer_id, serial_number)
);
CREATE INDEX certificate_versions_agent_idx ON certificate_versions (certificate_id, agent_id, version);

ALTER TABLE certificates ADD CONSTRAINT certificates_current_version_fkey
    FOREIGN KEY (current_version_id) REFERENCES certificate_versions (id);

GRANT SELECT, INSERT, UPDATE, DELETE ON agents, targets, certificates, certificate_targets TO certctl_api;
GRANT SELECT ON certificate_versions TO certctl_api;
GRANT SELECT ON certificates TO certctl_signer, certctl_notifier;
GRANT SELECT, UPDATE ON certificates, agents TO certctl_scheduler;
GRANT SELECT ON targets, certificate_targets TO certctl_scheduler;
GRANT SELECT, INSERT ON certificate_versions TO certctl_scheduler;
