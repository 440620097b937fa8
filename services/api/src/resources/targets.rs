//! Targets.

use certctl_contract::{
    endpoint::NoContent,
    list::{Page, Sort},
    problem::Kind,
    targets::*,
};
use certctl_model::{
    connector::{TargetConfig, TargetType},
    id::{JobId, TargetId},
    job::JobStatus,
};
use serde_json::Value;
use sqlx::{FromRow, postgres::PgRow};

use super::jobs::call_off;
use crate::{
    app::{Cx, Request, Routes},
    error::ApiError,
    listing::{self, Column, Listed, Where, check_name},
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on(list).on(create).on(get).on(update).on(delete)
}

impl Listed for Target {
    type Filter = TargetFilter;
    type Sort = TargetSort;

    const KIND: &'static str = "target";
    const COLUMNS: &'static str = "t.id, t.name, t.type, t.agent_id, a.hostname, t.config, t.enabled,
        CASE WHEN t.enabled THEN 'active' ELSE 'disabled' END AS status, t.created_at, t.updated_at";
    const FROM: &'static str = "targets t JOIN agents a ON a.id = t.agent_id";
    const ID: &'static str = "t.id";
    const DEFAULT: Sort<TargetSort> = Sort {
        key: TargetSort::CreatedAt,
        descending: true,
    };

    fn column(key: TargetSort) -> Column {
        match key {
            TargetSort::CreatedAt => Column::time("t.created_at"),
            TargetSort::Name => Column::text("t.name"),
        }
    }

    fn restrict(f: &TargetFilter, sql: &mut Where<'_>) {
        sql.eq("t.agent_id", &f.agent_id);
        sql.eq("t.name", &f.name);
        sql.eq("t.enabled", &f.enabled);
    }

    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Self::from_row(row)
    }
}

fn target_type(text: &str) -> Result<TargetType, ApiError> {
    text.parse().map_err(|_| {
        let available: Vec<&str> = TargetType::ALL.iter().map(|kind| kind.as_str()).collect();
        let text = text.escape_debug();
        ApiError::invalid(
            "type",
            format!("\"{text}\" is not available; there are: {}", available.join(", ")),
        )
    })
}

/// The settings in the one form that agents read.
fn settings(kind: TargetType, config: &Value) -> Result<Value, ApiError> {
    TargetConfig::read(kind, config)
        .map(|config| config.to_value())
        .map_err(|(field, text)| ApiError::invalid(field, text))
}

async fn list(cx: Cx, rq: Request<ListTargets>) -> Result<Page<Target>, ApiError> {
    listing::list(&cx, rq.query).await
}

async fn get(cx: Cx, rq: Request<GetTarget>) -> Result<Target, ApiError> {
    listing::fetch(&cx, rq.path.id.as_str()).await
}

async fn create(cx: Cx, rq: Request<CreateTarget>) -> Result<Target, ApiError> {
    let new = rq.body;
    check_name("name", &new.name, 255)?;
    let kind = target_type(&new.kind)?;
    let config = settings(kind, &new.config)?;
    let mut tx = cx.begin().await?;
    let now = tx.now();
    let id = new.id.unwrap_or_else(|| TargetId::generate(now));
    sqlx::query(
        "INSERT INTO targets (id, name, type, agent_id, config, enabled, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $7)",
    )
    .bind(&id)
    .bind(&new.name)
    .bind(kind)
    .bind(&new.agent_id)
    .bind(&config)
    .bind(new.enabled.unwrap_or(true))
    .bind(now)
    .execute(&mut *tx)
    .await?;
    let created = listing::get(&mut tx, now, id.as_str()).await?;
    listing::commit(tx, "create_target", "target", id.as_str()).await?;
    Ok(created)
}

async fn update(cx: Cx, rq: Request<UpdateTarget>) -> Result<Target, ApiError> {
    let (id, change) = (rq.path.id, rq.body);
    change
        .name
        .as_deref()
        .map_or(Ok(()), |name| check_name("name", name, 255))?;
    let mut tx = cx.begin().await?;
    let now = tx.now();
    sqlx::query("SELECT 1 FROM targets WHERE id = $1 FOR UPDATE")
        .bind(&id)
        .fetch_optional(&mut *tx)
        .await?;
    let before: Target = listing::get(&mut tx, now, id.as_str()).await?;
    let kind = change
        .kind
        .as_deref()
        .map(target_type)
        .transpose()?
        .unwrap_or(before.kind);
    let config = settings(kind, change.config.as_ref().unwrap_or(&before.config))?;
    if change.agent_id.as_ref().is_some_and(|agent| *agent != before.agent_id) {
        let mapped: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM certificate_targets WHERE target_id = $1)")
            .bind(&id)
            .fetch_one(&mut *tx)
            .await?;
        if mapped {
            // Keys do not leave the host that made them, so what is served here cannot move along.
            let detail = format!(
                "certificates are put on target {id}, and their keys stay with agent {}; take the target from their \
                 target_ids first, or create another target",
                before.agent_id
            );
            return Err(ApiError::new(Kind::Referenced, detail));
        }
    }
    sqlx::query(
        "UPDATE targets
            SET name = coalesce($2, name), type = $3, agent_id = coalesce($4, agent_id), config = $5,
                enabled = coalesce($6, enabled), updated_at = $7
          WHERE id = $1",
    )
    .bind(&id)
    .bind(&change.name)
    .bind(kind)
    .bind(&change.agent_id)
    .bind(&config)
    .bind(change.enabled)
    .bind(now)
    .execute(&mut *tx)
    .await?;
    let updated = listing::get(&mut tx, now, id.as_str()).await?;
    listing::commit(tx, "update_target", "target", id.as_str()).await?;
    Ok(updated)
}

async fn delete(cx: Cx, rq: Request<DeleteTarget>) -> Result<NoContent, ApiError> {
    let id = rq.path.id;
    let mut tx = cx.begin().await?;
    // Held until the end, so that no deployment to it appears meanwhile.
    sqlx::query("SELECT 1 FROM targets WHERE id = $1 FOR UPDATE")
        .bind(&id)
        .fetch_optional(&mut *tx)
        .await?;
    let open: Vec<(JobId, JobStatus)> = sqlx::query_as(
        "SELECT id, status FROM jobs
          WHERE target_id = $1 AND status NOT IN ('Completed', 'Failed', 'Cancelled')
          ORDER BY id
            FOR UPDATE",
    )
    .bind(&id)
    .fetch_all(&mut *tx)
    .await?;
    if let Some((job, _)) = open.iter().find(|(_, status)| *status == JobStatus::Running) {
        let detail = format!("job {job} is deploying to target {id} now; try again when it is finished");
        return Err(ApiError::new(Kind::Referenced, detail));
    }
    for (job, _) in &open {
        call_off(&mut tx, job, "the target was deleted").await?;
    }
    let done = sqlx::query("DELETE FROM targets WHERE id = $1")
        .bind(&id)
        .execute(&mut *tx)
        .await;
    listing::deleted(done, "target", id.as_str())?;
    listing::commit(tx, "delete_target", "target", id.as_str()).await?;
    Ok(NoContent)
}
