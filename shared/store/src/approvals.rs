//! Who has to agree before a job's request is signed, and who did.
//!
//! What is agreed to is known by its digest: request, names, issuer, rules of the profile and targets. An agreement to
//! anything else counts for nothing. The signer asks the same functions of the database.

//!
//! Participants do not approve: who requested the issuance, changed what approvals depend on, submitted the request,
//! retried the job or has seen a key of its agent. [`participate`] records the changes; the functions of the database
//! derive the rest.

use certctl_model::{
    id::{CertificateId, JobId},
    notice::NoticeKind,
};
use sqlx::PgConnection;

use crate::{Tx, certificates::Locked, error::*, outbox::News};

/// How a job stands with those who have to agree.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Standing {
    /// How many are needed.
    pub needed: i32,
    /// Whether enough have agreed to what would be signed now.
    pub approved: bool,
    /// What would be signed now.
    pub digest: String,
    /// The person who asked for it.
    pub requested_by: Option<String>,
    /// Whether there is a request yet.
    pub has_request: bool,
    /// Whether participants may approve.
    pub self_approval: bool,
    /// What the given principal did that keeps it from approving.
    pub conflict: Option<String>,
}

/// How a job stands, and whether a principal may approve it.
///
/// # Errors
/// [`Error::Missing`].
pub async fn standing(db: &mut PgConnection, job: &JobId, approver: Option<&str>) -> Result<Standing> {
    let standing = sqlx::query_as(
        "SELECT coalesce(job_approvals_needed(j, c), 0) AS needed, job_approved(j, c) AS approved,
                job_digest(j, c) AS digest, j.requested_by, j.csr_der IS NOT NULL AS has_request,
                job_self_approval(j, c) AS self_approval, job_approver_conflict(j, c, $2) AS conflict
           FROM jobs j JOIN certificates c ON c.id = j.certificate_id WHERE j.id = $1",
    )
    .bind(job)
    .bind(approver)
    .fetch_optional(db)
    .await?;
    standing.ok_or_else(|| Error::Missing {
        kind: "job",
        id: job.to_string(),
    })
}

/// The notification that the request of a job waits for approval.
pub fn requested(certificate: &Locked, job: &JobId, needed: i32) -> News {
    let (id, name) = (&certificate.id, &certificate.common_name);
    News {
        kind: NoticeKind::ApprovalRequested,
        certificate: id.clone(),
        dedup: job.to_string(),
        subject: format!("{name} waits for approval"),
        message: format!(
            "The request of job {job} for certificate {id} ({name}) is signed when {needed} of those who may have approved \
             it. Look at it with: jobs approval {job}"
        ),
    }
}

/// Notes that the actor agrees to what has this digest. Who agreed to something else before agrees to this now.
///
/// # Errors
/// When the database cannot be asked.
pub async fn give(tx: &mut Tx, job: &JobId, digest: &str, reason: &str, overrides: bool) -> Result<()> {
    sqlx::query(
        "INSERT INTO approvals (job_id, approver, digest, reason, overrides, created_at)
         VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (job_id, approver) DO UPDATE
            SET digest = excluded.digest, reason = excluded.reason, overrides = excluded.overrides,
                created_at = excluded.created_at",
    )
    .bind(job)
    .bind(tx.principal())
    .bind(digest)
    .bind(reason)
    .bind(overrides)
    .bind(tx.now())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// A change that approvals depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Created the certificate.
    Created,
    /// Imported the certificate.
    Imported,
    /// Changed its names.
    Names,
    /// Changed its issuer.
    Issuer,
    /// Changed its renewal policy.
    Policy,
    /// Changed its profile.
    Profile,
    /// Changed which targets it has.
    Targets,
    /// Changed the settings of one of its targets.
    TargetSettings,
}

impl Change {
    fn action(self) -> &'static str {
        match self {
            Self::Created => "created the certificate",
            Self::Imported => "imported the certificate",
            Self::Names => "changed its names",
            Self::Issuer => "changed its issuer",
            Self::Policy => "changed its renewal policy",
            Self::Profile => "changed its profile",
            Self::Targets => "changed its targets",
            Self::TargetSettings => "changed the settings of a target",
        }
    }

    /// Whether the next issuance is one that a person requested. Settings of a target change nothing that is signed.
    fn requests(self) -> bool {
        self != Self::TargetSettings
    }
}

