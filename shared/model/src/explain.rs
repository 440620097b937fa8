//! Why a certificate or a job stands where it stands, what happens next by itself, and what would change that.
//!
//! Not here: how it stands. The rules that decide are asked for that, so that nothing is explained which does not happen.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    certificate::{CertificateStatus, DeploymentStatus},
    id::{AgentId, CertificateId, IssuerId, JobId, RenewalPolicyId},
    job::{JobKind, JobStatus},
    revocation::RevocationReason,
    time::Time,
};

crate::words! {
    /// What it comes down to.
    pub enum Cause {
        /// The certificate was put aside.
        Archived = "Archived",
        /// The certificate is revoked.
        Revoked = "Revoked",
        /// Nobody could make a key, or it is tracked only.
        NoTarget = "NoTarget",
        /// It has names that cannot be certified here.
        UncertifiableNames = "UncertifiableNames",
        /// Jobs are under way.
        InProgress = "InProgress",
        /// A policy rule forbids it.
        PolicyForbids = "PolicyForbids",
        /// The chain of its issuer's authority forbids its names or purposes.
        IssuerForbids = "IssuerForbids",
        /// The policy does not renew by itself.
        NoAutoRenewal = "NoAutoRenewal",
        /// It is too early.
        NotDue = "NotDue",
        /// What was issued is not on all its targets, or it was not checked yet that it is served.
        NotDeployed = "NotDeployed",
        /// An endpoint does not serve what was deployed.
        Drifted = "Drifted",
        /// It lives as long as its issuer, and another one would end no later.
        EndsWithIssuer = "EndsWithIssuer",
        /// A freeze or a maintenance window holds it.
        Frozen = "Frozen",
        /// The last try failed; the next one comes.
        Retrying = "Retrying",
        /// It is due, and planned at the next look.
        Due = "Due",
        /// No scheduler runs.
        SchedulerAway = "SchedulerAway",
        /// A scheduler does it next.
        Queued = "Queued",
        /// A scheduler is at it.
        InWork = "InWork",
        /// Its issuer is given no more for now.
        BudgetUsedUp = "BudgetUsedUp",
        /// Its issuer may not be asked.
        IssuerDisabled = "IssuerDisabled",
        /// The database was restored, and nothing is issued until the recovery is finished.
        Fenced = "Fenced",
        /// Its agent is offline.
        AgentAway = "AgentAway",
        /// Its agent does something next.
        AgentExpected = "AgentExpected",
        /// A person has to approve it.
        ApprovalMissing = "ApprovalMissing",
        /// Its agent is putting the certificate on the target.
        Deploying = "Deploying",
        /// It is done.
        Completed = "Completed",
        /// It was given up.
        Failed = "Failed",
        /// It was called off.
        Cancelled = "Cancelled",
    }
}

/// What happens next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Next {
    /// What.
    pub what: String,
    /// When; absent when that depends on somebody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
}

/// An answer to "why".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    /// Of which certificate or job.
    pub id: String,
    /// Where it stands.
    pub status: String,
    /// What it comes down to, as a word for programs.
    pub cause: Cause,
    /// The same as a sentence.
    pub summary: String,
    /// What led to it.
    pub facts: Vec<String>,
    /// What happens by itself, unless nothing does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Next>,
    /// What would make a difference.
    pub would_change: Vec<String>,
}

impl Explanation {
    fn of(id: impl ToString, status: impl ToString, cause: Cause, summary: String) -> Self {
        Self {
            id: id.to_string(),
            status: status.to_string(),
            cause,
            summary,
            facts: vec![],
            next: None,
            would_change: vec![],
        }
    }

    fn next(mut self, what: impl Into<String>, at: Option<Time>) -> Self {
        self.next = Some(Next { what: what.into(), at });
        self
    }

    fn unless(mut self, what: impl Into<String>) -> Self {
        self.would_change.push(what.into());
        self
    }

    fn because(mut self, fact: impl Into<String>) -> Self {
        self.facts.push(fact.into());
        self
    }
}

