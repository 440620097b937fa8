//! Renewal policies.

use certctl_contract::{
    endpoint::NoContent,
    list::{Page, Sort},
    renewal_policies::*,
};
use certctl_model::{
    approval::{Approval, MOST_APPROVERS},
    id::RenewalPolicyId,
    window::Windows,
};
use certctl_store::planning::{self, Planned};
use sqlx::{FromRow, postgres::PgRow};

use super::{
    profiles::approval,
    teams::{commit_deleted, keep_default, release_archived},
};
use crate::{
    app::{Cx, Request, Routes},
    error::ApiError,
    listing::{self, Column, Listed, Where, check_name},
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on(list).on(create).on(get).on(update).on(delete)
}

/// Windows a policy may have at most.
const MOST_WINDOWS: usize = 32;
/// Warnings a policy may ask for at most.
const MOST_THRESHOLDS: usize = 32;

impl Listed for RenewalPolicy {
    type Filter = RenewalPolicyFilter;
    type Sort = RenewalPolicySort;

    const KIND: &'static str = "renewal policy";
    const COLUMNS: &'static str = "p.id, p.name, p.auto_renew, p.renew_at_permille, p.renewal_window_days,
        p.spread_percent, p.maintenance_windows, p.max_retries, p.retry_interval_seconds, p.alert_thresholds_days, p.certificate_profile_id, p.approval,
        p.approvers, p.self_approval, p.created_at, p.updated_at";
    const FROM: &'static str = "renewal_policies p";
    const ID: &'static str = "p.id";
    const DEFAULT: Sort<RenewalPolicySort> = Sort {
        key: RenewalPolicySort::CreatedAt,
        descending: true,
    };

    fn column(key: RenewalPolicySort) -> Column {
        match key {
            RenewalPolicySort::CreatedAt => Column::time("p.created_at"),
            RenewalPolicySort::Name => Column::text("p.name"),
        }
    }

    fn restrict(f: &RenewalPolicyFilter, sql: &mut Where<'_>) {
        sql.eq("p.auto_renew", &f.auto_renew);
    }

    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Self::from_row(row)
    }
}

fn check(policy: &RenewalPolicyChanges) -> Result<(), ApiError> {
    policy
        .name
        .as_deref()
        .map_or(Ok(()), |name| check_name("name", name, 255))?;
    for (field, value, least, most) in [
        ("renew_at_permille", policy.renew_at_permille, 1, 999),
        ("renewal_window_days", policy.renewal_window_days, 0, 3650),
        ("spread_percent", policy.spread_percent, 0, 100),
        ("max_retries", policy.max_retries, 1, 100),
        ("retry_interval_seconds", policy.retry_interval_seconds, 1, 2_592_000),
        ("approvers", policy.approvers, 1, MOST_APPROVERS),
    ] {
        if value.is_some_and(|value| !(least..=most).contains(&value)) {
            return Err(ApiError::invalid(field, format!("is a number from {least} to {most}")));
        }
    }
    let windows = policy.maintenance_windows.as_deref().unwrap_or_default();
    if windows.len() > MOST_WINDOWS {
        return Err(ApiError::invalid(
            "maintenance_windows",
            format!("has at most {MOST_WINDOWS} entries"),
        ));
    }
    Windows::read(windows).map_err(|why| ApiError::invalid("maintenance_windows", why))?;
    let days = policy.alert_thresholds_days.as_deref().unwrap_or_default();
    match days.len() <= MOST_THRESHOLDS && days.iter().all(|day| (0..=3650).contains(day)) {
        true => Ok(()),
        false => Err(ApiError::invalid(
            "alert_thresholds_days",
            format!("are at most {MOST_THRESHOLDS} numbers of days from 0 to 3650"),
        )),
    }
}

async fn list(cx: Cx, rq: Request<ListRenewalPolicies>) -> Result<Page<RenewalPolicy>, ApiError> {
    listing::list(&cx, rq.query).await
}

async fn get(cx: Cx, rq: Request<GetRenewalPolicy>) -> Result<RenewalPolicy, ApiError> {
    listing::fetch(&cx, rq.path.id.as_str()).await
}

