-- Nothing is changed before there is it, whatever the clocks said: what was created late was changed late, and lists
-- enter an order by the one where a filter by the other begins.
CREATE OR REPLACE FUNCTION certificates_settle() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at := greatest(NEW.updated_at, NEW.created_at);
    NEW.status_at := greatest(NEW.status_at, NEW.updated_at);
    NEW.status := certificate_status(NEW, NEW.status_at);
    NEW.status_until := certificate_status_until(NEW, NEW.status);
    RETURN NEW;
END
$$;
UPDATE certificates SET updated_at = created_at WHERE updated_at < created_at;
ALTER TABLE certificates ADD CONSTRAINT certificates_updated_check CHECK (updated_at >= created_at);