/// How a certificate stands with one of its agents.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "sqlx", derive(sqlx::FromRow))]
pub struct AgentStanding {
    /// The agent.
    #[cfg_attr(feature = "sqlx", sqlx(rename = "agent_id"))]
    pub agent: AgentId,
    /// The job that is open for it.
    pub open_job: Option<JobId>,
    /// From when it is asked again after a failure.
    pub retry_at: Option<Time>,
    /// From when what it holds is due; none when it holds nothing.
    pub due_at: Option<Time>,
    /// Until when a freeze or a maintenance window holds it.
    pub held_until: Option<Time>,
    /// What that is, in words.
    pub held_by: Option<String>,
    /// The end of the issuer, when what the agent holds ends no earlier.
    pub issuer_ends: Option<Time>,
}

/// How the deployments of a certificate stand.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "sqlx", derive(sqlx::FromRow))]
pub struct DeploymentStanding {
    /// As a word.
    pub status: DeploymentStatus,
    /// Since when.
    pub since: Time,
    /// Why.
    pub reason: Option<String>,
    /// When the next attempt is due after one that failed.
    pub next_attempt: Option<Time>,
}

/// How a certificate stands.
#[derive(Clone, Debug)]
pub struct CertificateStanding {
    /// Which.
    pub id: CertificateId,
    /// As a word.
    pub status: CertificateStatus,
    /// When it was put aside.
    pub archived_at: Option<Time>,
    /// When it was revoked, and why.
    pub revoked: Option<(Time, RevocationReason)>,
    /// From when to when it is valid.
    pub validity: Option<(Time, Time)>,
    /// From when a renewal is planned.
    pub renew_at: Option<Time>,
    /// What went wrong the last time.
    pub failure: Option<String>,
    /// Its renewal policy.
    pub policy: RenewalPolicyId,
    /// Whether that renews by itself.
    pub auto_renew: bool,
    /// Share of the lifetime after which it does, in thousandths.
    pub renew_at_permille: i32,
    /// Not earlier than so many days before the end; 0 for no such rule.
    pub renewal_window_days: i32,
    /// How much earlier it may be, in hundredths of the time until then.
    pub spread_percent: i32,
    /// Its names that cannot be certified here.
    pub uncertifiable_names: Vec<String>,
    /// The policy rules that forbid a new version: their names, and how they are broken.
    pub forbidden: Vec<String>,
    /// What the chain of its issuer's authority forbids of it.
    pub refused: Option<String>,
    /// Its agents.
    pub agents: Vec<AgentStanding>,
    /// Its open jobs whose certification requests came with them.
    pub given: Vec<JobId>,
    /// Until when the certificate is valid that is in use elsewhere, when it is tracked only.
    pub tracked_until: Option<Time>,
    /// Its issuer.
    pub issuer: IssuerId,
    /// Its deployments; none without enabled targets.
    pub deployment: Option<DeploymentStanding>,
}

