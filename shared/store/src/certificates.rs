//! Managed certificates: asking for issuance, recording what came, noting what failed.

use certctl_model::{
    id::{AgentId, CertificateId, IssuerId, JobId, OwnerId, TargetId, TeamId, VersionId},
    job::{JobFacts, JobKind},
    key::KeyFacts,
    notice::NoticeKind,
    serial::Serial,
    time::Time,
};

use crate::{
    Tx,
    error::*,
    jobs::{self, NewJob},
    outbox::{self, News},
    planning::{self, Planned},
    wake::Channel,
};

/// What has to be known of a certificate before anything is done for it; the row is locked.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Locked {
    /// Its id.
    pub id: CertificateId,
    /// Its common name.
    pub common_name: String,
    /// Who signs it.
    pub issuer_id: IssuerId,
    /// Its newest version.
    pub current_version_id: Option<VersionId>,
    /// Whether it is revoked.
    pub revoked_at: Option<Time>,
    /// Whether it is put aside.
    pub archived_at: Option<Time>,
    /// How often its jobs are tried.
    pub max_retries: i32,
}

/// Locks a certificate.
///
/// # Errors
/// [`Error::Missing`].
pub async fn lock(tx: &mut Tx, id: &CertificateId) -> Result<Locked> {
    sqlx::query_as(
        "SELECT c.id, c.common_name, c.issuer_id, c.current_version_id, c.revoked_at, c.archived_at, p.max_retries
           FROM certificates c JOIN renewal_policies p ON p.id = c.renewal_policy_id
          WHERE c.id = $1 FOR UPDATE OF c",
    )
    .bind(id)
    .fetch_optional(&mut **tx)
    .await?
    .ok_or_else(|| Error::Missing {
        kind: "certificate",
        id: id.to_string(),
    })
}

impl Locked {
    /// What leads to its next version.
    pub fn next_kind(&self) -> JobKind {
        match self.current_version_id {
            Some(_) => JobKind::Renewal,
            None => JobKind::Issuance,
        }
    }

    /// Refuses what is revoked or archived.
    ///
    /// # Errors
    /// [`Error::Conflict`] saying which.
    pub fn must_be_live(&self) -> Result<()> {
        must_be_live(&self.id, self.revoked_at, self.archived_at)
    }
}

pub(crate) fn must_be_live(id: &CertificateId, revoked_at: Option<Time>, archived_at: Option<Time>) -> Result<()> {
    match (revoked_at, archived_at) {
        (_, Some(_)) => Err(Error::Conflict(format!("certificate {id} is archived"))),
        (Some(_), _) => Err(Error::Conflict(format!(
            "certificate {id} is revoked; request a new one"
        ))),
        _ => Ok(()),
    }
}

/// Creates the jobs that lead to a new version: one for each agent with an enabled target, which makes its own key.
/// Jobs that are open already are left alone. Returns the new ones.
///
/// # Errors
/// When the database cannot be asked.
pub async fn request_issuance(tx: &mut Tx, certificate: &Locked, kind: JobKind) -> Result<Vec<JobId>> {
    let agents: Vec<AgentId> = sqlx::query_scalar(
        "SELECT DISTINCT t.agent_id FROM certificate_targets m JOIN targets t ON t.id = m.target_id
          WHERE m.certificate_id = $1 AND t.enabled ORDER BY t.agent_id",
    )
    .bind(&certificate.id)
    .fetch_all(&mut **tx)
    .await?;
    request_from(tx, certificate, kind, agents).await
}

/// Renews a certificate now, or issues its first version: jobs for each agent with an enabled target. Returns them.
///
/// # Errors
/// [`Error::Missing`]; [`Error::Conflict`] when it is revoked, archived or being renewed, or nobody could make a key.
pub async fn renew(tx: &mut Tx, id: &CertificateId) -> Result<Vec<JobId>> {
    let certificate = lock(tx, id).await?;
    certificate.must_be_live()?;
    let jobs = request_issuance(tx, &certificate, certificate.next_kind()).await?;
    if jobs.is_empty() {
        let open: Vec<String> = sqlx::query_scalar(
            "SELECT id FROM jobs WHERE certificate_id = $1 AND type IN ('Issuance', 'Renewal')
                AND status NOT IN ('Completed', 'Failed', 'Cancelled') ORDER BY id",
        )
        .bind(id)
        .fetch_all(&mut **tx)
        .await?;
        return Err(Error::Conflict(match open.is_empty() {
            true => format!("certificate {id} has no enabled target whose agent could make a key; give it target_ids"),
            false => format!("certificate {id} is being renewed already by {}", open.join(", ")),
        }));
    }
    let event = tx
        .event("renewal_triggered", "certificate", id)
        .with("common_name", &certificate.common_name);
    tx.note(event);
    Ok(jobs)
}

