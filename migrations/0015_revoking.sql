-- Revoking: by key, by whoever holds the key, again after a restore; and what is known of its way to relying parties.

-- Which certificates have a key: what is asked when a key is blocked.
CREATE INDEX certificate_versions_key_idx ON certificate_versions (spki_sha256);
-- Whether an operation revokes what is archived too: the key of an archived certificate still opens doors.
ALTER TABLE bulk_operations ADD COLUMN sweep boolean NOT NULL DEFAULT false;

-- A revocation that came back from a journal may be of a certificate that the restored database does not know.
ALTER TABLE revocations ALTER COLUMN certificate_id DROP NOT NULL;
GRANT UPDATE (certificate_id, reason, revoked_by, revoked_at, released_at, invalidity_date) ON revocations
    TO certctl_api, certctl_scheduler;
-- Only a hold is released, begun again or made final; what is revoked for good stays as it is.
CREATE FUNCTION revocations_are_final() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a revocation is final' USING ERRCODE = 'insufficient_privilege';
END
$$;
CREATE TRIGGER revocations_are_final BEFORE UPDATE ON revocations
    FOR EACH ROW WHEN (OLD.reason <> 'certificateHold') EXECUTE FUNCTION revocations_are_final();

-- What is not yet in a journal outside the database. Whoever keeps one appends these, and removes them once they are
-- on its disk.
CREATE TABLE journal_due (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    issuer_id     text NOT NULL,
    serial_number text NOT NULL
);
CREATE INDEX journal_due_serial_idx ON journal_due (issuer_id, serial_number);
CREATE FUNCTION revocations_due() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO journal_due (issuer_id, serial_number) SELECT issuer_id, serial_number FROM changed;
    RETURN NULL;
END
$$;
CREATE TRIGGER revocations_due_insert AFTER INSERT ON revocations REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION revocations_due();
CREATE TRIGGER revocations_due_update AFTER UPDATE ON revocations REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION revocations_due();
INSERT INTO journal_due (issuer_id, serial_number) SELECT issuer_id, serial_number FROM revocations;
GRANT SELECT, INSERT, DELETE ON journal_due TO certctl_api, certctl_scheduler;

-- Keys for which nothing is issued any more.
CREATE TABLE blocked_keys (
    -- SHA-256 of the SubjectPublicKeyInfo (RFC 5280 §4.1.2.7), lower-case hexadecimal.
    spki_sha256 text PRIMARY KEY,
    reason      text NOT NULL,
    blocked_by  text NOT NULL,
    -- The operation that revokes what has the key.
    bulk_id     text,
    blocked_at  timestamptz NOT NULL,
    CONSTRAINT blocked_keys_spki_sha256_check CHECK (spki_sha256 ~ '^[0-9a-f]{64}$')
);
CREATE INDEX blocked_keys_blocked_idx ON blocked_keys (blocked_at, spki_sha256);
GRANT SELECT, INSERT, UPDATE, DELETE ON blocked_keys TO certctl_api;
GRANT SELECT ON blocked_keys TO certctl_signer, certctl_scheduler;

-- What makes challenges to holders of keys unforgeable; the same for every replica.
CREATE TABLE challenge_keys (
    id  boolean PRIMARY KEY DEFAULT true CONSTRAINT challenge_keys_one_check CHECK (id),
    key bytea NOT NULL
);
INSERT INTO challenge_keys (key)
SELECT decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex');
GRANT SELECT ON challenge_keys TO certctl_api;

-- How far the signer has come: it keeps the same number beside its keys, and so knows an older database again.
CREATE TABLE high_water (
    id   boolean PRIMARY KEY DEFAULT true CONSTRAINT high_water_one_check CHECK (id),
    mark bigint NOT NULL
);
INSERT INTO high_water (mark) VALUES (0);
-- That this database is older than what the signer remembers, and who has brought it up to date.
CREATE TABLE fences (
    -- What the signer remembered.
    mark      bigint PRIMARY KEY,
    found_at  timestamptz NOT NULL,
    lifted_at timestamptz,
    lifted_by text,
    CONSTRAINT fences_lifted_check CHECK ((lifted_at IS NULL) = (lifted_by IS NULL))
);
CREATE INDEX fences_open_idx ON fences (mark) WHERE lifted_at IS NULL;
GRANT SELECT, UPDATE ON high_water TO certctl_signer;
GRANT SELECT, INSERT ON fences TO certctl_signer;
GRANT SELECT ON high_water TO certctl_api;
GRANT SELECT, UPDATE ON fences TO certctl_api;

-- When a revocation was first seen from outside, at each edge that is probed.
CREATE TABLE revocation_sightings (
    issuer_id     text NOT NULL,
    serial_number text NOT NULL,
    edge          text NOT NULL,
    -- Which revocation of the serial number: it may have been released and revoked again.
    revoked_at    timestamptz NOT NULL,
    ocsp_at       timestamptz,
    crl_at        timestamptz,
    crl_number    bigint,
    PRIMARY KEY (issuer_id, serial_number, edge)
);
-- An instant as RFC 3339 in UTC, as JSON has it.
CREATE FUNCTION utc_text(at timestamptz) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
$$;
CREATE INDEX revocation_sightings_revoked_idx ON revocation_sightings (revoked_at);
GRANT SELECT, INSERT, UPDATE, DELETE ON revocation_sightings TO certctl_scheduler;
GRANT SELECT ON revocation_sightings TO certctl_api;