impl CertificateStanding {
    /// Says why it stands so: why it is or is not renewed, and, where nothing keeps it from that, why it is not deployed.
    pub fn explain(&self, now: Time) -> Explanation {
        let explained = self.renewal(now);
        let Some(deployment) = &self.deployment else {
            return explained;
        };
        let DeploymentStanding { status, since, .. } = deployment;
        let reason = deployment
            .reason
            .as_ref()
            .map_or(String::new(), |why| format!(": {why}"));
        let fact = format!("its deployment status is {status} since {since}{reason}");
        // Due is what an agent wants; a certificate whose newest version waits to be deployed is not.
        let wanting = self
            .agents
            .iter()
            .any(|one| one.open_job.is_none() && one.due_at.is_none_or(|due| due <= now));
        let quiet = match explained.cause {
            Cause::NotDue | Cause::NoAutoRenewal | Cause::EndsWithIssuer => *status != DeploymentStatus::Pending,
            Cause::Due => !wanting,
            _ => false,
        };
        if *status == DeploymentStatus::Deployed || !quiet {
            return explained.because(fact);
        }
        let (cause, what) = match status {
            DeploymentStatus::Drifted => (Cause::Drifted, "what was deployed is not served"),
            DeploymentStatus::Partial => (Cause::NotDeployed, "not all its targets have what was issued"),
            DeploymentStatus::Failed => (Cause::NotDeployed, "its deployment failed"),
            DeploymentStatus::Pending | DeploymentStatus::Deployed => (Cause::NotDeployed, "it is not deployed yet"),
        };
        let deployed = Explanation::of(&self.id, self.status, cause, format!("{what}, since {since}{reason}"));
        let deployed = self.dates(deployed).because(fact);
        let deployed = match explained.cause {
            Cause::Due => deployed,
            _ => deployed.because(format!("of its renewal: {}", explained.summary)),
        };
        let deployed = match (deployment.next_attempt, explained.next) {
            (Some(at), _) => deployed.next("the next attempt to deploy is due", Some(at)),
            (None, Some(next)) => deployed.next(next.what, next.at),
            (None, None) => deployed,
        };
        match status {
            DeploymentStatus::Pending => deployed,
            _ => deployed.unless(format!("remove the cause; to deploy at once: certs deploy {}", self.id)),
        }
    }

    fn renewal(&self, now: Time) -> Explanation {
        let id = &self.id;
        let so = |cause, summary| Explanation::of(id, self.status, cause, summary);
        let renew = || format!("renew it by hand: certs renew {id}");
        if let Some(at) = self.archived_at {
            return so(Cause::Archived, format!("it was archived at {at}, and is not renewed"))
                .unless("request a new certificate for its names");
        }
        if let Some((at, reason)) = self.revoked {
            let explained = so(
                Cause::Revoked,
                format!("it was revoked at {at} for {reason}, and is not renewed"),
            );
            return match reason {
                RevocationReason::CertificateHold => explained.unless("release it from hold"),
                _ => explained.unless("request a new certificate for its names"),
            };
        }
        let asked = self.agents.iter().filter_map(|agent| agent.open_job.as_ref());
        let jobs: Vec<&JobId> = asked.chain(&self.given).collect();
        if self.agents.is_empty() && jobs.is_empty() {
            let why = match (self.tracked_until, self.validity) {
                (Some(end), _) => {
                    format!("it is tracked only: issued elsewhere, it expires at {end} and is not renewed here")
                }
                (None, Some((_, end))) => format!(
                    "it has no enabled target, so there is no agent that could make its next key; it expires at {end}"
                ),
                (None, None) => "it has no enabled target, so there is no agent that could make a key".to_owned(),
            };
            return so(Cause::NoTarget, why)
                .unless("give it target_ids, or enable its targets")
                .unless(format!(
                    "send a certification request: certctl-cli issue --renew {id} --csr FILE"
                ));
        }
        if !jobs.is_empty() {
            let jobs = jobs.iter().map(|job| job.as_str()).collect::<Vec<_>>().join(", ");
            return self.dates(so(Cause::InProgress, format!("a new version is under way: {jobs}")));
        }
        if !self.uncertifiable_names.is_empty() {
            let names = self.uncertifiable_names.join(", ");
            return self
                .dates(so(
                    Cause::UncertifiableNames,
                    format!("it is not renewed: names that were imported cannot be certified here: {names}"),
                ))
                .unless("edit common_name and sans, which decides what the next version is for");
        }
        if !self.forbidden.is_empty() {
            let rules = self.forbidden.join("; ");
            return self
                .dates(so(Cause::PolicyForbids, format!("nothing is issued for it: {rules}")))
                .unless("mend what breaks the rule, or change, disable or narrow the rule");
        }
        if let Some(why) = &self.refused {
            let issuer = &self.issuer;
            return self
                .dates(so(
                    Cause::IssuerForbids,
                    format!("nothing is issued for it: issuer {issuer} cannot certify this: {why}"),
                ))
                .unless("change its names or its profile, or give it another issuer");
        }
        if !self.auto_renew {
            let policy = &self.policy;
            let end = match self.validity {
                Some((_, end)) => format!("it is not renewed by itself, and ends at {end}"),
                None => "it is not issued by itself".to_owned(),
            };
            return self
                .dates(so(
                    Cause::NoAutoRenewal,
                    format!("{end}: renewal policy {policy} has no auto_renew"),
                ))
                .unless(renew())
                .unless(format!("set auto_renew of {policy}, or give it another renewal policy"));
        }
        if let Some(ends) = self.agents.iter().map(|agent| agent.issuer_ends).min().flatten() {
            let issuer = &self.issuer;
            return self
                .dates(so(
                    Cause::EndsWithIssuer,
                    format!(
                        "the certificate of issuer {issuer} ends at {ends}, and no certificate of it can end later"
                    ),
                ))
                .unless(format!(
                    "give issuer {issuer} a new certificate, or request one of another issuer"
                ));
        }
        let wanting: Vec<&AgentStanding> = self
            .agents
            .iter()
            .filter(|agent| agent.issuer_ends.is_none() && agent.due_at.is_none_or(|due| due <= now))
            .collect();
        if let Some(frozen) = self.frozen(&wanting, now) {
            return frozen;
        }
        let wanting = wanting.into_iter();
        let retry = wanting.filter_map(|agent| agent.retry_at.filter(|at| *at > now)).min();
        if let Some(at) = retry {
            let explained = so(
                Cause::Retrying,
                format!("the last try failed; the next one is planned from {at} on"),
            );
            return self
                .dates(explained)
                .next("the next try is planned", Some(at))
                .unless("retry the failed job, or mend what it failed for");
        }
        match self.renew_at.filter(|at| *at > now) {
            Some(at) => self
                .dates(so(Cause::NotDue, format!("its renewal is due at {at}")))
                .because(self.rule())
                .next("its renewal is planned", Some(at))
                .unless(renew()),
            None => self
                .dates(so(
                    Cause::Due,
                    "it is due, and planned when certificates are looked at next".to_owned(),
                ))
                .next("its jobs are created", None),
        }
    }

