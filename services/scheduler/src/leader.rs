//! Which of several schedulers runs the loops that one should run.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use certctl_store::lease;
use tokio::sync::watch;
use tracing::info;
use uuid::Uuid;

use crate::Scheduler;

/// How often the lease is kept, or asked for.
pub const KEEP_EVERY: Duration = Duration::from_secs(3);
/// How long after its death a leader is missed. Two runs of [`keep`] may fail before the lease is lost.
const TTL: Duration = Duration::from_secs(10);

/// What this process knows of its lease.
pub struct Leader {
    holder: String,
    until: Mutex<Option<Instant>>,
    gained: watch::Sender<u64>,
}

impl Default for Leader {
    fn default() -> Self {
        Self {
            holder: Uuid::new_v4().to_string(),
            until: Mutex::new(None),
            gained: watch::Sender::new(0),
        }
    }
}

impl Leader {
    /// Whether this process holds the lease, as far as it knows. It believes so no longer than the database would.
    pub fn leads(&self) -> bool {
        self.until
            .lock()
            .expect("nobody panics with the lock")
            .is_some_and(|until| Instant::now() < until)
    }

    /// A number that grows whenever this process begins to lead.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.gained.subscribe()
    }

    fn learn(&self, until: Option<Instant>) {
        let led = self.leads();
        *self.until.lock().expect("nobody panics with the lock") = until;
        if until.is_some() && !led {
            info!("this scheduler leads: it runs the loops that one should run");
            self.gained.send_modify(|n| *n += 1);
        }
    }
}

/// Takes the lease if it is free, and keeps it.
///
/// # Errors
/// When the database cannot be asked; what was held stays held until it runs out.
pub async fn keep(scheduler: Arc<Scheduler>) -> anyhow::Result<u64> {
    let leader = &scheduler.leader;
    // Read before the database is asked, so that ours ends first.
    let asked = Instant::now();
    let held = lease::acquire(&scheduler.db, "scheduler", &leader.holder, scheduler.now(), TTL).await?;
    leader.learn(held.map(|_| asked + TTL));
    Ok(0)
}
