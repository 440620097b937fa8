-- Times in which nothing is renewed by itself.
CREATE TABLE freezes (
    id         text PRIMARY KEY,
    name       text NOT NULL CONSTRAINT freezes_name_key UNIQUE,
    reason     text NOT NULL,
    starts_at  timestamptz NOT NULL,
    ends_at    timestamptz NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    CONSTRAINT freezes_span_check CHECK (ends_at > starts_at)
);
CREATE INDEX freezes_created_idx ON freezes (created_at, id);
CREATE INDEX freezes_starts_idx ON freezes (starts_at, id);
CREATE INDEX freezes_ends_idx ON freezes (ends_at);

-- As those of policy rules: without scopes it holds everywhere, with both kinds where both fit.
CREATE TABLE freeze_scopes (
    freeze_id         text NOT NULL,
    agent_group_id    text,
    renewal_policy_id text,
    CONSTRAINT freeze_scopes_freeze_id_fkey FOREIGN KEY (freeze_id) REFERENCES freezes (id) ON DELETE CASCADE,
    CONSTRAINT freeze_scopes_agent_group_ids_fkey
        FOREIGN KEY (agent_group_id) REFERENCES agent_groups (id) ON DELETE RESTRICT,
    CONSTRAINT freeze_scopes_renewal_policy_ids_fkey
        FOREIGN KEY (renewal_policy_id) REFERENCES renewal_policies (id) ON DELETE RESTRICT,
    CONSTRAINT freeze_scopes_one_check CHECK (num_nonnulls(agent_group_id, renewal_policy_id) = 1),
    CONSTRAINT freeze_scopes_key UNIQUE NULLS NOT DISTINCT (freeze_id, agent_group_id, renewal_policy_id)
);
CREATE INDEX freeze_scopes_group_idx ON freeze_scopes (agent_group_id) WHERE agent_group_id IS NOT NULL;
CREATE INDEX freeze_scopes_policy_idx ON freeze_scopes (renewal_policy_id) WHERE renewal_policy_id IS NOT NULL;

GRANT SELECT, INSERT, UPDATE, DELETE ON freezes, freeze_scopes TO certctl_api;
GRANT SELECT ON freezes, freeze_scopes TO certctl_scheduler;