    /// Where a freeze or a maintenance window holds every agent that wants a new version and need not wait for anything else.
    fn frozen(&self, wanting: &[&AgentStanding], now: Time) -> Option<Explanation> {
        let ready = wanting.iter().filter(|agent| agent.retry_at.is_none_or(|at| at <= now));
        let held = ready.map(|agent| agent.held_until.zip(agent.held_by.as_ref()));
        let (until, freeze) = held.collect::<Option<Vec<_>>>()?.into_iter().min()?;
        let explained = Explanation::of(
            &self.id,
            self.status,
            Cause::Frozen,
            format!("it is due, and held until {until} by {freeze}"),
        );
        Some(
            self.dates(explained)
                .because("a certificate that would end earlier than a day after that is renewed all the same")
                .next("its renewal is planned", Some(until))
                .unless(format!("renew it by hand: certs renew {}", self.id))
                .unless(format!("change {freeze}")),
        )
    }

    fn dates(&self, mut explained: Explanation) -> Explanation {
        if let Some((from, to)) = self.validity {
            explained.facts.push(format!("it is valid from {from} to {to}"));
        }
        if let Some(failure) = &self.failure {
            explained.facts.push(format!("the last try failed: {failure}"));
        }
        explained
    }

    fn rule(&self) -> String {
        let (policy, share) = (&self.policy, f64::from(self.renew_at_permille) / 10.0);
        let window = match self.renewal_window_days {
            0 => String::new(),
            days => format!(", not earlier than {days} days before the end"),
        };
        let earlier = match self.spread_percent {
            0 => String::new(),
            percent => format!(", or up to {percent} % earlier"),
        };
        format!(
            "renewal policy {policy} renews after {share} % of the lifetime{earlier}{window}, spread over a tenth of what is left \
             then"
        )
    }
}

