//! Validations: when one looks again whether a certificate is served where clients connect, and what was seen there.

use std::{collections::HashMap, time::Duration};

use certctl_model::{
    id::{AgentId, CertificateId, EndpointId, JobId, TargetId, VersionId},
    job::{JobFacts, JobKind},
    notice::NoticeKind,
    time::Time,
    validation::EndpointOutcome,
};
use serde_json::Value;
use sqlx::PgPool;

use crate::{
    Tx,
    certificates::{self, Locked},
    column,
    error::*,
    jobs::{self, NewJob},
    outbox::{self, News},
};

/// Creates the jobs of mappings whose turn has come, says when it comes again, and commits. Returns how many mappings had
/// one.
///
/// # Errors
/// When the database cannot be asked.
pub async fn plan(mut tx: Tx, every: Duration, limit: i64) -> Result<usize> {
    let now = tx.now();
    let due: Vec<(CertificateId, TargetId)> = sqlx::query_as(
        "SELECT certificate_id, target_id FROM certificate_targets WHERE validate_at <= $1
          ORDER BY validate_at, certificate_id, target_id LIMIT $2",
    )
    .bind(now)
    .bind(limit)
    .fetch_all(&mut *tx)
    .await?;
    if due.is_empty() {
        return Ok(0);
    }
    // Everyone takes certificates first, so that nobody waits in a circle.
    let certificates = certificates::lock_all(&mut tx, &column(&due, |(certificate, _)| certificate)).await?;
    let tries: HashMap<&CertificateId, i32> = certificates.iter().map(|one| (&one.id, one.max_retries)).collect();
    let looked_at: Vec<(CertificateId, TargetId, AgentId, bool)> = sqlx::query_as(
        "UPDATE certificate_targets m
            SET validate_at = CASE WHEN t.enabled AND t.config->'endpoints' IS NOT NULL AND c.revoked_at IS NULL
                                        AND c.archived_at IS NULL THEN $2::timestamptz END
           FROM unnest($3::text[], $4::text[]) AS due (certificate_id, target_id)
           JOIN targets t ON t.id = due.target_id
           JOIN certificates c ON c.id = due.certificate_id
          WHERE m.certificate_id = due.certificate_id AND m.target_id = due.target_id AND m.validate_at <= $1
         RETURNING m.certificate_id, m.target_id, t.agent_id, m.validate_at IS NOT NULL",
    )
    .bind(now)
    .bind(now + every)
    .bind(column(&due, |(certificate, _)| certificate))
    .bind(column(&due, |(_, target)| target))
    .fetch_all(&mut *tx)
    .await?;
    let looked_at = looked_at.iter().filter(|(.., there)| *there);
    let jobs: Vec<NewJob> = looked_at
        .map(|(certificate, target, agent, _)| job(certificate, target, agent, tries[certificate]))
        .collect();
    jobs::insert(&mut tx, &jobs).await?;
    tx.commit_outcomes().await?;
    Ok(due.len())
}

/// Creates jobs that look now, at one target or at all that have endpoints. Returns the new ones.
///
/// # Errors
/// When the database cannot be asked.
pub async fn request(tx: &mut Tx, certificate: &Locked, only: Option<&TargetId>) -> Result<Vec<JobId>> {
    let places: Vec<(TargetId, AgentId)> = sqlx::query_as(
        "SELECT t.id, t.agent_id FROM certificate_targets m JOIN targets t ON t.id = m.target_id
          WHERE m.certificate_id = $1 AND t.enabled AND t.config->'endpoints' IS NOT NULL
            AND ($2::text IS NULL OR t.id = $2)
          ORDER BY t.id",
    )
    .bind(&certificate.id)
    .bind(only)
    .fetch_all(&mut **tx)
    .await?;
    let jobs: Vec<NewJob> = places
        .iter()
        .map(|(target, agent)| job(&certificate.id, target, agent, certificate.max_retries))
        .collect();
    jobs::insert(tx, &jobs).await
}

/// It looks a few times before something is called wrong: what was just reloaded may take a moment.
fn job(certificate: &CertificateId, target: &TargetId, agent: &AgentId, tries: i32) -> NewJob {
    NewJob {
        kind: JobKind::Validation,
        certificate: certificate.clone(),
        agent: Some(agent.clone()),
        request: None,
        target: Some(target.clone()),
        version: None,
        max_attempts: tries,
    }
}

