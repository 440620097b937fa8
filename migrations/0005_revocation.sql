-- What the signer signed: a row is older than its signature, and repeating a job finds its first answer here.
CREATE TABLE ledger (
    issuer_id     text NOT NULL,
    -- Lower-case hexadecimal without leading zeros.
    serial_number text NOT NULL,
    job_id        text NOT NULL,
    -- The to-be-signed certificate (RFC 5280 §4.1.1.1): a crash between recording and signing signs these octets.
    tbs_der       bytea NOT NULL,
    der           bytea,
    not_after     timestamptz NOT NULL,
    -- Issued under a profile of lifetimes under an hour: revocations are not published.
    short_lived   boolean NOT NULL,
    recorded_at   timestamptz NOT NULL,
    PRIMARY KEY (issuer_id, serial_number),
    CONSTRAINT ledger_job_key UNIQUE (job_id)
);

-- The certificates of our own authorities, published by the signer for everyone to fetch.
CREATE TABLE authorities (
    issuer_id       text PRIMARY KEY,
    certificate_der bytea NOT NULL,
    -- The certificate and those above it, in PEM.
    chain_pem       text NOT NULL,
    not_after       timestamptz NOT NULL,
    published_at    timestamptz NOT NULL
);

-- Append-only facts; identity is (issuer, serial).
CREATE TABLE revocations (
    id             text PRIMARY KEY,
    issuer_id      text NOT NULL,
    serial_number  text NOT NULL,
    certificate_id text NOT NULL,
    reason         text NOT NULL,
    revoked_by     text NOT NULL,
    not_after      timestamptz NOT NULL,
    short_lived    boolean NOT NULL DEFAULT false,
    revoked_at     timestamptz NOT NULL,
    CONSTRAINT revocations_serial_key UNIQUE (issuer_id, serial_number),
    CONSTRAINT revocations_certificate_id_fkey
        FOREIGN KEY (certificate_id) REFERENCES certificates (id) ON DELETE RESTRICT
);
CREATE INDEX revocations_entries_idx ON revocations (issuer_id, not_after, serial_number);
CREATE INDEX revocations_at_idx ON revocations (issuer_id, revoked_at);
CREATE INDEX revocations_certificate_idx ON revocations (certificate_id);

CREATE TABLE crls (
    issuer_id   text NOT NULL,
    -- CRL number (RFC 5280 §5.2.3): one more than the last, for ever.
    number      bigint NOT NULL,
    der         bytea NOT NULL,
    entries     bigint NOT NULL,
    this_update timestamptz NOT NULL,
    next_update timestamptz NOT NULL,
    -- How many revocations of the issuer there were when it was made: more now, and it is stale. Not their newest
    -- date, because a revocation may be dated before another and become visible after it.
    covers      bigint NOT NULL,
    PRIMARY KEY (issuer_id, number)
);

GRANT SELECT, INSERT, UPDATE ON ledger, authorities TO certctl_signer;
GRANT SELECT, INSERT, DELETE ON crls TO certctl_signer;
GRANT SELECT ON revocations TO certctl_signer;
GRANT SELECT ON ledger, authorities, crls TO certctl_api;
-- A version that was being signed while its certificate was revoked is recorded as revoked.
GRANT SELECT, INSERT ON revocations TO certctl_scheduler;
GRANT SELECT ON ledger TO certctl_scheduler;
GRANT SELECT, INSERT ON revocations TO certctl_api;
GRANT SELECT ON authorities, crls TO certctl_scheduler;