/// How a job stands.
#[derive(Clone, Debug)]
pub struct JobStanding {
    /// Which.
    pub id: JobId,
    /// What it does.
    pub kind: JobKind,
    /// As a word.
    pub status: JobStatus,
    /// Its agent.
    pub agent: Option<AgentId>,
    /// Since when that is offline.
    pub agent_offline_since: Option<Time>,
    /// Its issuer.
    pub issuer: IssuerId,
    /// Whether that may be asked.
    pub issuer_enabled: bool,
    /// How many more requests that may be given now; none when nothing limits it.
    pub issuer_room: Option<i64>,
    /// The registered domain for which that was given as many requests as it may be.
    pub held_for: Option<String>,
    /// Whether nothing is issued until a recovery is finished.
    pub fenced: bool,
    /// Whether a scheduler leads.
    pub scheduler_runs: bool,
    /// From when it is done next, or since when it waits.
    pub run_at: Time,
    /// Until when a worker has it.
    pub lease_until: Option<Time>,
    /// How often it was tried, and how often it may be.
    pub tries: (i32, i32),
    /// What went wrong the last time, or why it is over.
    pub last_error: Option<String>,
    /// When it was over.
    pub finished_at: Option<Time>,
    /// When a failed deployment is tried again.
    pub retry_at: Option<Time>,
}

impl JobStanding {
    /// Says why it stands so.
    pub fn explain(&self, now: Time) -> Explanation {
        let explained = match self.status {
            JobStatus::Completed => self.so(Cause::Completed, format!("it was done at {}", self.end())),
            JobStatus::Failed if self.retry_at.is_some() => self.retry(self.retry_at),
            JobStatus::Pending if self.kind == JobKind::Deployment && self.run_at > now => {
                self.retry(Some(self.run_at))
            }
            JobStatus::Failed => self
                .so(
                    Cause::Failed,
                    format!("it was given up at {}: {}", self.end(), self.why()),
                )
                .unless(format!("mend that, and retry it: jobs retry {}", self.id)),
            JobStatus::Cancelled => self.so(
                Cause::Cancelled,
                format!("it was called off at {}: {}", self.end(), self.why()),
            ),
            JobStatus::AwaitingApproval => self
                .so(
                    Cause::ApprovalMissing,
                    format!("somebody has to approve it; it has waited since {}", self.run_at),
                )
                .unless(format!("approve or reject it: jobs approve {}", self.id)),
            JobStatus::Pending | JobStatus::Running if self.kind == JobKind::Validation => self.look(now),
            JobStatus::AwaitingCsr => self.agent("has to make a key and send a request"),
            JobStatus::Pending if !self.kind.issues() => self.agent("has to put the certificate on the target"),
            JobStatus::Running if !self.kind.issues() => self.so(
                Cause::Deploying,
                format!("agent {} is putting the certificate on the target", self.agent_name()),
            ),
            JobStatus::Pending | JobStatus::Running => self.worker(now),
        };
        match &self.last_error {
            Some(error) if !self.status.is_terminal() => explained.because(format!("the last try: {error}")),
            _ => explained,
        }
    }

    fn so(&self, cause: Cause, summary: String) -> Explanation {
        let (tried, most) = self.tries;
        Explanation::of(&self.id, self.status, cause, summary).because(format!("it was tried {tried} times of {most}"))
    }

    fn end(&self) -> String {
        self.finished_at
            .map_or("an unknown time".to_owned(), |at| at.to_string())
    }

    fn why(&self) -> &str {
        self.last_error.as_deref().unwrap_or("no reason was given")
    }

    /// A deployment that failed, and is tried again.
    fn retry(&self, at: Option<Time>) -> Explanation {
        let due = at.map_or("later".to_owned(), |at| format!("from {at} on"));
        self.so(
            Cause::Retrying,
            format!("the last attempt failed: {}; it is tried again {due}", self.why()),
        )
        .next(format!("agent {} is given it again", self.agent_name()), at)
        .unless(format!("remove the cause; to try at once: jobs retry {}", self.id))
        .unless(format!("end the attempts: jobs cancel {}", self.id))
    }

