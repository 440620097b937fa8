//! Claims notifications, has them delivered, settles what became of them.

use std::{pin::pin, sync::Arc, time::Duration};

use certctl_model::notice::Channel;
use certctl_runtime::{failpoint, tasks::Tasks};
use certctl_store::{
    Error,
    outbox::{self, Claimed, Settlement},
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};
use tracing::{Instrument, debug, error, info, info_span, warn};

use crate::{
    Notifier,
    channels::{Delivery, Message, Slot},
};

/// Deliveries of a channel side by side. Each begins when it is claimed, so that none waits while its lease runs.
const AT_ONCE: usize = 8;
/// Notifications of one drain; bounded, so that a drain ends well within the time its loop is given.
const ROUND: usize = 96;
const RETRY_CAP: Duration = Duration::from_secs(3600);
/// A receiver that asks for more patience than this gets this.
const LONGEST_WAIT: Duration = Duration::from_secs(86_400);

/// Delivers what is due on a channel, and waits until it is settled. Returns how many notifications were claimed. Channels
/// are drained apart, so that one whose receiver is stuck does not hold up the other.
///
/// # Errors
/// When notifications cannot be claimed. What becomes of a single one is its own affair.
pub async fn drain(notifier: &Notifier, channel: Channel) -> anyhow::Result<u64> {
    if !declare(notifier, channel).await? {
        return Ok(0);
    }
    let mut delivering = FuturesUnordered::new();
    let mut claimed = 0;
    loop {
        let free = (AT_ONCE - delivering.len()).min(ROUND - claimed);
        if free > 0 {
            let mut claim = pin!(claim(notifier, channel, free));
            // Deliveries under way go on meanwhile: they may hold the very connections that the claim waits for.
            let claims = loop {
                tokio::select! {
                    claims = &mut claim => break claims,
                    Some(()) = delivering.next() => {}
                }
            };
            let claims = match claims {
                Ok(claims) => claims,
                // What is under way is finished first; the next drain tells of the error if it stays.
                Err(_) if !delivering.is_empty() => vec![],
                Err(error) => return Err(error.into()),
            };
            claimed += claims.len();
            delivering.extend(claims.into_iter().map(|claim| dispatch(notifier, claim)));
        }
        if delivering.next().await.is_none() {
            return Ok(claimed as u64);
        }
    }
}

/// The deliveries of a channel that are under way, each a task of its own: one whose receiver is slow takes its place and
/// delays no other.
pub struct Places {
    free: Arc<Semaphore>,
    freed: watch::Sender<u64>,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            free: Arc::new(Semaphore::new(AT_ONCE)),
            freed: watch::Sender::new(0),
        }
    }
}

impl Places {
    /// Changes when a place becomes free.
    pub fn freed(&self) -> watch::Receiver<u64> {
        self.freed.subscribe()
    }
}

/// Begins to deliver what is due on a channel, as far as there are places. Returns how many notifications were claimed.
///
/// # Errors
/// When notifications cannot be claimed.
pub async fn begin(
    notifier: &Arc<Notifier>,
    channel: Channel,
    places: &Arc<Places>,
    tasks: &Tasks,
) -> anyhow::Result<u64> {
    if !declare(notifier, channel).await? {
        return Ok(0);
    }
    let mut free = vec![];
    while let Ok(place) = places.free.clone().try_acquire_owned() {
        free.push(place);
    }
    if free.is_empty() {
        return Ok(0);
    }
    let claims = claim(notifier, channel, free.len()).await?;
    let count = claims.len();
    for (claim, place) in claims.into_iter().zip(free) {
        let (notifier, places) = (notifier.clone(), places.clone());
        tasks.spawn("delivery", async move {
            dispatch(&notifier, claim).await;
            drop(place);
            places.freed.send_modify(|count| *count += 1);
        });
    }
    Ok(count as u64)
}

/// Says whether this notifier has a receiver for the channel.
async fn declare(notifier: &Notifier, channel: Channel) -> certctl_store::error::Result<bool> {
    let configured = matches!(notifier.channels.of(channel), Slot::On(_));
    outbox::declare(&notifier.db, channel, configured, notifier.clock.now()).await?;
    Ok(configured)
}

