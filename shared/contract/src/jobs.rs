//! Jobs: the steps of issuing and deploying.

use certctl_model::{
    id::{AgentId, CertificateId, IssuerId, JobId, ProfileId, TargetId, VersionId},
    job::{JobKind, JobStatus},
    time::Time,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    health::Outcome,
    list::{List, Page, blank},
    query::{Id, Several},
};

crate::resource! {
    jobs "/api/v1/jobs";

    /// List jobs, newest first unless sorted.
    GET "" ListJobs(query: List<JobFilter, JobSort>,) [Needs(View), Rows] -> 200 Page<Job>;
    /// Fetch one job.
    GET "/{id}" GetJob(path: Id<JobId>,) [Needs(View), Job] -> 200 Job;
    /// Cancel a job that is not finished and not being done, or end the retries of a failed deployment.
    POST "/{id}/cancel" CancelJob(path: Id<JobId>,) [Needs(Operate), Job] -> 200 Outcome;
    /// Try a failed job again now, or a deployment that waits for its next attempt.
    ///
    /// Deployments are tried again by themselves: with the retry interval of the renewal policy, doubled each time, and after
    /// the last attempt at a low rate (between one hour and six, or the retry interval if that is longer).
    POST "/{id}/retry" RetryJob(path: Id<JobId>,) [Needs(Operate), Job] -> 200 Outcome;
    /// Show in full what waits for approval, and who has agreed to it.
    GET "/{id}/approval" GetJobApproval(path: Id<JobId>,) [Needs(View), Job] -> 200 JobApproval;
    /// Agree to what a job has signed. It goes on when enough people have: until then the answer is `approval_given`.
    POST "/{id}/approve" ApproveJob(path: Id<JobId>, body: Agreement,) [Needs(Approve), Job] -> 200 Outcome;
    /// Call a job off that waits for approval.
    POST "/{id}/reject" RejectJob(path: Id<JobId>, body: Decision,) [Needs(Approve), Job] -> 200 Outcome;
}

crate::query! {
    /// Which jobs.
    pub struct JobFilter {
        /// Only jobs in this state, or in one of these, separated by commas.
        status: Several<JobStatus>,
        /// Only jobs of this type, or of one of these, separated by commas.
        r#type: Several<JobKind>,
        /// Only jobs for this certificate.
        certificate_id: CertificateId,
        /// Only jobs of this agent.
        agent_id: AgentId,
        /// Only jobs for this target.
        target_id: TargetId,
        /// Only jobs created after this time.
        created_after: Time,
        /// Only jobs created before this time.
        created_before: Time,
    }
}

crate::sort_keys! {
    /// How jobs are sorted.
    pub enum JobSort { CreatedAt = "createdAt", ScheduledAt = "scheduledAt" }
}

/// A job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "sqlx", derive(sqlx::FromRow))]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// What it does.
    #[serde(rename = "type")]
    #[cfg_attr(feature = "sqlx", sqlx(rename = "type"))]
    pub kind: JobKind,
    /// For which certificate.
    pub certificate_id: CertificateId,
    /// Where it deploys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_id: Option<TargetId>,
    /// The agent that does it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    /// The version it deploys, or the one it issued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_id: Option<VersionId>,
    /// Where it stands.
    pub status: JobStatus,
    /// How often it was tried.
    pub attempts: i32,
    /// How often it is tried before it has failed.
    pub max_attempts: i32,
    /// What went wrong last. What commands on a host wrote is left out unless the caller may `operate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// The person who asked for it; absent when it was planned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<String>,
    /// The same as `last_error`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
    /// `last_error` with what the command wrote.
    #[serde(skip)]
    #[schemars(skip)]
    pub reported: Option<String>,
    /// Not tried before.
    pub scheduled_at: Time,
    /// When it was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it was finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
    /// When a failed deployment is tried again by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Time>,
    /// When it was created.
    pub created_at: Time,
}

/// What waits for approval, or was approved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobApproval {
    /// The job.
    pub job_id: JobId,
    /// Where it stands.
    pub status: JobStatus,
    /// How many people have to agree; 0 when none does.
    pub needed: i32,
    /// Who has agreed, oldest first.
    pub approvals: Vec<GivenApproval>,
    /// The person who asked for the certificate, who cannot agree to it; absent when it was planned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<String>,
    /// Who took part in the issuance: requested it, changed names, issuer, policy, profile or targets since the last one,
    /// submitted the request, retried the job, or has seen a key of its agent. None of them can approve it.
    #[serde(default)]
    pub participants: Vec<Participant>,
    /// Whether participants can approve it all the same, because the renewal policy permits self-approval.
    #[serde(default)]
    pub self_approval: bool,
    /// What is agreed to: SHA-256 over all of the following and the rules of the profile, lower-case hexadecimal.
    pub digest: String,
    /// The certificate.
    pub certificate_id: CertificateId,
    /// Its common name.
    pub common_name: String,
    /// Its other names.
    pub sans: Vec<String>,
    /// Who signs it.
    pub issuer_id: IssuerId,
    /// Its profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_profile_id: Option<ProfileId>,
    /// Where it goes.
    pub target_ids: Vec<TargetId>,
    /// The agent that holds the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    /// The certification request; absent while the agent has sent none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub csr_pem: Option<String>,
}

/// A principal that took part in an issuance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "sqlx", derive(sqlx::FromRow))]
pub struct Participant {
    /// Its name.
    pub name: String,
    /// What it did.
    pub action: String,
}

/// Somebody's agreement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "sqlx", derive(sqlx::FromRow))]
pub struct GivenApproval {
    /// Who agreed.
    pub approver: String,
    /// To what.
    pub digest: String,
    /// Whether that is what would be signed now, by a principal that took no part. Otherwise the agreement counts for nothing.
    pub valid: bool,
    /// Whether it stands for all that are needed.
    pub overrides: bool,
    /// Why.
    pub reason: String,
    /// When.
    pub created_at: Time,
}

/// Somebody agrees to what a job has signed.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Agreement {
    /// The reason, up to 4096 characters; kept in the trail. Needed to override.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What is agreed to, as it was shown; refused when that has changed.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// In an emergency: go on without the others. Administrators only; the owner is told.
    #[serde(rename = "override", default, skip_serializing_if = "Option::is_none")]
    pub overrides: Option<bool>,
}

/// Why a job does not go on.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Decision {
    /// The reason, up to 4096 characters; kept in the trail.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
