-- Who took part in an issuance and so does not approve it; how many approvals were required when a job was requested and
-- before a certificate was moved to weaker rules.

ALTER TABLE renewal_policies ADD COLUMN self_approval boolean NOT NULL DEFAULT false;

-- Changes by persons that approvals depend on, of a certificate or of a job. Rows are only added.
CREATE TABLE participations (
    id                  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    certificate_id      text,
    job_id              text,
    participant         text NOT NULL,
    -- In the past tense: 'changed its names'.
    action              text NOT NULL,
    -- Whether the next issuance counts as requested by a person because of it.
    requests            boolean NOT NULL,
    -- What was required before the certificate was moved to weaker rules: approvals of planned and of requested
    -- issuances, and whether participants were excluded. Required until something is issued.
    planned_approvals   integer NOT NULL DEFAULT 0,
    requested_approvals integer NOT NULL DEFAULT 0,
    self_approval       boolean NOT NULL DEFAULT true,
    created_at          timestamptz NOT NULL,
    CONSTRAINT participations_subject_check CHECK (num_nonnulls(certificate_id, job_id) = 1),
    CONSTRAINT participations_certificate_id_fkey
        FOREIGN KEY (certificate_id) REFERENCES certificates (id) ON DELETE CASCADE,
    CONSTRAINT participations_job_id_fkey FOREIGN KEY (job_id) REFERENCES jobs (id) ON DELETE CASCADE
);
CREATE INDEX participations_certificate_idx ON participations (certificate_id, id) WHERE certificate_id IS NOT NULL;
CREATE INDEX participations_job_idx ON participations (job_id) WHERE job_id IS NOT NULL;

-- The last participation of each certificate that an approved issuance covers. Written by a trigger only.
CREATE TABLE participations_settled (
    certificate_id text PRIMARY KEY,
    until          bigint NOT NULL,
    CONSTRAINT participations_settled_certificate_id_fkey
        FOREIGN KEY (certificate_id) REFERENCES certificates (id) ON DELETE CASCADE
);

-- What was required when the job was requested; which participations were settled then (_from) and which were there
-- when it began to run (_until). Written by triggers only.
ALTER TABLE jobs
    ADD COLUMN planned_approvals   integer NOT NULL DEFAULT 0,
    ADD COLUMN requested_approvals integer NOT NULL DEFAULT 0,
    ADD COLUMN self_approval       boolean NOT NULL DEFAULT false,
    ADD COLUMN participations_from bigint NOT NULL DEFAULT 0,
    ADD COLUMN participations_until bigint;

-- The person who has seen a key of an agent, and so could act as the agent.
ALTER TABLE api_key_secrets ADD COLUMN created_by text;
UPDATE api_key_secrets s SET created_by = k.created_by FROM api_keys k WHERE k.id = s.key_id;
ALTER TABLE agents ADD COLUMN registered_by text;

-- Whether two names are those of one principal.
CREATE FUNCTION is_same_principal(a text, b text) RETURNS boolean LANGUAGE sql IMMUTABLE
RETURN a = b;

-- Approvals of a planned and of a requested issuance.
CREATE FUNCTION approvals_required(approval text, approvers integer) RETURNS integer[] LANGUAGE sql IMMUTABLE
RETURN CASE approval WHEN 'always' THEN ARRAY[approvers, approvers]
                     WHEN 'manual' THEN ARRAY[0, approvers]
                     ELSE ARRAY[0, 0] END;

CREATE FUNCTION stricter_approvals(a integer[], b integer[]) RETURNS integer[] LANGUAGE sql IMMUTABLE
RETURN ARRAY[greatest(a[1], b[1], 0), greatest(a[2], b[2], 0)];

-- What a renewal policy and a profile require together.
CREATE FUNCTION certificate_approvals(policy text, profile text) RETURNS integer[] LANGUAGE sql STABLE
RETURN stricter_approvals(
    (SELECT approvals_required(p.approval, p.approvers) FROM renewal_policies p WHERE p.id = policy),
    (SELECT approvals_required(f.approval, f.approvers) FROM profiles f WHERE f.id = profile));

