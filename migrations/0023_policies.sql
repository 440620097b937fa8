-- Where policy rules hold, and what they keep from happening.

-- A rule without scopes holds everywhere. With some it holds for certificates of these renewal policies, and for those
-- with an agent in one of these groups; with both kinds, where both fit.
CREATE TABLE policy_rule_scopes (
    rule_id           text NOT NULL,
    agent_group_id    text,
    renewal_policy_id text,
    CONSTRAINT policy_rule_scopes_rule_id_fkey FOREIGN KEY (rule_id) REFERENCES policy_rules (id) ON DELETE CASCADE,
    CONSTRAINT policy_rule_scopes_agent_group_ids_fkey
        FOREIGN KEY (agent_group_id) REFERENCES agent_groups (id) ON DELETE RESTRICT,
    CONSTRAINT policy_rule_scopes_renewal_policy_ids_fkey
        FOREIGN KEY (renewal_policy_id) REFERENCES renewal_policies (id) ON DELETE RESTRICT,
    CONSTRAINT policy_rule_scopes_one_check CHECK (num_nonnulls(agent_group_id, renewal_policy_id) = 1),
    CONSTRAINT policy_rule_scopes_key UNIQUE NULLS NOT DISTINCT (rule_id, agent_group_id, renewal_policy_id)
);
CREATE INDEX policy_rule_scopes_group_idx ON policy_rule_scopes (agent_group_id) WHERE agent_group_id IS NOT NULL;
CREATE INDEX policy_rule_scopes_policy_idx ON policy_rule_scopes (renewal_policy_id) WHERE renewal_policy_id IS NOT NULL;

-- Violations for which no certificate is issued. Dates are not among them: a new certificate mends those.
CREATE VIEW blocking_violations AS
    SELECT v.certificate_id, v.rule_id, r.name, v.severity, v.message
      FROM policy_violations v JOIN policy_rules r ON r.id = v.rule_id
     WHERE v.closed_at IS NULL AND v.severity <> 'Warning' AND r.enabled AND r.type <> 'RenewalLeadTime';

GRANT SELECT, INSERT, UPDATE, DELETE ON policy_rule_scopes TO certctl_api;
GRANT INSERT, UPDATE ON policy_violations TO certctl_api;
GRANT SELECT ON policy_rules, policy_rule_scopes, agent_groups, agent_group_members TO certctl_scheduler;
GRANT SELECT, INSERT, UPDATE ON policy_violations TO certctl_scheduler;
GRANT SELECT ON blocking_violations TO certctl_api, certctl_scheduler;
