//! LISTEN and NOTIFY: who waits for rows is told that there are some. A hint, never the truth: everyone polls as well.

use std::time::Duration;

use sqlx::{PgPool, postgres::PgListener};
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
}

impl Channel {
    /// Every channel.
    pub const ALL: [Channel; 4] = [Channel::Jobs, Channel::Outbox, Channel::Revocations, Channel::Bulk];

    /// Its name in Postgres.
    pub const fn as_str(self) -> &'static str {
        match self {
            Channel::Jobs => "certctl_jobs",
            Channel::Outbox => "certctl_outbox",
            Channel::Revocations => "certctl_revocations",
            Channel::Bulk => "certctl_bulk",
        }
    }
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
    /// something may have been missed.
    pub async fn run(&self, pool: &PgPool) {
        loop {
            if let Err(error) = self.listen(pool).await {
                tracing::debug!(%error, "not listening to the database; trying again");
            }
            tokio::time::sleep(RECONNECT_AFTER).await;
        }
    }

    async fn listen(&self, pool: &PgPool) -> Result<(), sqlx::Error> {
        let mut listener = PgListener::connect_with(pool).await?;
        listener.listen_all(Channel::ALL.iter().map(|c| c.as_str())).await?;
        self.wake(None);
        loop {
            match listener.try_recv().await? {
                Some(notification) => self.wake(Some(notification.channel())),
                None => self.wake(None),
            }
        }
    }
}
