//! LISTEN and NOTIFY: who waits for rows is told that there are some. A hint, never the truth: everyone polls as well.

use std::time::Duration;

use sqlx::{PgExecutor, PgPool, postgres::PgListener};
use tokio::sync::watch;

/// What one can wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Channel {
    /// Jobs appeared or moved.
    Jobs,
    /// Notifications appeared.
    Outbox,
    /// Something was revoked.
    Revocations,
    /// A bulk operation was asked for.
    Bulk,
    /// A policy rule changed.
    Policies,
}

impl Channel {
    /// Every channel.
    pub const ALL: [Channel; 5] = [
        Channel::Jobs,
        Channel::Outbox,
        Channel::Revocations,
        Channel::Bulk,
        Channel::Policies,
    ];

    /// Its name in Postgres.
    pub const fn as_str(self) -> &'static str {
        match self {
            Channel::Jobs => "certctl_jobs",
            Channel::Outbox => "certctl_outbox",
            Channel::Revocations => "certctl_revocations",
            Channel::Bulk => "certctl_bulk",
            Channel::Policies => "certctl_policies",
        }
    }
}

/// Wakes who waits for it; in a transaction, once it is visible.
///
/// # Errors
/// When the database cannot be asked.
pub async fn wake(db: impl PgExecutor<'_>, channel: Channel) -> sqlx::Result<()> {
    let told = sqlx::query("SELECT pg_notify($1, '')").bind(channel.as_str());
    told.execute(db).await.map(|_| ())
}

/// Names the serial numbers whose status changed, as `issuer/serial` with blanks between; written by the database itself.
const REVOKED: &str = "certctl_revoked";

/// Whoever keeps what the database said about certificates.
pub trait Revoked: Send + Sync {
    /// The status of one has changed.
    fn changed(&self, issuer: &str, serial: &str);
    /// Something may have been missed.
    fn all_changed(&self);
}

impl Revoked for () {
    fn changed(&self, _: &str, _: &str) {}
    fn all_changed(&self) {}
}

const RECONNECT_AFTER: Duration = Duration::from_secs(1);

/// Hears notifications and passes them on as growing numbers.
pub struct Wakes {
    senders: Vec<(Channel, watch::Sender<u64>)>,
}

impl Default for Wakes {
    fn default() -> Self {
        Self {
            senders: Channel::ALL.iter().map(|c| (*c, watch::channel(0).0)).collect(),
        }
    }
}

impl Wakes {
    /// A number that grows whenever the channel was notified, or may have been.
    pub fn subscribe(&self, channel: Channel) -> watch::Receiver<u64> {
        let (_, sender) = self
            .senders
            .iter()
            .find(|(c, _)| *c == channel)
            .expect("every channel has a sender");
        sender.subscribe()
    }

    fn wake(&self, name: Option<&str>) {
        for (channel, sender) in &self.senders {
            if name.is_none_or(|name| name == channel.as_str()) {
                sender.send_modify(|n| *n += 1);
            }
        }
    }

    /// Listens for ever, reconnecting when the connection breaks. After each reconnection everyone is woken, since
    /// something may have been missed. `revoked` hears of certificates whose status changed.
    pub async fn run(&self, pool: &PgPool, revoked: &impl Revoked) {
        loop {
            if let Err(error) = self.listen(pool, revoked).await {
                tracing::debug!(%error, "not listening to the database; trying again");
            }
            tokio::time::sleep(RECONNECT_AFTER).await;
        }
    }

    async fn listen(&self, pool: &PgPool, revoked: &impl Revoked) -> Result<(), sqlx::Error> {
        let mut listener = PgListener::connect_with(pool).await?;
        let channels = Channel::ALL.iter().map(|c| c.as_str());
        listener.listen_all(channels.chain([REVOKED])).await?;
        revoked.all_changed();
        self.wake(None);
        loop {
            match listener.try_recv().await? {
                Some(news) if news.channel() == REVOKED => {
                    for (issuer, serial) in news.payload().split(' ').filter_map(|one| one.split_once('/')) {
                        revoked.changed(issuer, serial);
                    }
                }
                Some(news) => self.wake(Some(news.channel())),
                None => {
                    revoked.all_changed();
                    self.wake(None);
                }
            }
        }
    }
}
