-- Times of the week in which renewals under a policy may begin by themselves; any time when there is none.
ALTER TABLE renewal_policies ADD COLUMN maintenance_windows text[] NOT NULL DEFAULT '{}';
