//! Claims jobs and turns what became of them into transitions.

use std::{
    collections::{HashMap, HashSet},
    pin::pin,
    slice,
    sync::Arc,
    time::Duration,
};

use certctl_model::{
    audit::Actor,
    id::{CertificateId, IssuerId, JobId},
    job::{Fallible, Job, JobStatus, Pending, Running},
    policy::Moment,
    renewal::spread_of,
    time::Time,
};
use certctl_runtime::failpoint;
use certctl_store::{
    Error, approvals,
    certificates::{self, Locked},
    jobs::{self, Claimed},
    outbox, policies,
};
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::{Instant, timeout};
use tracing::{Instrument, debug, info, info_span, warn};

use crate::{Scheduler, issuance, issuers::IssueError};

/// Jobs that are worked on together: each statement is for all of them, so that it costs each of them little, and all
/// are done in a fraction of a second.
const BATCH: usize = 256;
/// Jobs of one issuer under way. Each is begun when it is claimed, so that none waits while its lease runs; several
/// batches, because the signer, the database and we take turns in each.
const OF_EACH: usize = 8 * BATCH;
/// Jobs of all issuers under way: issuers that do not answer are to leave room for those that do.
const UNDER_WAY: usize = 4 * OF_EACH;
/// How long a drain claims further jobs; bounded, so that it ends well within the time its loop is given.
const ROUND: Duration = Duration::from_secs(30);
/// How often a drain that waits for issuers looks for further jobs.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The body of the loop: a drain, and the bell set for what it left for later.
///
/// # Errors
/// When the database cannot be asked.
pub async fn round(scheduler: Arc<Scheduler>) -> anyhow::Result<u64> {
    // What is due and could not be claimed is in the hands of another, who may be slow but not for long.
    const SOONEST: Duration = Duration::from_millis(250);
    let done = drain(scheduler.clone()).await?;
    if done == 0 {
        let now = scheduler.now();
        let next = next_due(&scheduler).await?;
        scheduler
            .bell
            .set(next.map(|at| Instant::now() + at.since(now).max(SOONEST)));
    }
    Ok(done)
}

/// Claims jobs and works on them until none is due. Returns how many it claimed.
///
/// # Errors
/// When jobs cannot be claimed. What becomes of a single job is its own affair.
pub async fn drain(scheduler: Arc<Scheduler>) -> anyhow::Result<u64> {
    let (mut working, until) = (FuturesUnordered::new(), Instant::now() + ROUND);
    let (mut claimed, mut under_way) = (0, UnderWay::default());
    loop {
        if under_way.count() + BATCH as i64 <= UNDER_WAY as i64 && Instant::now() < until {
            let before = under_way.of_each.clone();
            let mut claim = pin!(jobs::claim(
                &scheduler.db,
                scheduler.now(),
                scheduler.job_lease,
                BATCH as i64,
                OF_EACH as i64,
                &before,
            ));
            // Jobs under way go on meanwhile: they may hold the very connections that the claim waits for.
            let claims = loop {
                tokio::select! {
                    claims = &mut claim => break claims,
                    Some((issuer, done)) = working.next() => under_way.less(&issuer, done),
                }
            };
            let claims = match claims {
                Ok(claims) => claims,
                // What is under way is finished first; the next drain tells of the error if it stays.
                Err(_) if !working.is_empty() => vec![],
                Err(error) => return Err(error.into()),
            };
            let some = !claims.is_empty();
            claimed += claims.len();
            metrics::counter!("job_claims_total").increment(claims.len() as u64);
            for batch in batches(claims) {
                under_way.more(&batch[0].subject.issuer_id, batch.len());
                working.push(work(&scheduler, batch));
            }
            // Further jobs are begun beside these: the database, the issuer and we take turns in each batch.
            if some {
                continue;
            }
        }
        if working.is_empty() {
            return Ok(claimed as u64);
        }
        // Either a batch ended, or it is time to look again.
        if let Ok(Some((issuer, done))) = timeout(LOOK_AGAIN, working.next()).await {
            under_way.less(&issuer, done);
        }
    }
}

/// How many jobs of each issuer are being worked on.
#[derive(Default)]
struct UnderWay {
    of_each: HashMap<IssuerId, i64>,
}

impl UnderWay {
    fn count(&self) -> i64 {
        self.of_each.values().sum()
    }

    fn more(&mut self, issuer: &IssuerId, jobs: usize) {
        *self.of_each.entry(issuer.clone()).or_default() += jobs as i64;
    }

