//! Keys for which nothing is issued any more, and what becomes of what has them.

use certctl_contract::{
    blocked_keys::*,
    endpoint::NoContent,
    list::{Page, Sort},
};
use certctl_model::{id::BulkId, key::KeyFingerprint};
use certctl_store::Tx;
use sqlx::{FromRow, postgres::PgRow};

use super::bulk;
use crate::{
    app::{Cx, Request, Routes},
    error::ApiError,
    listing::{self, Column, Listed, Where},
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on(list).on(block).on(get).on(unblock)
}

impl Listed for BlockedKey {
    type Filter = BlockedKeyFilter;
    type Sort = BlockedKeySort;

    const KIND: &'static str = "blocked key";
    const COLUMNS: &'static str = "k.spki_sha256, k.reason, k.blocked_by, k.bulk_id, k.blocked_at";
    const FROM: &'static str = "blocked_keys k";
    const ID: &'static str = "k.spki_sha256";
    const DEFAULT: Sort<BlockedKeySort> = Sort {
        key: BlockedKeySort::BlockedAt,
        descending: true,
    };

    fn column(key: BlockedKeySort) -> Column {
        match key {
            BlockedKeySort::BlockedAt => Column::time("k.blocked_at"),
        }
    }

    fn restrict(f: &BlockedKeyFilter, sql: &mut Where<'_>) {
        sql.eq("k.blocked_by", &f.blocked_by);
    }

    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Self::from_row(row)
    }
}

async fn list(cx: Cx, rq: Request<ListBlockedKeys>) -> Result<Page<BlockedKey>, ApiError> {
    listing::list(&cx, rq.query).await
}

async fn get(cx: Cx, rq: Request<GetBlockedKey>) -> Result<BlockedKey, ApiError> {
    listing::fetch(&cx, rq.path.id.as_str()).await
}

async fn block(cx: Cx, rq: Request<BlockKey>) -> Result<BlockedKey, ApiError> {
    let NewBlockedKey { spki_sha256, reason } = rq.body;
    let length = reason.chars().count();
    if !(1..=1000).contains(&length) || reason.contains(char::is_control) {
        return Err(ApiError::invalid(
            "reason",
            "has 1 to 1000 characters, without control characters",
        ));
    }
    let mut tx = cx.begin().await?;
    let now = tx.now();
    block_and_sweep(&mut tx, &spki_sha256, &reason).await?;
    let blocked = listing::get(&mut tx, now, spki_sha256.as_str()).await?;
    tx.commit().await?;
    Ok(blocked)
}

/// Blocks a key, unless it is blocked, and begins to revoke what has it.
pub(super) async fn block_and_sweep(tx: &mut Tx, key: &KeyFingerprint, reason: &str) -> Result<BulkId, ApiError> {
    let bulk = bulk::sweep(tx, key).await?;
    sqlx::query(
        "INSERT INTO blocked_keys (spki_sha256, reason, blocked_by, bulk_id, blocked_at) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (spki_sha256) DO UPDATE SET bulk_id = excluded.bulk_id",
    )
    .bind(key)
    .bind(reason)
    .bind(tx.actor().name)
    .bind(&bulk)
    .bind(tx.now())
    .execute(&mut **tx)
    .await?;
    let event = tx
        .event("key_blocked", "blocked_key", key)
        .with("reason", reason)
        .with("bulk_id", &bulk);
    tx.note(event);
    Ok(bulk)
}

async fn unblock(cx: Cx, rq: Request<UnblockKey>) -> Result<NoContent, ApiError> {
    let id = rq.path.id;
    let mut tx = cx.begin().await?;
    let done = sqlx::query("DELETE FROM blocked_keys WHERE spki_sha256 = $1")
        .bind(&id)
        .execute(&mut *tx)
        .await;
    listing::deleted(done, "blocked key", id.as_str())?;
    listing::commit(tx, "key_unblocked", "blocked_key", id.as_str()).await?;
    Ok(NoContent)
}

/// Refuses a key that is blocked.
///
/// # Errors
/// 422 that names the field with the request.
pub(super) async fn must_not_be_blocked(tx: &mut Tx, field: &str, key: &KeyFingerprint) -> Result<(), ApiError> {
    let blocked: Option<i32> = sqlx::query_scalar("SELECT 1 FROM blocked_keys WHERE spki_sha256 = $1")
        .bind(key)
        .fetch_optional(&mut **tx)
        .await?;
    match blocked {
        Some(_) => Err(ApiError::invalid(
            field,
            format!("its key {key} is blocked; make another key"),
        )),
        None => Ok(()),
    }
}
