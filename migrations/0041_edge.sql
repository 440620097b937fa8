-- The key with which replicas authenticate the OCSP responses that they share through Redis. Only the API reads it;
-- only the owner of the database can replace it.
CREATE TABLE ocsp_cache_key (
    -- One row.
    singleton boolean PRIMARY KEY DEFAULT true CONSTRAINT ocsp_cache_key_singleton_check CHECK (singleton),
    -- HMAC-SHA-256.
    key       bytea NOT NULL CONSTRAINT ocsp_cache_key_length_check CHECK (octet_length(key) = 32)
);
REVOKE ALL ON ocsp_cache_key FROM PUBLIC;
GRANT SELECT ON ocsp_cache_key TO certctl_api;
-- 244 bits of the generator of the operating system.
INSERT INTO ocsp_cache_key (key)
SELECT sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()));

-- Which channels of notifications have a receiver, as the notifiers say. Of one that none has, nothing is enqueued.
CREATE TABLE notification_channels (
    channel     text PRIMARY KEY,
    configured  boolean NOT NULL,
    -- When a notifier said last that it is.
    declared_at timestamptz NOT NULL
);
GRANT SELECT ON notification_channels TO certctl_api, certctl_scheduler, certctl_notifier;

-- Says whether a notifier has a receiver for a channel. While another has one, that counts; once none has, what waits for
-- the channel is removed.
CREATE FUNCTION declare_notification_channel(of_channel text, has_receiver boolean, at timestamptz) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO public.notification_channels AS c (channel, configured, declared_at)
    VALUES (of_channel, has_receiver, at)
    ON CONFLICT (channel) DO UPDATE SET configured = excluded.configured, declared_at = excluded.declared_at
     WHERE excluded.configured AND (NOT c.configured OR c.declared_at < excluded.declared_at - interval '1 minute')
        OR NOT excluded.configured AND c.configured AND c.declared_at < excluded.declared_at - interval '5 minutes';
    IF NOT has_receiver THEN
        DELETE FROM public.notifications n USING public.notification_channels c
         WHERE c.channel = of_channel AND NOT c.configured AND n.channel = c.channel AND n.status = 'pending';
    END IF;
END
$$;
REVOKE ALL ON FUNCTION declare_notification_channel(text, boolean, timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION declare_notification_channel(text, boolean, timestamptz) TO certctl_notifier;

-- Makes a notification that was settled due again, with all its tries; nothing else of it changes. Says whether there is
-- such a notification.
CREATE FUNCTION resend_notification(notification text, at timestamptz) RETURNS boolean
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH due AS (
        UPDATE public.notifications
           SET status = 'pending', attempts = 0, error = NULL, sent_at = NULL, not_before = at, lease_until = NULL
         WHERE id = notification AND status <> 'pending'
        RETURNING 1)
    SELECT EXISTS (SELECT 1 FROM due)
$$;
REVOKE ALL ON FUNCTION resend_notification(text, timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION resend_notification(text, timestamptz) TO certctl_api;
