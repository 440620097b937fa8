-- Many certificates are due since one and the same instant: they are read in order, and not sorted for each batch anew.
DROP INDEX certificates_renewal_idx;
CREATE INDEX certificates_renewal_idx ON certificates (renew_at, id)
    WHERE renew_at IS NOT NULL AND revoked_at IS NULL AND archived_at IS NULL;
