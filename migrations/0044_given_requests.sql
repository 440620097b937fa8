-- Certificates whose keys no agent holds, and certificates that are tracked only.

-- Whether the certification request came with the job: no agent is asked for one, also when the job is tried again.
ALTER TABLE jobs
    ADD COLUMN request_given boolean NOT NULL DEFAULT false,
    ADD CONSTRAINT jobs_given_request_check CHECK (NOT request_given OR csr_der IS NOT NULL AND agent_id IS NULL);

-- A certificate that was issued elsewhere and is not here has an expiry date and no version: its status follows from the
-- date.
ALTER TABLE certificates
    DROP CONSTRAINT certificates_issued_check,
    ADD CONSTRAINT certificates_issued_check CHECK (current_version_id IS NULL OR not_after IS NOT NULL);
CREATE OR REPLACE FUNCTION certificate_status(c certificates, at timestamptz) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN c.archived_at IS NOT NULL THEN 'Archived'
        WHEN c.revoked_at IS NOT NULL THEN 'Revoked'
        WHEN c.not_after IS NULL AND c.failed_at IS NOT NULL THEN 'Failed'
        WHEN c.not_after IS NULL THEN 'Pending'
        WHEN c.open_issuances > 0 THEN 'RenewalInProgress'
        WHEN c.not_after <= at THEN 'Expired'
        WHEN c.failed_at IS NOT NULL THEN 'Failed'
        WHEN certificate_expiring_at(c) <= at THEN 'Expiring'
        ELSE 'Active'
    END
$$;