    fn agent_name(&self) -> &str {
        self.agent.as_ref().map_or("nobody", |agent| agent.as_str())
    }

    /// What an agent does next.
    fn agent(&self, what: &str) -> Explanation {
        let (agent, since) = (self.agent_name(), self.run_at);
        if self.agent.is_none() {
            return self
                .so(Cause::AgentAway, "its agent was deleted".to_owned())
                .unless("cancel it, and give the certificate another target");
        }
        match self.agent_offline_since {
            Some(gone) => self
                .so(
                    Cause::AgentAway,
                    format!("agent {agent} {what}, and has been offline since {gone}"),
                )
                .unless(format!("start agent {agent}")),
            None => self
                .so(
                    Cause::AgentExpected,
                    format!("agent {agent} {what}; it has waited since {since}"),
                )
                .next(format!("agent {agent} asks for work"), None),
        }
    }

    /// Where a scheduler looks next.
    fn look(&self, now: Time) -> Explanation {
        if let Some(until) = self.lease_until.filter(|until| *until > now) {
            return self
                .so(
                    Cause::InWork,
                    "a scheduler looks at the endpoints of its target".to_owned(),
                )
                .next("another scheduler takes over, unless it is done by then", Some(until));
        }
        if !self.scheduler_runs {
            return self.no_scheduler();
        }
        match self.run_at > now {
            true => self
                .so(
                    Cause::Retrying,
                    format!("the endpoints are looked at again at {}", self.run_at),
                )
                .next("they are looked at again", Some(self.run_at)),
            false => self
                .so(
                    Cause::Queued,
                    "the endpoints of its target are looked at next".to_owned(),
                )
                .next("a scheduler claims it", None),
        }
    }

    fn no_scheduler(&self) -> Explanation {
        self.so(Cause::SchedulerAway, "no scheduler runs".to_owned())
            .unless("start certctl-scheduler")
    }

    /// What a scheduler does next.
    fn worker(&self, now: Time) -> Explanation {
        let issuer = &self.issuer;
        if self.fenced {
            return self
                .so(
                    Cause::Fenced,
                    "the database was restored from a backup, and nothing is issued until it was told what it forgot"
                        .to_owned(),
                )
                .unless("certctl-cli restore-revocations");
        }
        if !self.issuer_enabled {
            return self
                .so(Cause::IssuerDisabled, format!("issuer {issuer} is disabled"))
                .unless(format!("enable issuer {issuer}"));
        }
        if let Some(until) = self.lease_until.filter(|until| *until > now) {
            return self
                .so(Cause::InWork, format!("a scheduler is at it; issuer {issuer} is asked"))
                .next("another scheduler takes over, unless it is done by then", Some(until));
        }
        if !self.scheduler_runs {
            return self.no_scheduler();
        }
        if let Some(domain) = self.held_for.as_deref().filter(|_| self.status == JobStatus::Running) {
            return self
                .so(
                    Cause::BudgetUsedUp,
                    format!("issuer {issuer} was given as many requests for names of {domain} as its budget allows"),
                )
                .next(
                    "it is handed on when there is room again, unless others have less time left",
                    Some(self.run_at),
                )
                .unless(format!("raise max_per_domain of issuer {issuer}"));
        }
        if self.status == JobStatus::Running && self.issuer_room.is_some_and(|room| room <= 0) {
            return self
                .so(
                    Cause::BudgetUsedUp,
                    format!(
                        "issuer {issuer} has as many requests as its budget allows; those with less time left go first"
                    ),
                )
                .next("it is handed on as soon as there is room", None)
                .unless(format!("raise max_under_way or max_per_hour of issuer {issuer}"));
        }
        match self.run_at > now {
            true => self
                .so(Cause::Retrying, format!("it is tried again at {}", self.run_at))
                .next("it is tried again", Some(self.run_at)),
            false => self
                .so(Cause::Queued, format!("it waits for its turn with issuer {issuer}"))
                .next("a scheduler claims it", None),
        }
    }
}
