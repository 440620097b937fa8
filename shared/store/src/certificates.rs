//! Managed certificates: asking for issuance, recording what came, noting what failed.

use std::{
    collections::{BTreeMap, HashMap},
    slice,
};

use certctl_model::{
    audit::Actor,
    id::{AgentId, CertificateId, IssuerId, JobId, OwnerId, TargetId, TeamId, VersionId},
    job::{Job, JobFacts, JobKind, JobStatus, Running},
    key::KeyFacts,
    notice::NoticeKind,
    policy::Moment,
    serial::Serial,
    time::Time,
};

use crate::{
    Tx, column,
    error::*,
    jobs::{self, Attempt, Claimed, NewJob},
    outbox::{self, News},
    planning::{self, Planned},
    policies, validations,
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
    /// Whether all of its names can be certified here. Nothing is issued otherwise: a version with fewer names would take
    /// the place of one that has them.
    pub names_certifiable: bool,
}

/// Locks a certificate.
///
/// # Errors
/// [`Error::Missing`].
pub async fn lock(tx: &mut Tx, id: &CertificateId) -> Result<Locked> {
    let locked = lock_all(tx, &[id]).await?.pop();
    locked.ok_or_else(|| Error::Missing {
        kind: "certificate",
        id: id.to_string(),
    })
}

/// Locks those of these certificates that there are, in the order of their ids, so that nobody waits in a circle.
///
/// # Errors
/// When the database cannot be asked.
pub async fn lock_all(tx: &mut Tx, ids: &[&CertificateId]) -> Result<Vec<Locked>> {
    Ok(sqlx::query_as(
        "SELECT c.id, c.common_name, c.issuer_id, c.current_version_id, c.revoked_at, c.archived_at, p.max_retries,
                c.names_certifiable
           FROM certificates c JOIN renewal_policies p ON p.id = c.renewal_policy_id
          WHERE c.id = ANY ($1) ORDER BY c.id FOR UPDATE OF c",
    )
    .bind(ids)
    .fetch_all(&mut **tx)
    .await?)
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

    /// Refuses what has names that cannot be certified here.
    ///
    /// # Errors
    /// [`Error::Conflict`].
    pub fn ensure_certifiable(&self) -> Result<()> {
        match self.names_certifiable {
            true => Ok(()),
            false => Err(Error::Conflict(format!(
                "certificate {} has names that cannot be certified here; edit common_name and sans first",
                self.id
            ))),
        }
    }

    pub(crate) fn issuance(&self, kind: JobKind, agent: AgentId) -> NewJob {
        NewJob {
            kind,
            certificate: self.id.clone(),
            agent: Some(agent),
            request: None,
            target: None,
            version: None,
            max_attempts: self.max_retries,
        }
    }

    fn deployment(&self, agent: AgentId, target: TargetId, version: VersionId) -> NewJob {
        NewJob {
            kind: JobKind::Deployment,
            certificate: self.id.clone(),
            agent: Some(agent),
            request: None,
            target: Some(target),
            version: Some(version),
            max_attempts: self.max_retries,
        }
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

/// Creates the job that leads to a version for this certification request, in DER; none when one is open already.
///
/// # Errors
/// [`Error::Conflict`] when agents make the keys of the certificate.
pub async fn request_issuance_for(tx: &mut Tx, certificate: &Locked, request: Vec<u8>) -> Result<Vec<JobId>> {
    if has_targets(tx, &certificate.id).await? {
        return Err(Error::Conflict(format!(
            "certificate {} has enabled targets, so their agents make its keys; a certification request is accepted for a \
             certificate without targets",
            certificate.id
        )));
    }
    let job = NewJob {
        kind: certificate.next_kind(),
        certificate: certificate.id.clone(),
        agent: None,
        request: Some(request),
        target: None,
        version: None,
        max_attempts: certificate.max_retries,
    };
    jobs::insert(tx, &[job]).await
}

/// Whether a certificate has an enabled target, whose agent makes its keys.
///
/// # Errors
/// When the database cannot be asked.
pub async fn has_targets(tx: &mut Tx, id: &CertificateId) -> Result<bool> {
    Ok(sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM certificate_targets m JOIN targets t ON t.id = m.target_id
                         WHERE m.certificate_id = $1 AND t.enabled)",
    )
    .bind(id)
    .fetch_one(&mut **tx)
    .await?)
}

