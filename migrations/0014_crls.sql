-- CRLs by shard and as deltas, kept in chunks; and what makes them stale.

-- The highest shard (RFC 5280 §5.2.5) that certificates of the issuer may name. It never shrinks: what was issued
-- keeps its distribution point. 0 while all of them name the full CRL.
ALTER TABLE issuers ADD COLUMN crl_shards integer NOT NULL DEFAULT 0;

CREATE FUNCTION issuers_keep_shards() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    wanted integer := coalesce((NEW.config->>'crl_shards')::integer, 1);
BEGIN
    IF wanted > greatest(NEW.crl_shards, 1) THEN
        NEW.crl_shards := wanted;
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER issuers_keep_shards BEFORE INSERT OR UPDATE OF config ON issuers
    FOR EACH ROW EXECUTE FUNCTION issuers_keep_shards();

-- The CRL that the certificate names: 0 is the full one, k that of shard k. Fixed at issuance.
ALTER TABLE ledger ADD COLUMN shard integer NOT NULL DEFAULT 0;

-- The shard comes from the ledger unless the statement brings it.
ALTER TABLE revocations
    ADD COLUMN shard integer NOT NULL DEFAULT 0,
    -- When a hold was released: the entry leaves the full CRL, and deltas say removeFromCRL.
    ADD COLUMN released_at timestamptz,
    -- Since when the key is thought to be known or the certificate wrong (RFC 5280 §5.3.2), if that is known.
    ADD COLUMN invalidity_date timestamptz,
    ADD CONSTRAINT revocations_released_check CHECK (released_at IS NULL OR reason = 'certificateHold');
ALTER TABLE revocations ALTER COLUMN shard DROP DEFAULT;

CREATE FUNCTION revocations_find_shard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.shard := coalesce((SELECT shard FROM ledger
                            WHERE issuer_id = NEW.issuer_id AND serial_number = NEW.serial_number), 0);
    RETURN NEW;
END
$$;
CREATE TRIGGER revocations_find_shard BEFORE INSERT ON revocations
    FOR EACH ROW WHEN (NEW.shard IS NULL) EXECUTE FUNCTION revocations_find_shard();

-- The entries of one CRL in the order of their numbers, without a look at the table. Equal numbers are equal texts
-- without leading zeros, so the shorter text is the smaller number.
CREATE INDEX revocations_crl_idx ON revocations (issuer_id, shard, length(serial_number), serial_number COLLATE "C")
    INCLUDE (revoked_at, reason, not_after, invalidity_date)
    WHERE released_at IS NULL AND NOT short_lived;
DROP INDEX revocations_entries_idx;

-- CRLs that do not have all there is to say. Whoever makes a CRL deletes what it sees here before it reads the
-- entries, so that a revocation that becomes visible in between leaves its row.
CREATE TABLE crl_dirt (
    issuer_id  text NOT NULL,
    -- 0 is the full CRL, where certificates name it; every revocation of the issuer is in crl_changes.
    shard      integer NOT NULL,
    at         timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX crl_dirt_idx ON crl_dirt (issuer_id, shard);

-- What the newest full CRL of an issuer may not have yet: the entries of its delta CRLs (RFC 5280 §5.2.4).
CREATE TABLE crl_changes (
    issuer_id     text NOT NULL,
    serial_number text NOT NULL,
    -- Whether the newest delta has it.
    in_delta      boolean NOT NULL DEFAULT false
);
CREATE INDEX crl_changes_idx ON crl_changes (issuer_id, in_delta);

CREATE FUNCTION revocations_dirty() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO crl_dirt (issuer_id, shard) SELECT DISTINCT issuer_id, shard FROM changed WHERE NOT short_lived;
    INSERT INTO crl_changes (issuer_id, serial_number) SELECT issuer_id, serial_number FROM changed WHERE NOT short_lived;
    RETURN NULL;
END
$$;
CREATE TRIGGER revocations_dirty_insert AFTER INSERT ON revocations REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION revocations_dirty();
CREATE TRIGGER revocations_dirty_update AFTER UPDATE ON revocations REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION revocations_dirty();

-- A full CRL names its delta (RFC 5280 §5.2.6) or does not: the next one says so.
CREATE FUNCTION issuers_dirty() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO crl_dirt (issuer_id, shard) VALUES (NEW.id, 0);
    RETURN NULL;
END
$$;
CREATE TRIGGER issuers_dirty AFTER UPDATE OF config ON issuers
    FOR EACH ROW WHEN (NEW.config->'crl_delta' IS DISTINCT FROM OLD.config->'crl_delta')
    EXECUTE FUNCTION issuers_dirty();

-- Octets of CRLs. They are there before the CRL they belong to, and serve nobody until then.
CREATE SEQUENCE crl_bodies;
CREATE TABLE crl_chunks (
    issuer_id text NOT NULL,
    shard     integer NOT NULL,
    body      bigint NOT NULL,
    -- 0 is the head, which is written last.
    seq       integer NOT NULL,
    octets    bytea NOT NULL,
    PRIMARY KEY (issuer_id, shard, body, seq)
);
-- Serial numbers are random, and packing them would cost more than it saves.
ALTER TABLE crl_chunks ALTER COLUMN octets SET STORAGE EXTERNAL;

ALTER TABLE crls
    ADD COLUMN shard integer NOT NULL DEFAULT 0,
    -- Of a delta: the number of the full CRL that it builds upon. Both count in one sequence (§5.2.3).
    ADD COLUMN base bigint,
    ADD COLUMN body bigint,
    ADD COLUMN length bigint,
    -- SHA-256 of the DER.
    ADD COLUMN digest bytea,
    ALTER COLUMN der DROP NOT NULL,
    ALTER COLUMN covers DROP NOT NULL,
    DROP CONSTRAINT crls_pkey,
    ADD PRIMARY KEY (issuer_id, shard, number),
    ADD CONSTRAINT crls_delta_check CHECK (base IS NULL OR shard = 0);
UPDATE crls SET body = nextval('crl_bodies'), length = octet_length(der), digest = sha256(der);
INSERT INTO crl_chunks (issuer_id, shard, body, seq, octets) SELECT issuer_id, shard, body, 0, der FROM crls;
INSERT INTO crl_dirt (issuer_id, shard) SELECT DISTINCT issuer_id, 0 FROM revocations;

GRANT SELECT, DELETE ON crl_dirt TO certctl_signer;
GRANT SELECT, UPDATE, DELETE ON crl_changes TO certctl_signer;
GRANT SELECT, INSERT, DELETE ON crl_chunks TO certctl_signer;
GRANT USAGE ON crl_bodies TO certctl_signer;
GRANT SELECT, INSERT ON crl_dirt, crl_changes TO certctl_api, certctl_scheduler;
GRANT SELECT ON crl_chunks TO certctl_api;
