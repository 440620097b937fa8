//! Notifications: enqueued in the transaction of what they tell, claimed and settled by the notifier.

use std::time::Duration;

use certctl_model::{
    id::{CertificateId, NotificationId},
    notice::{Channel, NoticeKind, NoticeSeverity, NoticeStatus},
    time::Time,
};
use sqlx::PgPool;

use crate::{Tx, column, error::*, wake};

/// News about a certificate.
#[derive(Clone, Debug)]
pub struct News {
    /// What it is about.
    pub kind: NoticeKind,
    /// Which certificate.
    pub certificate: CertificateId,
    /// What makes it the same news: a job, a version and a threshold.
    pub dedup: String,
    /// One line.
    pub subject: String,
    /// The text.
    pub message: String,
}

/// Enqueues news for the address of the owner, for that of the team if it wants news as severe, and for the webhook; the
/// same news once. Nothing is enqueued for a channel that no notifier has a receiver for.
///
/// # Errors
/// When the database cannot be asked.
pub async fn announce(tx: &mut Tx, news: &News) -> Result<()> {
    announce_all(tx, std::slice::from_ref(news)).await
}

/// Enqueues several pieces of news as [`announce`] does one.
///
/// # Errors
/// When the database cannot be asked.
pub async fn announce_all(tx: &mut Tx, news: &[News]) -> Result<()> {
    let now = tx.now();
    let to_each = [
        (Channel::Webhook, "webhook"),
        (Channel::Email, "owner"),
        (Channel::Email, "team"),
    ];
    let all: Vec<(Channel, &str, &News)> = news
        .iter()
        .flat_map(|news| to_each.map(|(channel, to)| (channel, to, news)))
        .filter(|(channel, _, news)| *channel != Channel::Email || news.kind.is_mailed())
        .collect();
    if all.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO notifications (id, type, certificate_id, channel, recipient, subject, message, dedup_key,
                                    status, not_before, created_at)
         SELECT n.id, n.type, c.id, n.channel,
                CASE n.receiver WHEN 'owner' THEN o.email WHEN 'team' THEN t.email ELSE n.receiver END, n.subject, n.message,
                concat_ws(':', n.type, n.dedup, n.channel, CASE n.receiver WHEN 'team' THEN n.receiver END),
                'pending', $10, $10
           FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                       $9::text[])
                AS n (id, channel, receiver, type, severity, certificate_id, dedup, subject, message)
           JOIN certificates c ON c.id = n.certificate_id
           JOIN owners o ON o.id = c.owner_id
           JOIN teams t ON t.id = c.team_id
          WHERE (n.receiver <> 'team'
             OR t.email <> o.email AND array_position($11::text[], n.severity) >= array_position($11::text[], t.notify_from))
            AND NOT EXISTS (SELECT 1 FROM notification_channels k WHERE k.channel = n.channel AND NOT k.configured)
         ON CONFLICT (dedup_key) DO NOTHING",
    )
    .bind(column(&all, |_| NotificationId::generate(now)))
    .bind(column(&all, |(channel, ..)| *channel))
    .bind(column(&all, |(_, to, _)| *to))
    .bind(column(&all, |(.., news)| news.kind))
    .bind(column(&all, |(.., news)| news.kind.severity()))
    .bind(column(&all, |(.., news)| &news.certificate))
    .bind(column(&all, |(.., news)| news.dedup.as_str()))
    .bind(column(&all, |(.., news)| news.subject.as_str()))
    .bind(column(&all, |(.., news)| news.message.as_str()))
    .bind(now)
    .bind(NoticeSeverity::ALL)
    .execute(&mut **tx)
    .await?;
    tx.wake(wake::Channel::Outbox);
    Ok(())
}

/// News about the platform itself, for whoever runs it.
#[derive(Clone, Debug)]
pub struct PlatformNews {
    /// What it is about.
    pub kind: NoticeKind,
    /// What makes it the same news.
    pub dedup: String,
    /// One line.
    pub subject: String,
    /// The text.
    pub message: String,
}

/// Enqueues news for the webhook: what it is about has no owner with an address. Returns whether it is new.
///
/// # Errors
/// When the database cannot be asked.
pub async fn announce_platform(tx: &mut Tx, news: &PlatformNews) -> Result<bool> {
    let now = tx.now();
    let done = sqlx::query(
        "INSERT INTO notifications (id, type, channel, recipient, subject, message, dedup_key, status, not_before,
                                    created_at)
         SELECT $1, $2, $3, 'webhook', $4, $5, $6, 'pending', $7, $7
          WHERE NOT EXISTS (SELECT 1 FROM notification_channels k WHERE k.channel = $3 AND NOT k.configured)
         ON CONFLICT (dedup_key) DO NOTHING",
    )
    .bind(NotificationId::generate(now))
    .bind(news.kind)
    .bind(Channel::Webhook)
    .bind(&news.subject)
    .bind(&news.message)
    .bind(format!("{}:{}:{}", news.kind, news.dedup, Channel::Webhook))
    .bind(now)
    .execute(&mut **tx)
    .await?;
    tx.wake(wake::Channel::Outbox);
    Ok(done.rows_affected() > 0)
}

