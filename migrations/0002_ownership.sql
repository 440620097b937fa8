-- Who answers for certificates, and the rules they are kept under. Written by the API alone.
CREATE TABLE teams (
    id          text PRIMARY KEY,
    name        text NOT NULL,
    description text NOT NULL DEFAULT '',
    created_at  timestamptz NOT NULL,
    updated_at  timestamptz NOT NULL,
    CONSTRAINT teams_name_key UNIQUE (name)
);
CREATE INDEX teams_created_idx ON teams (created_at, id);

CREATE TABLE owners (
    id         text PRIMARY KEY,
    name       text NOT NULL,
    email      text NOT NULL DEFAULT '',
    team_id    text NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    CONSTRAINT owners_team_id_fkey FOREIGN KEY (team_id) REFERENCES teams (id) ON DELETE RESTRICT
);
CREATE INDEX owners_created_idx ON owners (created_at, id);
CREATE INDEX owners_team_idx ON owners (team_id);

CREATE TABLE profiles (
    id                     text PRIMARY KEY,
    name                   text NOT NULL,
    description            text NOT NULL DEFAULT '',
    allowed_key_algorithms jsonb NOT NULL DEFAULT '[]',
    max_ttl_seconds        bigint NOT NULL DEFAULT 0 CONSTRAINT profiles_max_ttl_check CHECK (max_ttl_seconds >= 0),
    allowed_ekus           text[] NOT NULL DEFAULT '{serverAuth}',
    required_san_patterns  text[] NOT NULL DEFAULT '{}',
    spiffe_uri_pattern     text NOT NULL DEFAULT '',
    allow_short_lived      boolean NOT NULL DEFAULT false,
    enabled                boolean NOT NULL DEFAULT true,
    created_at             timestamptz NOT NULL,
    updated_at             timestamptz NOT NULL,
    CONSTRAINT profiles_name_key UNIQUE (name)
);
CREATE INDEX profiles_created_idx ON profiles (created_at, id);

CREATE TABLE renewal_policies (
    id                     text PRIMARY KEY,
    name                   text NOT NULL,
    auto_renew             boolean NOT NULL DEFAULT true,
    renew_at_permille      integer NOT NULL DEFAULT 667
                           CONSTRAINT renewal_policies_share_check CHECK (renew_at_permille BETWEEN 1 AND 999),
    renewal_window_days    integer NOT NULL DEFAULT 30,
    max_retries            integer NOT NULL DEFAULT 3,
    retry_interval_seconds integer NOT NULL DEFAULT 3600,
    alert_thresholds_days  integer[] NOT NULL DEFAULT '{30,14,7,0}',
    certificate_profile_id text,
    created_at             timestamptz NOT NULL,
    updated_at             timestamptz NOT NULL,
    CONSTRAINT renewal_policies_name_key UNIQUE (name),
    CONSTRAINT renewal_policies_profile_fkey
        FOREIGN KEY (certificate_profile_id) REFERENCES profiles (id) ON DELETE RESTRICT
);
CREATE INDEX renewal_policies_created_idx ON renewal_policies (created_at, id);

CREATE TABLE issuers (
    id         text PRIMARY KEY,
    name       text NOT NULL,
    type       text NOT NULL,
    config     jsonb NOT NULL DEFAULT '{}',
    enabled    boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    CONSTRAINT issuers_name_key UNIQUE (name)
);
CREATE INDEX issuers_created_idx ON issuers (created_at, id);

-- What a request gets that names none of its own.
INSERT INTO teams (id, name, description, created_at, updated_at)
VALUES ('t-unassigned', 'Unassigned', 'Owners and certificates nobody has claimed yet', now(), now());
INSERT INTO owners (id, name, team_id, created_at, updated_at)
VALUES ('o-unassigned', 'Unassigned', 't-unassigned', now(), now());
INSERT INTO renewal_policies (id, name, created_at, updated_at) VALUES ('rp-default', 'Default', now(), now());
INSERT INTO issuers (id, name, type, created_at, updated_at) VALUES ('iss-local', 'Local CA', 'local', now(), now());

GRANT SELECT, INSERT, UPDATE, DELETE ON teams, owners, profiles, renewal_policies, issuers TO certctl_api;
GRANT SELECT ON profiles, issuers TO certctl_signer;
GRANT SELECT ON profiles, issuers, renewal_policies TO certctl_scheduler;
-- Whom to tell.
GRANT SELECT ON owners TO certctl_scheduler;
