-- A team can have an address, and is told of what is at least as severe as it wants.
ALTER TABLE teams
    ADD COLUMN email text,
    ADD COLUMN notify_from text NOT NULL DEFAULT 'Warning' CONSTRAINT teams_notify_from_check
        CHECK (notify_from IN ('Info', 'Warning', 'Critical'));
GRANT SELECT ON teams TO certctl_scheduler;