/// Gives a certificate to another owner, another team, or both.
///
/// # Errors
/// [`Error::Missing`]; [`Error::Conflict`] when it is archived; [`Error::Reference`] when there is no such owner or team.
pub async fn reassign(tx: &mut Tx, id: &CertificateId, owner: Option<&OwnerId>, team: Option<&TeamId>) -> Result<()> {
    if lock(tx, id).await?.archived_at.is_some() {
        return Err(Error::Conflict(format!("certificate {id} is archived")));
    }
    sqlx::query(
        "UPDATE certificates SET owner_id = coalesce($2, owner_id), team_id = coalesce($3, team_id), updated_at = $4
          WHERE id = $1",
    )
    .bind(id)
    .bind(owner)
    .bind(team)
    .bind(tx.now())
    .execute(&mut **tx)
    .await?;
    let event = tx
        .event("certificate_updated", "certificate", id)
        .with("owner_id", owner)
        .with("team_id", team);
    tx.note(event);
    Ok(())
}

/// What [`request_issuance`] does, for these agents.
pub(crate) async fn request_from(
    tx: &mut Tx,
    certificate: &Locked,
    kind: JobKind,
    agents: Vec<AgentId>,
) -> Result<Vec<JobId>> {
    let mut created = Vec::new();
    for agent in agents {
        let max_attempts = certificate.max_retries;
        let job = NewJob {
            kind,
            certificate: certificate.id.clone(),
            agent,
            target: None,
            version: None,
            max_attempts,
        };
        created.extend(jobs::insert(tx, &job).await?);
    }
    Ok(created)
}

/// Creates deployments of what the agent of each target holds, unless it has ended: to one target, or to all. Returns the new jobs.
///
/// Of an older version that is `chosen` only to targets whose agent holds its key; it stays chosen there until another
/// version is sent.
///
/// # Errors
/// When the database cannot be asked.
pub async fn request_deployment(
    tx: &mut Tx,
    certificate: &Locked,
    only: Option<&TargetId>,
    chosen: Option<&VersionId>,
) -> Result<Vec<JobId>> {
    let mut rows: Vec<(TargetId, AgentId, VersionId)> = sqlx::query_as(
        "UPDATE certificate_targets m SET chosen_version_id = $4
           FROM targets t
           JOIN LATERAL (SELECT id, not_after FROM certificate_versions v
                          WHERE v.certificate_id = $1 AND v.agent_id = t.agent_id AND ($4::text IS NULL OR v.id = $4)
                          ORDER BY v.version DESC LIMIT 1) v ON true
          WHERE m.certificate_id = $1 AND t.id = m.target_id AND t.enabled AND v.not_after > $3
            AND ($2::text IS NULL OR t.id = $2)
         RETURNING t.id, t.agent_id, v.id",
    )
    .bind(&certificate.id)
    .bind(only)
    .bind(tx.now())
    .bind(chosen)
    .fetch_all(&mut **tx)
    .await?;
    rows.sort();
    planning::take_dates(tx, &certificate.id).await?;
    let mut created = Vec::new();
    for (target, agent, version) in rows {
        let job = NewJob {
            kind: JobKind::Deployment,
            certificate: certificate.id.clone(),
            agent,
            target: Some(target),
            version: Some(version),
            max_attempts: certificate.max_retries,
        };
        created.extend(jobs::insert(tx, &job).await?);
    }
    Ok(created)
}

/// What stands against deploying a version again: that it has ended or is revoked, or that nobody holds its key.
///
/// # Errors
/// [`Error::Conflict`] saying which.
pub async fn must_be_deployable(tx: &mut Tx, version: &VersionId) -> Result<()> {
    let row: Option<(Time, bool, bool)> = sqlx::query_as(
        "SELECT v.not_after, r.revoked_at IS NOT NULL, v.agent_id IS NOT NULL FROM certificate_versions v
           LEFT JOIN revocations r ON r.issuer_id = v.issuer_id AND r.serial_number = v.serial_number
                                  AND r.released_at IS NULL
          WHERE v.id = $1",
    )
    .bind(version)
    .fetch_optional(&mut **tx)
    .await?;
    let why = match row {
        None => return Err(missing_version(version)),
        Some((_, true, _)) => "is revoked".to_owned(),
        Some((end, ..)) if end <= tx.now() => format!("ended at {end}"),
        Some((_, _, false)) => "was imported; no agent holds its key".to_owned(),
        Some(_) => return Ok(()),
    };
    Err(Error::Conflict(format!("version {version} {why}")))
}

