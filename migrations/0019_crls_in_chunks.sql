-- CRLs are in crl_chunks, and stale when crl_dirt says so.
DELETE FROM crls WHERE body IS NULL;
ALTER TABLE crls DROP COLUMN der, DROP COLUMN covers, ALTER COLUMN body SET NOT NULL, ALTER COLUMN length SET NOT NULL,
    ALTER COLUMN digest SET NOT NULL;
COMMENT ON COLUMN crls.digest IS 'SHA-256 of the last chunk: the signature in it is over all the others';

-- Every revocation of every issuer, oldest first, a page at a time.
CREATE INDEX revocations_oldest_idx ON revocations (revoked_at, serial_number, issuer_id) WHERE released_at IS NULL;
DROP INDEX revocations_at_idx;