/// Records that the acting person changed certificates. Nothing when no person acts.
///
/// # Errors
/// When the database cannot be asked.
pub async fn participate(tx: &mut Tx, certificates: &[&CertificateId], changes: &[Change]) -> Result<()> {
    let Some(person) = tx.person() else { return Ok(()) };
    sqlx::query(
        "INSERT INTO participations (certificate_id, participant, action, requests, created_at)
         SELECT c, $2, change.action, change.requests, $5
           FROM unnest($1::text[]) AS c CROSS JOIN unnest($3::text[], $4::boolean[]) AS change (action, requests)",
    )
    .bind(certificates)
    .bind(person)
    .bind(changes.iter().map(|change| change.action()).collect::<Vec<_>>())
    .bind(changes.iter().map(|change| change.requests()).collect::<Vec<_>>())
    .bind(tx.now())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Carries over to its new name what a party changed since the last approved issuance of each certificate.
///
/// # Errors
/// When the database cannot be asked.
pub async fn renamed(tx: &mut Tx, from: &str, to: &str) -> Result<()> {
    sqlx::query(
        "INSERT INTO participations (certificate_id, participant, action, requests, created_at)
         SELECT p.certificate_id, $2, p.action, p.requests, p.created_at
           FROM participations p LEFT JOIN participations_settled s ON s.certificate_id = p.certificate_id
          WHERE p.participant = $1 AND p.certificate_id IS NOT NULL AND p.id > coalesce(s.until, 0)
          ORDER BY p.id",
    )
    .bind(from)
    .bind(to)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Records that the acting person submitted the request of a job, if a person acts, and who has seen a key of the agent that
/// it came from, also when that key is deleted later.
///
/// # Errors
/// When the database cannot be asked.
pub async fn submitted(tx: &mut Tx, job: &JobId) -> Result<()> {
    sqlx::query(
        "INSERT INTO participations (job_id, participant, action, requests, created_at)
         SELECT $1, s.created_by, 'created a key of its agent', false, $2
           FROM jobs j JOIN api_keys k ON k.agent_id = j.agent_id JOIN api_key_secrets s ON s.key_id = k.id
          WHERE j.id = $1 AND s.created_by IS NOT NULL
          UNION
         SELECT $1, a.registered_by, 'registered its agent', false, $2
           FROM jobs j JOIN agents a ON a.id = j.agent_id
          WHERE j.id = $1 AND a.registered_by IS NOT NULL",
    )
    .bind(job)
    .bind(tx.now())
    .execute(&mut **tx)
    .await?;
    // Earlier agents do so with the shared key: that alone makes no planned issuance a requested one.
    participate_in_job(tx, job, "submitted its certification request", false).await
}

/// Records that the acting person retried a job. Nothing when no person acts.
///
/// # Errors
/// When the database cannot be asked.
pub async fn retried(tx: &mut Tx, job: &JobId) -> Result<()> {
    participate_in_job(tx, job, "retried it", true).await
}

async fn participate_in_job(tx: &mut Tx, job: &JobId, action: &str, requests: bool) -> Result<()> {
    let Some(person) = tx.person() else { return Ok(()) };
    sqlx::query(
        "INSERT INTO participations (job_id, participant, action, requests, created_at) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(job)
    .bind(person)
    .bind(action)
    .bind(requests)
    .bind(tx.now())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// What a certificate's renewal policy and profile require.
#[derive(Clone, Copy, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Required {
    /// Approvals of a planned issuance.
    planned: i32,
    /// Approvals of an issuance that a person requested.
    requested: i32,
    /// Whether participants may approve.
    self_approval: bool,
}

impl Required {
    /// Whether less is required than before.
    pub fn is_weaker_than(&self, before: &Self) -> bool {
        self.planned < before.planned
            || self.requested < before.requested
            || (self.self_approval && !before.self_approval && before.requested > 0)
    }
}

/// What is required of a certificate.
///
/// # Errors
/// [`Error::Missing`].
pub async fn required(db: &mut PgConnection, id: &CertificateId) -> Result<Required> {
    let required = sqlx::query_as(
        "SELECT r.n[1] AS planned, r.n[2] AS requested, p.self_approval
           FROM certificates c JOIN renewal_policies p ON p.id = c.renewal_policy_id
          CROSS JOIN LATERAL (SELECT certificate_approvals(c.renewal_policy_id, c.profile_id) AS n) r
          WHERE c.id = $1",
    )
    .bind(id)
    .fetch_optional(db)
    .await?;
    required.ok_or_else(|| Error::Missing {
        kind: "certificate",
        id: id.to_string(),
    })
}

/// Keeps what was required before a certificate was moved to weaker rules, until something is issued for it.
///
/// # Errors
/// When the database cannot be asked.
pub async fn keep_required(tx: &mut Tx, id: &CertificateId, before: &Required) -> Result<()> {
    sqlx::query(
        "INSERT INTO participations (certificate_id, participant, action, requests, planned_approvals,
                                     requested_approvals, self_approval, created_at)
         VALUES ($1, $2, 'moved it to weaker rules', true, $3, $4, $5, $6)",
    )
    .bind(id)
    .bind(tx.principal())
    .bind(before.planned)
    .bind(before.requested)
    .bind(before.self_approval)
    .bind(tx.now())
    .execute(&mut **tx)
    .await?;
    Ok(())
}