fn missing_version(id: &VersionId) -> Error {
    Error::Missing {
        kind: "version",
        id: id.to_string(),
    }
}

/// What an issuer returned, read from the certificate itself.
#[derive(Clone, Debug)]
pub struct NewVersion {
    /// By whom.
    pub issuer: IssuerId,
    /// Its serial number.
    pub serial: Serial,
    /// Begin of validity.
    pub not_before: Time,
    /// End of validity.
    pub not_after: Time,
    /// SHA-256 of the DER, lower-case hexadecimal.
    pub fingerprint: String,
    /// SHA-256 of the public key, lower-case hexadecimal.
    pub spki_sha256: String,
    /// The key's algorithm and size.
    pub key: KeyFacts,
    /// The certificate, PEM.
    pub cert_pem: String,
    /// The issuer's chain, PEM.
    pub chain_pem: String,
    /// The request, DER.
    pub csr_der: Vec<u8>,
}

/// Records a version for a job: the certificate's dates, when it is due next, deployments to the agent's targets, the
/// news. The caller completes the job in the same unit of work.
///
/// A certificate that was revoked while it was being signed stays revoked, and the version with it.
///
/// # Errors
/// [`Error::Taken`] when the job has a version already.
pub async fn record_version(tx: &mut Tx, job: &JobFacts, version: &NewVersion) -> Result<VersionId> {
    let certificate = lock(tx, &job.certificate).await?;
    let (id, now) = (VersionId::generate(tx.now()), tx.now());
    let number: i32 = sqlx::query_scalar(
        "INSERT INTO certificate_versions (id, certificate_id, job_id, issuer_id, agent_id, version, serial_number,
                                           not_before, not_after, fingerprint_sha256, spki_sha256, cert_pem, chain_pem,
                                           csr_der, key_algorithm, key_size, created_at)
         SELECT $1, $2, $3, $4, $5,
                1 + coalesce((SELECT max(version) FROM certificate_versions WHERE certificate_id = $2), 0),
                $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16
         RETURNING version",
    )
    .bind(&id)
    .bind(&job.certificate)
    .bind(&job.id)
    .bind(&version.issuer)
    .bind(&job.agent)
    .bind(&version.serial)
    .bind(version.not_before)
    .bind(version.not_after)
    .bind(&version.fingerprint)
    .bind(&version.spki_sha256)
    .bind(&version.cert_pem)
    .bind(&version.chain_pem)
    .bind(&version.csr_der)
    .bind(version.key.algorithm)
    .bind(i32::try_from(version.key.bits).unwrap_or(i32::MAX))
    .bind(now)
    .fetch_one(&mut **tx)
    .await?;
    sqlx::query("UPDATE jobs SET version_id = $2 WHERE id = $1")
        .bind(&job.id)
        .bind(&id)
        .execute(&mut **tx)
        .await?;
    // A failure of an agent that still holds nothing stays known; its next try is planned by it.
    sqlx::query(
        "UPDATE certificates c
            SET current_version_id = $2, not_before = $3, not_after = $4, updated_at = $5,
                last_renewal_at = CASE WHEN $6 = 'Renewal' THEN $5 ELSE c.last_renewal_at END,
                failed_at = CASE WHEN w.waiting THEN c.failed_at END,
                failure   = CASE WHEN w.waiting THEN c.failure END
           FROM (SELECT EXISTS (SELECT 1 FROM certificate_targets m JOIN targets t ON t.id = m.target_id
                                 WHERE m.certificate_id = $1 AND t.enabled
                                   AND NOT EXISTS (SELECT 1 FROM certificate_versions v
                                                    WHERE v.certificate_id = $1 AND v.agent_id = t.agent_id))
                        AS waiting) w
          WHERE c.id = $1",
    )
    .bind(&job.certificate)
    .bind(&id)
    .bind(version.not_before)
    .bind(version.not_after)
    .bind(now)
    .bind(job.kind)
    .execute(&mut **tx)
    .await?;
    // What is new goes before what was chosen.
    sqlx::query(
        "UPDATE certificate_targets m SET chosen_version_id = NULL FROM targets t
          WHERE m.certificate_id = $1 AND m.chosen_version_id IS NOT NULL AND t.id = m.target_id AND t.agent_id = $2",
    )
    .bind(&job.certificate)
    .bind(&job.agent)
    .execute(&mut **tx)
    .await?;
    planning::take_dates(tx, &job.certificate).await?;
    let event = tx
        .event("certificate_issued", "certificate", &job.certificate)
        .with("version", number)
        .with("job_id", &job.id)
        .with("serial", &version.serial)
        .with("not_after", version.not_after);
    tx.note(event);
    if certificate.revoked_at.is_some() {
        return revoked_meanwhile(tx, &certificate, id, version).await;
    }
    if certificate.archived_at.is_none() {
        let targets: Vec<TargetId> = sqlx::query_scalar(
            "SELECT t.id FROM certificate_targets m JOIN targets t ON t.id = m.target_id
              WHERE m.certificate_id = $1 AND t.agent_id = $2 AND t.enabled ORDER BY t.id",
        )
        .bind(&job.certificate)
        .bind(&job.agent)
        .fetch_all(&mut **tx)
        .await?;
        let agent = job
            .agent
            .clone()
            .ok_or_else(|| Error::Conflict(format!("job {} has no agent", job.id)))?;
        for target in targets {
            let deployment = NewJob {
                kind: JobKind::Deployment,
                certificate: job.certificate.clone(),
                agent: agent.clone(),
                target: Some(target),
                version: Some(id.clone()),
                max_attempts: certificate.max_retries,
            };
            jobs::insert(tx, &deployment).await?;
        }
    }
    if job.kind == JobKind::Renewal {
        let news = News {
            kind: NoticeKind::RenewalSuccess,
            certificate: job.certificate.clone(),
            dedup: id.to_string(),
            subject: format!("{} was renewed", certificate.common_name),
            message: format!(
                "Certificate {} ({}) was renewed: version {number}, serial {}, valid until {}.",
                job.certificate, certificate.common_name, version.serial, version.not_after
            ),
        };
        outbox::announce(tx, &news).await?;
    }
    Ok(id)
}

