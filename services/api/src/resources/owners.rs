//! Owners.

use certctl_contract::{
    endpoint::NoContent,
    list::{Page, Sort},
    owners::*,
};
use certctl_model::{id::OwnerId, name::mailbox};
use sqlx::{FromRow, postgres::PgRow};

use super::teams::{self, commit_deleted, keep_default, release_archived};
use crate::{
    app::{Cx, Request, Routes},
    error::ApiError,
    listing::{self, Column, Listed, Where, check_name},
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on(list).on(create).on(get).on(update).on(delete)
}

impl Listed for Owner {
    type Filter = OwnerFilter;
    type Sort = OwnerSort;

    const KIND: &'static str = "owner";
    const COLUMNS: &'static str = "o.id, o.name, o.email, o.team_id, o.created_at, o.updated_at";
    const FROM: &'static str = "owners o";
    const ID: &'static str = "o.id";
    const DEFAULT: Sort<OwnerSort> = Sort {
        key: OwnerSort::CreatedAt,
        descending: true,
    };

    fn column(key: OwnerSort) -> Column {
        match key {
            OwnerSort::CreatedAt => Column::time("o.created_at"),
            OwnerSort::Name => Column::text("o.name"),
        }
    }

    fn restrict(f: &OwnerFilter, sql: &mut Where<'_>) {
        sql.eq("o.team_id", &f.team_id);
        sql.eq("o.email", &f.email);
    }

    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Self::from_row(row)
    }
}

async fn list(cx: Cx, rq: Request<ListOwners>) -> Result<Page<Owner>, ApiError> {
    listing::list(&cx, rq.query).await
}

async fn get(cx: Cx, rq: Request<GetOwner>) -> Result<Owner, ApiError> {
    listing::fetch(&cx, rq.path.id.as_str()).await
}

async fn create(cx: Cx, rq: Request<CreateOwner>) -> Result<Owner, ApiError> {
    let new = rq.body;
    check_name("name", &new.name, 255)?;
    let email = check_email(&new.email)?;
    let mut tx = cx.begin().await?;
    let now = tx.now();
    let id = new.id.unwrap_or_else(|| OwnerId::generate(now));
    let team = new.team_id.as_ref().map_or(teams::UNASSIGNED, |team| team.as_str());
    sqlx::query(
        "INSERT INTO owners (id, name, email, team_id, created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $5)",
    )
    .bind(&id)
    .bind(&new.name)
    .bind(&email)
    .bind(team)
    .bind(now)
    .execute(&mut *tx)
    .await?;
    let created = listing::get(&mut tx, now, id.as_str()).await?;
    listing::commit(tx, "create_owner", "owner", id.as_str()).await?;
    Ok(created)
}

async fn update(cx: Cx, rq: Request<UpdateOwner>) -> Result<Owner, ApiError> {
    let (id, change) = (rq.path.id, rq.body);
    change
        .name
        .as_deref()
        .map_or(Ok(()), |name| check_name("name", name, 255))?;
    let email = change.email.as_deref().map(check_email).transpose()?;
    let mut tx = cx.begin().await?;
    let now = tx.now();
    sqlx::query("SELECT 1 FROM owners WHERE id = $1 FOR UPDATE")
        .bind(&id)
        .execute(&mut *tx)
        .await?;
    let before: Owner = listing::get(&mut tx, now, id.as_str()).await?;
    sqlx::query(
        "UPDATE owners
            SET name = coalesce($2, name), email = coalesce($3, email), team_id = coalesce($4, team_id),
                updated_at = $5
          WHERE id = $1",
    )
    .bind(&id)
    .bind(&change.name)
    .bind(&email)
    .bind(&change.team_id)
    .bind(now)
    .execute(&mut *tx)
    .await?;
    let updated: Owner = listing::get(&mut tx, now, id.as_str()).await?;
    listing::commit_change(tx, "update_owner", "owner", id.as_str(), (&before, &updated)).await?;
    Ok(updated)
}

async fn delete(cx: Cx, rq: Request<DeleteOwner>) -> Result<NoContent, ApiError> {
    let id = rq.path.id;
    keep_default("owner", id.as_str(), "o-unassigned")?;
    let mut tx = cx.begin().await?;
    let archived = release_archived(
        &mut tx,
        "UPDATE certificates SET owner_id = 'o-unassigned', updated_at = $2 WHERE owner_id = $1 AND archived_at IS NOT NULL",
        id.as_str(),
    )
    .await?;
    let done = sqlx::query("DELETE FROM owners WHERE id = $1")
        .bind(&id)
        .execute(&mut *tx)
        .await;
    listing::deleted(done, "owner", id.as_str())?;
    commit_deleted(tx, "delete_owner", "owner", id.as_str(), archived).await?;
    Ok(NoContent)
}

/// One plain address with its domain in A-labels, or none. Whether it is read only sending can tell.
pub(super) fn check_email(email: &str) -> Result<String, ApiError> {
    if email.is_empty() {
        return Ok(String::new());
    }
    mailbox(email).map_err(|error| {
        let why = error.why;
        ApiError::invalid("email", format!("is empty or one address like name@example.com: {why}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_empty_or_plausible() {
        for (email, fits) in [
            ("", true),
            ("ops@example.com", true),
            ("o'neil+tls@localhost", true),
            ("ops", false),
            ("@example.com", false),
            ("ops@", false),
            ("a b@example.com", false),
            ("a@b@c", false),
            ("a@b.com\r\nBcc: x@y", false),
            ("Ops <ops@example.com>", false),
            ("a@x,b@y", false),
            ("a@example..com", false),
            ("a..b@example.com", false),
            (&format!("{}@example.com", "x".repeat(250)), false),
        ] {
            assert_eq!(check_email(email).is_ok(), fits, "{email:?}");
        }
        assert_eq!(
            check_email("user@bücher.example").unwrap(),
            "user@xn--bcher-kva.example"
        );
    }
}
