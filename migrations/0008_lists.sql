-- Lists, totals, search and statistics over a large inventory.
CREATE EXTENSION IF NOT EXISTS pg_trgm;

-- What the status of a certificate needs of other tables, and the status itself as something to sort and count by:
-- how it stood at `status_at`, and stands until `status_until` unless a fact changes. Whoever asks by status first
-- brings those up to date that are past it.
ALTER TABLE certificates
    ADD COLUMN open_issuances integer NOT NULL DEFAULT 0,
    ADD COLUMN status text NOT NULL DEFAULT 'Pending',
    ADD COLUMN status_at timestamptz NOT NULL DEFAULT '-infinity',
    ADD COLUMN status_until timestamptz NOT NULL DEFAULT 'infinity';

-- From when a certificate counts as expiring: 30 days before its end, or when a third of its life is left.
CREATE FUNCTION certificate_expiring_at(c certificates) RETURNS timestamptz LANGUAGE sql STABLE AS $$
    SELECT c.not_after - interval '1 second' * least(
        2592000, (extract(epoch FROM c.not_after) - extract(epoch FROM c.not_before)) / 3)::float8
$$;

-- How a certificate stands at an instant: the eight statuses as a question put to the row's own facts.
CREATE OR REPLACE FUNCTION certificate_status(c certificates, at timestamptz) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN c.archived_at IS NOT NULL THEN 'Archived'
        WHEN c.revoked_at IS NOT NULL THEN 'Revoked'
        WHEN c.current_version_id IS NULL AND c.failed_at IS NOT NULL THEN 'Failed'
        WHEN c.current_version_id IS NULL THEN 'Pending'
        WHEN c.open_issuances > 0 THEN 'RenewalInProgress'
        WHEN c.not_after <= at THEN 'Expired'
        WHEN c.failed_at IS NOT NULL THEN 'Failed'
        WHEN certificate_expiring_at(c) <= at THEN 'Expiring'
        ELSE 'Active'
    END
$$;

-- When a status that holds at an instant gives way to another by itself.
CREATE FUNCTION certificate_status_until(c certificates, status text) RETURNS timestamptz LANGUAGE sql STABLE AS $$
    SELECT CASE status
        WHEN 'Active' THEN certificate_expiring_at(c)
        WHEN 'Expiring' THEN c.not_after
        WHEN 'Failed' THEN coalesce(c.not_after, 'infinity')
        ELSE 'infinity'
    END
$$;

CREATE FUNCTION certificates_settle() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.status_at := greatest(NEW.status_at, NEW.updated_at);
    NEW.status := certificate_status(NEW, NEW.status_at);
    NEW.status_until := certificate_status_until(NEW, NEW.status);
    RETURN NEW;
END
$$;
CREATE TRIGGER certificates_settle BEFORE INSERT OR UPDATE ON certificates
    FOR EACH ROW EXECUTE FUNCTION certificates_settle();

UPDATE certificates c
   SET status_at = greatest(c.updated_at, now()),
       open_issuances = (SELECT count(*) FROM jobs j
                          WHERE j.certificate_id = c.id AND j.type IN ('Issuance', 'Renewal')
                            AND j.status NOT IN ('Completed', 'Failed', 'Cancelled'));

-- What is searched: lower-case names, a line each. A table of its own, so that issuing does not write it.
CREATE TABLE certificate_names (
    certificate_id text PRIMARY KEY,
    names          text NOT NULL,
    CONSTRAINT certificate_names_certificate_id_fkey
        FOREIGN KEY (certificate_id) REFERENCES certificates (id) ON DELETE CASCADE
);
-- Fine enough to tell a rare text from a common one.
ALTER TABLE certificate_names ALTER COLUMN names SET STATISTICS 1000;

CREATE FUNCTION certificate_names_of(name text, common_name text, sans text[]) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT lower(concat_ws(E'\n', name, common_name, array_to_string(sans, E'\n')))
$$;

INSERT INTO certificate_names SELECT id, certificate_names_of(name, common_name, sans) FROM certificates;
CREATE INDEX certificate_names_idx ON certificate_names USING gin (names gin_trgm_ops)
    WITH (gin_pending_list_limit = 256);

CREATE FUNCTION certificates_rename() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE certificate_names SET names = certificate_names_of(NEW.name, NEW.common_name, NEW.sans)
     WHERE certificate_id = NEW.id;
    RETURN NULL;
END
$$;
CREATE TRIGGER certificates_rename AFTER UPDATE ON certificates FOR EACH ROW
    WHEN ((OLD.name, OLD.common_name, OLD.sans) IS DISTINCT FROM (NEW.name, NEW.common_name, NEW.sans))
    EXECUTE FUNCTION certificates_rename();

