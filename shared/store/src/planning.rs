//! Keeps a certificate in line with its targets and its policy: its dates, when it is due, the jobs that are open for it.

use std::collections::{HashMap, HashSet};

use certctl_model::{
    explain::AgentStanding,
    id::{AgentId, CertificateId, JobId, RenewalPolicyId, TargetId, VersionId},
    job::JobKind,
    renewal::{RenewalRule, spread_of},
    time::Time,
};
use sqlx::{PgConnection, PgPool};

use crate::{
    Tx,
    certificates::{self, Locked},
    column,
    error::*,
    freezes::{self, Holds},
    jobs::{self, NewJob},
};

/// Certificates `c`, by their policies `p`, that may be renewed by themselves at the given parameter.
macro_rules! due {
    ($now:literal) => {
        concat!(
            "certificates c JOIN renewal_policies p ON p.id = c.renewal_policy_id
              AND c.renew_at <= ",
            $now,
            " AND c.revoked_at IS NULL AND c.archived_at IS NULL AND p.auto_renew
              AND NOT EXISTS (SELECT 1 FROM blocking_violations b WHERE b.certificate_id = c.id)"
        )
    };
}

/// What is held by freezes, as `h`: `$1` to `$4` are policies, agents, until when, and names. A certificate that would end
/// earlier than a day after a freeze is renewed in spite of it: freezes are to prevent outages, not to make one.
macro_rules! held {
    () => {
        "unnest($1::text[], $2::text[], $3::timestamptz[], $4::text[]) AS h (policy, agent, until, name)
          WHERE (h.policy = '' OR h.policy = p.id) AND (c.not_after IS NULL OR c.not_after > h.until + interval '1 day')"
    };
}

/// How certificate `c` stands with each of its agents: the job that is open, when it is asked again after a failure, the
/// freeze that holds it, from when what it holds may be renewed, and the end of the issuer when it ends no later than what
/// it holds: nothing would be won by another one then. All this is asked of each agent by itself: one that
/// never answers, or always fails, must not keep the others from renewing. The age is judged by the earliest instant of
/// `RenewalRule::due_at`: which one it is, `renew_at` says.
macro_rules! standing {
    () => {
        concat!(
            "(SELECT DISTINCT t.agent_id, o.id AS open_job, f.retry_at, held.until AS held_until, held.name AS held_by,
                 greatest(v.not_before + (v.not_after - v.not_before) * (p.renew_at_permille / 1000.0::float8)
                                         * (1 - p.spread_percent / 100.0::float8),
                          CASE WHEN p.renewal_window_days > 0
                               THEN v.not_after - make_interval(days => p.renewal_window_days) END) AS due_at,
                 (SELECT a.not_after FROM authorities a
                   WHERE a.issuer_id = c.issuer_id AND a.not_after <= v.not_after) AS issuer_ends
            FROM certificate_targets m
            JOIN targets t ON t.id = m.target_id
            LEFT JOIN LATERAL (SELECT not_before, not_after FROM certificate_versions
                                WHERE certificate_id = c.id AND agent_id = t.agent_id
                                ORDER BY id = m.chosen_version_id DESC NULLS LAST, version DESC LIMIT 1) v ON true
            LEFT JOIN LATERAL (SELECT j.id FROM jobs j
                                WHERE j.certificate_id = c.id AND j.agent_id = t.agent_id
                                  AND j.type IN ('Issuance', 'Renewal')
                                  AND j.status NOT IN ('Completed', 'Failed', 'Cancelled')
                                LIMIT 1) o ON true
            LEFT JOIN LATERAL (SELECT max(j.finished_at) + make_interval(secs => p.retry_interval_seconds) AS retry_at
                                 FROM jobs j
                                WHERE j.certificate_id = c.id AND j.agent_id = t.agent_id
                                  AND j.type IN ('Issuance', 'Renewal') AND j.status = 'Failed') f ON true
            LEFT JOIN LATERAL (SELECT h.until, h.name FROM ",
            held!(),
            " AND (h.agent = '' OR h.agent = t.agent_id) ORDER BY h.until DESC, h.name LIMIT 1) held ON true
           WHERE m.certificate_id = c.id AND t.enabled)"
        )
    };
}

/// The agents that want a new version of certificate `c` at `$5`: what they hold is due, or they hold nothing; it is not
/// being made already; the last try did not fail just now; and no freeze holds it.
macro_rules! wanting {
    () => {
        concat!(
            "(SELECT agent_id FROM ",
            standing!(),
            " s WHERE s.open_job IS NULL AND (s.retry_at IS NULL OR s.retry_at <= $5)
                AND (s.due_at IS NULL OR s.due_at <= $5 AND s.issuer_ends IS NULL) AND s.held_until IS NULL)"
        )
    };
}

