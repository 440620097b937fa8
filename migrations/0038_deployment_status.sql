-- Retries of failed deployments, and the deployment status of certificates.

-- When a deployment that failed for the last time is tried again; null when it is not.
ALTER TABLE jobs ADD COLUMN retry_at timestamptz,
    ADD CONSTRAINT jobs_retry_check CHECK (retry_at IS NULL OR type = 'Deployment' AND status = 'Failed');
CREATE INDEX jobs_retry_idx ON jobs (retry_at, id) WHERE retry_at IS NOT NULL;
CREATE INDEX jobs_deployments_idx ON jobs (certificate_id, target_id, created_at, id) WHERE type = 'Deployment';
GRANT UPDATE (retry_at) ON jobs TO certctl_api, certctl_scheduler;

-- The version that the last completed deployment put on the target. Null while none was completed.
ALTER TABLE certificate_targets ADD COLUMN deployed_version_id text, ADD COLUMN deployed_at timestamptz;
UPDATE certificate_targets m SET deployed_version_id = last.version_id, deployed_at = last.finished_at
  FROM (SELECT DISTINCT ON (certificate_id, target_id) certificate_id, target_id, version_id, finished_at
          FROM jobs WHERE type = 'Deployment' AND status = 'Completed'
         ORDER BY certificate_id, target_id, finished_at DESC) last
 WHERE last.certificate_id = m.certificate_id AND last.target_id = m.target_id;

-- Whether something was deployed to the address since it was checked.
ALTER TABLE endpoints ADD COLUMN outdated boolean NOT NULL DEFAULT false;
CREATE INDEX endpoints_address_idx ON endpoints (address);
CREATE INDEX endpoints_endpoint_idx ON endpoints (endpoint);
GRANT UPDATE (outdated) ON endpoints TO certctl_api;