async fn create(cx: Cx, rq: Request<CreateRenewalPolicy>) -> Result<RenewalPolicy, ApiError> {
    let new = rq.body;
    let given = RenewalPolicyChanges {
        name: Some(new.name),
        auto_renew: new.auto_renew,
        renew_at_permille: new.renew_at_permille,
        renewal_window_days: new.renewal_window_days,
        spread_percent: new.spread_percent,
        maintenance_windows: new.maintenance_windows,
        max_retries: new.max_retries,
        retry_interval_seconds: new.retry_interval_seconds,
        alert_thresholds_days: new.alert_thresholds_days,
        certificate_profile_id: new.certificate_profile_id,
        approval: new.approval,
        approvers: new.approvers,
        self_approval: new.self_approval,
    };
    check(&given)?;
    let approval = given.approval.as_deref().map(approval).transpose()?;
    let mut tx = cx.begin().await?;
    let now = tx.now();
    let id = new.id.unwrap_or_else(|| RenewalPolicyId::generate(now));
    sqlx::query(
        "INSERT INTO renewal_policies (id, name, auto_renew, renew_at_permille, renewal_window_days, max_retries,
                                       retry_interval_seconds, alert_thresholds_days, certificate_profile_id,
                                       approval, approvers, created_at, updated_at, spread_percent,
                                       maintenance_windows, self_approval)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $12, $13, $14, $15)",
    )
    .bind(&id)
    .bind(&given.name)
    .bind(given.auto_renew.unwrap_or(true))
    .bind(given.renew_at_permille.unwrap_or(667))
    .bind(given.renewal_window_days.unwrap_or(30))
    .bind(given.max_retries.unwrap_or(3))
    .bind(given.retry_interval_seconds.unwrap_or(3600))
    .bind(given.alert_thresholds_days.unwrap_or_else(|| vec![30, 14, 7, 0]))
    .bind(given.certificate_profile_id.and_then(|profile| profile.0))
    .bind(approval.unwrap_or(Approval::Never))
    .bind(given.approvers.unwrap_or(1))
    .bind(now)
    .bind(given.spread_percent.unwrap_or(0))
    .bind(given.maintenance_windows.unwrap_or_default())
    .bind(given.self_approval.unwrap_or(false))
    .execute(&mut *tx)
    .await?;
    let created = listing::get(&mut tx, now, id.as_str()).await?;
    listing::commit(tx, "create_renewal_policy", "renewal_policy", id.as_str()).await?;
    Ok(created)
}

async fn update(cx: Cx, rq: Request<UpdateRenewalPolicy>) -> Result<RenewalPolicy, ApiError> {
    let (id, change) = (rq.path.id, rq.body);
    check(&change)?;
    let approval = change.approval.as_deref().map(approval).transpose()?;
    let mut tx = cx.begin().await?;
    let now = tx.now();
    sqlx::query("SELECT 1 FROM renewal_policies WHERE id = $1 FOR UPDATE")
        .bind(&id)
        .execute(&mut *tx)
        .await?;
    let before: RenewalPolicy = listing::get(&mut tx, now, id.as_str()).await?;
    sqlx::query(
        "UPDATE renewal_policies
            SET name = coalesce($2, name), auto_renew = coalesce($3, auto_renew),
                renew_at_permille = coalesce($4, renew_at_permille),
                renewal_window_days = coalesce($5, renewal_window_days), max_retries = coalesce($6, max_retries),
                retry_interval_seconds = coalesce($7, retry_interval_seconds),
                alert_thresholds_days = coalesce($8, alert_thresholds_days),
                certificate_profile_id = CASE WHEN $9 THEN $10 ELSE certificate_profile_id END,
                approval = coalesce($11, approval), approvers = coalesce($12, approvers),
                updated_at = $13, spread_percent = coalesce($14, spread_percent),
                maintenance_windows = coalesce($15, maintenance_windows),
                self_approval = coalesce($16, self_approval)
          WHERE id = $1",
    )
    .bind(&id)
    .bind(&change.name)
    .bind(change.auto_renew)
    .bind(change.renew_at_permille)
    .bind(change.renewal_window_days)
    .bind(change.max_retries)
    .bind(change.retry_interval_seconds)
    .bind(&change.alert_thresholds_days)
    .bind(change.certificate_profile_id.is_some())
    .bind(change.certificate_profile_id.and_then(|profile| profile.0))
    .bind(approval)
    .bind(change.approvers)
    .bind(now)
    .bind(change.spread_percent)
    .bind(&change.maintenance_windows)
    .bind(change.self_approval)
    .execute(&mut *tx)
    .await?;
    let updated: RenewalPolicy = listing::get(&mut tx, now, id.as_str()).await?;
    let plan = |p: &RenewalPolicy| {
        (
            p.auto_renew,
            p.renew_at_permille,
            p.renewal_window_days,
            p.spread_percent,
            p.retry_interval_seconds,
        )
    };
    let replan = plan(&updated) != plan(&before);
    if replan {
        planning::plan_renewal(&mut tx, Planned::Policy(&id)).await?;
    }
    let id = id.as_str();
    listing::commit_change(tx, "update_renewal_policy", "renewal_policy", id, (&before, &updated)).await?;
    Ok(updated)
}

async fn delete(cx: Cx, rq: Request<DeleteRenewalPolicy>) -> Result<NoContent, ApiError> {
    let id = rq.path.id;
    keep_default("renewal policy", id.as_str(), "rp-default")?;
    let mut tx = cx.begin().await?;
    let archived = release_archived(
        &mut tx,
        "UPDATE certificates SET renewal_policy_id = 'rp-default', updated_at = $2 WHERE renewal_policy_id = $1 AND archived_at IS NOT NULL",
        id.as_str(),
    )
    .await?;
    let done = sqlx::query("DELETE FROM renewal_policies WHERE id = $1")
        .bind(&id)
        .execute(&mut *tx)
        .await;
    listing::deleted(done, "renewal policy", id.as_str())?;
    commit_deleted(tx, "delete_renewal_policy", "renewal_policy", id.as_str(), archived).await?;
    Ok(NoContent)
}