CREATE INDEX certificate_versions_serial_idx ON certificate_versions (serial_number text_pattern_ops);
CREATE INDEX certificate_versions_fingerprint_idx ON certificate_versions (fingerprint_sha256 text_pattern_ops);

-- Counts as differences: what a statement changed is appended, the sum is the count. No row is contended for.
CREATE TABLE tallies (
    subject text NOT NULL CONSTRAINT tallies_subject_check CHECK (subject IN ('certificate', 'job', 'version')),
    -- Of a job, its type.
    kind    text NOT NULL DEFAULT '',
    -- Of a certificate and a job, its status.
    status  text NOT NULL DEFAULT '',
    -- In UTC: when a certificate ends, a job was finished, a version was recorded.
    day     date,
    delta   bigint NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 20000);

-- Replaces differences by their sums. Whoever reads meanwhile sees the ones or the others. Answers how many sums it wrote.
CREATE FUNCTION tallies_compact() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    written bigint;
BEGIN
    WITH piled AS (
        SELECT subject, kind, status, coalesce(day, 'infinity') AS day FROM tallies
         GROUP BY 1, 2, 3, 4 HAVING count(*) > 1
    ), taken AS (
        DELETE FROM tallies t USING piled p
         WHERE t.subject = p.subject AND t.kind = p.kind AND t.status = p.status
           AND coalesce(t.day, 'infinity') = p.day
        RETURNING t.*
    )
    INSERT INTO tallies (subject, kind, status, day, delta)
    SELECT subject, kind, status, day, sum(delta) FROM taken GROUP BY 1, 2, 3, 4 HAVING sum(delta) <> 0;
    GET DIAGNOSTICS written = ROW_COUNT;
    RETURN written;
END
$$;

CREATE FUNCTION utc_day(at timestamptz) RETURNS date LANGUAGE sql IMMUTABLE AS $$
    SELECT (at AT TIME ZONE 'UTC')::date
$$;

INSERT INTO tallies (subject, status, day, delta)
SELECT 'certificate', status, utc_day(not_after), count(*) FROM certificates GROUP BY 2, 3;
INSERT INTO tallies (subject, kind, status, day, delta)
SELECT 'job', type, status, utc_day(finished_at), count(*) FROM jobs GROUP BY 2, 3, 4;
INSERT INTO tallies (subject, day, delta)
SELECT 'version', utc_day(created_at), count(*) FROM certificate_versions GROUP BY 2;

CREATE FUNCTION certificates_tally() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    CASE TG_OP
    WHEN 'INSERT' THEN
        INSERT INTO tallies (subject, status, day, delta)
        SELECT 'certificate', status, utc_day(not_after), count(*) FROM new_rows GROUP BY 2, 3;
        INSERT INTO certificate_names SELECT id, certificate_names_of(name, common_name, sans) FROM new_rows;
    WHEN 'DELETE' THEN
        INSERT INTO tallies (subject, status, day, delta)
        SELECT 'certificate', status, utc_day(not_after), -count(*) FROM old_rows GROUP BY 2, 3;
    ELSE
        INSERT INTO tallies (subject, status, day, delta)
        SELECT 'certificate', status, day, sum(n)
          FROM (SELECT status, utc_day(not_after) AS day, 1 AS n FROM new_rows
                UNION ALL SELECT status, utc_day(not_after), -1 FROM old_rows) changed
         GROUP BY 2, 3 HAVING sum(n) <> 0;
    END CASE;
    RETURN NULL;
END
$$;
CREATE TRIGGER certificates_tally_insert AFTER INSERT ON certificates REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION certificates_tally();
CREATE TRIGGER certificates_tally_update AFTER UPDATE ON certificates
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION certificates_tally();
CREATE TRIGGER certificates_tally_delete AFTER DELETE ON certificates REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION certificates_tally();

