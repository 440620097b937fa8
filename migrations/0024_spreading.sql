-- How much earlier than its time a certificate may be renewed, in hundredths of the time until then, so that what was
-- issued at once is not renewed at once.
ALTER TABLE renewal_policies
    ADD COLUMN spread_percent integer NOT NULL DEFAULT 0
        CONSTRAINT renewal_policies_spread_check CHECK (spread_percent BETWEEN 0 AND 100);
