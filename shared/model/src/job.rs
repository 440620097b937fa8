//! Jobs: kinds, states and the only moves between them.
//!
//! | from \ to | Pending | AwaitingCSR | AwaitingApproval | Running | Completed | Failed | Cancelled |
//! |---|---|---|---|---|---|---|---|
//! | Pending | | needs an agent's request | came with its request, approval required | came with its request; reported by its agent | | gave up | by user |
//! | AwaitingCSR | | | approval required | request accepted | | timed out, agent gave up | by user |
//! | AwaitingApproval | | | | approved | | timed out | rejected, by user |
//! | Running | attempt failed, tried again | | | | done | gave up | |
//! | Failed | retried by user, or when due | | | | | | retries ended by user |
//!
//! A job in a state is a [`Job<S>`]; a move consumes it and yields a [`Transition`], which only this module can make
//! and only `store` can apply. What a worker tries again later does not move: it shifts `run_at` and frees the lease. A
//! deployment goes back to Pending, and is Failed when as many attempts failed as there may be; [`retry_delay`] says when
//! it is due again.

use std::{marker::PhantomData, time::Duration};

use crate::{
    audit::{Actor, Event},
    id::{AgentId, CertificateId, JobId, TargetId, VersionId},
};

crate::words! {
    /// What a job does.
    pub enum JobKind {
        /// The first certificate of a managed certificate.
        Issuance = "Issuance",
        /// A further one.
        Renewal = "Renewal",
        /// Putting a version on a target.
        Deployment = "Deployment",
        /// Looking whether the target serves it.
        Validation = "Validation",
    }
}

impl JobKind {
    /// Whether the job ends with a new version.
    pub const fn issues(self) -> bool {
        matches!(self, Self::Issuance | Self::Renewal)
    }
}

crate::words! {
    /// Where a job stands.
    pub enum JobStatus {
        /// Waits for whoever does it next.
        Pending = "Pending",
        /// Waits for the agent's certification request.
        AwaitingCsr = "AwaitingCSR" | "awaiting_csr",
        /// Waits for a person.
        AwaitingApproval = "AwaitingApproval" | "awaiting_approval",
        /// Being done.
        Running = "Running",
        /// Done.
        Completed = "Completed",
        /// Given up, with a reason.
        Failed = "Failed",
        /// Called off, with a reason.
        Cancelled = "Cancelled" | "canceled",
    }
}

impl JobStatus {
    /// Whether nothing follows by itself.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A state as a type.
pub trait State: sealed::Sealed + Send + Sync + 'static {
    /// The same state as a word.
    const STATUS: JobStatus;
}

/// A state from which a user can call the job off.
pub trait Cancellable: State {}

/// A state in which a worker can give up.
pub trait Fallible: State {}

