-- A full CRL and the delta that is issued together with it have one number (RFC 5280 §5.2.3), so a number is unique among
-- full CRLs and among deltas.
ALTER TABLE crls DROP CONSTRAINT crls_pkey;
CREATE UNIQUE INDEX crls_number_key ON crls (issuer_id, shard, number, (base IS NOT NULL));
