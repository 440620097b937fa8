//! Teams.

use certctl_contract::{
    endpoint::NoContent,
    list::{Page, Sort},
    problem::Kind,
    teams::*,
};
use certctl_model::{id::TeamId, notice::NoticeSeverity};
use sqlx::{FromRow, postgres::PgRow};

use super::owners::check_email;
use crate::{
    app::{Cx, Request, Routes},
    error::ApiError,
    listing::{self, Column, Listed, Where, check_name},
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on(list).on(create).on(get).on(update).on(delete)
}

/// The team of what nobody has claimed; made with the schema.
pub(super) const UNASSIGNED: &str = "t-unassigned";

impl Listed for Team {
    type Filter = TeamFilter;
    type Sort = TeamSort;

    const KIND: &'static str = "team";
    const COLUMNS: &'static str = "t.id, t.name, t.description, t.email, t.notify_from, t.created_at, t.updated_at";
    const FROM: &'static str = "teams t";
    const ID: &'static str = "t.id";
    const DEFAULT: Sort<TeamSort> = Sort {
        key: TeamSort::CreatedAt,
        descending: true,
    };

    fn column(key: TeamSort) -> Column {
        match key {
            TeamSort::CreatedAt => Column::time("t.created_at"),
            TeamSort::Name => Column::text("t.name"),
        }
    }

    fn restrict(f: &TeamFilter, sql: &mut Where<'_>) {
        sql.eq("t.name", &f.name);
    }

    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Self::from_row(row)
    }
}

fn severity(text: &str) -> Result<NoticeSeverity, ApiError> {
    text.parse()
        .map_err(|why: String| ApiError::invalid("notify_from", why))
}

async fn list(cx: Cx, rq: Request<ListTeams>) -> Result<Page<Team>, ApiError> {
    listing::list(&cx, rq.query).await
}

async fn get(cx: Cx, rq: Request<GetTeam>) -> Result<Team, ApiError> {
    listing::fetch(&cx, rq.path.id.as_str()).await
}

async fn create(cx: Cx, rq: Request<CreateTeam>) -> Result<Team, ApiError> {
    let new = rq.body;
    check_name("name", &new.name, 255)?;
    check_description(&new.description)?;
    let email = new.email.as_deref().map(check_email).transpose()?;
    let notify_from = new.notify_from.as_deref().map(severity).transpose()?;
    let mut tx = cx.begin().await?;
    let now = tx.now();
    let id = new.id.unwrap_or_else(|| TeamId::generate(now));
    sqlx::query(
        "INSERT INTO teams (id, name, description, email, notify_from, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $6)",
    )
    .bind(&id)
    .bind(&new.name)
    .bind(&new.description)
    .bind(&email)
    .bind(notify_from.unwrap_or(NoticeSeverity::Warning))
    .bind(now)
    .execute(&mut *tx)
    .await?;
    let created = listing::get(&mut tx, now, id.as_str()).await?;
    listing::commit(tx, "create_team", "team", id.as_str()).await?;
    Ok(created)
}

async fn update(cx: Cx, rq: Request<UpdateTeam>) -> Result<Team, ApiError> {
    let (id, change) = (rq.path.id, rq.body);
    change
        .name
        .as_deref()
        .map_or(Ok(()), |name| check_name("name", name, 255))?;
    change.description.as_deref().map_or(Ok(()), check_description)?;
    let email = change.email.as_deref().map(check_email).transpose()?;
    let notify_from = change.notify_from.as_deref().map(severity).transpose()?;
    let mut tx = cx.begin().await?;
    let now = tx.now();
    sqlx::query(
        "UPDATE teams SET name = coalesce($2, name), description = coalesce($3, description), updated_at = $4,
                          email = nullif(coalesce($5, email), ''), notify_from = coalesce($6, notify_from)
          WHERE id = $1",
    )
    .bind(&id)
    .bind(&change.name)
    .bind(&change.description)
    .bind(now)
    .bind(email)
    .bind(notify_from)
    .execute(&mut *tx)
    .await?;
    let updated = listing::get(&mut tx, now, id.as_str()).await?;
    listing::commit(tx, "update_team", "team", id.as_str()).await?;
    Ok(updated)
}

async fn delete(cx: Cx, rq: Request<DeleteTeam>) -> Result<NoContent, ApiError> {
    let id = rq.path.id;
    keep_default("team", id.as_str(), UNASSIGNED)?;
    let mut tx = cx.begin().await?;
    let done = sqlx::query("DELETE FROM teams WHERE id = $1")
        .bind(&id)
        .execute(&mut *tx)
        .await;
    listing::deleted(done, "team", id.as_str())?;
    listing::commit(tx, "delete_team", "team", id.as_str()).await?;
    Ok(NoContent)
}

/// Refuses to delete what requests get that name none of their own.
pub(super) fn keep_default(kind: &str, id: &str, default: &str) -> Result<(), ApiError> {
    match id == default {
        true => Err(ApiError::new(
            Kind::Referenced,
            format!("{kind} {id} is the default of what names none of its own; it stays, but can be changed"),
        )),
        false => Ok(()),
    }
}

/// Checks a description.
pub(super) fn check_description(text: &str) -> Result<(), ApiError> {
    check_text("description", text)
}

/// Checks a free text: lines are fine, other control characters are not.
pub(super) fn check_text(field: &str, text: &str) -> Result<(), ApiError> {
    let odd = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t');
    match text.chars().count() > 4096 || text.contains(odd) {
        true => Err(ApiError::invalid(
            field,
            "has up to 4096 characters; of control characters only line ends and tabs",
        )),
        false => Ok(()),
    }
}
