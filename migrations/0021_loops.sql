-- How the loops of each process went. A process writes its own rows; those of one that is gone stay for a while.
CREATE TABLE loop_runs (
    service         text NOT NULL,
    name            text NOT NULL,
    holder          text NOT NULL,
    every_ms        bigint NOT NULL,
    -- How often it ran since the process began, and how often that failed; a run that was another's to do is none.
    runs            bigint NOT NULL,
    failures        bigint NOT NULL,
    outcome         text NOT NULL
                    CONSTRAINT loop_runs_outcome_check CHECK (outcome IN ('ok', 'error', 'panic', 'timeout', 'skipped')),
    error           text,
    done            bigint NOT NULL,
    duration_ms     bigint NOT NULL,
    last_run_at     timestamptz NOT NULL,
    last_success_at timestamptz,
    next_run_at     timestamptz NOT NULL,
    written_at      timestamptz NOT NULL,
    PRIMARY KEY (service, name, holder)
);
GRANT SELECT, INSERT, UPDATE, DELETE ON loop_runs TO certctl_scheduler, certctl_notifier;
GRANT SELECT ON loop_runs, leases TO certctl_api;