-- The participations of its certificate that a job's approval has to cover.
CREATE FUNCTION job_participations(j jobs, c certificates) RETURNS SETOF participations LANGUAGE sql STABLE ROWS 2
BEGIN ATOMIC
    SELECT p.* FROM participations p
     WHERE p.certificate_id = c.id AND p.id > j.participations_from
       AND (j.finished_at IS NULL OR p.id <= coalesce(j.participations_until, p.id));
END;

-- Who took part in an issuance, and how.
CREATE FUNCTION job_participants(j jobs, c certificates)
RETURNS TABLE (participant text, action text, requests boolean) LANGUAGE sql STABLE ROWS 4
BEGIN ATOMIC
    SELECT j.requested_by, 'asked for it', true WHERE j.requested_by IS NOT NULL
     UNION ALL
    SELECT p.participant, p.action, p.requests FROM participations p WHERE p.job_id = j.id
     UNION ALL
    SELECT p.participant, p.action, p.requests FROM job_participations(j, c) p
     UNION ALL
    SELECT s.created_by, 'created a key of its agent', false
      FROM api_keys k JOIN api_key_secrets s ON s.key_id = k.id
     WHERE k.agent_id = j.agent_id AND s.created_by IS NOT NULL
     UNION ALL
    SELECT a.registered_by, 'registered its agent', false FROM agents a
     WHERE a.id = j.agent_id AND a.registered_by IS NOT NULL;
END;

-- The stricter of what is required now, what was when the job was requested, and what was before its certificate was
-- moved to weaker rules.
CREATE FUNCTION job_approvals_required(j jobs, c certificates) RETURNS integer[] LANGUAGE sql STABLE
RETURN stricter_approvals(
    stricter_approvals(certificate_approvals(c.renewal_policy_id, c.profile_id),
                       ARRAY[j.planned_approvals, j.requested_approvals]),
    (SELECT ARRAY[max(p.planned_approvals), max(p.requested_approvals)] FROM job_participations(j, c) p));

-- How many approvals a job needs.
CREATE OR REPLACE FUNCTION job_approvals_needed(j jobs, c certificates) RETURNS integer LANGUAGE sql STABLE
RETURN (SELECT CASE WHEN required.n[2] > required.n[1]
                     AND EXISTS (SELECT 1 FROM job_participants(j, c) p WHERE p.requests)
                    THEN required.n[2] ELSE required.n[1] END
          FROM (SELECT job_approvals_required(j, c) AS n) required);
DROP FUNCTION approvals_wanted(text, integer, text);

-- Whether participants may approve: the policy says so now, said so when the job was requested, and the certificate was
-- not moved to it from one that did not.
CREATE FUNCTION job_self_approval(j jobs, c certificates) RETURNS boolean LANGUAGE sql STABLE
RETURN j.self_approval
   AND coalesce((SELECT p.self_approval FROM renewal_policies p WHERE p.id = c.renewal_policy_id), false)
   AND NOT EXISTS (SELECT 1 FROM job_participations(j, c) p WHERE NOT p.self_approval);

-- What a principal did that keeps it from approving a job; null when it may approve.
CREATE FUNCTION job_approver_conflict(j jobs, c certificates, approver text) RETURNS text LANGUAGE sql STABLE
RETURN CASE WHEN NOT job_self_approval(j, c)
            THEN (SELECT p.action FROM job_participants(j, c) p
                   WHERE is_same_principal(p.participant, approver) LIMIT 1) END;

-- The same as before, with the names resolved when it is created.
CREATE OR REPLACE FUNCTION job_digest(j jobs, c certificates) RETURNS text LANGUAGE sql STABLE
RETURN encode(sha256(convert_to(jsonb_build_object(
        'request', encode(j.csr_der, 'hex'),
        'common_name', c.common_name,
        'names', c.sans,
        'issuer', c.issuer_id,
        'profile', (SELECT to_jsonb(f) - '{name,description,approval,approvers,created_at,updated_at}'::text[]
                      FROM profiles f WHERE f.id = c.profile_id),
        'targets', (SELECT jsonb_agg(t.id ORDER BY t.id) FROM certificate_targets m JOIN targets t ON t.id = m.target_id
                     WHERE m.certificate_id = c.id AND t.agent_id = j.agent_id)
    )::text, 'UTF8')), 'hex');

