//! The scheduler: claims jobs, drives issuers, runs the loops. Any number of them may run side by side.
//!
//! | module | holds |
//! |---|---|
//! | [`loops`] | the table of loops |
//! | [`worker`] | claims jobs and turns what became of them into transitions |
//! | [`issuance`] | running jobs: ask their issuer, check the answers, record them |
//! | [`issuers`] | who can be asked for a certificate |
//! | [`renewals`] | plans what is due |
//! | [`blocked_keys`] | revokes what has a key that is blocked |
//! | [`bulk`] | does one thing to many certificates |
//! | [`overdue`] | ends jobs that wait for somebody who does not come; retries failed deployments |
//! | [`notices`] | warns of what ends |
//! | [`policies`] | holds certificates against the policy rules |
//! | [`crls`] | has revocation lists made before they are stale |
//! | [`agents`] | notices silence |
//! | [`journal`] | keeps revocations outside the database |
//! | [`prober`] | looks from outside when a revocation can be seen |
//! | [`validations`] | looks whether what clients connect to serves what was deployed |
//! | [`tallies`] | settles statuses that changed by themselves, keeps counts short |
//! | [`leader`] | which of several schedulers runs the loops that one should run |
//! | [`bell`] | wakes a loop for what is due before its next round |
//! | [`config`] | the variables |
//!
//! A job is claimed under a lease, the issuer is asked between two transactions, and only the holder of the lease can
//! record the answer. The signer answers a repeated question with its first answer, so dying in between is harmless.
//!
//! Not here: CA keys, deployments (their agents do them), anything a user calls.

pub mod agents;
pub mod bell;
pub mod blocked_keys;
pub mod bulk;
pub mod config;
pub mod crls;
pub mod issuance;
pub mod issuers;
pub mod journal;
pub mod leader;
pub mod loops;
pub mod notices;
pub mod overdue;
pub mod policies;
pub mod prober;
pub mod renewals;
pub mod tallies;
pub mod validations;
pub mod worker;

use std::{sync::Arc, time::Duration};

use certctl_client::Client;
use certctl_model::{
    audit::Actor,
    time::{Clock, Time},
};
use certctl_runtime::{journal::Journal, periodic, tasks::Tasks};
use certctl_store::{
    Tx, lease,
    loops::{Board, Run},
    wake::Wakes,
};
use sqlx::PgPool;

use crate::{
    bell::Bell,
    config::{Config, Patience},
    issuers::Issuers,
    leader::Leader,
    prober::Prober,
};

/// What every part of the scheduler shares.
pub struct Scheduler {
    db: PgPool,
    clock: Clock,
    signer: Client,
    issuers: Issuers,
    job_lease: Duration,
    validation_interval: Duration,
    keep_validations: Duration,
    issuer_timeout: Duration,
    agent_offline_after: Duration,
    patience: Patience,
    board: Board,
    wakes: Wakes,
    leader: Leader,
    bell: Bell,
    crl_retry: crls::Retry,
    large_crl_retry: crls::Retry,
    journal: Option<Journal>,
    issued: Option<Journal>,
    prober: Prober,
}

impl Scheduler {
    /// Builds one that connects to the database of the configuration, lazily.
    ///
    /// # Errors
    /// When the address of the database cannot be read, or the journal not opened.
    pub fn build(config: &Config, clock: Clock, signer: Client) -> anyhow::Result<Arc<Self>> {
        let url = config.database_url.expose();
        let db = certctl_store::connect(url, "certctl_scheduler", config.database_max_conns, &clock)?;
        Self::over(db, config, clock, signer)
    }

    /// Builds one over connections that exist.
    ///
    /// # Errors
    /// When the journal cannot be opened.
    pub fn over(db: PgPool, config: &Config, clock: Clock, signer: Client) -> anyhow::Result<Arc<Self>> {
        let (journal, issued) = match &config.revocation_journal_dir {
            Some(directory) => (
                Some(Journal::open(directory, "revocations")?),
                Some(Journal::with_ending(&directory.join("issued"), "issued", "pem")?),
            ),
            None => (None, None),
        };
        let leader = Leader::default();
        Ok(Arc::new(Self {
            board: Board::new("scheduler", leader.holder.clone()),
            leader,
            patience: config.patience.clone(),
            db,
            clock,
            issuers: Issuers::new(signer.clone()),
            signer,
            job_lease: config.job_lease,
            validation_interval: config.validation_interval,
            keep_validations: config.keep_validations,
            issuer_timeout: config.issuer_timeout(),
            agent_offline_after: config.agent_offline_after,
            wakes: Wakes::default(),
            bell: Bell::default(),
            crl_retry: crls::Retry::default(),
            large_crl_retry: crls::Retry::default(),
            journal,
            issued,
            prober: Prober::new(&config.probe_edges)?,
        }))
    }

    /// Starts the loops, and what wakes them.
    pub fn run(self: &Arc<Self>, config: &Config, tasks: &Tasks) {
        for periodic in loops::loops(config, self) {
            let heard = self.clone();
            periodic
                .heard_by(move |run| heard.board.note(noted(run, heard.now())))
                .run_forever(tasks);
        }
        let (scheduler, stop) = (self.clone(), tasks.token());
        tasks.spawn("wakes", async move {
            tokio::select! {
                () = scheduler.wakes.run(&scheduler.db, &()) => {}
                () = scheduler.bell.run() => {}
                () = scheduler.crl_retry.bell.run() => {}
                () = scheduler.large_crl_retry.bell.run() => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// The connections to the database.
    pub fn db(&self) -> &PgPool {
        &self.db
    }

    fn now(&self) -> Time {
        self.clock.now()
    }

    async fn begin(&self) -> certctl_store::Result<Tx> {
        Tx::begin(&self.db, &Actor::system(), self.now()).await
    }

    /// Begins what one of several schedulers does: it cannot be committed once another leads.
    async fn begin_as_leader(&self) -> certctl_store::Result<Tx> {
        let mut tx = self.begin().await?;
        if let Some(token) = self.leader.token() {
            lease::fence(&mut tx, leader::LEASE, token).await?;
        }
        Ok(tx)
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
