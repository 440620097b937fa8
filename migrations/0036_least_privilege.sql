-- What a service can do with the database when it is not itself any more.

-- A function that runs with its owner's rights finds what it names, whatever the caller has created. Every later one
-- needs the same two settings, which a test demands.
CREATE OR REPLACE FUNCTION forget_validations(before timestamptz, most bigint) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH gone AS (
        DELETE FROM public.jobs WHERE id IN (
            SELECT j.id FROM public.jobs j
             WHERE j.type = 'Validation' AND j.finished_at < before ORDER BY j.finished_at LIMIT most)
        RETURNING 1)
    SELECT count(*) FROM gone
$$;
REVOKE ALL ON FUNCTION forget_validations(timestamptz, bigint) FROM PUBLIC;

-- Triggers run with the rights of the statement that fires them, which may be such a function: they look in the schema
-- of the tables, and for temporary ones last.
DO $$
DECLARE
    function regprocedure;
BEGIN
    FOR function IN
        SELECT p.oid FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
         WHERE p.pronamespace = 'public'::regnamespace AND l.lanname = 'plpgsql' AND p.proowner = current_user::regrole
           AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = pg_catalog, public, pg_temp', function);
    END LOOP;
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
END
$$;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;

-- The scheduler changes what it is there to change, column by column. It cannot choose names, policy, profile or issuer
-- of a certificate, the request of a job, or the key of an agent. A later migration that adds a column which the
-- scheduler writes grants it.
REVOKE UPDATE ON certificates, agents FROM certctl_scheduler;
GRANT UPDATE (owner_id, team_id, current_version_id, not_before, not_after, renew_at, failed_at, failure, revoked_at,
              revocation_reason, last_renewal_at, last_deployment_at, updated_at, open_issuances, status_at)
    ON certificates TO certctl_scheduler;
GRANT UPDATE (offline_since) ON agents TO certctl_scheduler;
REVOKE INSERT, UPDATE ON jobs FROM certctl_scheduler;
GRANT INSERT (id, type, certificate_id, agent_id, target_id, version_id, status, max_attempts, run_at, created_at,
              requested_by)
    ON jobs TO certctl_scheduler;
GRANT UPDATE (version_id, status, attempts, last_error, reason, run_at, lease_until, lease_token, started_at,
              finished_at, requested_by, held_for)
    ON jobs TO certctl_scheduler;
REVOKE UPDATE ON bulk_operations, bulk_items FROM certctl_scheduler;
GRANT UPDATE (status, done, refused, finished_at) ON bulk_operations TO certctl_scheduler;
GRANT UPDATE (outcome, message, finished_at) ON bulk_items TO certctl_scheduler;
-- The signer completes what it recorded, and changes nothing of it.
REVOKE UPDATE ON ledger FROM certctl_signer;
GRANT UPDATE (der) ON ledger TO certctl_signer;

-- The order of the trail is the database's.
REVOKE INSERT ON audit_events FROM certctl_api, certctl_signer, certctl_scheduler, certctl_notifier;
GRANT INSERT (id, actor, actor_type, action, resource_type, resource_id, details, at)
    ON audit_events TO certctl_api, certctl_signer, certctl_scheduler, certctl_notifier;

-- How far the time of an event may be from the database's. Only the owner of the database can replace it.
CREATE FUNCTION audit_skew() RETURNS interval LANGUAGE sql IMMUTABLE AS $$ SELECT interval '10 minutes' $$;

-- Who acted and when, as far as the database knows it. The API authenticates callers and names them. The other services
-- act for themselves; the scheduler also for the one who started a bulk operation that is running. The time is the
-- database's, give or take audit_skew(); records of calls, which wait on the API's disk while the database is away, may
-- be older.
CREATE FUNCTION audit_events_are_attributed() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    clock  timestamptz := clock_timestamp();
    api    boolean;
BEGIN
    -- The owner of the table, by itself or by a function.
    IF pg_has_role(current_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'MEMBER') THEN
        RETURN NEW;
    END IF;
    api := pg_has_role(current_user, 'certctl_api', 'MEMBER');
    IF NOT api AND (NEW.actor, NEW.actor_type) <> ('system', 'System') THEN
        IF NOT pg_has_role(current_user, 'certctl_scheduler', 'MEMBER') THEN
            RAISE EXCEPTION 'this service acts as "system" only' USING ERRCODE = 'insufficient_privilege';
        END IF;
        IF NOT EXISTS (SELECT 1 FROM public.bulk_operations b
                        WHERE b.status = 'Running' AND b.actor = NEW.actor AND b.actor_type = NEW.actor_type) THEN
            RAISE EXCEPTION 'the scheduler acts as "system", or for the actor of a running bulk operation'
                USING ERRCODE = 'insufficient_privilege';
        END IF;
    END IF;
    IF NEW.at > clock + public.audit_skew()
       OR NEW.at < clock - public.audit_skew() AND NOT (api AND NEW.resource_type = 'api') THEN
        NEW.at := clock;
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER audit_events_are_attributed BEFORE INSERT ON audit_events
    FOR EACH ROW EXECUTE FUNCTION audit_events_are_attributed();

-- Readiness compares the schema with the program, and knows of a database that was restored from an older copy.
GRANT SELECT ON fences TO certctl_scheduler;
GRANT SELECT ON _sqlx_migrations TO certctl_api, certctl_signer, certctl_scheduler, certctl_notifier;
