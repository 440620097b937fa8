-- How many requests for names of one registered domain an issuer is given in so many days.

-- What was handed to issuers that have such a budget; rows older than its days are not needed.
CREATE TABLE domain_orders (
    issuer_id  text NOT NULL,
    -- As the public suffix list has it: "example.co.uk".
    domain     text NOT NULL,
    started_at timestamptz NOT NULL,
    job_id     text NOT NULL,
    -- The token of the lease under which it was: every try is one.
    token      bigint NOT NULL,
    PRIMARY KEY (issuer_id, domain, started_at, job_id, token),
    CONSTRAINT domain_orders_job_id_fkey FOREIGN KEY (job_id) REFERENCES jobs (id) ON DELETE CASCADE
);
CREATE INDEX domain_orders_age_idx ON domain_orders (issuer_id, started_at);
CREATE INDEX domain_orders_job_idx ON domain_orders (job_id);

-- The domain whose budget was used up when the job was to be handed on; it is handed on at run_at.
ALTER TABLE jobs ADD COLUMN held_for text;

CREATE OR REPLACE FUNCTION issuer_has_budget(i issuers) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT i.config ? 'max_under_way' OR i.config ? 'max_per_hour' OR i.config ? 'max_per_domain'
$$;

GRANT SELECT, INSERT, DELETE ON domain_orders TO certctl_scheduler;
