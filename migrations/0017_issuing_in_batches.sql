-- Issuing many certificates at a time.

-- How many issuances are open is counted, not reckoned: whoever changes a certificate anyway says the new number in the
-- same statement, and is not followed by another change of a row that is in dozens of indexes. Whoever opens or closes
-- a job holds the lock of its certificate already.
CREATE OR REPLACE FUNCTION jobs_tally() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed text[];
BEGIN
    CASE TG_OP
    WHEN 'INSERT' THEN
        INSERT INTO tallies (subject, kind, status, day, delta)
        SELECT 'job', type, status, utc_day(finished_at), count(*) FROM new_rows GROUP BY 2, 3, 4;
        changed := ARRAY(SELECT DISTINCT certificate_id FROM new_rows WHERE job_issues(type, status));
    WHEN 'DELETE' THEN
        INSERT INTO tallies (subject, kind, status, day, delta)
        SELECT 'job', type, status, utc_day(finished_at), -count(*) FROM old_rows GROUP BY 2, 3, 4;
        changed := ARRAY(SELECT DISTINCT certificate_id FROM old_rows WHERE job_issues(type, status));
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
                          WHERE job_issues(n.type, n.status) <> job_issues(o.type, o.status));
    END CASE;
    UPDATE certificates c SET open_issuances = open.n
      FROM (SELECT id, (SELECT count(*) FROM jobs j
                         WHERE j.certificate_id = changes.id AND j.type IN ('Issuance', 'Renewal')
                           AND j.status NOT IN ('Completed', 'Failed', 'Cancelled')) AS n
              FROM unnest(changed) AS changes (id)) open
     WHERE c.id = open.id AND c.open_issuances <> open.n;
    RETURN NULL;
END
$$;

-- A version with its chain and its request fits into a page: to compress it and put it elsewhere costs more than it saves.
ALTER TABLE certificate_versions SET (toast_tuple_target = 8160);

-- A job is written when it is claimed, when its request comes and when it ends. A claim changes nothing that is in an
-- index, and finds room beside the row: whose lease ran out is asked of the jobs that can be claimed.
DROP INDEX jobs_lease_idx;
ALTER TABLE jobs SET (fillfactor = 60);
-- The same as jobs_status_by_created_at and jobs_agent_by_created_at.
DROP INDEX jobs_status_idx, jobs_of_agent_idx;
