//! Freezes: times in which nothing is renewed by itself.

use certctl_contract::{
    endpoint::NoContent,
    freezes::*,
    list::{Page, Sort},
};
use certctl_model::id::FreezeId;
use sqlx::{FromRow, postgres::PgRow};

use super::policies::{Scoped, keep_scopes};
use crate::{
    app::{Cx, Request, Routes},
    error::ApiError,
    listing::{self, Column, Listed, Where, check_name},
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on(list).on(create).on(get).on(update).on(delete)
}

impl Listed for Freeze {
    type Filter = FreezeFilter;
    type Sort = FreezeSort;

    const KIND: &'static str = "freeze";
    const COLUMNS: &'static str = "f.id, f.name, f.reason, f.starts_at, f.ends_at, f.created_at, f.updated_at,
        ARRAY(SELECT s.agent_group_id FROM freeze_scopes s WHERE s.freeze_id = f.id AND s.agent_group_id IS NOT NULL
               ORDER BY 1) AS agent_group_ids,
        ARRAY(SELECT s.renewal_policy_id FROM freeze_scopes s
               WHERE s.freeze_id = f.id AND s.renewal_policy_id IS NOT NULL ORDER BY 1) AS renewal_policy_ids";
    const FROM: &'static str = "freezes f";
    const ID: &'static str = "f.id";
    const DEFAULT: Sort<FreezeSort> = Sort {
        key: FreezeSort::CreatedAt,
        descending: true,
    };

    fn column(key: FreezeSort) -> Column {
        match key {
            FreezeSort::CreatedAt => Column::time("f.created_at"),
            FreezeSort::StartsAt => Column::time("f.starts_at"),
        }
    }

    fn restrict(f: &FreezeFilter, sql: &mut Where<'_>) {
        sql.after("f.ends_at", &f.ends_after);
        sql.before("f.starts_at", &f.starts_before);
    }

    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Self::from_row(row)
    }
}

fn check(change: &FreezeChanges) -> Result<(), ApiError> {
    change
        .name
        .as_deref()
        .map_or(Ok(()), |name| check_name("name", name, 255))?;
    let reason = change.reason.as_deref().unwrap_or_default();
    match reason.chars().count() <= 1000 && !reason.contains(certctl_model::text::is_hidden) {
        true => Ok(()),
        false => Err(ApiError::invalid(
            "reason",
            "has at most 1000 characters, without control characters",
        )),
    }
}

async fn list(cx: Cx, rq: Request<ListFreezes>) -> Result<Page<Freeze>, ApiError> {
    listing::list(&cx, rq.query).await
}

async fn get(cx: Cx, rq: Request<GetFreeze>) -> Result<Freeze, ApiError> {
    listing::fetch(&cx, rq.path.id.as_str()).await
}

async fn create(cx: Cx, rq: Request<CreateFreeze>) -> Result<Freeze, ApiError> {
    let new = rq.body;
    let given = FreezeChanges {
        name: Some(new.name),
        reason: new.reason,
        ..FreezeChanges::default()
    };
    check(&given)?;
    let mut tx = cx.begin().await?;
    let now = tx.now();
    let id = new.id.unwrap_or_else(|| FreezeId::generate(now));
    sqlx::query(
        "INSERT INTO freezes (id, name, reason, starts_at, ends_at, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $6)",
    )
    .bind(&id)
    .bind(&given.name)
    .bind(given.reason.unwrap_or_default())
    .bind(new.starts_at.unwrap_or(now))
    .bind(new.ends_at)
    .bind(now)
    .execute(&mut *tx)
    .await
    .map_err(refused)?;
    let (groups, policies) = (new.agent_group_ids.as_deref(), new.renewal_policy_ids.as_deref());
    keep_scopes(&mut tx, Scoped::Freeze(&id), groups, policies).await?;
    let created = listing::get(&mut tx, now, id.as_str()).await?;
    listing::commit(tx, "freeze_created", "freeze", id.as_str()).await?;
    Ok(created)
}

async fn update(cx: Cx, rq: Request<UpdateFreeze>) -> Result<Freeze, ApiError> {
    let (id, change) = (rq.path.id, rq.body);
    check(&change)?;
    let mut tx = cx.begin().await?;
    let now = tx.now();
    sqlx::query("SELECT 1 FROM freezes WHERE id = $1 FOR UPDATE")
        .bind(&id)
        .execute(&mut *tx)
        .await?;
    let before: Freeze = listing::get(&mut tx, now, id.as_str()).await?;
    sqlx::query(
        "UPDATE freezes
            SET name = coalesce($2, name), reason = coalesce($3, reason), starts_at = coalesce($4, starts_at),
                ends_at = coalesce($5, ends_at), updated_at = $6
          WHERE id = $1",
    )
    .bind(&id)
    .bind(&change.name)
    .bind(&change.reason)
    .bind(change.starts_at)
    .bind(change.ends_at)
    .bind(now)
    .execute(&mut *tx)
    .await
    .map_err(refused)?;
    let (groups, policies) = (change.agent_group_ids.as_deref(), change.renewal_policy_ids.as_deref());
    keep_scopes(&mut tx, Scoped::Freeze(&id), groups, policies).await?;
    let updated: Freeze = listing::get(&mut tx, now, id.as_str()).await?;
    listing::commit_change(tx, "freeze_updated", "freeze", id.as_str(), (&before, &updated)).await?;
    Ok(updated)
}

/// What the database refuses for the order of the two times.
fn refused(error: sqlx::Error) -> ApiError {
    let constraint = error.as_database_error().and_then(|error| error.constraint());
    match constraint {
        Some("freezes_span_check") => ApiError::invalid("ends_at", "lies behind starts_at"),
        _ => error.into(),
    }
}

async fn delete(cx: Cx, rq: Request<DeleteFreeze>) -> Result<NoContent, ApiError> {
    let id = rq.path.id;
    let mut tx = cx.begin().await?;
    let done = sqlx::query("DELETE FROM freezes WHERE id = $1")
        .bind(&id)
        .execute(&mut *tx)
        .await;
    listing::deleted(done, Freeze::KIND, id.as_str())?;
    listing::commit(tx, "freeze_deleted", "freeze", id.as_str()).await?;
    Ok(NoContent)
}