    fn less(&mut self, issuer: &IssuerId, jobs: usize) {
        *self.of_each.entry(issuer.clone()).or_default() -= jobs as i64;
    }
}

/// Jobs that are worked on together: those that wait for the same, of the same issuer. One that is slow to answer keeps
/// nobody else's jobs waiting.
fn batches(claims: Vec<Claimed>) -> Vec<Vec<Claimed>> {
    let mut batches: HashMap<_, Vec<Claimed>> = HashMap::new();
    for claim in claims {
        let of = (claim.status, claim.subject.issuer_id.clone());
        batches.entry(of).or_default().push(claim);
    }
    batches.into_values().collect()
}

/// Frees leases that ran out. Returns nothing done: freeing once is enough.
///
/// # Errors
/// When the database cannot be asked.
pub async fn reap(scheduler: Arc<Scheduler>) -> anyhow::Result<u64> {
    let freed = jobs::reap(&scheduler.db, scheduler.now()).await?;
    if freed > 0 {
        info!(
            jobs = freed,
            "the leases of {freed} jobs ran out; others can claim them"
        );
    }
    Ok(0)
}

/// When the next job can be claimed: its time comes, or the lease of whoever has it ends.
async fn next_due(scheduler: &Scheduler) -> Result<Option<Time>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT min(greatest(run_at, lease_until)) FROM jobs
          WHERE type IN ('Issuance', 'Renewal') AND status IN ('Pending', 'Running')",
    )
    .fetch_one(&scheduler.db)
    .await
}

/// Why a claimed job did not get further.
#[derive(Debug)]
pub(crate) enum GiveUp {
    /// Not now.
    Later {
        after: Option<Duration>,
        counts: bool,
        reason: String,
    },
    /// Never.
    Refused(String),
    /// Somebody else has it, or moved it; it is no longer ours.
    Lost,
}

impl From<IssueError> for GiveUp {
    fn from(error: IssueError) -> Self {
        match error {
            IssueError::Retry { after, counts, reason } => GiveUp::Later { after, counts, reason },
            IssueError::Refused(reason) => GiveUp::Refused(reason),
        }
    }
}

impl GiveUp {
    fn of(error: &Error) -> Self {
        match error {
            Error::LeaseLost | Error::WrongJobState { .. } => GiveUp::Lost,
            error => GiveUp::Later {
                after: None,
                counts: !error.is_transient(),
                reason: error.to_string(),
            },
        }
    }
}

/// Works on a batch, and returns whose it was and how many jobs it had.
async fn work(scheduler: &Scheduler, batch: Vec<Claimed>) -> (IssuerId, usize) {
    let whose = (batch[0].subject.issuer_id.clone(), batch.len());
    let given_up = match batch[0].status {
        JobStatus::Pending => together(scheduler, batch, |claim| claim, request_csrs).await,
        _ => issuance::issue(scheduler, batch).await,
    };
    for (claim, give_up) in given_up {
        let facts = &claim.facts;
        let span =
            info_span!("job", job.id = %facts.id, certificate.id = %facts.certificate, attempt = facts.attempts + 1);
        async {
            match settle(scheduler, &claim, give_up).await {
                Ok(()) => {}
                Err(Error::LeaseLost | Error::WrongJobState { .. }) => lost(&claim),
                // The lease runs out, and whoever claims it then begins anew.
                Err(error) => warn!("job {} cannot be put back: {error}", claim.facts.id),
            }
        }
        .instrument(span)
        .await;
    }
    whose
}

/// What is done for several jobs in one unit of work. Returns those it was done for; the others are no longer ours.
pub(crate) type Unit<T> = for<'a> fn(&'a Scheduler, &'a [T]) -> BoxFuture<'a, Result<Vec<JobId>, Error>>;

