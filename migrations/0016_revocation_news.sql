-- Whoever keeps answers about the status of certificates hears which are no longer true, whoever changed them: pairs of
-- issuer and serial number, as many as a notification holds.
CREATE FUNCTION revocations_tell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('certctl_revoked', string_agg(issuer_id || '/' || serial_number, ' '))
       FROM (SELECT issuer_id, serial_number, (row_number() OVER () - 1) / 60 AS part FROM new_rows) n
      GROUP BY part;
    RETURN NULL;
END
$$;
CREATE TRIGGER revocations_told AFTER INSERT ON revocations REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION revocations_tell();
CREATE TRIGGER revocations_told_again AFTER UPDATE ON revocations REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION revocations_tell();
