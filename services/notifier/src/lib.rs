//! The notifier: delivers the outbox. Any number of them may run side by side.
//!
//! | module | holds |
//! |---|---|
//! | [`dispatch`] | claims notifications, has them delivered, settles what became of them |
//! | [`channels`] | e-mail and webhook behind one trait |
//! | [`config`] | the variables |
//!
//! A notification is delivered between its claim and its settlement. A notifier that dies in between leaves it to the
//! next, so in that window, and in no other, one can arrive twice: its `Message-ID` or `Idempotency-Key` is then the
//! same, and the receiver can tell.
//!
//! Not here: what is worth telling and to whom (whoever enqueues decides), the API.

pub mod channels;
pub mod config;
pub mod dispatch;

use std::{sync::Arc, time::Duration};

use certctl_model::{
    notice::Channel,
    time::{Clock, Time},
};
use certctl_runtime::{
    periodic::{self, Periodic},
    tasks::Tasks,
};
use certctl_store::{
    loops::{Board, Run},
    wake::{self, Wakes},
};
use sqlx::PgPool;

use crate::{channels::Channels, config::Config};

/// What every part of the notifier shares.
pub struct Notifier {
    db: PgPool,
    clock: Clock,
    channels: Channels,
    lease: Duration,
    max_attempts: i32,
    retry_base: Duration,
    wakes: Wakes,
    board: Board,
}

/// How often is written how the loops went.
const WRITE_EVERY: Duration = Duration::from_secs(5);

impl Notifier {
    /// Builds one that connects to the database of the configuration, lazily. Needs a running tokio runtime.
    ///
    /// # Errors
    /// When an address, a secret or a certificate of the configuration cannot be read.
    pub fn build(config: &Config, clock: Clock) -> anyhow::Result<Arc<Self>> {
        let url = config.database_url.expose();
        let db = certctl_store::connect(url, "certctl_notifier", config.database_max_conns, &clock)?;
        Self::over(db, config, clock)
    }

    /// Builds one over connections that exist.
    ///
    /// # Errors
    /// When an address, a secret or a certificate of the configuration cannot be read.
    pub fn over(db: PgPool, config: &Config, clock: Clock) -> anyhow::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            db,
            clock,
            channels: Channels::build(config)?,
            lease: config.lease,
            max_attempts: config.max_attempts,
            retry_base: config.retry_base,
            wakes: Wakes::default(),
            board: Board::new("notifier", periodic::this_process()),
        }))
    }

    /// Delivers what is due on every channel. Returns how many notifications were claimed.
    ///
    /// # Errors
    /// When notifications cannot be claimed.
    pub async fn drain(&self) -> anyhow::Result<u64> {
        let (email, webhook) = tokio::join!(
            dispatch::drain(self, Channel::Email),
            dispatch::drain(self, Channel::Webhook)
        );
        Ok(email? + webhook?)
    }

    /// Starts a loop for each channel, and what wakes them.
    pub fn run(self: &Arc<Self>, config: &Config, tasks: &Tasks) {
        for (name, channel) in [("emails", Channel::Email), ("webhooks", Channel::Webhook)] {
            let (notifier, owner) = (self.clone(), tasks.clone());
            let places = Arc::new(dispatch::Places::default());
            let freed = places.freed();
            let begin = move || {
                let (notifier, places, owner) = (notifier.clone(), places.clone(), owner.clone());
                async move { dispatch::begin(&notifier, channel, &places, &owner).await }
            };
            let board = self.clone();
            // A second try is looked for by its time, though no notification announces it.
            Periodic::new(name, config.interval.min(config.retry_base), begin)
                .woken_by(self.wakes.subscribe(wake::Channel::Outbox))
                .woken_by(freed)
                .heard_by(move |run| board.board.note(noted(run, board.clock.now())))
                .run_forever(tasks);
        }
        let notifier = self.clone();
        let write = move || {
            let notifier = notifier.clone();
            async move {
                notifier.board.write(&notifier.db, notifier.clock.now()).await?;
                Ok(0)
            }
        };
        Periodic::new("loops", WRITE_EVERY, write).run_forever(tasks);
        let (notifier, stop) = (self.clone(), tasks.token());
        tasks.spawn("wakes", async move {
            tokio::select! {
                () = notifier.wakes.run(&notifier.db, &()) => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// The connections to the database.
    pub fn db(&self) -> &PgPool {
        &self.db
    }
}

fn noted(run: &periodic::Run, ended: Time) -> Run {
    Run {
        name: run.name,
        every: run.every,
        outcome: run.outcome,
        error: run.error.clone(),
        done: run.done,
        took: run.took,
        ended,
        rests: run.rests,
    }
}

#[cfg(test)]
mod tests;
