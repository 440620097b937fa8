//! The table of loops.

use std::{future::Future, sync::Arc, time::Duration};

use certctl_runtime::periodic::Periodic;
use certctl_store::wake::Channel;

use crate::{
    Scheduler, agents, blocked_keys, bulk, config::Config, crls, journal, leader, notices, overdue, policies, prober,
    renewals, tallies, validations, worker,
};

/// Every loop of the scheduler. Those behind the leader's gate are run by one scheduler of several: not because two
/// would do harm, but because one is enough.
pub fn loops(config: &Config, scheduler: &Arc<Scheduler>) -> Vec<Periodic> {
    let wake = |channel| scheduler.wakes.subscribe(channel);
    vec![
        Periodic::new("jobs", config.job_processor_interval, on(scheduler, worker::round))
            .woken_by(wake(Channel::Jobs))
            .woken_by(scheduler.bell.subscribe()),
        Periodic::new("bulk", config.job_processor_interval, on(scheduler, bulk::round)).woken_by(wake(Channel::Bulk)),
        Periodic::new("validations", validations::EVERY, on(scheduler, validations::round)),
        Periodic::new("journal", journal::EVERY, on(scheduler, journal::write)),
        Periodic::new("leader", leader::KEEP_EVERY, on(scheduler, leader::keep)),
        Periodic::new("loops", WRITE_EVERY, on(scheduler, write)),
        led(
            scheduler,
            Periodic::new(
                "renewals",
                config.renewal_check_interval,
                on(scheduler, renewals::sweep),
            ),
        ),
        led(
            scheduler,
            Periodic::new(
                "notices",
                config.renewal_check_interval,
                on(scheduler, notices::warn_of_ends),
            ),
        ),
        led(
            scheduler,
            Periodic::new("policies", config.policy_interval, on(scheduler, policies::sweep)),
        )
        .woken_by(wake(Channel::Policies)),
        led(
            scheduler,
            Periodic::new("validation_plan", validations::EVERY, on(scheduler, validations::plan)),
        ),
        led(
            scheduler,
            Periodic::new(
                "validation_forget",
                validations::FORGET_EVERY,
                on(scheduler, validations::forget),
            ),
        ),
        led(
            scheduler,
            Periodic::new("crls", config.crl_interval, on(scheduler, crls::refresh)),
        )
        .woken_by(wake(Channel::Revocations))
        .woken_by(scheduler.crl_retry.bell.subscribe()),
        led(
            scheduler,
            Periodic::new("large_crls", config.crl_interval, on(scheduler, crls::refresh_large)),
        )
        .woken_by(wake(Channel::Revocations))
        .woken_by(scheduler.large_crl_retry.bell.subscribe()),
        led(
            scheduler,
            Periodic::new("crl_watch", config.crl_interval, on(scheduler, crls::watch)),
        ),
        led(
            scheduler,
            Periodic::new(
                "agent_health",
                config.agent_health_check_interval,
                on(scheduler, agents::mark_silent),
            ),
        ),
        led(
            scheduler,
            Periodic::new("reaper", config.job_lease, on(scheduler, worker::reap)),
        ),
        led(
            scheduler,
            Periodic::new("overdue", overdue::EVERY, on(scheduler, overdue::sweep)),
        ),
        led(
            scheduler,
            Periodic::new("blocked_keys", blocked_keys::EVERY, on(scheduler, blocked_keys::sweep)),
        ),
        led(
            scheduler,
            Periodic::new("prober", prober::EVERY, on(scheduler, prober::look)),
        ),
        led(
            scheduler,
            Periodic::new("sightings", prober::FORGET_EVERY, on(scheduler, prober::forget)),
        ),
        led(
            scheduler,
            Periodic::new("statuses", tallies::SETTLE_EVERY, on(scheduler, tallies::settle)),
        ),
        led(
            scheduler,
            Periodic::new("tallies", tallies::COMPACT_EVERY, on(scheduler, tallies::compact)),
        ),
    ]
}

/// How often is written how the loops went.
const WRITE_EVERY: Duration = Duration::from_secs(5);

async fn write(scheduler: Arc<Scheduler>) -> anyhow::Result<u64> {
    scheduler.board.write(&scheduler.db, scheduler.now()).await?;
    Ok(0)
}

fn on<R: Future + Send>(
    scheduler: &Arc<Scheduler>,
    body: impl Fn(Arc<Scheduler>) -> R + Send + Sync + 'static,
) -> impl Fn() -> R + Send + Sync + 'static {
    let scheduler = scheduler.clone();
    move || body(scheduler.clone())
}

/// Only the leader runs it, and a new leader at once.
fn led(scheduler: &Arc<Scheduler>, periodic: Periodic) -> Periodic {
    let gate = scheduler.clone();
    periodic
        .gate(move || std::future::ready(gate.leader.leads()))
        .woken_by(scheduler.leader.subscribe())
}
