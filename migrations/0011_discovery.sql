-- Certificates that others issued, certificates found on hosts, and versions put back on a target by choice.

-- An imported version has neither job nor request nor issuer of ours, and no agent holds its key.
ALTER TABLE certificate_versions
    ALTER COLUMN job_id DROP NOT NULL,
    ALTER COLUMN issuer_id DROP NOT NULL,
    ALTER COLUMN csr_der DROP NOT NULL,
    -- The name of the authority that issued an imported version, and alone can revoke it.
    ADD COLUMN imported_from text,
    ADD CONSTRAINT certificate_versions_imported_check CHECK (
        CASE WHEN imported_from IS NULL
             THEN job_id IS NOT NULL AND issuer_id IS NOT NULL AND csr_der IS NOT NULL
             ELSE job_id IS NULL AND issuer_id IS NULL AND csr_der IS NULL AND agent_id IS NULL
        END);
-- The API may record imported versions and no others: it cannot name a job, an issuer, a request or an agent.
GRANT INSERT (id, certificate_id, version, serial_number, not_before, not_after, fingerprint_sha256, spki_sha256,
              cert_pem, chain_pem, key_algorithm, key_size, imported_from, created_at)
    ON certificate_versions TO certctl_api;

-- An older version that somebody chose for a target in place of the newest one. It counts until another version is sent
-- there, or putting it there fails.
ALTER TABLE certificate_targets
    ADD COLUMN chosen_version_id text,
    ADD CONSTRAINT certificate_targets_chosen_version_id_fkey
        FOREIGN KEY (chosen_version_id) REFERENCES certificate_versions (id);
GRANT UPDATE (chosen_version_id) ON certificate_targets TO certctl_scheduler;

-- What agents report of the certificates on their hosts.
CREATE TABLE discovery_scans (
    id                 text PRIMARY KEY,
    agent_id           text NOT NULL,
    directories        text[] NOT NULL DEFAULT '{}',
    certificates_found integer NOT NULL DEFAULT 0,
    certificates_new   integer NOT NULL DEFAULT 0,
    errors_count       integer NOT NULL DEFAULT 0,
    -- The first of them.
    errors             text[] NOT NULL DEFAULT '{}',
    scan_duration_ms   bigint NOT NULL DEFAULT 0,
    started_at         timestamptz NOT NULL,
    completed_at       timestamptz,
    CONSTRAINT discovery_scans_agent_id_fkey FOREIGN KEY (agent_id) REFERENCES agents (id) ON DELETE CASCADE
);
CREATE INDEX discovery_scans_started_idx ON discovery_scans (started_at, id);
CREATE INDEX discovery_scans_agent_idx ON discovery_scans (agent_id, started_at, id);

CREATE TABLE discovered_certificates (
    id                     text PRIMARY KEY,
    fingerprint_sha256     text NOT NULL,
    common_name            text NOT NULL,
    sans                   text[] NOT NULL DEFAULT '{}',
    serial_number          text NOT NULL,
    issuer_dn              text NOT NULL,
    subject_dn             text NOT NULL,
    not_before             timestamptz NOT NULL,
    not_after              timestamptz NOT NULL,
    key_algorithm          text NOT NULL,
    key_size               integer NOT NULL,
    is_ca                  boolean NOT NULL,
    der                    bytea NOT NULL,
    source_path            text NOT NULL,
    source_format          text NOT NULL,
    agent_id               text NOT NULL,
    discovery_scan_id      text,
    managed_certificate_id text,
    status                 text NOT NULL CONSTRAINT discovered_certificates_status_check
                           CHECK (status IN ('Unmanaged', 'Managed', 'Dismissed')),
    first_seen_at          timestamptz NOT NULL,
    last_seen_at           timestamptz NOT NULL,
    -- Since when full scans of its directory do not find it any more.
    missing_since          timestamptz,
    dismissed_at           timestamptz,
    dismissal_reason       text,
    created_at             timestamptz NOT NULL,
    updated_at             timestamptz NOT NULL,
    CONSTRAINT discovered_certificates_place_key UNIQUE (agent_id, fingerprint_sha256, source_path),
    CONSTRAINT discovered_certificates_agent_id_fkey FOREIGN KEY (agent_id) REFERENCES agents (id) ON DELETE CASCADE,
    CONSTRAINT discovered_certificates_scan_id_fkey
        FOREIGN KEY (discovery_scan_id) REFERENCES discovery_scans (id) ON DELETE SET NULL,
    CONSTRAINT discovered_certificates_managed_certificate_id_fkey
        FOREIGN KEY (managed_certificate_id) REFERENCES certificates (id) ON DELETE RESTRICT,
    CONSTRAINT discovered_certificates_managed_check
        CHECK ((status = 'Managed') = (managed_certificate_id IS NOT NULL)),
    CONSTRAINT discovered_certificates_dismissed_check
        CHECK ((status = 'Dismissed') = (dismissed_at IS NOT NULL)
               AND (dismissal_reason IS NULL OR dismissed_at IS NOT NULL))
);
CREATE INDEX discovered_certificates_seen_idx ON discovered_certificates (last_seen_at, id);
CREATE INDEX discovered_certificates_first_idx ON discovered_certificates (first_seen_at, id);
CREATE INDEX discovered_certificates_not_after_idx ON discovered_certificates (not_after, id);
CREATE INDEX discovered_certificates_name_idx ON discovered_certificates (common_name, id);
CREATE INDEX discovered_certificates_status_idx ON discovered_certificates (status, last_seen_at, id);
CREATE INDEX discovered_certificates_status_end_idx ON discovered_certificates (status, not_after, id);
CREATE INDEX discovered_certificates_agent_idx ON discovered_certificates (agent_id, last_seen_at, id);
CREATE INDEX discovered_certificates_fingerprint_idx ON discovered_certificates (fingerprint_sha256);
CREATE INDEX discovered_certificates_scan_idx ON discovered_certificates (discovery_scan_id);
CREATE INDEX discovered_certificates_managed_idx ON discovered_certificates (managed_certificate_id)
    WHERE managed_certificate_id IS NOT NULL;

-- How many there are of each status: changes, summed when asked. A row for each change and none that all changes
-- wait for; reports fold what has come together.
CREATE TABLE discovered_tallies (
    status text NOT NULL,
    delta  bigint NOT NULL
);

CREATE FUNCTION tally_discovered() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO discovered_tallies SELECT status, count(*) FROM added GROUP BY status;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO discovered_tallies SELECT status, -count(*) FROM removed GROUP BY status;
    ELSE
        INSERT INTO discovered_tallies
        SELECT status, sum(n) FROM (SELECT status, 1 AS n FROM added UNION ALL SELECT status, -1 FROM removed) c
         GROUP BY status HAVING sum(n) <> 0;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER discovered_certificates_added AFTER INSERT ON discovered_certificates
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION tally_discovered();
CREATE TRIGGER discovered_certificates_changed AFTER UPDATE ON discovered_certificates
    REFERENCING OLD TABLE AS removed NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION tally_discovered();
CREATE TRIGGER discovered_certificates_removed AFTER DELETE ON discovered_certificates
    REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION tally_discovered();

GRANT SELECT, INSERT, UPDATE ON discovery_scans, discovered_certificates TO certctl_api;
GRANT SELECT, INSERT, UPDATE, DELETE ON discovered_tallies TO certctl_api;
