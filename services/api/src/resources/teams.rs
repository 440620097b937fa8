//! Teams.

use certctl_contract::{
    endpoint::NoContent,
    list::{Page, Sort},
    problem::Kind,
    teams::*,
};
use certctl_model::{id::TeamId, notice::NoticeSeverity};
use certctl_store::Tx;
use sqlx::{FromRow, postgres::PgRow};

use super::owners::check_email;
use crate::{
    app::{Cx, Request, Routes},
    error::ApiError,
    listing::{self, Belongs, Column, Listed, Where, check_name},
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
    const BELONGS: Belongs = Belongs::Team("t.id");
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
    sqlx::query("SELECT 1 FROM teams WHERE id = $1 FOR UPDATE")
        .bind(&id)
        .execute(&mut *tx)
        .await?;
    let before: Team = listing::get(&mut tx, now, id.as_str()).await?;
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
    let updated: Team = listing::get(&mut tx, now, id.as_str()).await?;
    listing::commit_change(tx, "update_team", "team", id.as_str(), (&before, &updated)).await?;
    Ok(updated)
}

async fn delete(cx: Cx, rq: Request<DeleteTeam>) -> Result<NoContent, ApiError> {
    let id = rq.path.id;
    keep_default("team", id.as_str(), UNASSIGNED)?;
    let mut tx = cx.begin().await?;
    let archived = release_archived(
        &mut tx,
        "UPDATE certificates SET team_id = 't-unassigned', updated_at = $2 WHERE team_id = $1 AND archived_at IS NOT NULL",
        id.as_str(),
    )
    .await?;
    let done = sqlx::query("DELETE FROM teams WHERE id = $1")
        .bind(&id)
        .execute(&mut *tx)
        .await;
    listing::deleted(done, "team", id.as_str())?;
    commit_deleted(tx, "delete_team", "team", id.as_str(), archived).await?;
    Ok(NoContent)
}

/// Takes a resource that is deleted from the certificates that are archived: they need it no more, and keep nothing else from
/// being deleted. Returns how many they were.
pub(super) async fn release_archived(tx: &mut Tx, sql: &'static str, id: &str) -> Result<u64, ApiError> {
    let done = sqlx::query(sql).bind(id).bind(tx.now()).execute(&mut **tx).await?;
    Ok(done.rows_affected())
}

/// Commits a deletion; the event says from how many archived certificates the resource was taken.
pub(super) async fn commit_deleted(
    mut tx: Tx,
    action: &'static str,
    resource: &'static str,
    id: &str,
    archived: u64,
) -> Result<(), ApiError> {
    let mut event = tx.event(action, resource, id);
    if archived > 0 {
        event = event.with("archived_certificates", archived);
    }
    tx.note(event);
    Ok(tx.commit().await?)
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
    let odd = certctl_model::text::is_hidden_in_lines;
    match text.chars().count() > 4096 || text.contains(odd) {
        true => Err(ApiError::invalid(
            field,
            "has up to 4096 characters; of control characters only line ends and tabs",
        )),
        false => Ok(()),
    }
}
