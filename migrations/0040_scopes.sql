-- Roles that request and approve only, and the certificates that a key, a session or a role is limited to.
ALTER TABLE api_keys
    DROP CONSTRAINT api_keys_role_check,
    ADD CONSTRAINT api_keys_role_check
        CHECK (role IN ('admin', 'operator', 'viewer', 'auditor', 'requester', 'approver', 'agent')),
    -- A scope as JSON; empty for no limit.
    ADD COLUMN scope jsonb NOT NULL DEFAULT '{}',
    ADD CONSTRAINT api_keys_scope_check CHECK (scope = '{}' OR role NOT IN ('admin', 'agent'));

-- A session states whose it is and what that party reaches. Earlier sessions do not, so they end.
DELETE FROM sessions;
ALTER TABLE sessions
    DROP CONSTRAINT sessions_role_check,
    ADD CONSTRAINT sessions_role_check
        CHECK (role IN ('admin', 'operator', 'viewer', 'auditor', 'requester', 'approver')),
    -- The principal that began it.
    ADD COLUMN principal text NOT NULL,
    -- The scopes of its role, when it was not begun with a named key: then those of the key count.
    ADD COLUMN scopes jsonb NOT NULL DEFAULT '[]';

-- The principal that created a certificate; none of those that were created before.
ALTER TABLE certificates ADD COLUMN created_by text;
CREATE INDEX certificates_created_by_idx ON certificates (created_by) WHERE created_by IS NOT NULL;

-- Whether all names of a certificate are DNS names in these domains.
CREATE FUNCTION within_domains(common_name text, sans text[], domains text[]) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN NOT EXISTS (
    SELECT 1 FROM unnest(array_prepend(common_name, sans)) AS n (name)
     WHERE NOT (name ~ '^[A-Za-z0-9*._-]+$'
                AND EXISTS (SELECT 1 FROM unnest(domains) AS d (domain)
                             WHERE lower(name) = domain OR lower(name) LIKE '%.' || replace(domain, '_', '\_'))));
