-- Who has a turn when jobs are claimed: every issuer, and of its jobs those that have the least time left.

-- The issuer of the certificate, and until when the job should be done. Both are the database's to write.
ALTER TABLE jobs ADD COLUMN issuer_id text, ADD COLUMN deadline timestamptz;
UPDATE jobs j SET issuer_id = c.issuer_id, deadline = coalesce(c.not_after, j.created_at + interval '1 day')
  FROM certificates c WHERE c.id = j.certificate_id;
ALTER TABLE jobs ALTER COLUMN issuer_id SET NOT NULL, ALTER COLUMN deadline SET NOT NULL;

-- A renewal has until its certificate ends. For a first certificate somebody waits: it goes before whatever has more
-- than a day left.
CREATE FUNCTION jobs_turn() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    SELECT c.issuer_id, coalesce(c.not_after, NEW.created_at + interval '1 day')
      INTO NEW.issuer_id, NEW.deadline
      FROM certificates c WHERE c.id = NEW.certificate_id;
    IF NOT FOUND THEN
        RAISE foreign_key_violation USING
            CONSTRAINT = 'jobs_certificate_id_fkey',
            MESSAGE = format('certificate %s does not exist', NEW.certificate_id);
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER jobs_turn BEFORE INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION jobs_turn();

-- What is open goes to whoever issues from now on.
CREATE FUNCTION certificates_turn() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE jobs SET issuer_id = NEW.issuer_id
     WHERE certificate_id = NEW.id AND status NOT IN ('Completed', 'Failed', 'Cancelled');
    RETURN NULL;
END
$$;
CREATE TRIGGER certificates_turn AFTER UPDATE OF issuer_id ON certificates FOR EACH ROW
    WHEN (OLD.issuer_id <> NEW.issuer_id) EXECUTE FUNCTION certificates_turn();

DROP INDEX jobs_claim_idx;
CREATE INDEX jobs_claim_idx ON jobs (issuer_id, deadline, id)
    WHERE type IN ('Issuance', 'Renewal') AND status IN ('Pending', 'Running');

-- Triggers plan once for a whole session, perhaps while the tables are small; they find rows by indexes all the same.
ALTER FUNCTION jobs_turn() SET enable_seqscan TO off;
ALTER FUNCTION jobs_tally() SET enable_seqscan TO off;