/// Renews a certificate now, or issues its first version: a job for each agent with an enabled target, or one for a
/// certification `request` in DER. Returns them.
///
/// # Errors
/// [`Error::Missing`]; [`Error::Conflict`] when it is revoked, archived or being renewed, nobody could make a key,
/// agents make its keys and there is a request, or a policy rule forbids it.
pub async fn renew(tx: &mut Tx, id: &CertificateId, request: Option<Vec<u8>>) -> Result<Vec<JobId>> {
    let certificate = lock(tx, id).await?;
    certificate.must_be_live()?;
    certificate.ensure_certifiable()?;
    policies::must_not_block(tx, id, Moment::Issuance).await?;
    let jobs = match request {
        Some(request) => request_issuance_for(tx, &certificate, request).await?,
        None => request_issuance(tx, &certificate, certificate.next_kind()).await?,
    };
    if jobs.is_empty() {
        let open: Vec<String> = sqlx::query_scalar(
            "SELECT id FROM jobs WHERE certificate_id = $1 AND type IN ('Issuance', 'Renewal')
                AND status NOT IN ('Completed', 'Failed', 'Cancelled') ORDER BY id",
        )
        .bind(id)
        .fetch_all(&mut **tx)
        .await?;
        return Err(Error::Conflict(match open.is_empty() {
            true => format!(
                "certificate {id} has no enabled target whose agent could make a key; give it target_ids, or send a \
                 certification request as csr_pem"
            ),
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
    let changes: serde_json::Value = sqlx::query_scalar(
        "UPDATE certificates n SET owner_id = coalesce($2, n.owner_id), team_id = coalesce($3, n.team_id), updated_at = $4
           FROM certificates o
          WHERE n.id = $1 AND o.id = n.id
         RETURNING (SELECT coalesce(jsonb_object_agg(f.name, jsonb_build_object('old', f.old, 'new', f.new)), '{}')
                      FROM (VALUES ('owner_id', o.owner_id, n.owner_id), ('team_id', o.team_id, n.team_id))
                           AS f (name, old, new)
                     WHERE f.old <> f.new)",
    )
    .bind(id)
    .bind(owner)
    .bind(team)
    .bind(tx.now())
    .fetch_one(&mut **tx)
    .await?;
    let event = tx
        .event("certificate_updated", "certificate", id)
        .with("owner_id", owner)
        .with("team_id", team)
        .with("changes", changes);
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
    if !certificate.names_certifiable {
        return Ok(vec![]);
    }
    let job = |agent| certificate.issuance(kind, agent);
    jobs::insert(tx, &agents.into_iter().map(job).collect::<Vec<_>>()).await
}

/// Creates deployments of what the agent of each target holds, unless it has ended: to one target, or to all. Returns the new jobs.
///
/// Of an older version that is `chosen` only to targets whose agent holds its key; it stays chosen there until another
/// version is sent.
///
/// # Errors
/// [`Error::Conflict`] when a policy rule forbids it.
pub async fn request_deployment(
    tx: &mut Tx,
    certificate: &Locked,
    only: Option<&TargetId>,
    chosen: Option<&VersionId>,
) -> Result<Vec<JobId>> {
    policies::must_not_block(tx, &certificate.id, Moment::Deployment).await?;
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
    planning::take_dates(tx, slice::from_ref(&certificate.id)).await?;
    let job = |(target, agent, version)| certificate.deployment(agent, target, version);
    jobs::deploy_now(tx, &rows.into_iter().map(job).collect::<Vec<_>>()).await
}

/// Creates the jobs of those agents of enabled targets, of one target or of all, that hold no valid version. Returns the
/// new ones.
///
/// # Errors
/// [`Error::Conflict`] when a policy rule forbids it.
pub async fn request_missing(tx: &mut Tx, certificate: &Locked, only: Option<&TargetId>) -> Result<Vec<JobId>> {
    policies::must_not_block(tx, &certificate.id, Moment::Issuance).await?;
    let agents: Vec<AgentId> = sqlx::query_scalar(
        "SELECT DISTINCT t.agent_id FROM certificate_targets m JOIN targets t ON t.id = m.target_id
          WHERE m.certificate_id = $1 AND t.enabled AND ($2::text IS NULL OR t.id = $2)
            AND NOT EXISTS (SELECT 1 FROM certificate_versions v
                             WHERE v.certificate_id = $1 AND v.agent_id = t.agent_id AND v.not_after > $3)
          ORDER BY t.agent_id",
    )
    .bind(&certificate.id)
    .bind(only)
    .bind(tx.now())
    .fetch_all(&mut **tx)
    .await?;
    request_from(tx, certificate, certificate.next_kind(), agents).await
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

/// Records what was issued for claimed jobs, and completes them: versions, the dates of their certificates, when those
/// are due next, deployments to the agents' targets, the news. Returns the jobs it did that for; the others are no
/// longer in the hands of their claimant.
///
/// A certificate that was revoked while it was being signed stays revoked, and the version with it.
///
/// # Errors
/// [`Error::Taken`] when one of the versions is there already; nothing is recorded then.
pub async fn record(tx: &mut Tx, issued: &[(Claimed, NewVersion)]) -> Result<Vec<JobId>> {
    let certificates = column(issued, |(claim, _)| &claim.facts.certificate);
    let locked = lock_all(tx, &certificates).await?;
    let locked: HashMap<CertificateId, Locked> = locked.into_iter().map(|one| (one.id.clone(), one)).collect();
    let held = jobs::hold::<Running>(tx, &column(issued, |(claim, _)| claim.clone())).await?;
    let versions: HashMap<&JobId, &NewVersion> = issued.iter().map(|(claim, v)| (&claim.facts.id, v)).collect();
    let mut news = Vec::with_capacity(held.len());
    for job in held {
        let (version, certificate) = (versions[&job.facts.id], &locked[&job.facts.certificate]);
        let id = VersionId::generate(tx.now());
        news.push(Recorded {
            id,
            job,
            certificate,
            version,
            number: 0,
        });
    }
    if news.is_empty() {
        return Ok(vec![]);
    }
    insert_versions(tx, &mut news).await?;
    take_versions(tx, &news).await?;
    for one in &news {
        let event = tx
            .event("certificate_issued", "certificate", &one.certificate.id)
            .with("version", one.number)
            .with("job_id", &one.job.facts.id)
            .with("serial", &one.version.serial)
            .with("not_after", one.version.not_after);
        tx.note(event);
        if one.certificate.revoked_at.is_some() {
            revoked_meanwhile(tx, one).await?;
        }
    }
    deploy(tx, &news).await?;
    let renewals = news
        .iter()
        .filter(|one| one.job.facts.kind == JobKind::Renewal && one.is_live());
    outbox::announce_all(tx, &renewals.map(Recorded::news).collect::<Vec<_>>()).await?;
    let by = tx.actor();
    let transitions = news.into_iter().map(|mut one| {
        one.job.facts.version = Some(one.id);
        one.job.complete(&by)
    });
    let completed = jobs::apply_all(tx, transitions.collect()).await?;
    Ok(completed.into_iter().map(|job| job.facts.id).collect())
}

/// A version on its way into the record.
struct Recorded<'a> {
    id: VersionId,
    job: Job<Running>,
    certificate: &'a Locked,
    version: &'a NewVersion,
    /// The how manieth of its certificate.
    number: i32,
}

impl Recorded<'_> {
    /// Neither revoked nor put aside: it is deployed and told of.
    fn is_live(&self) -> bool {
        self.certificate.must_be_live().is_ok()
    }

    fn news(&self) -> News {
        let (id, name, version) = (&self.certificate.id, &self.certificate.common_name, self.version);
        News {
            kind: NoticeKind::RenewalSuccess,
            certificate: id.clone(),
            dedup: self.id.to_string(),
            subject: format!("{name} was renewed"),
            message: format!(
                "Certificate {id} ({name}) was renewed: version {}, serial {}, valid until {}.",
                self.number, version.serial, version.not_after
            ),
        }
    }
}

async fn insert_versions(tx: &mut Tx, news: &mut [Recorded<'_>]) -> Result<()> {
    let numbers: Vec<(VersionId, i32)> = sqlx::query_as(
        "INSERT INTO certificate_versions (id, certificate_id, job_id, issuer_id, agent_id, version, serial_number,
                                           not_before, not_after, fingerprint_sha256, spki_sha256, cert_pem, chain_pem,
                                           csr_der, key_algorithm, key_size, created_at)
         SELECT n.id, n.certificate_id, n.job_id, n.issuer_id, n.agent_id,
                coalesce((SELECT max(version) FROM certificate_versions v WHERE v.certificate_id = n.certificate_id), 0)
                    + row_number() OVER (PARTITION BY n.certificate_id ORDER BY n.id),
                n.serial_number, n.not_before, n.not_after, n.fingerprint, n.spki, n.cert_pem, n.chain_pem, n.csr_der,
                n.key_algorithm, n.key_size, $16
           FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::timestamptz[],
                       $8::timestamptz[], $9::text[], $10::text[], $11::text[], $12::text[], $13::bytea[], $14::text[],
                       $15::integer[])
                AS n (id, certificate_id, job_id, issuer_id, agent_id, serial_number, not_before, not_after,
                      fingerprint, spki, cert_pem, chain_pem, csr_der, key_algorithm, key_size)
         RETURNING id, version",
    )
    .bind(column(news, |one| &one.id))
    .bind(column(news, |one| &one.certificate.id))
    .bind(column(news, |one| &one.job.facts.id))
    .bind(column(news, |one| &one.version.issuer))
    .bind(column(news, |one| one.job.facts.agent.as_ref()))
    .bind(column(news, |one| one.version.serial.as_str()))
    .bind(column(news, |one| one.version.not_before))
    .bind(column(news, |one| one.version.not_after))
    .bind(column(news, |one| one.version.fingerprint.as_str()))
    .bind(column(news, |one| one.version.spki_sha256.as_str()))
    .bind(column(news, |one| one.version.cert_pem.as_str()))
    .bind(column(news, |one| one.version.chain_pem.as_str()))
    .bind(column(news, |one| one.version.csr_der.as_slice()))
    .bind(column(news, |one| one.version.key.algorithm))
    .bind(column(news, |one| {
        i32::try_from(one.version.key.bits).unwrap_or(i32::MAX)
    }))
    .bind(tx.now())
    .fetch_all(&mut **tx)
    .await?;
    let numbers: HashMap<VersionId, i32> = numbers.into_iter().collect();
    for one in news {
        one.number = numbers[&one.id];
    }
    Ok(())
}

/// Brings the certificates in line with their new versions, each by one change: its row is in many indexes.
async fn take_versions(tx: &mut Tx, news: &[Recorded<'_>]) -> Result<()> {
    // What is new goes before what was chosen.
    sqlx::query(
        "UPDATE certificate_targets m SET chosen_version_id = NULL
           FROM targets t, unnest($1::text[], $2::text[]) AS n (certificate_id, agent_id)
          WHERE m.certificate_id = n.certificate_id AND m.chosen_version_id IS NOT NULL AND t.id = m.target_id
            AND t.agent_id = n.agent_id",
    )
    .bind(column(news, |one| &one.certificate.id))
    .bind(column(news, |one| one.job.facts.agent.as_ref()))
    .execute(&mut **tx)
    .await?;
    let mut of: BTreeMap<&CertificateId, Vec<&Recorded<'_>>> = BTreeMap::new();
    for one in news {
        of.entry(&one.certificate.id).or_default().push(one);
    }
    let ids: Vec<CertificateId> = of.keys().map(|id| (*id).clone()).collect();
    let plans = planning::plans(tx, Planned::Certificates(&ids)).await?;
    let newest = column(&plans, |plan| {
        let all = of[&plan.id].iter();
        *all.max_by_key(|one| one.number).expect("each has one")
    });
    let dates = |n: usize| Some((newest[n].version.not_before, newest[n].version.not_after));
    let dates: Vec<_> = (0..plans.len()).map(dates).collect();
    let planned: Vec<_> = plans.iter().zip(dates).collect();
    // A failure of an agent that still holds nothing stays known; its next try is planned by it. The jobs end in this
    // unit of work, and are not open any more.
    sqlx::query(
        "UPDATE certificates c
            SET current_version_id = n.version_id, not_before = n.not_before, not_after = n.not_after,
                renew_at = n.renew_at, updated_at = $9, open_issuances = c.open_issuances - n.done,
                last_renewal_at = CASE WHEN n.renewed THEN $9 ELSE c.last_renewal_at END,
                failed_at = CASE WHEN n.waiting THEN c.failed_at END,
                failure   = CASE WHEN n.waiting THEN c.failure END
           FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[], $5::timestamptz[], $6::integer[],
                       $7::boolean[], $8::boolean[])
                AS n (id, version_id, not_before, not_after, renew_at, done, renewed, waiting)
          WHERE c.id = n.id",
    )
    .bind(column(&plans, |plan| &plan.id))
    .bind(column(&newest, |one| &one.id))
    .bind(column(&planned, |(plan, newest)| {
        plan.dates(*newest).map(|(from, _)| from)
    }))
    .bind(column(&planned, |(plan, newest)| plan.dates(*newest).map(|(_, to)| to)))
    .bind(column(&planned, |(plan, newest)| plan.due(*newest)))
    .bind(column(&plans, |plan| of[&plan.id].len() as i32))
    .bind(column(&plans, |plan| {
        of[&plan.id].iter().any(|one| one.job.facts.kind == JobKind::Renewal)
    }))
    .bind(column(&plans, |plan| plan.waiting))
    .bind(tx.now())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Sends new versions to the targets of the agents that hold their keys.
async fn deploy(tx: &mut Tx, news: &[Recorded<'_>]) -> Result<()> {
    let live: Vec<_> = news.iter().filter(|one| one.is_live()).collect();
    let targets: Vec<(VersionId, TargetId)> = sqlx::query_as(
        "SELECT n.version_id, t.id
           FROM unnest($1::text[], $2::text[], $3::text[]) AS n (version_id, certificate_id, agent_id)
           JOIN certificate_targets m ON m.certificate_id = n.certificate_id
           JOIN targets t ON t.id = m.target_id AND t.agent_id = n.agent_id AND t.enabled
          ORDER BY n.version_id, t.id",
    )
    .bind(column(&live, |one| &one.id))
    .bind(column(&live, |one| &one.certificate.id))
    .bind(column(&live, |one| one.job.facts.agent.as_ref()))
    .fetch_all(&mut **tx)
    .await?;
    let live: HashMap<&VersionId, &Recorded<'_>> = live.into_iter().map(|one| (&one.id, one)).collect();
    let deployment = |(version, target): (VersionId, TargetId)| {
        let one = live[&version];
        let agent = one.job.facts.agent.clone()?;
        Some(one.certificate.deployment(agent, target, version))
    };
    let deployments: Vec<NewJob> = targets.into_iter().filter_map(deployment).collect();
    jobs::insert(tx, &deployments).await?;
    Ok(())
}

async fn revoked_meanwhile(tx: &mut Tx, one: &Recorded<'_>) -> Result<()> {
    let (certificate, version) = (&one.certificate.id, one.version);
    sqlx::query(
        "INSERT INTO revocations (id, issuer_id, serial_number, certificate_id, reason, revoked_by, not_after,
                                  short_lived, revoked_at)
         SELECT 'rev-' || $1, $2, $3, $4, c.revocation_reason, 'system', $5,
                coalesce((SELECT l.short_lived FROM ledger l WHERE l.issuer_id = $2 AND l.serial_number = $3), false), $6
           FROM certificates c WHERE c.id = $4
         ON CONFLICT (issuer_id, serial_number) DO NOTHING",
    )
    .bind(&one.id)
    .bind(&version.issuer)
    .bind(&version.serial)
    .bind(certificate)
    .bind(version.not_after)
    .bind(tx.now())
    .execute(&mut **tx)
    .await?;
    let event = tx
        .event("certificate_revoked", "certificate", certificate)
        .with("serial", &version.serial);
    tx.note(event);
    tx.wake(Channel::Revocations);
    Ok(())
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
    planning::plan_renewal(tx, Planned::Certificates(slice::from_ref(&job.certificate))).await?;
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

/// What is told when a renewal begins.
pub fn renewal_started(job: &JobFacts, names: &HashMap<&CertificateId, &str>) -> Option<News> {
    let name = names.get(&job.certificate).filter(|_| job.kind == JobKind::Renewal)?;
    Some(News {
        kind: NoticeKind::RenewalStarted,
        certificate: job.certificate.clone(),
        dedup: job.id.to_string(),
        subject: format!("The renewal of {name} has begun"),
        message: format!("Certificate {} ({name}) is renewed by job {}.", job.certificate, job.id),
    })
}

/// Notes that a version was put on its target, and tells whom it concerns.
///
/// # Errors
/// When the database cannot be asked.
pub async fn note_deployed(tx: &mut Tx, job: &JobFacts) -> Result<()> {
    let (name, target): (String, String) = sqlx::query_as(
        "UPDATE certificates SET last_deployment_at = $2 WHERE id = $1
         RETURNING common_name, coalesce((SELECT name FROM targets WHERE id = $3), '')",
    )
    .bind(&job.certificate)
    .bind(tx.now())
    .bind(&job.target)
    .fetch_one(&mut **tx)
    .await?;
    let event = tx
        .event("deployment_completed", "certificate", &job.certificate)
        .with("job_id", &job.id)
        .with("target_id", &job.target)
        .with("version_id", &job.version);
    tx.note(event);
    if let Some(target) = &job.target {
        validations::deployed(tx, target, &job.certificate).await?;
    }
    let subject = format!("{name} is deployed to {target}");
    let news = News {
        kind: NoticeKind::DeploymentSuccess,
        certificate: job.certificate.clone(),
        dedup: format!("{}:{}", job.id, tx.now()),
        message: format!("{subject} (certificate {}, job {}).", job.certificate, job.id),
        subject,
    };
    outbox::announce(tx, &news).await
}

/// Records that an attempt to deploy failed, and when the next one is due. Announces the first failed attempt, and the one
/// after which they are made at a low rate. Returns false for a repeated report of an attempt that is recorded already.
///
/// # Errors
/// [`Error::WrongJobState`] when the job is neither pending nor being done.
pub async fn note_not_deployed(tx: &mut Tx, by: &Actor, job: &JobFacts, is: JobStatus, reason: &str) -> Result<bool> {
    let Some(Attempt { number, most, next }) = jobs::attempt_failed(tx, by, job.clone(), is, reason).await? else {
        return Ok(false);
    };
    let (name, target): (String, String) = sqlx::query_as(
        "SELECT c.common_name, coalesce((SELECT name FROM targets WHERE id = $2), '') FROM certificates c WHERE c.id = $1",
    )
    .bind(&job.certificate)
    .bind(&job.target)
    .fetch_one(&mut **tx)
    .await?;
    let event = tx
        .event("deployment_failed", "certificate", &job.certificate)
        .with("job_id", &job.id)
        .with("target_id", &job.target)
        .with("attempt", number)
        .with("max_attempts", most)
        .with("next_attempt_at", next)
        .with("reason", reason);
    tx.note(event);
    if number > 1 && number < most {
        return Ok(true);
    }
    let news = News {
        kind: NoticeKind::DeploymentFailure,
        certificate: job.certificate.clone(),
        // Attempts at the low rate are no news.
        dedup: format!("{}:{}", job.id, if number < most { "first" } else { "last" }),
        subject: format!("Deployment of {name} to {target} failed"),
        message: format!(
            "Deployment of {name} to {target} failed (certificate {}, job {}, attempt {number} of {most}; the next one is \
             due at {next}): {reason}",
            job.certificate, job.id
        ),
    };
    outbox::announce(tx, &news).await?;
    Ok(true)
}