/// Does it for all, or, when one of them spoils it for all, for each by itself. Returns the jobs it was not done for.
pub(crate) async fn together<T>(
    scheduler: &Scheduler,
    batch: Vec<T>,
    claim: fn(T) -> Claimed,
    unit: Unit<T>,
) -> Vec<(Claimed, GiveUp)> {
    let mut done: HashSet<JobId> = HashSet::new();
    let mut errors = Vec::new();
    match unit(scheduler, &batch).await {
        Ok(ids) => done.extend(ids),
        Err(error) if error.is_transient() || batch.len() == 1 => {
            return batch.into_iter().map(|one| (claim(one), GiveUp::of(&error))).collect();
        }
        Err(error) => {
            warn!("{} jobs are not done together but one by one: {error}", batch.len());
            for one in &batch {
                errors.push(
                    unit(scheduler, slice::from_ref(one))
                        .await
                        .map(|ids| done.extend(ids))
                        .err(),
                );
            }
        }
    }
    let mut errors = errors.into_iter();
    let claims = batch.into_iter().map(|one| (claim(one), errors.next().flatten()));
    let give_up = |(claim, error): (Claimed, Option<Error>)| match error {
        Some(error) => Some((claim, GiveUp::of(&error))),
        None if done.contains(&claim.facts.id) => None,
        None => Some((claim, GiveUp::Lost)),
    };
    claims.filter_map(give_up).collect()
}

/// The agents' requests are needed next, unless a request came with the job; or nothing is, if a certificate ended meanwhile or a policy rule forbids it.
fn request_csrs<'a>(scheduler: &'a Scheduler, claims: &'a [Claimed]) -> BoxFuture<'a, Result<Vec<JobId>, Error>> {
    Box::pin(async move {
        let by = Actor::system();
        let mut tx = scheduler.begin().await?;
        let certificates: Vec<_> = claims.iter().map(|claim| &claim.facts.certificate).collect();
        let certificates = certificates::lock_all(&mut tx, &certificates).await?;
        let ended = certificates
            .iter()
            .filter_map(|one| Some((&one.id, one.must_be_live().err()?.to_string())));
        let ended: HashMap<&CertificateId, String> = ended.collect();
        // Rules may have changed since the jobs were created.
        let live: Vec<&CertificateId> = certificates
            .iter()
            .map(|one| &one.id)
            .filter(|id| !ended.contains_key(id))
            .collect();
        let blocked = policies::judge(&mut tx, &live, Moment::Issuance).await?;
        let names: HashMap<&CertificateId, &str> = certificates
            .iter()
            .map(|one| (&one.id, one.common_name.as_str()))
            .collect();
        let locked: HashMap<&CertificateId, &Locked> = certificates.iter().map(|one| (&one.id, one)).collect();
        let given: HashSet<&JobId> = claims
            .iter()
            .filter(|claim| claim.request_given)
            .map(|claim| &claim.facts.id)
            .collect();
        let (mut to_request, mut to_cancel, mut to_fail) = (Vec::new(), Vec::new(), Vec::new());
        let (mut to_sign, mut to_approve, mut started) = (Vec::new(), Vec::new(), Vec::new());
        for job in jobs::hold::<Pending>(&mut tx, claims).await? {
            let certificate = &job.facts.certificate;
            match (ended.get(certificate), blocked.get(certificate)) {
                (Some(why), _) => to_cancel.push(job.cancel(&by, why.clone())),
                (None, Some(broken)) => {
                    let why = policies::because(broken);
                    certificates::note_failure(&mut tx, &job.facts, &why).await?;
                    to_fail.push(job.fail(&by, why));
                }
                (None, None) => {
                    started.extend(certificates::renewal_started(&job.facts, &names));
                    if !given.contains(&job.facts.id) {
                        to_request.push(job.await_csr(&by));
                        continue;
                    }
                    match approvals::standing(&mut tx, &job.facts.id, None).await?.needed {
                        0 => to_sign.push(job.request_accepted(&by)),
                        needed => {
                            started.push(approvals::requested(locked[certificate], &job.facts.id, needed));
                            to_approve.push(job.request_needs_approval(&by));
                        }
                    }
                }
            }
        }
        outbox::announce_all(&mut tx, &started).await?;
        let requested = jobs::apply_all(&mut tx, to_request)
            .await?
            .into_iter()
            .map(|job| job.facts.id);
        let accepted = jobs::apply_all(&mut tx, to_sign)
            .await?
            .into_iter()
            .map(|job| job.facts.id);
        let to_approve = jobs::apply_all(&mut tx, to_approve)
            .await?
            .into_iter()
            .map(|job| job.facts.id);
        let cancelled = jobs::apply_all(&mut tx, to_cancel)
            .await?
            .into_iter()
            .map(|job| job.facts.id);
        let failed = jobs::apply_all(&mut tx, to_fail)
            .await?
            .into_iter()
            .map(|job| job.facts.id);
        let ids: Vec<JobId> = requested
            .chain(accepted)
            .chain(to_approve)
            .chain(cancelled)
            .chain(failed)
            .collect();
        if !ids.is_empty() {
            tx.commit().await?;
        }
        failpoint::hold("scheduler.csr_requested").await;
        Ok(ids)
    })
}

