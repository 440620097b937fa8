-- Who may come in: named keys, and the sessions of browsers. Secrets are kept as digests only.
CREATE TABLE api_keys (
    id           text PRIMARY KEY,
    name         text NOT NULL,
    role         text NOT NULL
                 CONSTRAINT api_keys_role_check CHECK (role IN ('admin', 'operator', 'viewer', 'auditor', 'agent')),
    -- Whose key it is, when it is an agent's.
    agent_id     text,
    created_by   text NOT NULL,
    created_at   timestamptz NOT NULL,
    updated_at   timestamptz NOT NULL,
    expires_at   timestamptz,
    last_used_at timestamptz,
    CONSTRAINT api_keys_name_key UNIQUE (name),
    CONSTRAINT api_keys_agent_id_fkey FOREIGN KEY (agent_id) REFERENCES agents (id) ON DELETE CASCADE,
    CONSTRAINT api_keys_agent_check CHECK ((role = 'agent') = (agent_id IS NOT NULL))
);
CREATE INDEX api_keys_created_idx ON api_keys (created_at, id);
CREATE INDEX api_keys_agent_idx ON api_keys (agent_id);

-- The secrets of a key: one that stays, and those it took the place of, until they end.
CREATE TABLE api_key_secrets (
    -- SHA-256, lower-case hexadecimal.
    hash       text PRIMARY KEY CONSTRAINT api_key_secrets_hash_check CHECK (hash ~ '^[0-9a-f]{64}$'),
    key_id     text NOT NULL,
    -- Its first characters, to tell one from another.
    prefix     text NOT NULL,
    created_at timestamptz NOT NULL,
    ends_at    timestamptz,
    CONSTRAINT api_key_secrets_key_id_fkey FOREIGN KEY (key_id) REFERENCES api_keys (id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX api_key_secrets_one_stays ON api_key_secrets (key_id) WHERE ends_at IS NULL;
CREATE INDEX api_key_secrets_key_idx ON api_key_secrets (key_id);

CREATE TABLE sessions (
    -- HMAC-SHA-256 of the cookie's value, lower-case hexadecimal.
    hash         text PRIMARY KEY,
    -- The name in the trail, and the one to show.
    name         text NOT NULL,
    display_name text NOT NULL,
    role         text NOT NULL
                 CONSTRAINT sessions_role_check CHECK (role IN ('admin', 'operator', 'viewer', 'auditor')),
    -- The secret it was begun with: the session ends with it.
    secret_hash  text,
    created_at   timestamptz NOT NULL,
    last_seen_at timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL,
    CONSTRAINT sessions_secret_hash_fkey FOREIGN KEY (secret_hash) REFERENCES api_key_secrets (hash) ON DELETE CASCADE
);
CREATE INDEX sessions_secret_idx ON sessions (secret_hash);
CREATE INDEX sessions_expires_idx ON sessions (expires_at);

-- Browsers that were sent to the identity provider and have not come back.
CREATE TABLE logins (
    -- SHA-256 of the browser's cookie, lower-case hexadecimal: the `state` of OpenID Connect.
    state      text PRIMARY KEY,
    nonce      text NOT NULL,
    verifier   text NOT NULL,
    return_to  text NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE INDEX logins_expires_idx ON logins (expires_at);

GRANT SELECT, INSERT, UPDATE, DELETE ON api_keys, api_key_secrets, sessions, logins TO certctl_api;
