-- Who requested an issuance stays: a retry adds a participant, and nobody removes one.
CREATE OR REPLACE FUNCTION jobs_keep_approvals() RETURNS trigger LANGUAGE plpgsql SET enable_seqscan TO off AS $$
BEGIN
    NEW.requested_by := coalesce(OLD.requested_by, NEW.requested_by);
    NEW.planned_approvals := OLD.planned_approvals;
    NEW.requested_approvals := OLD.requested_approvals;
    NEW.self_approval := OLD.self_approval;
    NEW.participations_from := OLD.participations_from;
    NEW.participations_until := OLD.participations_until;
    IF NEW.status = 'Running' AND OLD.status <> 'Running' THEN
        NEW.participations_until :=
            coalesce((SELECT max(p.id) FROM participations p WHERE p.certificate_id = NEW.certificate_id), 0);
    END IF;
    RETURN NEW;
END
$$;
DROP TRIGGER jobs_keep_approvals ON jobs;
CREATE TRIGGER jobs_keep_approvals BEFORE UPDATE ON jobs FOR EACH ROW
    WHEN (NEW.type IN ('Issuance', 'Renewal')
          AND (NEW.status <> OLD.status
               OR (NEW.requested_by, NEW.planned_approvals, NEW.requested_approvals, NEW.self_approval,
                   NEW.participations_from, NEW.participations_until)
                  IS DISTINCT FROM (OLD.requested_by, OLD.planned_approvals, OLD.requested_approvals, OLD.self_approval,
                                    OLD.participations_from, OLD.participations_until)))
    EXECUTE FUNCTION jobs_keep_approvals();