-- The deployment status of each certificate on each of its enabled targets, derived from the version the target is to
-- have, the last deployment of that version, and what was seen at the endpoints. Revoked and archived certificates have
-- none.
CREATE VIEW target_deployments AS
SELECT m.certificate_id, m.target_id, wanted.id AS version_id, wanted.version, m.deployed_version_id,
       deployed.version AS deployed_version, status.status, status.since,
       concat_ws('; ', status.reason,
                 CASE WHEN deployed.id <> wanted.id AND status.status <> 'Deployed'
                      THEN format('version %s, valid until %s, is still in place', deployed.version,
                                  to_char(deployed.not_after AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')) END) AS reason
  FROM certificate_targets m
  JOIN targets t ON t.id = m.target_id AND t.enabled
  JOIN certificates c ON c.id = m.certificate_id AND c.revoked_at IS NULL AND c.archived_at IS NULL
  LEFT JOIN certificate_versions deployed ON deployed.id = m.deployed_version_id
  LEFT JOIN LATERAL (
       SELECT v.id, v.version, v.created_at FROM certificate_versions v
        WHERE v.certificate_id = m.certificate_id AND v.agent_id = t.agent_id
        ORDER BY v.id = m.chosen_version_id DESC NULLS LAST, v.version DESC LIMIT 1) wanted ON true
  LEFT JOIN LATERAL (
       SELECT j.status, j.attempts, j.max_attempts, coalesce(j.reason, j.last_error) AS error, j.finished_at,
              j.created_at, coalesce(j.started_at, j.created_at) AS begun_at
         FROM jobs j
        WHERE j.type = 'Deployment' AND j.certificate_id = m.certificate_id AND j.target_id = m.target_id
          AND j.version_id = wanted.id
        ORDER BY j.created_at DESC, j.id DESC LIMIT 1) job ON true
 CROSS JOIN LATERAL (
       SELECT CASE WHEN jsonb_typeof(t.config->'endpoints') = 'array' THEN t.config->'endpoints' ELSE '[]' END AS wanted) ends
 CROSS JOIN LATERAL (
       SELECT count(DISTINCT e.endpoint) AS endpoints, count(*) FILTER (WHERE e.outdated) AS outdated,
              max(e.since) AS since, min(e.since) FILTER (WHERE e.outcome <> 'Served' AND NOT e.outdated) AS drifted_since,
              string_agg(e.address || ': ' || e.detail, '; ' ORDER BY e.address)
                  FILTER (WHERE e.outcome <> 'Served' AND NOT e.outdated) AS drift
         FROM endpoints e
        WHERE e.certificate_id = m.certificate_id AND e.target_id = m.target_id AND ends.wanted ? e.endpoint) seen
 CROSS JOIN LATERAL (
       SELECT CASE
              WHEN wanted.id IS NULL THEN 'no version'
              WHEN job.status = 'Failed' THEN 'failed'
              WHEN job.status IN ('Pending', 'Running') AND job.error IS NOT NULL THEN 'retrying'
              WHEN job.status IN ('Pending', 'Running') THEN 'open'
              WHEN m.deployed_version_id IS DISTINCT FROM wanted.id AND job.status = 'Cancelled' THEN 'cancelled'
              WHEN m.deployed_version_id IS DISTINCT FROM wanted.id THEN 'not requested'
              WHEN seen.drift IS NOT NULL THEN 'drifted'
              WHEN jsonb_array_length(ends.wanted) = 0 THEN 'reported'
              WHEN seen.outdated > 0 OR seen.endpoints < jsonb_array_length(ends.wanted) THEN 'unchecked'
              ELSE 'served' END AS name) fact
 CROSS JOIN LATERAL (
       SELECT CASE
              WHEN fact.name IN ('failed', 'retrying', 'cancelled') THEN 'Failed'
              WHEN fact.name = 'drifted' THEN 'Drifted'
              WHEN fact.name IN ('reported', 'served') THEN 'Deployed'
              ELSE 'Pending' END AS status,
              CASE fact.name
              WHEN 'no version' THEN c.created_at
              WHEN 'failed' THEN job.begun_at
              WHEN 'retrying' THEN job.begun_at
              WHEN 'open' THEN job.created_at
              WHEN 'cancelled' THEN job.finished_at
              WHEN 'not requested' THEN wanted.created_at
              WHEN 'drifted' THEN seen.drifted_since
              WHEN 'served' THEN greatest(m.deployed_at, seen.since)
              ELSE m.deployed_at END AS since,
              CASE fact.name
              WHEN 'no version' THEN 'no version was issued for its agent yet'
              WHEN 'failed' THEN format('attempt %s of %s failed: %s', job.attempts, job.max_attempts, job.error)
              WHEN 'retrying' THEN format('attempt %s of %s failed: %s',
                                          greatest(job.attempts - (job.status = 'Running')::integer, 1),
                                          job.max_attempts, job.error)
              WHEN 'open' THEN format('version %s is being deployed', wanted.version)
              WHEN 'cancelled' THEN format('the deployment was cancelled: %s', job.error)
              WHEN 'not requested' THEN format('version %s was not deployed', wanted.version)
              WHEN 'drifted' THEN seen.drift
              WHEN 'reported' THEN 'the agent reported success; the target has no endpoints at which that is checked'
              WHEN 'unchecked' THEN 'deployed; its endpoints have not been checked since'
              END AS reason) status;

-- The deployment status of certificates that have enabled targets. Written by triggers only.
CREATE TABLE deployment_states (
    certificate_id text PRIMARY KEY,
    status         text NOT NULL CONSTRAINT deployment_states_status_check
                   CHECK (status IN ('Deployed', 'Partial', 'Pending', 'Failed', 'Drifted')),
    since          timestamptz NOT NULL,
    reason         text,
    CONSTRAINT deployment_states_certificate_id_fkey
        FOREIGN KEY (certificate_id) REFERENCES certificates (id) ON DELETE CASCADE
) WITH (fillfactor = 85);
CREATE INDEX deployment_states_status_idx ON deployment_states (status, certificate_id);
GRANT SELECT ON deployment_states, target_deployments TO certctl_api, certctl_scheduler;

ALTER TABLE tallies DROP CONSTRAINT tallies_subject_check,
    ADD CONSTRAINT tallies_subject_check CHECK (subject IN ('certificate', 'job', 'version', 'deployment'));

CREATE FUNCTION deployment_states_tally() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CASE TG_OP
    WHEN 'INSERT' THEN
        INSERT INTO public.tallies (subject, status, delta)
        SELECT 'deployment', status, count(*) FROM new_rows GROUP BY 2;
    WHEN 'DELETE' THEN
        INSERT INTO public.tallies (subject, status, delta)
        SELECT 'deployment', status, -count(*) FROM old_rows GROUP BY 2;
    ELSE
        INSERT INTO public.tallies (subject, status, delta)
        SELECT 'deployment', status, sum(n)
          FROM (SELECT status, 1 AS n FROM new_rows UNION ALL SELECT status, -1 FROM old_rows) changed
         GROUP BY 2 HAVING sum(n) <> 0;
    END CASE;
    RETURN NULL;
END
$$;
CREATE TRIGGER deployment_states_tally_insert AFTER INSERT ON deployment_states REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION deployment_states_tally();
CREATE TRIGGER deployment_states_tally_update AFTER UPDATE ON deployment_states
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION deployment_states_tally();
CREATE TRIGGER deployment_states_tally_delete AFTER DELETE ON deployment_states REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION deployment_states_tally();

-- Derives the states of certificates anew: of several targets the worst counts, and where some have what they should and
-- others not, it is partial.
CREATE FUNCTION deployment_states_refresh(ids text[]) RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET enable_seqscan TO off AS $$
BEGIN
    DELETE FROM public.deployment_states s
     WHERE s.certificate_id = ANY (ids)
       AND NOT EXISTS (SELECT 1 FROM public.target_deployments d WHERE d.certificate_id = s.certificate_id);
    INSERT INTO public.deployment_states AS s (certificate_id, status, since, reason)
    SELECT certificate_id, status,
           CASE status WHEN 'Deployed' THEN deployed_since WHEN 'Drifted' THEN drifted_since WHEN 'Failed' THEN failed_since
                ELSE other_since END,
           left(CASE status WHEN 'Deployed' THEN deployed_reason ELSE other_reason END, 4096)
      FROM (SELECT d.certificate_id,
                   CASE WHEN bool_or(d.status = 'Drifted') THEN 'Drifted'
                        WHEN bool_and(d.status = 'Deployed') THEN 'Deployed'
                        WHEN bool_or(d.status = 'Deployed') THEN 'Partial'
                        WHEN bool_or(d.status = 'Failed') THEN 'Failed'
                        ELSE 'Pending' END AS status,
                   max(d.since) AS deployed_since,
                   min(d.since) FILTER (WHERE d.status = 'Drifted') AS drifted_since,
                   min(d.since) FILTER (WHERE d.status = 'Failed') AS failed_since,
                   min(d.since) FILTER (WHERE d.status <> 'Deployed') AS other_since,
                   string_agg(DISTINCT nullif(d.reason, ''), '; ') AS deployed_reason,
                   string_agg(format('target %s: %s', d.target_id, d.reason), '; ' ORDER BY d.target_id)
                       FILTER (WHERE d.status <> 'Deployed') AS other_reason
              FROM public.target_deployments d
             WHERE d.certificate_id = ANY (ids)
             GROUP BY d.certificate_id) derived
     ORDER BY certificate_id
        ON CONFLICT (certificate_id) DO UPDATE
       SET status = excluded.status, reason = excluded.reason,
           since = CASE WHEN s.status = excluded.status THEN s.since ELSE excluded.since END
     WHERE (s.status, s.reason) IS DISTINCT FROM (excluded.status, excluded.reason);
END
$$;
REVOKE ALL ON FUNCTION deployment_states_refresh(text[]) FROM PUBLIC;

-- After changes of rows that name a certificate.
CREATE FUNCTION deployment_states_follow() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    ids text[];
BEGIN
    IF TG_OP = 'DELETE' THEN
        ids := ARRAY(SELECT DISTINCT o.certificate_id FROM old_rows o);
    ELSE
        ids := ARRAY(SELECT DISTINCT n.certificate_id FROM new_rows n
                      WHERE EXISTS (SELECT 1 FROM public.certificate_targets m WHERE m.certificate_id = n.certificate_id));
    END IF;
    IF cardinality(ids) > 0 THEN
        PERFORM public.deployment_states_refresh(ids);
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER certificate_targets_state_insert AFTER INSERT ON certificate_targets REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION deployment_states_follow();
CREATE TRIGGER certificate_targets_state_delete AFTER DELETE ON certificate_targets REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION deployment_states_follow();
CREATE TRIGGER certificate_versions_state AFTER INSERT ON certificate_versions REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION deployment_states_follow();
CREATE TRIGGER endpoints_state_insert AFTER INSERT ON endpoints REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION deployment_states_follow();
CREATE TRIGGER endpoints_state_update AFTER UPDATE ON endpoints REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION deployment_states_follow();
CREATE TRIGGER endpoints_state_delete AFTER DELETE ON endpoints REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION deployment_states_follow();

-- After changes of deployments: a completed one is what its target has.
CREATE FUNCTION jobs_deployment_states() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan TO off AS $$
DECLARE
    ids text[];
BEGIN
    IF NOT EXISTS (SELECT 1 FROM new_rows WHERE type = 'Deployment') THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'INSERT' THEN
        UPDATE public.certificate_targets m SET deployed_version_id = n.version_id, deployed_at = n.finished_at
          FROM new_rows n
         WHERE n.type = 'Deployment' AND n.status = 'Completed'
           AND m.certificate_id = n.certificate_id AND m.target_id = n.target_id;
        ids := ARRAY(SELECT DISTINCT n.certificate_id FROM new_rows n WHERE n.type = 'Deployment');
    ELSE
        UPDATE public.certificate_targets m SET deployed_version_id = n.version_id, deployed_at = n.finished_at
          FROM new_rows n JOIN old_rows o ON o.id = n.id
         WHERE n.type = 'Deployment' AND n.status = 'Completed' AND o.status <> 'Completed'
           AND m.certificate_id = n.certificate_id AND m.target_id = n.target_id;
        ids := ARRAY(SELECT DISTINCT n.certificate_id FROM new_rows n JOIN old_rows o ON o.id = n.id
                      WHERE n.type = 'Deployment'
                        AND (n.status, n.reason, n.last_error, n.attempts, n.run_at, n.retry_at)
                            IS DISTINCT FROM (o.status, o.reason, o.last_error, o.attempts, o.run_at, o.retry_at));
    END IF;
    IF cardinality(ids) > 0 THEN
        PERFORM public.deployment_states_refresh(ids);
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER jobs_state_insert AFTER INSERT ON jobs REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION jobs_deployment_states();
CREATE TRIGGER jobs_state_update AFTER UPDATE ON jobs REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION jobs_deployment_states();

-- After the few other changes on which a state depends.
CREATE FUNCTION deployment_state_of_row() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CASE TG_TABLE_NAME
    WHEN 'certificates' THEN PERFORM public.deployment_states_refresh(ARRAY[NEW.id]);
    WHEN 'certificate_targets' THEN PERFORM public.deployment_states_refresh(ARRAY[NEW.certificate_id]);
    ELSE PERFORM public.deployment_states_refresh(
             ARRAY(SELECT m.certificate_id FROM public.certificate_targets m WHERE m.target_id = NEW.id));
    END CASE;
    RETURN NULL;
END
$$;
CREATE TRIGGER certificates_state AFTER UPDATE OF revoked_at, archived_at ON certificates FOR EACH ROW
    WHEN ((OLD.revoked_at, OLD.archived_at) IS DISTINCT FROM (NEW.revoked_at, NEW.archived_at))
    EXECUTE FUNCTION deployment_state_of_row();
CREATE TRIGGER certificate_targets_state AFTER UPDATE OF target_id, chosen_version_id ON certificate_targets FOR EACH ROW
    WHEN ((OLD.target_id, OLD.chosen_version_id) IS DISTINCT FROM (NEW.target_id, NEW.chosen_version_id))
    EXECUTE FUNCTION deployment_state_of_row();
CREATE TRIGGER targets_state AFTER UPDATE OF enabled, config ON targets FOR EACH ROW
    WHEN ((OLD.enabled, OLD.config) IS DISTINCT FROM (NEW.enabled, NEW.config))
    EXECUTE FUNCTION deployment_state_of_row();

REVOKE ALL ON FUNCTION deployment_states_tally(), deployment_states_follow(), jobs_deployment_states(),
    deployment_state_of_row() FROM PUBLIC;

-- What was checked before the last deployment says nothing about it.
UPDATE endpoints e SET outdated = true
  FROM certificate_targets m
 WHERE m.certificate_id = e.certificate_id AND m.target_id = e.target_id AND m.deployed_at > e.checked_at;
SELECT deployment_states_refresh(ARRAY(SELECT DISTINCT certificate_id FROM certificate_targets));
