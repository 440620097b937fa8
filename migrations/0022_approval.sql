-- Who asked for a job, and who has to agree before its request is signed.

-- The person who asked for it; null when none did: it was planned.
ALTER TABLE jobs ADD COLUMN requested_by text;

ALTER TABLE renewal_policies
    ADD COLUMN approval text NOT NULL DEFAULT 'none'
        CONSTRAINT renewal_policies_approval_check CHECK (approval IN ('none', 'manual', 'always')),
    ADD COLUMN approvers integer NOT NULL DEFAULT 1
        CONSTRAINT renewal_policies_approvers_check CHECK (approvers BETWEEN 1 AND 3);
ALTER TABLE profiles
    ADD COLUMN approval text NOT NULL DEFAULT 'none'
        CONSTRAINT profiles_approval_check CHECK (approval IN ('none', 'manual', 'always')),
    ADD COLUMN approvers integer NOT NULL DEFAULT 1
        CONSTRAINT profiles_approvers_check CHECK (approvers BETWEEN 1 AND 3);

-- Who agreed to what.
CREATE TABLE approvals (
    job_id     text NOT NULL,
    approver   text NOT NULL,
    -- What was agreed to, as job_digest() had it then. Of anything else it is no approval.
    digest     text NOT NULL,
    reason     text NOT NULL,
    -- Whether it stands for all that are needed.
    overrides  boolean NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (job_id, approver),
    CONSTRAINT approvals_job_id_fkey FOREIGN KEY (job_id) REFERENCES jobs (id) ON DELETE CASCADE
);

CREATE FUNCTION approvals_wanted(approval text, approvers integer, requested_by text) RETURNS integer
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN approval = 'always' OR approval = 'manual' AND requested_by IS NOT NULL THEN approvers ELSE 0 END
$$;

-- How many people have to agree to what a job has signed: the stricter of renewal policy and profile decides.
CREATE FUNCTION job_approvals_needed(j jobs, c certificates) RETURNS integer LANGUAGE sql STABLE AS $$
    SELECT greatest(
        (SELECT approvals_wanted(p.approval, p.approvers, j.requested_by) FROM renewal_policies p
          WHERE p.id = c.renewal_policy_id),
        (SELECT approvals_wanted(f.approval, f.approvers, j.requested_by) FROM profiles f WHERE f.id = c.profile_id))
$$;

-- What is agreed to: the request, the names, by whom and under which rules it is signed, and where it goes. SHA-256,
-- lower-case hexadecimal.
CREATE FUNCTION job_digest(j jobs, c certificates) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT encode(sha256(convert_to(jsonb_build_object(
        'request', encode(j.csr_der, 'hex'),
        'common_name', c.common_name,
        'names', c.sans,
        'issuer', c.issuer_id,
        'profile', (SELECT to_jsonb(f) - '{name,description,approval,approvers,created_at,updated_at}'::text[]
                      FROM profiles f WHERE f.id = c.profile_id),
        'targets', (SELECT jsonb_agg(t.id ORDER BY t.id) FROM certificate_targets m JOIN targets t ON t.id = m.target_id
                     WHERE m.certificate_id = c.id AND t.agent_id = j.agent_id)
    )::text, 'UTF8')), 'hex')
$$;

-- Whether enough people agreed to what would be signed now.
CREATE FUNCTION job_approved(j jobs, c certificates) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT CASE needed.n WHEN 0 THEN true ELSE coalesce(
        (SELECT bool_or(a.overrides) OR count(*) >= needed.n FROM approvals a
          WHERE a.job_id = j.id AND a.digest = job_digest(j, c)), false) END
      FROM (SELECT job_approvals_needed(j, c) AS n) needed
$$;

-- Whether a certificate counts as being issued because of a job: one that was planned does not count before its turn
-- comes, so that to plan many does not change as many certificates.
CREATE FUNCTION job_issues(type text, status text, requested_by text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT job_issues(type, status) AND (status <> 'Pending' OR requested_by IS NOT NULL)
$$;
UPDATE jobs SET requested_by = 'unknown' WHERE status = 'Pending' AND type IN ('Issuance', 'Renewal');

CREATE OR REPLACE FUNCTION jobs_tally() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed text[];
BEGIN
    CASE TG_OP
    WHEN 'INSERT' THEN
        INSERT INTO tallies (subject, kind, status, day, delta)
        SELECT 'job', type, status, utc_day(finished_at), count(*) FROM new_rows GROUP BY 2, 3, 4;
        changed := ARRAY(SELECT DISTINCT certificate_id FROM new_rows WHERE job_issues(type, status, requested_by));
    WHEN 'DELETE' THEN
        INSERT INTO tallies (subject, kind, status, day, delta)
        SELECT 'job', type, status, utc_day(finished_at), -count(*) FROM old_rows GROUP BY 2, 3, 4;
        changed := ARRAY(SELECT DISTINCT certificate_id FROM old_rows WHERE job_issues(type, status, requested_by));
    ELSE
        INSERT INTO tallies (subject, kind, status, day, delta)
        SELECT 'job', type, status, day, sum(n)
          FROM (SELECT type, status, utc_day(finished_at) AS day, 1 AS n FROM new_rows
                UNION ALL SELECT type, status, utc_day(finished_at), -1 FROM old_rows) moved
         GROUP BY 2, 3, 4 HAVING sum(n) <> 0;
        IF NOT FOUND THEN
            RETURN NULL;
        END IF;
        changed := ARRAY(SELECT DISTINCT n.certificate_id FROM new_rows n JOIN old_rows o ON o.id = n.id
                          WHERE job_issues(n.type, n.status, n.requested_by)
                             <> job_issues(o.type, o.status, o.requested_by));
    END CASE;
    IF cardinality(changed) = 0 THEN
        RETURN NULL;
    END IF;
    UPDATE certificates c SET open_issuances = open.n
      FROM (SELECT id, (SELECT count(*) FROM jobs j
                         WHERE j.certificate_id = changes.id AND j.type IN ('Issuance', 'Renewal')
                           AND j.status NOT IN ('Completed', 'Failed', 'Cancelled')
                           AND (j.status <> 'Pending' OR j.requested_by IS NOT NULL)) AS n
              FROM unnest(changed) AS changes (id)) open
     WHERE c.id = open.id AND c.open_issuances <> open.n;
    RETURN NULL;
END
$$;

GRANT SELECT, INSERT, UPDATE ON approvals TO certctl_api;
GRANT SELECT ON approvals TO certctl_scheduler;
GRANT SELECT ON approvals, renewal_policies, targets, certificate_targets TO certctl_signer;