/// Has it looked at once, because the target changed.
///
/// # Errors
/// When the database cannot be asked.
pub async fn look_soon(tx: &mut Tx, target: &TargetId) -> Result<()> {
    sqlx::query(
        "UPDATE certificate_targets SET validate_at = $2 WHERE target_id = $1 AND deployed_version_id IS NOT NULL",
    )
    .bind(target)
    .bind(tx.now())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Has it looked at once after a deployment to the target. What was seen before at its addresses counts no longer, of other
/// certificates that should be served there neither.
///
/// # Errors
/// When the database cannot be asked.
pub async fn deployed(tx: &mut Tx, target: &TargetId, certificate: &CertificateId) -> Result<()> {
    // In one order, so that two deployments do not wait for each other.
    let at: Vec<(CertificateId, TargetId)> = sqlx::query_as(
        "WITH seen AS MATERIALIZED (
            SELECT e.id FROM endpoints e
             WHERE e.address = ANY (ARRAY(SELECT own.address FROM endpoints own WHERE own.target_id = $1))
                OR e.endpoint = ANY (ARRAY(SELECT jsonb_array_elements_text(t.config->'endpoints') FROM targets t
                                            WHERE t.id = $1 AND jsonb_typeof(t.config->'endpoints') = 'array'))
             ORDER BY e.id FOR UPDATE)
         UPDATE endpoints e SET outdated = true FROM seen WHERE e.id = seen.id
         RETURNING e.certificate_id, e.target_id",
    )
    .bind(target)
    .fetch_all(&mut **tx)
    .await?;
    sqlx::query(
        "UPDATE certificate_targets m SET validate_at = $5
          WHERE m.certificate_id = $1 AND m.target_id = $2
             OR (m.certificate_id, m.target_id) IN (SELECT * FROM unnest($3::text[], $4::text[]))",
    )
    .bind(certificate)
    .bind(target)
    .bind(column(&at, |(certificate, _)| certificate))
    .bind(column(&at, |(_, target)| target))
    .bind(tx.now())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Removes up to `limit` validations that ended before an instant. Returns how many.
///
/// # Errors
/// When the database cannot be asked.
pub async fn forget(pool: &PgPool, before: Time, limit: i64) -> Result<u64> {
    let gone: i64 = sqlx::query_scalar("SELECT forget_validations($1, $2)")
        .bind(before)
        .bind(limit)
        .fetch_one(pool)
        .await?;
    Ok(gone as u64)
}

/// What a validation compares with.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Expected {
    /// The type of the target, as written.
    pub target_type: String,
    /// Its settings.
    pub target_config: Value,
    /// The version that was deployed there last; none when nothing was.
    pub version_id: Option<VersionId>,
    /// Its certificate, PEM.
    pub cert_pem: Option<String>,
    /// The chain that came with it, PEM.
    pub chain_pem: Option<String>,
    /// Whether another is being deployed: what is served may be either.
    pub under_way: bool,
}

/// What a job compares with; none when its target is gone.
///
/// # Errors
/// When the database cannot be asked.
pub async fn expected(pool: &PgPool, job: &JobFacts) -> Result<Option<Expected>> {
    Ok(sqlx::query_as(
        "SELECT t.type AS target_type, t.config AS target_config, v.id AS version_id, v.cert_pem, v.chain_pem,
                EXISTS (SELECT 1 FROM jobs d
                         WHERE d.type = 'Deployment' AND d.certificate_id = $1 AND d.target_id = t.id
                           AND d.status = 'Running') AS under_way
           FROM targets t
           LEFT JOIN certificate_targets m ON m.certificate_id = $1 AND m.target_id = t.id
           LEFT JOIN certificate_versions v ON v.id = m.deployed_version_id
          WHERE t.id = $2",
    )
    .bind(&job.certificate)
    .bind(&job.target)
    .fetch_optional(pool)
    .await?)
}

/// What was seen at one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The endpoint as written in the target.
    pub endpoint: String,
    /// An address it stands for; the endpoint itself when it stands for none.
    pub address: String,
    /// What was seen.
    pub outcome: EndpointOutcome,
    /// What is wrong.
    pub detail: String,
    /// Of the certificate that is served.
    pub fingerprint: Option<String>,
}