async fn claim(notifier: &Notifier, channel: Channel, most: usize) -> certctl_store::error::Result<Vec<Claimed>> {
    let now = notifier.clock.now();
    outbox::claim(&notifier.db, channel, now, notifier.lease, most as i64).await
}

async fn dispatch(notifier: &Notifier, claim: Claimed) {
    let span = info_span!("notification", notification.id = %claim.id, channel = %claim.channel);
    async {
        failpoint::hold("notifier.claimed").await;
        let settlement = deliver(notifier, &claim).await;
        failpoint::hold("notifier.delivered").await;
        match outbox::settle(&notifier.db, &claim, &settlement, notifier.clock.now()).await {
            Ok(()) => tell(&claim, &settlement),
            // Somebody claimed it while we delivered: it may arrive twice.
            Err(Error::LeaseLost) => warn!("notification {} was no longer ours when it was settled", claim.id),
            // Its lease runs out, and it is delivered again.
            Err(error) => warn!("notification {} cannot be settled: {error}", claim.id),
        }
        failpoint::hold("notifier.settled").await;
    }
    .instrument(span)
    .await;
}

async fn deliver(notifier: &Notifier, claim: &Claimed) -> Settlement {
    let channel = match notifier.channels.of(claim.channel) {
        Slot::On(channel) => channel,
        Slot::Off(why) => {
            return Settlement::Skipped {
                error: (*why).to_owned(),
            };
        }
    };
    if claim.recipient.trim().is_empty() {
        return Settlement::Skipped {
            error: "the owner of the certificate has no address".to_owned(),
        };
    }
    let now = notifier.clock.now();
    let message = Message::of(claim, now);
    // Shorter than the lease, so that what was delivered can still be settled.
    let within = notifier.lease / 3;
    let outcome = match timeout(within, channel.deliver(&message)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Delivery::Retry {
            after: None,
            reason: format!("no answer within {within:?}"),
        }),
    };
    match outcome {
        Ok(()) => Settlement::Sent,
        Err(Delivery::Reject { reason }) => Settlement::Failed { error: reason },
        Err(Delivery::Retry { reason, .. }) if claim.attempts + 1 >= notifier.max_attempts => Settlement::Failed {
            error: format!("given up after {} tries: {reason}", claim.attempts + 1),
        },
        Err(Delivery::Retry { after, reason }) => Settlement::Retry {
            at: now + pause(notifier.retry_base, claim.attempts, after),
            error: reason,
        },
    }
}

/// How long to wait before the next try: doubling up to an hour, and never less than the receiver asks for.
fn pause(base: Duration, attempts: i32, after: Option<Duration>) -> Duration {
    let doublings = u32::try_from(attempts.clamp(0, 20)).expect("0 to 20");
    let own = base.saturating_mul(2u32.pow(doublings)).min(RETRY_CAP);
    own.max(after.unwrap_or_default().min(LONGEST_WAIT))
}

/// Reasons may repeat addresses of people, so the log leaves them to the record.
fn tell(claim: &Claimed, settlement: &Settlement) {
    let (id, channel) = (&claim.id, claim.channel);
    let outcome = match settlement {
        Settlement::Sent => {
            info!("notification {id} is delivered");
            "sent"
        }
        Settlement::Retry { at, .. } => {
            warn!("notification {id} could not be delivered and is tried again at {at}");
            "retry"
        }
        Settlement::Failed { .. } => {
            error!("notification {id} is given up; its record says why");
            "failed"
        }
        Settlement::Skipped { error } => {
            debug!("notification {id} is skipped: {error}");
            "skipped"
        }
    };
    metrics::counter!("notifications_total", "channel" => channel.as_str(), "outcome" => outcome).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_an_hour_and_honour_the_receiver() {
        let base = Duration::from_secs(30);
        for (attempts, after, seconds) in [
            (0, None, 30),
            (1, None, 60),
            (3, None, 240),
            (7, None, 3_600),
            (i32::MAX, None, 3_600),
            (0, Some(5), 30),
            (0, Some(300), 300),
            (7, Some(7_200), 7_200),
            (0, Some(u64::MAX), 86_400),
        ] {
            let pause = pause(base, attempts, after.map(Duration::from_secs));
            assert_eq!(pause.as_secs(), seconds, "{attempts} {after:?}");
        }
    }
}
