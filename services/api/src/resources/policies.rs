//! Policy rules and their violations.

use certctl_contract::{
    endpoint::NoContent,
    list::{Page, Sort},
    policies::*,
};
use certctl_model::{
    id::{AgentGroupId, FreezeId, PolicyId, RenewalPolicyId},
    policy::{PolicyType, Rule, Severity},
};
use certctl_store::{
    Tx,
    policies::{self, Broken, Found, InForce},
    wake::Channel,
};
use serde_json::Value;
use sqlx::{FromRow, postgres::PgRow};

use crate::{
    app::{Cx, Request, Routes},
    error::ApiError,
    listing::{self, Column, Listed, Where, check_name},
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on(list)
        .on(create)
        .on(get)
        .on(update)
        .on(delete)
        .on(preview)
        .on(violations_of_one)
        .on(violations)
}

impl Listed for PolicyRule {
    type Filter = PolicyFilter;
    type Sort = PolicySort;

    const KIND: &'static str = "policy rule";
    const COLUMNS: &'static str = "p.id, p.name, p.type, p.severity, p.config, p.enabled, p.created_at, p.updated_at,
        ARRAY(SELECT s.agent_group_id FROM policy_rule_scopes s WHERE s.rule_id = p.id AND s.agent_group_id IS NOT NULL
               ORDER BY 1) AS agent_group_ids,
        ARRAY(SELECT s.renewal_policy_id FROM policy_rule_scopes s
               WHERE s.rule_id = p.id AND s.renewal_policy_id IS NOT NULL ORDER BY 1) AS renewal_policy_ids";
    const FROM: &'static str = "policy_rules p";
    const ID: &'static str = "p.id";
    const DEFAULT: Sort<PolicySort> = Sort {
        key: PolicySort::CreatedAt,
        descending: true,
    };

    fn column(key: PolicySort) -> Column {
        match key {
            PolicySort::CreatedAt => Column::time("p.created_at"),
            PolicySort::Name => Column::text("p.name"),
        }
    }

    fn restrict(f: &PolicyFilter, sql: &mut Where<'_>) {
        sql.eq("p.type", &f.r#type);
        sql.eq("p.severity", &f.severity);
        sql.eq("p.enabled", &f.enabled);
        sql.eq("p.name", &f.name);
    }

    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Self::from_row(row)
    }
}

impl Listed for PolicyViolation {
    type Filter = ViolationFilter;
    type Sort = ViolationSort;

    const KIND: &'static str = "violation";
    const COLUMNS: &'static str = "v.id, v.rule_id, v.certificate_id, v.message, v.severity, v.created_at, v.closed_at";
    const FROM: &'static str = "policy_violations v";
    const ID: &'static str = "v.id";
    const DEFAULT: Sort<ViolationSort> = Sort {
        key: ViolationSort::CreatedAt,
        descending: true,
    };

    fn column(key: ViolationSort) -> Column {
        match key {
            ViolationSort::CreatedAt => Column::time("v.created_at"),
        }
    }

    fn restrict(f: &ViolationFilter, sql: &mut Where<'_>) {
        sql.eq("v.rule_id", &f.rule_id);
        sql.eq("v.certificate_id", &f.certificate_id);
        sql.eq("v.severity", &f.severity);
        match f.open {
            Some(true) => sql.and("v.closed_at IS NULL"),
            Some(false) => sql.and("v.closed_at IS NOT NULL"),
            None => {}
        }
        sql.after("v.created_at", &f.created_after);
        sql.before("v.created_at", &f.created_before);
    }

    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Self::from_row(row)
    }
}

fn kind(text: &str) -> Result<PolicyType, ApiError> {
    text.parse().map_err(|why: String| ApiError::invalid("type", why))
}

fn severity(text: &str) -> Result<Severity, ApiError> {
    text.parse().map_err(|why: String| ApiError::invalid("severity", why))
}

/// Most entries of a list of scopes.
const MOST_SCOPES: usize = 100;

