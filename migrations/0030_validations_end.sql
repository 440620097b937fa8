-- Validations are many and told of elsewhere: what was seen last is in endpoints, what changed in the trail.
CREATE INDEX jobs_validated_idx ON jobs (finished_at) WHERE type = 'Validation' AND finished_at IS NOT NULL;

-- Removes validations that are over since before an instant, and nothing else: no service may remove jobs.
CREATE FUNCTION forget_validations(before timestamptz, most bigint) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = public AS $$
    WITH gone AS (
        DELETE FROM jobs WHERE id IN (
            SELECT id FROM jobs WHERE type = 'Validation' AND finished_at < before ORDER BY finished_at LIMIT most)
        RETURNING 1)
    SELECT count(*) FROM gone
$$;
REVOKE ALL ON FUNCTION forget_validations(timestamptz, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION forget_validations(timestamptz, bigint) TO certctl_scheduler;