async fn revoked_meanwhile(
    tx: &mut Tx,
    certificate: &Locked,
    id: VersionId,
    version: &NewVersion,
) -> Result<VersionId> {
    sqlx::query(
        "INSERT INTO revocations (id, issuer_id, serial_number, certificate_id, reason, revoked_by, not_after,
                                  short_lived, revoked_at)
         SELECT 'rev-' || $1, $2, $3, $4, c.revocation_reason, 'system', $5,
                coalesce((SELECT l.short_lived FROM ledger l WHERE l.issuer_id = $2 AND l.serial_number = $3), false), $6
           FROM certificates c WHERE c.id = $4
         ON CONFLICT (issuer_id, serial_number) DO NOTHING",
    )
    .bind(&id)
    .bind(&version.issuer)
    .bind(&version.serial)
    .bind(&certificate.id)
    .bind(version.not_after)
    .bind(tx.now())
    .execute(&mut **tx)
    .await?;
    let event = tx
        .event("certificate_revoked", "certificate", &certificate.id)
        .with("serial", &version.serial);
    tx.note(event);
    tx.wake(Channel::Revocations);
    Ok(id)
}

/// Notes that issuance or renewal was given up, and announces it.
///
/// # Errors
/// When the database cannot be asked.
pub async fn note_failure(tx: &mut Tx, job: &JobFacts, reason: &str) -> Result<()> {
    let common_name: String = sqlx::query_scalar(
        "UPDATE certificates SET failed_at = $2, failure = $3, updated_at = $2 WHERE id = $1 RETURNING common_name",
    )
    .bind(&job.certificate)
    .bind(tx.now())
    .bind(reason)
    .fetch_one(&mut **tx)
    .await?;
    planning::plan_renewal(tx, Planned::Certificate(&job.certificate)).await?;
    let news = News {
        kind: NoticeKind::RenewalFailure,
        certificate: job.certificate.clone(),
        dedup: format!("{}:{}", job.id, tx.now()),
        subject: format!("{} of {common_name} failed", job.kind),
        message: format!(
            "{} {} of certificate {} ({common_name}) was given up: {reason}",
            job.kind, job.id, job.certificate
        ),
    };
    outbox::announce(tx, &news).await
}