async fn settle(scheduler: &Scheduler, claim: &Claimed, give_up: GiveUp) -> Result<(), Error> {
    let facts = &claim.facts;
    match give_up {
        GiveUp::Lost => {
            lost(claim);
            Ok(())
        }
        GiveUp::Later {
            counts: true, reason, ..
        } if facts.attempts + 1 >= facts.max_attempts => {
            let reason = format!("given up after {} tries: {reason}", facts.attempts + 1);
            fail(scheduler, claim, reason).await
        }
        GiveUp::Later { after, counts, reason } => {
            let pause = after.unwrap_or_else(|| pause(claim));
            warn!("job {} is tried again in {pause:.1?}: {reason}", facts.id);
            jobs::put_back(&scheduler.db, claim, scheduler.now() + pause, &reason, counts).await
        }
        GiveUp::Refused(reason) => fail(scheduler, claim, reason).await,
    }
}

async fn fail(scheduler: &Scheduler, claim: &Claimed, reason: String) -> Result<(), Error> {
    match claim.status {
        JobStatus::Pending => fail_in::<Pending>(scheduler, claim, &reason).await?,
        _ => fail_in::<Running>(scheduler, claim, &reason).await?,
    }
    metrics::counter!("issuance_failures_total", "type" => claim.facts.kind.as_str()).increment(1);
    warn!("job {} failed: {reason}", claim.facts.id);
    Ok(())
}

async fn fail_in<S: Fallible>(scheduler: &Scheduler, claim: &Claimed, reason: &str) -> Result<(), Error> {
    let mut tx = scheduler.begin().await?;
    let certificate = certificates::lock(&mut tx, &claim.facts.certificate).await?;
    let job: Option<Job<S>> = jobs::hold(&mut tx, slice::from_ref(claim)).await?.pop();
    let job = job.ok_or(Error::LeaseLost)?;
    jobs::apply(&mut tx, job.fail(&Actor::system(), reason.to_owned())).await?;
    // Nobody misses a certificate that was revoked or put aside.
    if certificate.must_be_live().is_ok() {
        certificates::note_failure(&mut tx, &claim.facts, reason).await?;
    }
    tx.commit().await
}

fn lost(claim: &Claimed) {
    metrics::counter!("job_leases_lost_total").increment(1);
    debug!("job {} is no longer ours", claim.facts.id);
}

/// How long to wait before the next try: doubling with every claim of the job, up to a minute, and shortened by up to
/// half, so that jobs which failed together do not come back together. The token counts claims; the first two are due
/// to the request and the first try.
pub(crate) fn pause(claim: &Claimed) -> Duration {
    const BASE: Duration = Duration::from_secs(1);
    const CAP: Duration = Duration::from_secs(60);
    let doublings = u32::try_from((claim.token - 2).clamp(0, 6)).expect("0 to 6");
    let full = (BASE * 2u32.pow(doublings)).min(CAP);
    full.mul_f64(0.5 + 0.5 * f64::from(spread_of(claim.facts.id.as_str())) / 1000.0)
}

#[cfg(test)]
mod tests {
    use certctl_model::job::{JobFacts, JobKind};
    use certctl_store::jobs::Subject;

    use super::*;

    #[test]
    fn pauses_double_with_every_claim_up_to_a_minute() {
        for (token, seconds) in [(1, 1), (2, 1), (3, 2), (4, 4), (8, 60), (9_000, 60)] {
            let claim = Claimed {
                facts: JobFacts {
                    id: "j-1".parse().unwrap(),
                    kind: JobKind::Renewal,
                    certificate: "mc-1".parse().unwrap(),
                    agent: None,
                    target: None,
                    version: None,
                    attempts: 0,
                    max_attempts: 3,
                },
                status: JobStatus::Running,
                token,
                csr_der: None,
                request_given: false,
                subject: Subject {
                    common_name: String::new(),
                    sans: vec![],
                    issuer_id: "iss-1".parse().unwrap(),
                    issuer_type: "local".to_owned(),
                    issuer_enabled: true,
                },
            };
            let (full, pause) = (Duration::from_secs(seconds), pause(&claim));
            assert!(full / 2 <= pause && pause <= full, "{token}: {pause:?}");
        }
    }
}