/// Records whether a notifier has a receiver for a channel; what waits for one that none has is removed.
///
/// # Errors
/// When the database cannot be asked.
pub async fn declare(pool: &PgPool, channel: Channel, configured: bool, now: Time) -> Result<()> {
    sqlx::query("SELECT declare_notification_channel($1, $2, $3)")
        .bind(channel)
        .bind(configured)
        .bind(now)
        .execute(pool)
        .await?;
    Ok(())
}

/// Makes a notification that was settled due again. Returns whether there is such a notification.
///
/// # Errors
/// When the database cannot be asked.
pub async fn resend(tx: &mut Tx, id: &NotificationId) -> Result<bool> {
    let now = tx.now();
    let found = sqlx::query_scalar("SELECT resend_notification($1, $2)")
        .bind(id)
        .bind(now)
        .fetch_one(&mut **tx)
        .await?;
    tx.wake(wake::Channel::Outbox);
    Ok(found)
}

/// A notification somebody holds a lease on.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Claimed {
    /// Its id.
    pub id: NotificationId,
    /// What it is about.
    #[sqlx(rename = "type")]
    pub kind: NoticeKind,
    /// Which certificate.
    pub certificate_id: Option<CertificateId>,
    /// Where it goes.
    pub channel: Channel,
    /// To whom.
    pub recipient: String,
    /// One line.
    pub subject: String,
    /// The text.
    pub message: String,
    /// How often it was tried before.
    pub attempts: i32,
    /// Fencing token of the lease.
    pub lease_token: i64,
    /// When it was enqueued.
    pub created_at: Time,
}

/// Claims up to `limit` notifications of `channel` that are due, oldest first.
///
/// # Errors
/// When the database cannot be asked.
pub async fn claim(pool: &PgPool, channel: Channel, now: Time, lease: Duration, limit: i64) -> Result<Vec<Claimed>> {
    let claimed = sqlx::query_as(
        "UPDATE notifications n
            SET lease_until = $2, lease_token = n.lease_token + 1
           FROM (SELECT id FROM notifications
                  WHERE status = 'pending' AND channel = $4 AND not_before <= $1
                    AND (lease_until IS NULL OR lease_until <= $1)
                  ORDER BY not_before
                  LIMIT $3
                    FOR UPDATE SKIP LOCKED) due
          WHERE n.id = due.id
         RETURNING n.id, n.type, n.certificate_id, n.channel, n.recipient, n.subject, n.message, n.attempts,
                   n.lease_token, n.created_at",
    )
    .bind(now)
    .bind(now + lease)
    .bind(limit)
    .bind(channel)
    .fetch_all(pool)
    .await?;
    Ok(claimed)
}

/// What became of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// Accepted.
    Sent,
    /// Not now.
    Retry {
        /// Not before.
        at: Time,
        /// What happened.
        error: String,
    },
    /// Never.
    Failed {
        /// Why.
        error: String,
    },
    /// Nobody is configured to receive it.
    Skipped {
        /// Why.
        error: String,
    },
}

/// Records what became of a delivery and frees the lease.
///
/// # Errors
/// [`Error::LeaseLost`] when somebody else has claimed it since.
pub async fn settle(pool: &PgPool, claimed: &Claimed, settlement: &Settlement, now: Time) -> Result<()> {
    let (status, error, not_before) = match settlement {
        Settlement::Sent => (NoticeStatus::Sent, None, now),
        Settlement::Retry { at, error } => (NoticeStatus::Pending, Some(error), *at),
        Settlement::Failed { error } => (NoticeStatus::Failed, Some(error), now),
        Settlement::Skipped { error } => (NoticeStatus::Skipped, Some(error), now),
    };
    let done = sqlx::query(
        "UPDATE notifications
            SET status = $3, error = $4, not_before = $5, attempts = attempts + 1, lease_until = NULL,
                sent_at = CASE WHEN $3 = 'sent' THEN $6 END
          WHERE id = $1 AND lease_token = $2 AND status = 'pending'",
    )
    .bind(&claimed.id)
    .bind(claimed.lease_token)
    .bind(status)
    .bind(error)
    .bind(not_before)
    .bind(now)
    .execute(pool)
    .await?;
    match done.rows_affected() {
        0 => Err(Error::LeaseLost),
        _ => Ok(()),
    }
}
