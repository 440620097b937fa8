//! After a restore of the database: what the backup forgot comes back, and the fence is lifted.

use certctl_contract::recovery::*;
use certctl_model::time::Time;
use certctl_store::revocations;
use sqlx::PgConnection;

use crate::{
    app::{Cx, Request, Routes},
    error::ApiError,
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on(get).on(restore).on(finish)
}

async fn get(cx: Cx, _: Request<GetRecovery>) -> Result<Recovery, ApiError> {
    let mut db = cx.pool().acquire().await?;
    recovery(&mut db).await
}

async fn recovery(db: &mut PgConnection) -> Result<Recovery, ApiError> {
    let found_at: Option<Time> = sqlx::query_scalar("SELECT min(found_at) FROM fences WHERE lifted_at IS NULL")
        .fetch_one(&mut *db)
        .await?;
    let last: Option<(Time, String)> = sqlx::query_as(
        "SELECT lifted_at, lifted_by FROM fences WHERE lifted_at IS NOT NULL ORDER BY lifted_at DESC, mark DESC LIMIT 1",
    )
    .fetch_optional(&mut *db)
    .await?;
    let (finished_at, finished_by) = last.unzip();
    Ok(Recovery {
        fenced: found_at.is_some(),
        found_at,
        finished_at,
        finished_by,
    })
}

async fn restore(cx: Cx, rq: Request<RestoreRevocationRecords>) -> Result<Restored, ApiError> {
    let records = rq.body.records;
    if !(1..=MOST_RECORDS).contains(&records.len()) {
        return Err(ApiError::invalid("records", format!("are 1 to {MOST_RECORDS}")));
    }
    if let Some(at) = records.iter().position(|record| !record.is_consistent(cx.now())) {
        return Err(ApiError::invalid(
            "records",
            format!("number {at} cannot be: only a hold is released, after it began, and nothing in the future"),
        ));
    }
    let mut tx = cx.begin().await?;
    let total = records.len();
    let restored = revocations::restore(&mut tx, records).await?;
    if restored > 0 {
        tx.commit().await?;
        cx.app.journal_rest().await;
    }
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    Ok(Restored {
        restored: count(restored),
        known: count(total - restored),
    })
}

async fn finish(cx: Cx, _: Request<FinishRecovery>) -> Result<Recovery, ApiError> {
    let mut tx = cx.begin().await?;
    let actor = tx.actor();
    let lifted = sqlx::query("UPDATE fences SET lifted_at = $1, lifted_by = $2 WHERE lifted_at IS NULL")
        .bind(tx.now())
        .bind(&actor.name)
        .execute(&mut *tx)
        .await?;
    let state = recovery(&mut tx).await?;
    if lifted.rows_affected() > 0 {
        let event = tx.event("recovery_finished", "recovery", "database");
        tx.note(event);
        tx.wake(certctl_store::wake::Channel::Revocations);
        tx.commit().await?;
    }
    Ok(state)
}