/// How a certificate stands with its agents.
///
/// # Errors
/// When the database cannot be asked.
pub async fn standing(db: &mut PgConnection, certificate: &CertificateId, now: Time) -> Result<Vec<AgentStanding>> {
    let holds = freezes::holds(db, now).await?;
    Ok(sqlx::query_as(concat!(
        "SELECT s.agent_id, s.open_job, s.retry_at, s.due_at, s.held_until, s.held_by, s.issuer_ends
           FROM certificates c JOIN renewal_policies p ON p.id = c.renewal_policy_id
          CROSS JOIN LATERAL ",
        standing!(),
        " s WHERE c.id = $5 ORDER BY s.agent_id"
    ))
    .bind(&holds.policies)
    .bind(&holds.agents)
    .bind(&holds.until)
    .bind(&holds.names)
    .bind(certificate)
    .fetch_all(db)
    .await?)
}

/// A certificate that is due.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Due {
    /// Which.
    pub id: CertificateId,
    /// Since when; not in the future.
    pub renew_at: Time,
    /// Which of its agents want a new version; at least one.
    pub agents: Vec<AgentId>,
}

/// Certificates of which some agent wants a new version by itself, soonest first, `limit` of those `behind` one of them. What
/// is held is left out.
///
/// # Errors
/// When the database cannot be asked.
pub async fn due(pool: &PgPool, now: Time, holds: &Holds, behind: Option<&Due>, limit: i64) -> Result<Vec<Due>> {
    Ok(sqlx::query_as(concat!(
        "SELECT c.id, c.renew_at, w.agents FROM ",
        due!("$5"),
        " CROSS JOIN LATERAL (SELECT array_agg(agent_id ORDER BY agent_id) AS agents FROM ",
        wanting!(),
        " wanting) w
          WHERE (c.renew_at, c.id) > (coalesce($6, '-infinity'), coalesce($7, '')) AND w.agents IS NOT NULL
            AND NOT EXISTS (SELECT 1 FROM ",
        held!(),
        " AND h.agent = '')
          ORDER BY c.renew_at, c.id LIMIT $8"
    ))
    .bind(&holds.policies)
    .bind(&holds.agents)
    .bind(&holds.until)
    .bind(&holds.names)
    .bind(now)
    .bind(behind.map(|due| due.renew_at))
    .bind(behind.map(|due| &due.id))
    .bind(limit)
    // Planned anew each time: jobs were few when a pass began, and are many when it ends.
    .persistent(false)
    .fetch_all(pool)
    .await?)
}

/// Creates the jobs of those agents that want a new version of these certificates. One that is not due any more gets
/// none, nor does an agent for which one was created since. Returns the new ones, each with its certificate.
///
/// # Errors
/// When the database cannot be asked.
pub async fn request_due(tx: &mut Tx, wanted: &[Due]) -> Result<Vec<(CertificateId, JobId)>> {
    let locked = certificates::lock_all(tx, &column(wanted, |one| &one.id)).await?;
    let still: HashSet<CertificateId> =
        sqlx::query_scalar(concat!("SELECT c.id FROM ", due!("$1"), " WHERE c.id = ANY ($2)"))
            .bind(tx.now())
            .bind(column(wanted, |one| &one.id))
            .fetch_all(&mut **tx)
            .await?
            .into_iter()
            .collect();
    let agents: HashMap<&CertificateId, &[AgentId]> = wanted.iter().map(|one| (&one.id, &*one.agents)).collect();
    let jobs: Vec<NewJob> = locked
        .iter()
        .filter(|one| one.names_certifiable && still.contains(&one.id))
        .flat_map(|one| {
            agents[&one.id]
                .iter()
                .map(|agent| one.issuance(one.next_kind(), agent.clone()))
        })
        .collect();
    let new = jobs::insert_each(tx, &jobs).await?;
    Ok(new.into_iter().map(|(id, job)| (job.certificate.clone(), id)).collect())
}

/// Takes the dates of what is served, and plans the renewals by them: of the oldest version that was deployed last to a
/// target, whatever was issued since.
///
/// # Errors
/// When the database cannot be asked.
pub(crate) async fn take_dates(tx: &mut Tx, ids: &[CertificateId]) -> Result<()> {
    let plans = plans(tx, Planned::Certificates(ids)).await?;
    sqlx::query(
        "UPDATE certificates c
            SET not_before = n.not_before, not_after = coalesce(n.not_after, c.not_after), renew_at = n.renew_at
           FROM unnest($1::text[], $2::timestamptz[], $3::timestamptz[], $4::timestamptz[])
                AS n (id, not_before, not_after, renew_at)
          WHERE c.id = n.id
            AND (c.not_before, c.not_after, c.renew_at)
                IS DISTINCT FROM (n.not_before, coalesce(n.not_after, c.not_after), n.renew_at)",
    )
    .bind(column(&plans, |plan| &plan.id))
    .bind(column(&plans, |plan| plan.dates(None).map(|(from, _)| from)))
    .bind(column(&plans, |plan| plan.dates(None).map(|(_, to)| to)))
    .bind(column(&plans, |plan| plan.due(None)))
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Which certificates are planned anew.
#[derive(Clone, Copy, Debug)]
pub enum Planned<'a> {
    /// These.
    Certificates(&'a [CertificateId]),
    /// All under a policy.
    Policy(&'a RenewalPolicyId),
}

/// What the dates of a certificate follow from.
#[derive(sqlx::FromRow)]
pub(crate) struct Plan {
    pub(crate) id: CertificateId,
    not_before: Option<Time>,
    not_after: Option<Time>,
    /// The dates of what is served: of several versions the certificate ends with the first. A target serves what was
    /// deployed there; before the first deployment, what will be.
    served_from: Option<Time>,
    served_to: Option<Time>,
    /// The dates of what should be served: what was chosen for a target, or else the newest of its agent.
    wanted_from: Option<Time>,
    wanted_to: Option<Time>,
    auto_renew: bool,
    renew_at_permille: i32,
    renewal_window_days: i32,
    spread_percent: i32,
    /// Whether it has a target: without one no agent can make a key for the next version.
    placed: bool,
    /// Whether one of its agents still holds nothing.
    pub(crate) waiting: bool,
    /// When such an agent is asked again after a failure.
    again_at: Option<Time>,
    names_certifiable: bool,
}

impl Plan {
    /// From when to when the certificate counts as valid: where nothing is served, as its newest version does, which
    /// is `newest` or the one that it had before.
    pub(crate) fn dates(&self, newest: Option<(Time, Time)>) -> Option<(Time, Time)> {
        let served = self.served_from.zip(self.served_to);
        served.or(newest).or(self.not_before.zip(self.not_after))
    }

    /// From when its renewal is due.
    pub(crate) fn due(&self, newest: Option<(Time, Time)>) -> Option<Time> {
        let rule = RenewalRule {
            auto_renew: self.auto_renew,
            renew_at_permille: self.renew_at_permille,
            renewal_window_days: self.renewal_window_days,
            spread_percent: self.spread_percent,
        };
        let dates = [self.dates(newest), self.wanted_from.zip(self.wanted_to)];
        let due_at = |(from, to)| rule.due_at(from, to, spread_of(self.id.as_str()));
        let by_age = dates.into_iter().flatten().filter_map(due_at).min();
        let again = self.again_at.filter(|_| self.auto_renew && self.waiting);
        [by_age, again]
            .into_iter()
            .flatten()
            .min()
            .filter(|_| self.placed && self.names_certifiable)
    }
}

pub(crate) async fn plans(tx: &mut Tx, which: Planned<'_>) -> Result<Vec<Plan>> {
    let (certificates, policy) = match which {
        Planned::Certificates(ids) => (ids, None),
        Planned::Policy(id) => (&[][..], Some(id)),
    };
    Ok(sqlx::query_as(
        "SELECT c.id, c.not_before, c.not_after, p.auto_renew, p.renew_at_permille, p.renewal_window_days,
                p.spread_percent, served.not_before AS served_from, served.not_after AS served_to,
                served.wanted_from, served.wanted_to, served.placed, served.waiting, c.names_certifiable,
                c.failed_at + make_interval(secs => p.retry_interval_seconds) AS again_at
           FROM certificates c
           JOIN renewal_policies p ON p.id = c.renewal_policy_id
          CROSS JOIN LATERAL (
                SELECT count(*) > 0 AS placed, count(*) > count(v.not_after) AS waiting,
                       min(coalesce(d.not_after, v.not_after)) AS not_after,
                       (array_agg(coalesce(d.not_before, v.not_before)
                                  ORDER BY coalesce(d.not_after, v.not_after)))[1] AS not_before,
                       min(v.not_after) AS wanted_to, (array_agg(v.not_before ORDER BY v.not_after))[1] AS wanted_from
                  FROM certificate_targets m
                  JOIN targets t ON t.id = m.target_id
                  LEFT JOIN certificate_versions d ON d.id = m.deployed_version_id
                  LEFT JOIN LATERAL (SELECT not_before, not_after FROM certificate_versions
                                      WHERE certificate_id = c.id AND agent_id = t.agent_id
                                      ORDER BY id = m.chosen_version_id DESC NULLS LAST, version DESC LIMIT 1) v ON true
                 WHERE m.certificate_id = c.id AND t.enabled) served
          WHERE c.id = ANY ($1) OR c.renewal_policy_id = $2",
    )
    .bind(certificates)
    .bind(policy)
    .fetch_all(&mut **tx)
    .await?)
}

/// Computes from when renewals are due. To be called whenever policy or failures change.
///
/// # Errors
/// When the database cannot be asked.
pub async fn plan_renewal(tx: &mut Tx, which: Planned<'_>) -> Result<()> {
    let plans = plans(tx, which).await?;
    sqlx::query(
        "UPDATE certificates c SET renew_at = n.renew_at
           FROM unnest($1::text[], $2::timestamptz[]) AS n (id, renew_at)
          WHERE c.id = n.id AND c.renew_at IS DISTINCT FROM n.renew_at",
    )
    .bind(column(&plans, |plan| &plan.id))
    .bind(column(&plans, |plan| plan.due(None)))
    .execute(&mut **tx)
    .await?;
    Ok(())
}

#[derive(sqlx::FromRow)]
struct Place {
    target: TargetId,
    agent: AgentId,
    /// What its agent holds that has not ended.
    version: Option<VersionId>,
    /// Whether that was put there, or is about to be.
    there: bool,
}

/// Brings a certificate in line with its targets after they were changed: what is open for others is called off, the
/// dates are those of what is served now, every target gets what its agent holds, and agents that hold nothing are
/// asked to make a key. `again` is a target whose settings changed, to which it is deployed once more.
///
/// # Errors
/// When the database cannot be asked.
pub async fn retarget(tx: &mut Tx, certificate: &Locked, again: Option<&TargetId>) -> Result<()> {
    let id = &certificate.id;
    let elsewhere: Vec<JobId> = sqlx::query_scalar(
        "SELECT j.id FROM jobs j
          WHERE j.certificate_id = $1 AND j.status IN ('Pending', 'AwaitingCSR', 'AwaitingApproval')
            AND NOT j.request_given
            AND NOT EXISTS (SELECT 1 FROM certificate_targets m JOIN targets t ON t.id = m.target_id
                             WHERE m.certificate_id = $1 AND t.agent_id = j.agent_id AND t.enabled
                               AND (j.type <> 'Deployment' OR t.id = j.target_id))
          ORDER BY j.id",
    )
    .bind(id)
    .fetch_all(&mut **tx)
    .await?;
    for job in &elsewhere {
        jobs::call_off(tx, job, "the certificate is not put there any more").await?;
    }
    take_dates(tx, std::slice::from_ref(id)).await?;
    if certificate.must_be_live().is_err() {
        return Ok(());
    }
    let places: Vec<Place> = sqlx::query_as(
        "SELECT t.id AS target, t.agent_id AS agent, v.id AS version,
                coalesce(m.deployed_version_id = v.id, false)
                    OR EXISTS (SELECT 1 FROM jobs j
                                WHERE j.certificate_id = $1 AND j.type = 'Deployment' AND j.target_id = t.id
                                  AND j.version_id = v.id AND j.status IN ('Pending', 'Running')) AS there
           FROM certificate_targets m
           JOIN targets t ON t.id = m.target_id
           LEFT JOIN LATERAL (SELECT id, not_after FROM certificate_versions
                               WHERE certificate_id = $1 AND agent_id = t.agent_id
                               ORDER BY id = m.chosen_version_id DESC NULLS LAST, version DESC LIMIT 1) v
                  ON v.not_after > $2
          WHERE m.certificate_id = $1 AND t.enabled
          ORDER BY t.id",
    )
    .bind(id)
    .bind(tx.now())
    .fetch_all(&mut **tx)
    .await?;
    let (mut without, mut deployments) = (Vec::new(), Vec::new());
    for place in places {
        match place.version {
            None => without.push(place.agent),
            Some(version) if !place.there || again == Some(&place.target) => {
                deployments.push(NewJob {
                    kind: JobKind::Deployment,
                    certificate: id.clone(),
                    agent: Some(place.agent),
                    request: None,
                    target: Some(place.target),
                    version: Some(version),
                    max_attempts: certificate.max_retries,
                });
            }
            Some(_) => {}
        }
    }
    jobs::deploy_now(tx, &deployments).await?;
    without.dedup();
    certificates::request_from(tx, certificate, certificate.next_kind(), without).await?;
    Ok(())
}
