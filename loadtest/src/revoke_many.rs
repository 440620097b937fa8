//! Many certificates revoked by one bulk operation, until each is recorded with its event.

use std::time::Duration;

use anyhow::ensure;
use certctl_contract::{
    bulk::{BulkRevocation, BulkRevoke, CertificateConditions, GetBulkOperation, Selection},
    endpoint::NoBody,
    query::{Id, NoParams},
};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::time::{Instant, sleep};

use crate::{cli::RevokeMany, connect, load::round, visible};

const ASK_EVERY: Duration = Duration::from_millis(100);
const WAIT_AT_MOST: Duration = Duration::from_secs(600);

/// Asks for all certificates of the bench to be revoked, and waits until that is done.
///
/// # Errors
/// When API or database are not on this machine or do not answer, or when the operation does not end.
pub(crate) async fn run(args: &RevokeMany) -> anyhow::Result<Value> {
    let pool = connect(&args.database.database_url, 2).await?;
    let client = args.server.client().await?;
    visible::issue(&pool, args.certificates).await?;
    sqlx::raw_sql("VACUUM (ANALYZE) certificates, certificate_versions, ledger")
        .execute(&pool)
        .await?;
    let bare = bare_update(&pool).await?;

    let began = Instant::now();
    let body = BulkRevocation {
        selection: Selection {
            filter: Some(CertificateConditions(
                [("environment".to_owned(), visible::ENVIRONMENT.to_owned())].into(),
            )),
            ..Selection::default()
        },
        reason: Some("superseded".parse().map_err(anyhow::Error::msg)?),
    };
    let mut operation = client.call::<BulkRevoke>(NoParams, NoParams, body).await?;
    let accepted = began.elapsed();
    while operation.finished_at.is_none() {
        ensure!(
            began.elapsed() < WAIT_AT_MOST,
            "{} of {} were revoked in {WAIT_AT_MOST:?}",
            operation.done,
            operation.total
        );
        sleep(ASK_EVERY).await;
        let id = Id { id: operation.id };
        operation = client.call::<GetBulkOperation>(id, NoParams, NoBody).await?;
    }
    let seconds = began.elapsed().as_secs_f64();
    let (revocations, events, doubled): (i64, i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM revocations), count(DISTINCT resource_id), count(*) - count(DISTINCT resource_id)
           FROM audit_events WHERE action = 'certificate_revoked'",
    )
    .fetch_one(&pool)
    .await?;
    Ok(json!({
        "name": "revoke-100k",
        "certificates": args.certificates,
        "seconds": round(seconds),
        "accepted_seconds": round(accepted.as_secs_f64()),
        "per_second": round(operation.done as f64 / seconds),
        "done": operation.done,
        "refused": operation.refused,
        "revocations": revocations,
        "events": events,
        "events_doubled": doubled,
        "ceilings": { "bare_update_seconds": round(bare) },
        "seconds_over_bare_update": round(seconds / bare.max(0.001)),
    }))
}

/// Seconds of one statement that changes as many rows of the same table, and is undone.
async fn bare_update(pool: &PgPool) -> anyhow::Result<f64> {
    let mut line = pool.acquire().await?;
    sqlx::raw_sql("BEGIN").execute(&mut *line).await?;
    let began = Instant::now();
    sqlx::query("UPDATE certificates SET updated_at = updated_at + interval '1 second' WHERE environment = $1")
        .bind(visible::ENVIRONMENT)
        .execute(&mut *line)
        .await?;
    let seconds = began.elapsed().as_secs_f64();
    sqlx::raw_sql("ROLLBACK").execute(&mut *line).await?;
    Ok(seconds)
}