CREATE FUNCTION job_issues(type text, status text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT type IN ('Issuance', 'Renewal') AND status NOT IN ('Completed', 'Failed', 'Cancelled')
$$;

-- Whoever opens or closes a job holds the lock of its certificate already.
CREATE FUNCTION jobs_tally() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    CASE TG_OP
    WHEN 'INSERT' THEN
        INSERT INTO tallies (subject, kind, status, day, delta)
        SELECT 'job', type, status, utc_day(finished_at), count(*) FROM new_rows GROUP BY 2, 3, 4;
        UPDATE certificates c SET open_issuances = c.open_issuances + opened.n
          FROM (SELECT certificate_id, count(*) AS n FROM new_rows WHERE job_issues(type, status) GROUP BY 1) opened
         WHERE c.id = opened.certificate_id;
    WHEN 'DELETE' THEN
        INSERT INTO tallies (subject, kind, status, day, delta)
        SELECT 'job', type, status, utc_day(finished_at), -count(*) FROM old_rows GROUP BY 2, 3, 4;
        UPDATE certificates c SET open_issuances = c.open_issuances - closed.n
          FROM (SELECT certificate_id, count(*) AS n FROM old_rows WHERE job_issues(type, status) GROUP BY 1) closed
         WHERE c.id = closed.certificate_id;
    ELSE
        INSERT INTO tallies (subject, kind, status, day, delta)
        SELECT 'job', type, status, day, sum(n)
          FROM (SELECT type, status, utc_day(finished_at) AS day, 1 AS n FROM new_rows
                UNION ALL SELECT type, status, utc_day(finished_at), -1 FROM old_rows) changed
         GROUP BY 2, 3, 4 HAVING sum(n) <> 0;
        IF FOUND THEN
            UPDATE certificates c SET open_issuances = c.open_issuances + moved.n
              FROM (SELECT certificate_id, sum(n) AS n
                      FROM (SELECT certificate_id, 1 AS n FROM new_rows WHERE job_issues(type, status)
                            UNION ALL SELECT certificate_id, -1 FROM old_rows WHERE job_issues(type, status)) open
                     GROUP BY 1 HAVING sum(n) <> 0) moved
             WHERE c.id = moved.certificate_id;
        END IF;
    END CASE;
    RETURN NULL;
END
$$;
CREATE TRIGGER jobs_tally_insert AFTER INSERT ON jobs REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION jobs_tally();
CREATE TRIGGER jobs_tally_update AFTER UPDATE ON jobs REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION jobs_tally();
CREATE TRIGGER jobs_tally_delete AFTER DELETE ON jobs REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION jobs_tally();

CREATE FUNCTION certificate_versions_tally() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO tallies (subject, day, delta) SELECT 'version', utc_day(created_at), count(*) FROM new_rows GROUP BY 2;
    RETURN NULL;
END
$$;
CREATE TRIGGER certificate_versions_tally AFTER INSERT ON certificate_versions REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION certificate_versions_tally();

-- Every filter with every order: a page is read from one index, wherever it begins.
DROP INDEX certificates_not_after_idx, certificates_created_idx, certificates_updated_idx, certificates_common_name_idx,
    certificates_environment_idx, certificates_owner_idx, certificates_team_idx, certificates_issuer_idx,
    certificates_profile_idx;
DO $$
DECLARE
    filter text;
    sort   record;
BEGIN
    FOR sort IN SELECT * FROM (VALUES
        ('created_at', 'created_at'), ('updated_at', 'updated_at'), ('not_after', '(coalesce(not_after, ''infinity''))'),
        ('common_name', 'common_name'), ('name', 'name'), ('status', 'status'), ('environment', 'environment')
    ) AS s (name, expression) LOOP
        -- With the dates, so that an order is walked without looking at the rows that a range leaves out.
        EXECUTE format('CREATE INDEX %I ON certificates (%s, id) INCLUDE (created_at, updated_at, not_after)',
                       'certificates_by_' || sort.name, sort.expression);
        FOREACH filter IN ARRAY ARRAY['status', 'environment', 'owner_id', 'team_id', 'issuer_id', 'profile_id'] LOOP
            -- Rows of one status are in the order of the status, by their ids.
            CONTINUE WHEN filter = sort.name;
            EXECUTE format('CREATE INDEX %I ON certificates (%I, %s, id) %s',
                           format('certificates_%s_by_%s', filter, sort.name), filter, sort.expression,
                           CASE filter WHEN 'profile_id' THEN 'WHERE profile_id IS NOT NULL' END);
        END LOOP;
    END LOOP;
END
$$;
CREATE INDEX certificates_unsettled_idx ON certificates (status_until) WHERE status_until < 'infinity';
-- Room for the updates that touch none of these, and totals that need not look at rows.
ALTER TABLE certificates SET (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.02,
                              autovacuum_analyze_scale_factor = 0.02);

DROP INDEX jobs_certificate_idx;
CREATE INDEX jobs_certificate_idx ON jobs (certificate_id, created_at, id);
CREATE INDEX jobs_status_by_created_at ON jobs (status, created_at, id);
CREATE INDEX jobs_status_by_run_at ON jobs (status, run_at, id);
CREATE INDEX jobs_agent_by_created_at ON jobs (agent_id, created_at, id);

GRANT SELECT, INSERT, UPDATE ON certificate_names TO certctl_api;
GRANT SELECT, INSERT ON tallies TO certctl_api;
GRANT SELECT, INSERT, DELETE ON tallies TO certctl_scheduler;
