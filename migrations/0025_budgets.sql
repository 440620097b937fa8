-- How many requests an issuer is given at a time, and in an hour: what issuers outside impose on their customers.

-- What was handed to issuers that have a budget of an hour; rows older than that are not needed.
CREATE TABLE orders (
    job_id     text NOT NULL,
    issuer_id  text NOT NULL,
    -- The token of the lease under which it was: every try is one.
    token      bigint NOT NULL,
    started_at timestamptz NOT NULL,
    PRIMARY KEY (job_id, token),
    CONSTRAINT orders_job_id_fkey FOREIGN KEY (job_id) REFERENCES jobs (id) ON DELETE CASCADE
);
CREATE INDEX orders_issuer_idx ON orders (issuer_id, started_at);

CREATE FUNCTION issuer_has_budget(i issuers) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT i.config ? 'max_under_way' OR i.config ? 'max_per_hour'
$$;

-- How many more requests an issuer may be given now; null when nothing limits it.
CREATE FUNCTION issuer_room(i issuers, at timestamptz) RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT least(
        (i.config->>'max_under_way')::bigint
            - (SELECT count(*) FROM jobs j WHERE j.issuer_id = i.id AND j.type IN ('Issuance', 'Renewal')
                                             AND j.status = 'Running' AND j.lease_until > at),
        (i.config->>'max_per_hour')::bigint
            - (SELECT count(*) FROM orders o WHERE o.issuer_id = i.id AND o.started_at > at - interval '1 hour'))
$$;

-- What waits to be requested and what waits for its issuer have turns of their own.
DROP INDEX jobs_claim_idx;
CREATE INDEX jobs_claim_idx ON jobs (issuer_id, status, deadline, id)
    WHERE type IN ('Issuance', 'Renewal') AND status IN ('Pending', 'Running');

GRANT SELECT, INSERT, DELETE ON orders TO certctl_scheduler;
GRANT SELECT ON orders TO certctl_api;