/// What holds for some groups and renewal policies only.
pub(super) enum Scoped<'a> {
    Rule(&'a PolicyId),
    Freeze(&'a FreezeId),
}

macro_rules! scopes {
    ($table:literal, $of:literal) => {
        (
            concat!(
                "DELETE FROM ",
                $table,
                " WHERE ",
                $of,
                " = $1 AND ($2 AND agent_group_id IS NOT NULL OR $3 AND renewal_policy_id IS NOT NULL)"
            ),
            concat!(
                "INSERT INTO ",
                $table,
                " (",
                $of,
                ", agent_group_id, renewal_policy_id)
                 SELECT $1, g, NULL FROM unnest($2::text[]) AS g UNION SELECT $1, NULL, p FROM unnest($3::text[]) AS p"
            ),
        )
    };
}

/// Keeps where it holds; what is absent stays as it is.
pub(super) async fn keep_scopes(
    tx: &mut Tx,
    of: Scoped<'_>,
    groups: Option<&[AgentGroupId]>,
    policies: Option<&[RenewalPolicyId]>,
) -> Result<(), ApiError> {
    for (field, count) in [
        ("agent_group_ids", groups.map_or(0, <[_]>::len)),
        ("renewal_policy_ids", policies.map_or(0, <[_]>::len)),
    ] {
        if count > MOST_SCOPES {
            return Err(ApiError::invalid(field, format!("has at most {MOST_SCOPES} entries")));
        }
    }
    let (id, (delete, insert)) = match of {
        Scoped::Rule(id) => (id.as_str(), scopes!("policy_rule_scopes", "rule_id")),
        Scoped::Freeze(id) => (id.as_str(), scopes!("freeze_scopes", "freeze_id")),
    };
    sqlx::query(delete)
        .bind(id)
        .bind(groups.is_some())
        .bind(policies.is_some())
        .execute(&mut **tx)
        .await?;
    sqlx::query(insert)
        .bind(id)
        .bind(groups.unwrap_or_default())
        .bind(policies.unwrap_or_default())
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// Refuses what rules keep from happening: each by the field it is about.
pub(super) fn refusal(broken: &[Broken]) -> ApiError {
    let field = match broken.first().map(|one| one.kind) {
        Some(PolicyType::AllowedIssuers) => "issuer_id",
        Some(PolicyType::AllowedDomains) => "sans",
        Some(PolicyType::AllowedEnvironments) => "environment",
        Some(PolicyType::RequiredMetadata | PolicyType::RenewalLeadTime) | None => "tags",
    };
    ApiError::invalid(field, policies::because(broken))
}

/// The settings in their one form.
fn settings(kind: PolicyType, config: &Value) -> Result<Value, ApiError> {
    match Rule::read(kind, config) {
        Ok(rule) => Ok(rule.to_value()),
        Err(why) => Err(ApiError::invalid("config", why)),
    }
}

async fn list(cx: Cx, rq: Request<ListPolicies>) -> Result<Page<PolicyRule>, ApiError> {
    listing::list(&cx, rq.query).await
}

async fn get(cx: Cx, rq: Request<GetPolicy>) -> Result<PolicyRule, ApiError> {
    listing::fetch(&cx, rq.path.id.as_str()).await
}

async fn create(cx: Cx, rq: Request<CreatePolicy>) -> Result<PolicyRule, ApiError> {
    let new = rq.body;
    check_name("name", &new.name, 255)?;
    let kind = kind(&new.kind)?;
    let severity = new.severity.as_deref().map_or(Ok(Severity::Warning), severity)?;
    let config = settings(kind, &new.config)?;
    let mut tx = cx.begin().await?;
    let now = tx.now();
    let id = new.id.unwrap_or_else(|| PolicyId::generate(now));
    sqlx::query(
        "INSERT INTO policy_rules (id, name, type, severity, config, enabled, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $7)",
    )
    .bind(&id)
    .bind(&new.name)
    .bind(kind)
    .bind(severity)
    .bind(&config)
    .bind(new.enabled.unwrap_or(true))
    .bind(now)
    .execute(&mut *tx)
    .await?;
    keep_scopes(
        &mut tx,
        Scoped::Rule(&id),
        new.agent_group_ids.as_deref(),
        new.renewal_policy_ids.as_deref(),
    )
    .await?;
    tx.wake(Channel::Policies);
    let created = listing::get(&mut tx, now, id.as_str()).await?;
    listing::commit(tx, "policy_rule_created", "policy", id.as_str()).await?;
    Ok(created)
}

async fn update(cx: Cx, rq: Request<UpdatePolicy>) -> Result<PolicyRule, ApiError> {
    let (id, change) = (rq.path.id, rq.body);
    change
        .name
        .as_deref()
        .map_or(Ok(()), |name| check_name("name", name, 255))?;
    let severity = change.severity.as_deref().map(severity).transpose()?;
    let mut tx = cx.begin().await?;
    let now = tx.now();
    // Locked, since settings are read under one type and written under another.
    sqlx::query("SELECT 1 FROM policy_rules WHERE id = $1 FOR UPDATE")
        .bind(&id)
        .execute(&mut *tx)
        .await?;
    let before: PolicyRule = listing::get(&mut tx, now, id.as_str()).await?;
    let kind = change.kind.as_deref().map_or(Ok(before.kind), kind)?;
    let config = settings(kind, change.config.as_ref().unwrap_or(&before.config))?;
    sqlx::query(
        "UPDATE policy_rules
            SET name = coalesce($2, name), type = $3, severity = coalesce($4, severity), config = $5,
                enabled = coalesce($6, enabled), updated_at = $7
          WHERE id = $1",
    )
    .bind(&id)
    .bind(&change.name)
    .bind(kind)
    .bind(severity)
    .bind(&config)
    .bind(change.enabled)
    .bind(now)
    .execute(&mut *tx)
    .await?;
    let (groups, policies) = (change.agent_group_ids.as_deref(), change.renewal_policy_ids.as_deref());
    keep_scopes(&mut tx, Scoped::Rule(&id), groups, policies).await?;
    tx.wake(Channel::Policies);
    let updated: PolicyRule = listing::get(&mut tx, now, id.as_str()).await?;
    listing::commit_change(tx, "policy_rule_updated", "policy", id.as_str(), (&before, &updated)).await?;
    Ok(updated)
}

async fn delete(cx: Cx, rq: Request<DeletePolicy>) -> Result<NoContent, ApiError> {
    let id = rq.path.id;
    let mut tx = cx.begin().await?;
    let done = sqlx::query("DELETE FROM policy_rules WHERE id = $1")
        .bind(&id)
        .execute(&mut *tx)
        .await;
    listing::deleted(done, PolicyRule::KIND, id.as_str())?;
    listing::commit(tx, "policy_rule_deleted", "policy", id.as_str()).await?;
    Ok(NoContent)
}

async fn preview(cx: Cx, rq: Request<PreviewPolicy>) -> Result<PolicyPreview, ApiError> {
    const MOST: u16 = 1_000;
    let proposed = rq.body;
    let kind = kind(&proposed.kind)?;
    let severity = proposed.severity.as_deref().map_or(Ok(Severity::Warning), severity)?;
    let rule = Rule::read(kind, &proposed.config).map_err(|why| ApiError::invalid("config", why))?;
    let limit = proposed.limit.unwrap_or(100);
    if !(1..=MOST).contains(&limit) {
        return Err(ApiError::invalid("limit", format!("is a number from 1 to {MOST}")));
    }
    if let Some(id) = &proposed.rule_id {
        listing::fetch::<PolicyRule>(&cx, id.as_str()).await?;
    }
    let now = cx.now();
    let proposed = InForce {
        id: proposed.rule_id.unwrap_or_else(|| PolicyId::generate(now)),
        name: "proposed".to_owned(),
        severity,
        rule,
        groups: proposed.agent_group_ids.unwrap_or_default(),
        policies: proposed.renewal_policy_ids.unwrap_or_default(),
    };
    let mut db = cx.pool().acquire().await?;
    let preview = policies::preview(&mut db, proposed, now, usize::from(limit)).await?;
    let found = |found: Found| FoundCertificates {
        count: found.count,
        first: found
            .first
            .into_iter()
            .map(|(certificate_id, message)| FoundCertificate {
                certificate_id,
                message,
            })
            .collect(),
    };
    Ok(PolicyPreview {
        certificates: preview.looked_at,
        breaking: preview.breaking,
        starts: found(preview.starts),
        stops: found(preview.stops),
        blocks_renewal: found(preview.blocked),
    })
}

async fn violations_of_one(cx: Cx, rq: Request<ListPolicyViolations>) -> Result<Page<PolicyViolation>, ApiError> {
    let id = rq.path.id;
    listing::fetch::<PolicyRule>(&cx, id.as_str()).await?;
    listing::list_where(&cx, rq.query, |sql| sql.eq("v.rule_id", &Some(id.clone()))).await
}

async fn violations(cx: Cx, rq: Request<ListViolations>) -> Result<Page<PolicyViolation>, ApiError> {
    listing::list(&cx, rq.query).await
}
