-- What an agent reports of a deployment, with the output of the command that failed. Only those who may operate see it;
-- the part in `error` is what the job itself says.
CREATE TABLE job_reports (
    job_id text PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
    error  text NOT NULL,
    report text NOT NULL
);
GRANT SELECT, INSERT, UPDATE ON job_reports TO certctl_api;
