//! Keys for which nothing is issued any more, and what becomes of what has them.

use certctl_contract::{
    blocked_keys::*,
    endpoint::NoContent,
    list::{Page, Sort},
};
use certctl_model::{id::BulkId, key::KeyFingerprint, time::Time};
use certctl_store::Tx;
use sqlx::{FromRow, PgConnection, postgres::PgRow};

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
    let mut db = cx.pool().acquire().await?;
    with_usage(&mut db, cx.now(), &rq.path.id).await
}

/// A blocked key, and where it is in use.
async fn with_usage(db: &mut PgConnection, now: Time, key: &KeyFingerprint) -> Result<BlockedKey, ApiError> {
    let blocked: BlockedKey = listing::get(db, now, key.as_str()).await?;
    Ok(BlockedKey {
        usage: Some(usage(db, now, key).await?),
        ..blocked
    })
}

/// Hosts that are listed at most.
const MAX_HOSTS: i64 = 1000;

async fn usage(db: &mut PgConnection, now: Time, key: &KeyFingerprint) -> Result<KeyUsage, ApiError> {
    let (revocable_here, revocable_elsewhere): (i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM certificate_versions v
                  WHERE v.spki_sha256 = $1 AND v.issuer_id IS NOT NULL AND v.not_after > $2
                    AND NOT EXISTS (SELECT 1 FROM revocations r
                                     WHERE r.issuer_id = v.issuer_id AND r.serial_number = v.serial_number
                                       AND r.released_at IS NULL AND r.reason <> 'certificateHold')),
                (SELECT count(*) FROM (
                     SELECT v.fingerprint_sha256 FROM certificate_versions v
                      WHERE v.spki_sha256 = $1 AND v.issuer_id IS NULL AND v.not_after > $2
                      UNION
                     SELECT d.fingerprint_sha256 FROM discovered_certificates d
                      WHERE d.spki_sha256 = $1 AND d.not_after > $2
                        AND NOT EXISTS (SELECT 1 FROM certificate_versions v
                                         WHERE v.fingerprint_sha256 = d.fingerprint_sha256
                                           AND v.issuer_id IS NOT NULL)) others)",
    )
    .bind(key)
    .bind(now)
    .fetch_one(&mut *db)
    .await?;
    let hosts = sqlx::query_as(
        "SELECT a.hostname, a.id AS agent_id, u.evidence, u.location, u.certificate_id, u.fingerprint
           FROM (SELECT t.agent_id, 'deployed' AS evidence, t.name AS location, v.certificate_id,
                        v.fingerprint_sha256 AS fingerprint
                   FROM certificate_versions v
                   JOIN jobs j ON j.certificate_id = v.certificate_id AND j.version_id = v.id
                              AND j.type = 'Deployment' AND j.status = 'Completed'
                   JOIN targets t ON t.id = j.target_id
                  WHERE v.spki_sha256 = $1
                    AND NOT EXISTS (SELECT 1 FROM jobs n
                                     WHERE n.certificate_id = j.certificate_id AND n.target_id = j.target_id
                                       AND n.type = 'Deployment' AND n.status = 'Completed'
                                       AND n.finished_at > j.finished_at)
                  UNION
                 SELECT t.agent_id, 'served', e.endpoint, e.certificate_id, e.fingerprint_sha256
                   FROM endpoints e JOIN targets t ON t.id = e.target_id
                  WHERE e.fingerprint_sha256 IN (
                            SELECT v.fingerprint_sha256 FROM certificate_versions v WHERE v.spki_sha256 = $1
                             UNION
                            SELECT d.fingerprint_sha256 FROM discovered_certificates d WHERE d.spki_sha256 = $1)
                  UNION
                 SELECT d.agent_id, 'found', d.source_path, d.managed_certificate_id, d.fingerprint_sha256
                   FROM discovered_certificates d
                  WHERE d.spki_sha256 = $1 AND d.missing_since IS NULL) u
           JOIN agents a ON a.id = u.agent_id
          ORDER BY a.hostname, a.id, u.evidence, u.location, u.fingerprint LIMIT $2",
    )
    .bind(key)
    .bind(MAX_HOSTS)
    .fetch_all(db)
    .await?;
    Ok(KeyUsage {
        revocable_here,
        revocable_elsewhere,
        hosts,
    })
}

async fn block(cx: Cx, rq: Request<BlockKey>) -> Result<BlockedKey, ApiError> {
    let NewBlockedKey { spki_sha256, reason } = rq.body;
    let length = reason.chars().count();
    if !(1..=1000).contains(&length) || reason.contains(certctl_model::text::is_hidden) {
        return Err(ApiError::invalid(
            "reason",
            "has 1 to 1000 characters, without control characters",
        ));
    }
    let mut tx = cx.begin().await?;
    let now = tx.now();
    block_and_sweep(&mut tx, &spki_sha256, &reason).await?;
    let blocked = with_usage(&mut tx, now, &spki_sha256).await?;
    tx.commit().await?;
    Ok(blocked)
}

/// The operation that revokes what has this key, when the key is blocked and nothing has it that the operation leaves out.
/// Others that ask for the same key meanwhile wait.
pub(super) async fn swept(tx: &mut Tx, key: &KeyFingerprint) -> Result<Option<BulkId>, ApiError> {
    sqlx::query("SELECT pg_advisory_xact_lock(hashtext('blocked_keys'), hashtext($1))")
        .bind(key)
        .execute(&mut **tx)
        .await?;
    Ok(sqlx::query_scalar(
        "SELECT k.bulk_id FROM blocked_keys k
          WHERE k.spki_sha256 = $1 AND k.bulk_id IS NOT NULL
            AND NOT EXISTS (
                SELECT 1 FROM certificate_versions v JOIN certificates c ON c.id = v.certificate_id
                 WHERE v.spki_sha256 = $1 AND v.issuer_id IS NOT NULL AND v.not_after > $2
                   AND (c.revoked_at IS NULL OR c.revocation_reason = 'certificateHold')
                   AND NOT EXISTS (SELECT 1 FROM bulk_items i
                                    WHERE i.bulk_id = k.bulk_id AND i.certificate_id = c.id AND i.outcome = 'waiting'))",
    )
    .bind(key)
    .bind(tx.now())
    .fetch_optional(&mut **tx)
    .await?)
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
