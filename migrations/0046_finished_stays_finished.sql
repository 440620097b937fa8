-- A finished bulk operation is not started again: while one runs, the scheduler acts in the name of its requester.
CREATE FUNCTION bulk_operations_stay_finished() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a bulk operation that is finished is not started again' USING ERRCODE = 'insufficient_privilege';
END
$$;
CREATE TRIGGER bulk_operations_stay_finished BEFORE UPDATE ON bulk_operations FOR EACH ROW
    WHEN (OLD.status <> 'Running' AND NEW.status = 'Running') EXECUTE FUNCTION bulk_operations_stay_finished();