/// Keeps what was seen, forgets addresses that are gone, and tells of what changed. The certificate has to be locked. What was
/// compared with another version than the one that is deployed by now is not kept: it is looked at anew.
///
/// # Errors
/// When the database cannot be asked.
pub async fn record(tx: &mut Tx, job: &JobFacts, version: Option<&VersionId>, seen: &[Seen]) -> Result<()> {
    let Some(target) = &job.target else {
        return Ok(());
    };
    let current: Option<bool> = sqlx::query_scalar(
        "SELECT deployed_version_id IS NOT DISTINCT FROM $3 FROM certificate_targets
          WHERE certificate_id = $1 AND target_id = $2",
    )
    .bind(&job.certificate)
    .bind(target)
    .bind(version)
    .fetch_optional(&mut **tx)
    .await?;
    if current != Some(true) {
        sqlx::query("UPDATE certificate_targets SET validate_at = $3 WHERE certificate_id = $1 AND target_id = $2")
            .bind(&job.certificate)
            .bind(target)
            .bind(tx.now())
            .execute(&mut **tx)
            .await?;
        return Ok(());
    }
    let now = tx.now();
    let before: Vec<(String, String, EndpointOutcome)> =
        sqlx::query_as("SELECT endpoint, address, outcome FROM endpoints WHERE certificate_id = $1 AND target_id = $2")
            .bind(&job.certificate)
            .bind(target)
            .fetch_all(&mut **tx)
            .await?;
    let before: HashMap<(&str, &str), EndpointOutcome> = before
        .iter()
        .map(|(endpoint, address, outcome)| ((endpoint.as_str(), address.as_str()), *outcome))
        .collect();
    sqlx::query(
        "DELETE FROM endpoints e
          WHERE e.certificate_id = $1 AND e.target_id = $2
            AND NOT EXISTS (SELECT 1 FROM unnest($3::text[], $4::text[]) AS n (endpoint, address)
                             WHERE n.endpoint = e.endpoint AND n.address = e.address)",
    )
    .bind(&job.certificate)
    .bind(target)
    .bind(column(seen, |one| one.endpoint.as_str()))
    .bind(column(seen, |one| one.address.as_str()))
    .execute(&mut **tx)
    .await?;
    let changed: Vec<(String, String)> = sqlx::query_as(
        "INSERT INTO endpoints AS e (id, certificate_id, target_id, endpoint, address, outcome, detail,
                                     fingerprint_sha256, since, checked_at)
         SELECT n.id, $1, $2, n.endpoint, n.address, n.outcome, n.detail, n.fingerprint, $9, $9
           FROM unnest($3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[])
                AS n (id, endpoint, address, outcome, detail, fingerprint)
         ON CONFLICT (certificate_id, target_id, endpoint, address) DO UPDATE
            SET outcome = excluded.outcome, detail = excluded.detail, checked_at = excluded.checked_at,
                outdated = false, fingerprint_sha256 = excluded.fingerprint_sha256,
                since = CASE WHEN e.outcome = excluded.outcome
                                  AND e.fingerprint_sha256 IS NOT DISTINCT FROM excluded.fingerprint_sha256
                             THEN e.since ELSE excluded.since END
         RETURNING endpoint, address, since = $9",
    )
    .bind(&job.certificate)
    .bind(target)
    .bind(column(seen, |_| EndpointId::generate(now)))
    .bind(column(seen, |one| one.endpoint.as_str()))
    .bind(column(seen, |one| one.address.as_str()))
    .bind(column(seen, |one| one.outcome))
    .bind(column(seen, |one| one.detail.as_str()))
    .bind(column(seen, |one| one.fingerprint.as_deref()))
    .bind(now)
    .fetch_all(&mut **tx)
    .await?
    .into_iter()
    .filter_map(|(endpoint, address, changed): (String, String, bool)| changed.then_some((endpoint, address)))
    .collect();
    look_again(tx, job, target).await?;
    for one in seen {
        if !changed.contains(&(one.endpoint.clone(), one.address.clone())) {
            continue;
        }
        let was_wrong = before
            .get(&(one.endpoint.as_str(), one.address.as_str()))
            .is_some_and(|outcome| *outcome != EndpointOutcome::Served);
        match one.outcome {
            EndpointOutcome::Served if was_wrong => note(tx, job, target, "endpoint_restored", one),
            EndpointOutcome::Served | EndpointOutcome::Unchecked => {}
            EndpointOutcome::Differs | EndpointOutcome::Unreachable => {
                note(tx, job, target, "endpoint_drifted", one);
                warn_of(tx, job, target, one, now).await?;
            }
        }
    }
    Ok(())
}

/// While something is wrong it is looked at again after the retry interval of the renewal policy, then after as long as it
/// has been wrong, until the ordinary turn comes sooner.
async fn look_again(tx: &mut Tx, job: &JobFacts, target: &TargetId) -> Result<()> {
    sqlx::query(
        "UPDATE certificate_targets m
            SET validate_at = least(m.validate_at,
                                    $3 + greatest(make_interval(secs => p.retry_interval_seconds), $3 - wrong.since))
           FROM certificates c
           JOIN renewal_policies p ON p.id = c.renewal_policy_id
          CROSS JOIN (SELECT min(since) AS since FROM endpoints
                       WHERE certificate_id = $1 AND target_id = $2 AND outcome <> 'Served') wrong
          WHERE m.certificate_id = $1 AND m.target_id = $2 AND c.id = $1 AND wrong.since IS NOT NULL",
    )
    .bind(&job.certificate)
    .bind(target)
    .bind(tx.now())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

fn note(tx: &mut Tx, job: &JobFacts, target: &TargetId, action: &'static str, one: &Seen) {
    let event = tx
        .event(action, "certificate", &job.certificate)
        .with("target_id", target)
        .with("endpoint", &one.endpoint)
        .with("address", &one.address)
        .with("outcome", one.outcome)
        .with("detail", &one.detail);
    tx.note(event);
}

async fn warn_of(tx: &mut Tx, job: &JobFacts, target: &TargetId, one: &Seen, since: Time) -> Result<()> {
    let Seen {
        endpoint,
        address,
        detail,
        ..
    } = one;
    let news = News {
        kind: NoticeKind::Drift,
        certificate: job.certificate.clone(),
        dedup: format!("{}:{target}:{endpoint}:{address}:{since}", job.certificate),
        subject: format!("{address} does not serve certificate {} as it should", job.certificate),
        message: format!(
            "At {address}, which is behind {endpoint} of target {target}, certificate {} is not served as it should be: \
             {detail} (job {}).",
            job.certificate, job.id
        ),
    };
    outbox::announce(tx, &news).await
}
