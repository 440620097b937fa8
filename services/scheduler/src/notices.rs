//! Warns of certificates that near their end although they should have been replaced.

use std::{collections::HashMap, slice, sync::Arc, time::Duration};

use certctl_model::{
    id::{CertificateId, VersionId},
    notice::NoticeKind,
    time::Time,
};
use certctl_store::{
    Error,
    certificates::{self, Locked},
    outbox::{self, News},
};
use tracing::{info, warn};

use crate::Scheduler;

/// How many certificates one run warns of; a run that warned of something is followed by another.
const BATCH: i64 = 500;
const DAY: Duration = Duration::from_secs(86_400);

/// A certificate past a threshold of its policy, and the tightest one it is past.
#[derive(Debug, sqlx::FromRow)]
struct Warning {
    id: CertificateId,
    common_name: String,
    /// The newest version; none of a certificate that is tracked only.
    current_version_id: Option<VersionId>,
    /// What expires then: the oldest version that is still served, or the newest; of a certificate that is tracked only, the
    /// certificate and its date.
    expiring: String,
    not_after: Time,
    threshold_days: i32,
    /// What is known of its deployment.
    deployment: Option<String>,
}

/// Announces certificates that are past a threshold of their renewal policy: each version and threshold once, and of
/// several thresholds only the tightest. What counts is the oldest version that a target still has. A threshold before the renewal was due says nothing, since nothing is late.
/// Returns how many were announced.
///
/// # Errors
/// When the database cannot be asked.
pub async fn warn_of_ends(scheduler: Arc<Scheduler>) -> anyhow::Result<u64> {
    let warnings = past_thresholds(&scheduler).await?;
    match announce(&scheduler, &warnings).await {
        Err(error) if !error.is_transient() => warn!("{} ends are not told of together: {error}", warnings.len()),
        done => return Ok(done?),
    }
    // One that nobody can be told of must not keep the others.
    let mut announced = 0;
    for warning in &warnings {
        match announce(&scheduler, slice::from_ref(warning)).await {
            Ok(one) => announced += one,
            Err(error) if error.is_transient() => return Err(error.into()),
            Err(error) => {
                let id = &warning.id;
                warn!(certificate.id = %id, "nobody could be warned of the end of certificate {id}: {error}");
            }
        }
    }
    Ok(announced)
}

async fn past_thresholds(scheduler: &Scheduler) -> Result<Vec<Warning>, sqlx::Error> {
    // That the renewal was due follows from a threshold past it, but is said again where an index can find the few that
    // are late. The key is the one that the outbox makes of the kind, what makes the news the same, and the channel.
    sqlx::query_as(
        "SELECT c.id, c.common_name, c.current_version_id, e.expiring, c.not_after, t.threshold_days,
                CASE WHEN s.status <> 'Deployed' THEN format('Deployment status %s: %s.', s.status, s.reason) END
                    AS deployment
           FROM certificates c
           JOIN renewal_policies p ON p.id = c.renewal_policy_id
           LEFT JOIN deployment_states s ON s.certificate_id = c.id
           LEFT JOIN LATERAL (SELECT v.id FROM certificate_targets m
                                JOIN targets g ON g.id = m.target_id AND g.enabled
                                JOIN certificate_versions v ON v.id = m.deployed_version_id
                               WHERE m.certificate_id = c.id AND v.not_after = c.not_after
                               ORDER BY v.version LIMIT 1) served ON true
          CROSS JOIN LATERAL (SELECT coalesce(served.id, c.current_version_id,
                                              c.id || '@' || extract(epoch FROM c.not_after)::bigint) AS expiring) e
           JOIN LATERAL (SELECT min(d) AS threshold_days FROM unnest(p.alert_thresholds_days) d
                          WHERE c.not_after - make_interval(days => d) <= $1
                            AND c.not_after - make_interval(days => d) > coalesce(c.renew_at, c.not_before, '-infinity')) t
                ON t.threshold_days IS NOT NULL
          WHERE c.revoked_at IS NULL AND c.archived_at IS NULL AND c.not_after IS NOT NULL
            AND (c.renew_at < $1 OR c.renew_at IS NULL)
            AND coalesce(c.not_after, 'infinity') <= $1 + make_interval(days =>
                    (SELECT max(d) FROM renewal_policies, unnest(alert_thresholds_days) d))
            AND NOT EXISTS (SELECT 1 FROM notifications n
                             WHERE n.dedup_key = concat_ws(':', $2, e.expiring, t.threshold_days, 'Email'))
          ORDER BY c.not_after, c.id
          LIMIT $3",
    )
    .bind(scheduler.now())
    .bind(NoticeKind::ExpirationWarning)
    .bind(BATCH)
    .fetch_all(&scheduler.db)
    .await
}

/// Announces all of them in one unit of work, but for certificates that were renewed, revoked or archived since they were
/// found. Returns how many.
async fn announce(scheduler: &Scheduler, warnings: &[Warning]) -> Result<u64, Error> {
    if warnings.is_empty() {
        return Ok(0);
    }
    let mut tx = scheduler.begin_as_leader().await?;
    let ids: Vec<&CertificateId> = warnings.iter().map(|warning| &warning.id).collect();
    let locked = certificates::lock_all(&mut tx, &ids).await?;
    let locked: HashMap<&CertificateId, &Locked> = locked.iter().map(|one| (&one.id, one)).collect();
    let stands = |warning: &&Warning| {
        locked
            .get(&warning.id)
            .is_some_and(|one| one.must_be_live().is_ok() && one.current_version_id == warning.current_version_id)
    };
    let warnings: Vec<&Warning> = warnings.iter().filter(stands).collect();
    let now = scheduler.now();
    let news: Vec<News> = warnings.iter().map(|warning| news(warning, now)).collect();
    outbox::announce_all(&mut tx, &news).await?;
    for warning in &warnings {
        let event = tx
            .event("expiration_alert_sent", "certificate", &warning.id)
            .with("threshold_days", warning.threshold_days)
            .with("not_after", warning.not_after);
        tx.note(event);
    }
    if warnings.is_empty() {
        return Ok(0);
    }
    tx.commit().await?;
    for Warning { id, not_after, .. } in &warnings {
        info!(certificate.id = %id, "certificate {id} ends at {not_after}; its owner is warned");
    }
    Ok(warnings.len() as u64)
}

/// Its text ends with a marker that programs which read notifications look for.
fn news(warning: &Warning, now: Time) -> News {
    let Warning {
        id,
        common_name,
        expiring,
        not_after,
        threshold_days,
        deployment,
        ..
    } = warning;
    let deployment = deployment.as_ref().map_or(String::new(), |text| format!(" {text}"));
    let (subject, end) = match not_after.since(now).as_secs().div_ceil(DAY.as_secs()) {
        0 => (format!("{common_name} has expired"), "expired".to_owned()),
        1 => (format!("{common_name} expires within a day"), "expires".to_owned()),
        days => (format!("{common_name} expires in {days} days"), "expires".to_owned()),
    };
    News {
        kind: NoticeKind::ExpirationWarning,
        certificate: id.clone(),
        dedup: format!("{expiring}:{threshold_days}"),
        subject,
        message: format!(
            "Certificate {id} ({common_name}) {end} at {not_after}.{deployment} [threshold:{threshold_days}]"
        ),
    }
}