macro_rules! states {
    ($($(#[$doc:meta])* $name:ident $(: $marker:ident $(+ $more:ident)*)?),+ $(,)?) => { $(
        $(#[$doc])*
        #[derive(Debug)]
        pub enum $name {}
        impl sealed::Sealed for $name {}
        impl State for $name { const STATUS: JobStatus = JobStatus::$name; }
        $(impl $marker for $name {} $(impl $more for $name {})*)?
    )+ };
}

states! {
    /// Waits for whoever does it next.
    Pending: Cancellable + Fallible,
    /// Waits for the agent's certification request.
    AwaitingCsr: Cancellable + Fallible,
    /// Waits for a person.
    AwaitingApproval: Cancellable + Fallible,
    /// Being done.
    Running: Fallible,
    /// Done.
    Completed,
    /// Given up.
    Failed: Cancellable,
    /// Called off.
    Cancelled,
}

/// When a deployment is tried again of which so many attempts have `failed`: after the interval of the renewal policy, then
/// after twice as long each time; and when all `most` attempts have failed, at a low rate.
pub fn retry_delay(interval: Duration, failed: i32, most: i32) -> Duration {
    const LOW_RATE: (Duration, Duration) = (Duration::from_secs(3_600), Duration::from_secs(6 * 3_600));
    let doublings = u32::try_from(failed.min(most) - 1).unwrap_or(0).min(16);
    let backed_off = interval.saturating_mul(1 << doublings).min(LOW_RATE.1);
    match failed < most {
        true => backed_off.max(interval),
        false => backed_off.clamp(LOW_RATE.0, LOW_RATE.1).max(interval),
    }
}

/// What a job is about, whatever its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobFacts {
    /// Which job.
    pub id: JobId,
    /// What it does.
    pub kind: JobKind,
    /// For which certificate.
    pub certificate: CertificateId,
    /// The agent that makes the key or deploys; none while no target is mapped.
    pub agent: Option<AgentId>,
    /// The target of a deployment.
    pub target: Option<TargetId>,
    /// The version a deployment puts there.
    pub version: Option<VersionId>,
    /// How often it was tried.
    pub attempts: i32,
    /// How often it may be.
    pub max_attempts: i32,
}

/// A job known to be in state `S`.
#[derive(Debug)]
pub struct Job<S> {
    /// What it is about.
    pub facts: JobFacts,
    state: PhantomData<S>,
}

/// A permitted move, with the event that tells of it.
#[derive(Debug)]
pub struct Transition<To> {
    /// Of which job.
    pub job: JobFacts,
    /// From which state.
    pub from: JobStatus,
    /// To which.
    pub to: JobStatus,
    /// Why, for Failed and Cancelled.
    pub reason: Option<String>,
    /// What the trail will say.
    pub event: Event,
    state: PhantomData<To>,
}

impl<S: State> Job<S> {
    /// Asserts that the job is in this state; `store` calls it with a locked row.
    pub fn known(facts: JobFacts) -> Self {
        Self {
            facts,
            state: PhantomData,
        }
    }

    fn go<To: State>(self, by: &Actor, action: &'static str, reason: Option<String>) -> Transition<To> {
        let mut event = Event::new(by, action, "job", &self.facts.id)
            .with("certificate_id", &self.facts.certificate)
            .with("type", self.facts.kind)
            .with("from", S::STATUS)
            .with("to", To::STATUS);
        if let Some(reason) = &reason {
            event = event.with("reason", reason);
        }
        Transition {
            job: self.facts,
            from: S::STATUS,
            to: To::STATUS,
            reason,
            event,
            state: PhantomData,
        }
    }
}

impl Job<Pending> {
    /// The agent's request is needed next.
    pub fn await_csr(self, by: &Actor) -> Transition<AwaitingCsr> {
        self.go(by, "job_csr_requested", None)
    }

    /// It came with its request, which can be signed.
    pub fn request_accepted(self, by: &Actor) -> Transition<Running> {
        self.go(by, "job_csr_accepted", None)
    }

    /// It came with its request; a person looks at that before it is signed.
    pub fn request_needs_approval(self, by: &Actor) -> Transition<AwaitingApproval> {
        self.go(by, "job_approval_requested", None)
    }

    /// Its agent has begun to deploy.
    pub fn start(self, by: &Actor) -> Transition<Running> {
        self.go(by, "job_started", None)
    }
}

impl Job<AwaitingCsr> {
    /// The request was accepted and can be signed.
    pub fn csr_accepted(self, by: &Actor) -> Transition<Running> {
        self.go(by, "job_csr_accepted", None)
    }

    /// The request was accepted; a person looks at it before it is signed.
    pub fn csr_needs_approval(self, by: &Actor) -> Transition<AwaitingApproval> {
        self.go(by, "job_approval_requested", None)
    }
}

impl Job<AwaitingApproval> {
    /// A person said yes.
    pub fn approve(self, by: &Actor) -> Transition<Running> {
        self.go(by, "job_approved", None)
    }

    /// A person said no.
    pub fn reject(self, by: &Actor, reason: String) -> Transition<Cancelled> {
        self.go(by, "job_rejected", Some(reason))
    }
}

impl Job<Running> {
    /// Done.
    pub fn complete(self, by: &Actor) -> Transition<Completed> {
        self.go(by, "job_completed", None)
    }

    /// The attempt failed, and there is another one.
    pub fn put_back(self, by: &Actor) -> Transition<Pending> {
        self.go(by, "job_put_back", None)
    }
}

impl Job<Failed> {
    /// It is tried again: an operator wants it, or the time has come.
    pub fn retry(self, by: &Actor) -> Transition<Pending> {
        self.go(by, "job_retried", None)
    }
}

impl<S: Cancellable> Job<S> {
    /// Called off.
    pub fn cancel(self, by: &Actor, reason: String) -> Transition<Cancelled> {
        self.go(by, "job_cancelled", Some(reason))
    }
}

impl<S: Fallible> Job<S> {
    /// Given up.
    pub fn fail(self, by: &Actor, reason: String) -> Transition<Failed> {
        self.go(by, "job_failed", Some(reason))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn facts() -> JobFacts {
        JobFacts {
            id: "j-1".parse().unwrap(),
            kind: JobKind::Renewal,
            certificate: "mc-1".parse().unwrap(),
            agent: None,
            target: None,
            version: None,
            attempts: 0,
            max_attempts: 3,
        }
    }

    /// Every edge the methods offer from a state, as pairs of words; the table at the head of this file as data.
    fn edges(from: JobStatus) -> Vec<JobStatus> {
        use JobStatus as S;
        let by = Actor::system();
        let why = || "because".to_owned();
        let to = |t: (JobStatus, JobStatus)| {
            assert_eq!(t.0, from);
            t.1
        };
        macro_rules! edge {
            ($state:ty, $job:ident => $e:expr) => {{
                let $job = Job::<$state>::known(facts());
                let t = $e;
                assert_eq!(t.reason.is_some(), matches!(t.to, S::Failed | S::Cancelled));
                to((t.from, t.to))
            }};
        }
        match from {
            S::Pending => vec![
                edge!(Pending, j => j.await_csr(&by)),
                edge!(Pending, j => j.request_accepted(&by)),
                edge!(Pending, j => j.request_needs_approval(&by)),
                edge!(Pending, j => j.start(&by)),
                edge!(Pending, j => j.cancel(&by, why())),
                edge!(Pending, j => j.fail(&by, why())),
            ],
            S::AwaitingCsr => vec![
                edge!(AwaitingCsr, j => j.csr_accepted(&by)),
                edge!(AwaitingCsr, j => j.csr_needs_approval(&by)),
                edge!(AwaitingCsr, j => j.cancel(&by, why())),
                edge!(AwaitingCsr, j => j.fail(&by, why())),
            ],
            S::AwaitingApproval => vec![
                edge!(AwaitingApproval, j => j.approve(&by)),
                edge!(AwaitingApproval, j => j.reject(&by, why())),
                edge!(AwaitingApproval, j => j.cancel(&by, why())),
                edge!(AwaitingApproval, j => j.fail(&by, why())),
            ],
            S::Running => {
                vec![
                    edge!(Running, j => j.complete(&by)),
                    edge!(Running, j => j.put_back(&by)),
                    edge!(Running, j => j.fail(&by, why())),
                ]
            }
            S::Failed => vec![
                edge!(Failed, j => j.retry(&by)),
                edge!(Failed, j => j.cancel(&by, why())),
            ],
            S::Completed | S::Cancelled => vec![],
        }
    }

    #[test]
    fn failed_deployments_are_retried_with_back_off_and_then_at_a_low_rate() {
        for (interval, most, delays) in [
            (3_600, 3, [3_600, 7_200, 14_400, 14_400]),
            (60, 3, [60, 120, 3_600, 3_600]),
            (600, 10, [600, 1_200, 2_400, 4_800]),
            (1, 1, [3_600, 3_600, 3_600, 3_600]),
            (86_400, 2, [86_400, 86_400, 86_400, 86_400]),
        ] {
            let delay = |failed| retry_delay(Duration::from_secs(interval), failed, most).as_secs();
            assert_eq!([1, 2, 3, 4].map(delay), delays, "{interval} s, {most} attempts");
        }
        let most = retry_delay(Duration::from_secs(2_592_000), i32::MAX, 100);
        assert_eq!(most.as_secs(), 2_592_000);
    }

    proptest! {
        #[test]
        fn no_walk_leaves_a_completed_or_cancelled_job(choices in prop::collection::vec(0usize..6, 0..40)) {
            let mut at = JobStatus::Pending;
            for choice in choices {
                let next = edges(at);
                let Some(to) = next.get(choice % next.len().max(1)) else {
                    prop_assert!(matches!(at, JobStatus::Completed | JobStatus::Cancelled));
                    break;
                };
                prop_assert_ne!(*to, at);
                at = *to;
            }
        }
    }
}