-- Whether enough principals that took no part approved what would be signed now.
CREATE OR REPLACE FUNCTION job_approved(j jobs, c certificates) RETURNS boolean LANGUAGE sql STABLE
RETURN (SELECT CASE needed.n WHEN 0 THEN true ELSE coalesce(
            (SELECT bool_or(a.overrides)
                 OR count(*) FILTER (WHERE job_approver_conflict(j, c, a.approver) IS NULL) >= needed.n
               FROM approvals a WHERE a.job_id = j.id AND a.digest = job_digest(j, c)), false) END
          FROM (SELECT job_approvals_needed(j, c) AS n) needed);

-- Certificates for which nothing was issued here, imported ones included: a person brought each of them.
INSERT INTO participations (certificate_id, participant, action, requests, created_at)
SELECT c.id, 'unknown', 'created the certificate', true, c.created_at FROM certificates c
 WHERE c.archived_at IS NULL
   AND NOT EXISTS (SELECT 1 FROM certificate_versions v WHERE v.certificate_id = c.id AND v.job_id IS NOT NULL);
-- Open jobs were requested under the rules as they are.
UPDATE jobs j
   SET planned_approvals = (certificate_approvals(c.renewal_policy_id, c.profile_id))[1],
       requested_approvals = (certificate_approvals(c.renewal_policy_id, c.profile_id))[2]
  FROM certificates c
 WHERE c.id = j.certificate_id AND j.type IN ('Issuance', 'Renewal')
   AND j.status NOT IN ('Completed', 'Failed', 'Cancelled');

CREATE FUNCTION jobs_set_approvals() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    required integer[];
    self     boolean;
    settled  bigint;
BEGIN
    SELECT certificate_approvals(c.renewal_policy_id, c.profile_id), p.self_approval, coalesce(s.until, 0)
      INTO required, self, settled
      FROM certificates c
      JOIN renewal_policies p ON p.id = c.renewal_policy_id
      LEFT JOIN participations_settled s ON s.certificate_id = c.id
     WHERE c.id = NEW.certificate_id;
    -- A certificate that does not exist is refused by the next trigger.
    NEW.planned_approvals := coalesce(required[1], 0);
    NEW.requested_approvals := coalesce(required[2], 0);
    NEW.self_approval := coalesce(self, false);
    NEW.participations_from := coalesce(settled, 0);
    NEW.participations_until := NULL;
    RETURN NEW;
END
$$;
CREATE TRIGGER jobs_set_approvals BEFORE INSERT ON jobs FOR EACH ROW
    WHEN (NEW.type IN ('Issuance', 'Renewal')) EXECUTE FUNCTION jobs_set_approvals();
ALTER FUNCTION jobs_set_approvals() SET enable_seqscan TO off;

CREATE FUNCTION jobs_keep_approvals() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.planned_approvals := OLD.planned_approvals;
    NEW.requested_approvals := OLD.requested_approvals;
    NEW.self_approval := OLD.self_approval;
    NEW.participations_from := OLD.participations_from;
    NEW.participations_until := OLD.participations_until;
    IF NEW.status = 'Running' AND OLD.status <> 'Running' THEN
        NEW.participations_until :=
            coalesce((SELECT max(p.id) FROM participations p WHERE p.certificate_id = NEW.certificate_id), 0);
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER jobs_keep_approvals BEFORE UPDATE ON jobs FOR EACH ROW
    WHEN (NEW.type IN ('Issuance', 'Renewal')
          AND (NEW.status <> OLD.status
               OR (NEW.planned_approvals, NEW.requested_approvals, NEW.self_approval, NEW.participations_from,
                   NEW.participations_until)
                  IS DISTINCT FROM (OLD.planned_approvals, OLD.requested_approvals, OLD.self_approval,
                                    OLD.participations_from, OLD.participations_until)))
    EXECUTE FUNCTION jobs_keep_approvals();
ALTER FUNCTION jobs_keep_approvals() SET enable_seqscan TO off;

