//! Redis, and whether it can be asked: what replicas share, and none of them may depend on.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use certctl_model::secret::Secret;
use redis::{AsyncConnectionConfig, RedisError, RedisResult, aio::MultiplexedConnection};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// How long Redis may take for one answer; a request waits no longer for it.
const REDIS_TIMEOUT: Duration = Duration::from_millis(50);
/// Time-outs in a row after which Redis counts as down.
const STRIKES: u32 = 3;

/// What is done first over a new connection; it counts only once all have succeeded.
pub type Greeting =
    Box<dyn Fn(MultiplexedConnection) -> futures_util::future::BoxFuture<'static, RedisResult<()>> + Send + Sync>;

/// A connection that is kept up.
pub struct Link {
    client: redis::Client,
    open: watch::Sender<Option<MultiplexedConnection>>,
    lost: Notify,
    strikes: AtomicU32,
}

impl Link {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// When the URL cannot be read.
    pub fn new(url: &Secret) -> anyhow::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            client: redis::Client::open(url.expose()).context("CERTCTL_REDIS_URL cannot be used")?,
            open: watch::Sender::new(None),
            lost: Notify::new(),
            strikes: AtomicU32::new(0),
        }))
    }

    /// Asks; nothing if Redis does not say in time.
    pub async fn ask<T>(&self, call: impl AsyncFnOnce(&mut MultiplexedConnection) -> RedisResult<T>) -> Option<T> {
        let mut open = self.open.borrow().clone()?;
        let why = match timeout(REDIS_TIMEOUT, call(&mut open)).await {
            Ok(Ok(answer)) => {
                self.strikes.store(0, Ordering::Relaxed);
                return Some(answer);
            }
            Ok(Err(error)) if error.is_unrecoverable_error() => error.to_string(),
            slow_or_refused => {
                if self.strikes.fetch_add(1, Ordering::Relaxed) + 1 < STRIKES {
                    return None;
                }
                why(slow_or_refused.ok().and_then(Result::err))
            }
        };
        self.give_up(&why);
        None
    }

    /// Tells something that must not be missed: if it does not arrive, the connection is given up, and greeted anew.
    pub async fn tell(&self, call: impl AsyncFnOnce(&mut MultiplexedConnection) -> RedisResult<()>) {
        let Some(mut open) = self.open.borrow().clone() else {
            return;
        };
        match timeout(REDIS_TIMEOUT * STRIKES, call(&mut open)).await {
            Ok(Ok(())) => {}
            failed => self.give_up(&why(failed.ok().and_then(Result::err))),
        }
    }

    /// The first to notice says so; the others find the connection gone.
    fn give_up(&self, why: &str) {
        if self.open.send_replace(None).is_some() {
            tracing::warn!(error = %why, "Redis cannot be asked; each process limits rates and keeps answers for itself: {why}");
            self.lost.notify_one();
        }
    }

    /// Waits a moment for the first connection.
    pub async fn settled(&self) {
        const PATIENCE: Duration = Duration::from_secs(1);
        // Without it, each process goes on by itself.
        let mut open = self.open.subscribe();
        drop(timeout(PATIENCE, open.wait_for(Option::is_some)).await);
    }

    /// Connects, and again whenever the connection is lost.
    pub async fn keep(&self, greetings: Vec<Greeting>, stop: CancellationToken) {
        const PAUSES: [u64; 6] = [100, 200, 400, 800, 1500, 2000];
        let (mut failures, mut told) = (0, false);
        loop {
            match self.connect(&greetings).await {
                Ok(link) => {
                    tracing::info!("Redis limits rates and keeps answers for all processes together");
                    (failures, told) = (0, true);
                    self.strikes.store(0, Ordering::Relaxed);
                    self.open.send_replace(Some(link));
                    tokio::select! { () = self.lost.notified() => {}, () = stop.cancelled() => return }
                }
                Err(error) if !told => {
                    told = true;
                    tracing::warn!(%error, "Redis cannot be asked; each process limits rates and keeps answers for itself: {error}");
                }
                Err(error) => tracing::debug!(%error, "Redis is still away: {error}"),
            }
            let pause = Duration::from_millis(PAUSES[failures]);
            failures = (failures + 1).min(PAUSES.len() - 1);
            tokio::select! { () = sleep(pause) => {}, () = stop.cancelled() => return }
        }
    }

    async fn connect(&self, greetings: &[Greeting]) -> RedisResult<MultiplexedConnection> {
        const PATIENCE: Duration = Duration::from_millis(500);
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE));
        let link = self
            .client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        for greet in greetings {
            greet(link.clone()).await?;
        }
        Ok(link)
    }
}

fn why(error: Option<RedisError>) -> String {
    error.map_or_else(|| format!("no answer in {REDIS_TIMEOUT:?}"), |error| error.to_string())
}
