-- Rules certificates are held against, and where they are broken.
CREATE TABLE policy_rules (
    id         text PRIMARY KEY,
    name       text NOT NULL,
    type       text NOT NULL CONSTRAINT policy_rules_type_check CHECK (type IN (
                   'AllowedIssuers', 'AllowedDomains', 'RequiredMetadata', 'AllowedEnvironments', 'RenewalLeadTime')),
    severity   text NOT NULL CONSTRAINT policy_rules_severity_check CHECK (severity IN ('Warning', 'Error', 'Critical')),
    config     jsonb NOT NULL DEFAULT '{}',
    enabled    boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    CONSTRAINT policy_rules_name_key UNIQUE (name)
);
CREATE INDEX policy_rules_created_idx ON policy_rules (created_at, id);

CREATE TABLE policy_violations (
    id             text PRIMARY KEY,
    rule_id        text NOT NULL,
    certificate_id text NOT NULL,
    message        text NOT NULL,
    -- Of the rule, when it was found broken.
    severity       text NOT NULL CONSTRAINT policy_violations_severity_check
                   CHECK (severity IN ('Warning', 'Error', 'Critical')),
    created_at     timestamptz NOT NULL,
    -- When the rule held again.
    closed_at      timestamptz,
    CONSTRAINT policy_violations_rule_id_fkey FOREIGN KEY (rule_id) REFERENCES policy_rules (id) ON DELETE CASCADE,
    CONSTRAINT policy_violations_certificate_id_fkey
        FOREIGN KEY (certificate_id) REFERENCES certificates (id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX policy_violations_one_open ON policy_violations (rule_id, certificate_id) WHERE closed_at IS NULL;
CREATE INDEX policy_violations_created_idx ON policy_violations (created_at, id);
CREATE INDEX policy_violations_open_idx ON policy_violations (created_at, id) WHERE closed_at IS NULL;
CREATE INDEX policy_violations_rule_idx ON policy_violations (rule_id, created_at, id);
CREATE INDEX policy_violations_certificate_idx ON policy_violations (certificate_id, created_at, id);
CREATE INDEX policy_violations_severity_idx ON policy_violations (severity, created_at, id);

-- Groups of agents: those that meet every criterion given, those named as members, and not those named as none.
CREATE TABLE agent_groups (
    id                 text PRIMARY KEY,
    name               text NOT NULL,
    description        text NOT NULL DEFAULT '',
    match_os           text NOT NULL DEFAULT '',
    match_architecture text NOT NULL DEFAULT '',
    match_ip_cidr      text NOT NULL DEFAULT '',
    match_version      text NOT NULL DEFAULT '',
    enabled            boolean NOT NULL DEFAULT true,
    created_at         timestamptz NOT NULL,
    updated_at         timestamptz NOT NULL,
    CONSTRAINT agent_groups_name_key UNIQUE (name)
);
CREATE INDEX agent_groups_created_idx ON agent_groups (created_at, id);

CREATE TABLE agent_group_members (
    group_id        text NOT NULL,
    agent_id        text NOT NULL,
    membership_type text NOT NULL CONSTRAINT agent_group_members_type_check
                    CHECK (membership_type IN ('include', 'exclude')),
    created_at      timestamptz NOT NULL,
    PRIMARY KEY (group_id, agent_id),
    CONSTRAINT agent_group_members_group_id_fkey FOREIGN KEY (group_id) REFERENCES agent_groups (id) ON DELETE CASCADE,
    CONSTRAINT agent_group_members_agent_id_fkey FOREIGN KEY (agent_id) REFERENCES agents (id) ON DELETE CASCADE
);
CREATE INDEX agent_group_members_agent_idx ON agent_group_members (agent_id);
CREATE INDEX agent_group_members_created_idx ON agent_group_members (group_id, created_at, agent_id);

-- An agent says its address itself, so it may be no address.
CREATE FUNCTION address_or_null(said text) RETURNS inet LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
BEGIN
    RETURN said::inet;
EXCEPTION WHEN invalid_text_representation THEN
    RETURN NULL;
END
$$;
ALTER TABLE agents
    ADD COLUMN tags jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN address inet GENERATED ALWAYS AS (address_or_null(ip_address)) STORED;
CREATE INDEX agents_os_idx ON agents (lower(os), id);
CREATE INDEX agents_architecture_idx ON agents (lower(architecture), id);
CREATE INDEX agents_version_idx ON agents (version, id);
CREATE INDEX agents_last_heartbeat_idx ON agents ((coalesce(last_heartbeat_at, '-infinity')), id);

CREATE INDEX notifications_status_idx ON notifications (status, created_at, id);
CREATE INDEX notifications_type_idx ON notifications (type, created_at, id);
CREATE INDEX notifications_channel_idx ON notifications (channel, created_at, id);
CREATE INDEX notifications_unread_idx ON notifications (created_at, id) WHERE read_at IS NULL;
CREATE INDEX notifications_sent_idx ON notifications ((coalesce(sent_at, '-infinity')), id);

CREATE INDEX jobs_status_idx ON jobs (status, created_at, id);
CREATE INDEX jobs_type_idx ON jobs (type, created_at, id);
CREATE INDEX jobs_of_agent_idx ON jobs (agent_id, created_at, id) WHERE agent_id IS NOT NULL;

GRANT SELECT, INSERT, UPDATE, DELETE ON policy_rules, agent_groups, agent_group_members TO certctl_api;
GRANT SELECT ON policy_violations TO certctl_api;
