//! Which of several schedulers runs the loops that one should run.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use certctl_runtime::periodic;
use certctl_store::lease;
use tokio::sync::watch;
use tracing::info;

use crate::Scheduler;

/// The name of the lease.
pub const LEASE: &str = "scheduler";
/// How often the lease is kept, or asked for.
pub const KEEP_EVERY: Duration = Duration::from_secs(3);
/// How long after its death a leader is missed. Two runs of [`keep`] may fail before the lease is lost.
const TTL: Duration = Duration::from_secs(10);

/// What this process knows of its lease.
pub struct Leader {
    /// The name of this process: host, process id, and what nobody else has.
    pub(crate) holder: String,
    held: Mutex<Held>,
    gained: watch::Sender<u64>,
}

#[derive(Clone, Copy, Default)]
struct Held {
    until: Option<Instant>,
    /// Of the last lease; lost or not.
    token: Option<i64>,
}

impl Default for Leader {
    fn default() -> Self {
        Self {
            holder: periodic::this_process(),
            held: Mutex::default(),
            gained: watch::Sender::new(0),
        }
    }
}

impl Leader {
    /// Whether this process holds the lease, as far as it knows. It believes so no longer than the database would.
    pub fn leads(&self) -> bool {
        self.held().until.is_some_and(|until| Instant::now() < until)
    }

    /// By which the database knows whether the last lease of this process is still the newest; none when it never had
    /// one.
    pub fn token(&self) -> Option<i64> {
        self.held().token
    }

    fn held(&self) -> Held {
        *self.held.lock().expect("nobody panics with the lock")
    }

    /// A number that grows whenever this process begins to lead.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.gained.subscribe()
    }

    fn learn(&self, lease: Option<(Instant, i64)>) {
        let led = self.leads();
        {
            let mut held = self.held.lock().expect("nobody panics with the lock");
            held.until = lease.map(|(until, _)| until);
            held.token = lease.map(|(_, token)| token).or(held.token);
        }
        if lease.is_some() && !led {
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
    let held = lease::acquire(&scheduler.db, LEASE, &leader.holder, scheduler.now(), TTL).await?;
    leader.learn(held.map(|token| (asked + TTL, token)));
    Ok(0)
}
