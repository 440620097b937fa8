-- One role per service. They cannot log in; a service's login is made a member of its role, or is the role itself
-- once an operator gives it a password. Each service starts its sessions with `role` set to its own.
-- Roles belong to the whole cluster, so another database may have made them already, or be making them now.
DO $$
DECLARE
    service text;
BEGIN
    FOREACH service IN ARRAY ARRAY['certctl_api', 'certctl_signer', 'certctl_scheduler', 'certctl_notifier'] LOOP
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', service);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
    END LOOP;
END
$$;

GRANT USAGE ON SCHEMA public TO certctl_api, certctl_signer, certctl_scheduler, certctl_notifier;