-- An issuance that was approved covers what was changed before it began to run.
CREATE FUNCTION certificate_versions_settle() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO public.participations_settled AS s (certificate_id, until)
    SELECT c.id, j.participations_until
      FROM public.jobs j JOIN public.certificates c ON c.id = j.certificate_id
     WHERE j.id = NEW.job_id AND c.id = NEW.certificate_id AND j.participations_until > j.participations_from
       AND public.job_approved(j, c)
        ON CONFLICT (certificate_id) DO UPDATE SET until = excluded.until WHERE s.until < excluded.until;
    RETURN NULL;
END
$$;
REVOKE ALL ON FUNCTION certificate_versions_settle() FROM PUBLIC;
CREATE TRIGGER certificate_versions_settle AFTER INSERT ON certificate_versions FOR EACH ROW
    WHEN (NEW.job_id IS NOT NULL) EXECUTE FUNCTION certificate_versions_settle();
ALTER FUNCTION certificate_versions_settle() SET enable_seqscan TO off;

GRANT SELECT, INSERT ON participations TO certctl_api;
GRANT SELECT ON participations, participations_settled TO certctl_api, certctl_scheduler, certctl_signer;
GRANT SELECT (id, agent_id) ON api_keys TO certctl_scheduler, certctl_signer;
GRANT SELECT (key_id, created_by) ON api_key_secrets TO certctl_scheduler, certctl_signer;
GRANT SELECT (id, registered_by) ON agents TO certctl_signer;

-- An agent's address is what it connects from, or what an operator sets; what it states about itself decides nothing.
ALTER TABLE agents
    ADD COLUMN peer_address inet,
    -- Facts that an operator set: os, architecture, version, ip_address. The agent's own statements do not replace them.
    ADD COLUMN operator_set text[] NOT NULL DEFAULT '{}',
    DROP COLUMN address;
ALTER TABLE agents
    ADD COLUMN address inet GENERATED ALWAYS AS
        (CASE WHEN 'ip_address' = ANY (operator_set) THEN address_or_null(ip_address) ELSE peer_address END) STORED;

-- SHA-256 of the SubjectPublicKeyInfo of a certificate (RFC 5280 section 4.1), lower-case hexadecimal; null when it is
-- not where it has to be.
CREATE FUNCTION certificate_spki_sha256(der bytea) RETURNS text LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    at      integer := 0;
    entered integer := 0;
    skipped integer := 0;
    header  integer;
    content integer;
    octets  integer;
BEGIN
    LOOP
        IF at + 5 > octet_length(der) THEN
            RETURN NULL;
        END IF;
        header := 2;
        content := get_byte(der, at + 1);
        IF content > 127 THEN
            octets := content - 128;
            IF octets NOT BETWEEN 1 AND 3 THEN
                RETURN NULL;
            END IF;
            content := 0;
            FOR i IN 1..octets LOOP
                content := content * 256 + get_byte(der, at + 1 + i);
            END LOOP;
            header := 2 + octets;
        END IF;
        CASE
        -- Certificate and TBSCertificate.
        WHEN entered < 2 THEN
            entered := entered + 1;
            at := at + header;
        -- version.
        WHEN skipped = 0 AND get_byte(der, at) = 160 THEN
            at := at + header + content;
        -- serialNumber, signature, issuer, validity, subject.
        WHEN skipped < 5 THEN
            skipped := skipped + 1;
            at := at + header + content;
        WHEN at + header + content > octet_length(der) THEN
            RETURN NULL;
        ELSE
            RETURN encode(sha256(substring(der FROM at + 1 FOR header + content)), 'hex');
        END CASE;
    END LOOP;
END
$$;
ALTER TABLE discovered_certificates
    ADD COLUMN spki_sha256 text GENERATED ALWAYS AS (certificate_spki_sha256(der)) STORED;
CREATE INDEX discovered_certificates_key_idx ON discovered_certificates (spki_sha256);

-- The filters of the trail match prefixes, whatever the collation.
DROP INDEX audit_events_actor_idx, audit_events_action_idx, audit_events_resource_type_idx;
CREATE INDEX audit_events_actor_idx ON audit_events (actor text_pattern_ops, at, id);
CREATE INDEX audit_events_action_idx ON audit_events (action text_pattern_ops, at, id);
CREATE INDEX audit_events_resource_type_idx ON audit_events (resource_type text_pattern_ops, at, id);
