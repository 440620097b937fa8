//! How everything went that runs by itself.

use certctl_contract::scheduler::*;

use crate::{
    app::{Cx, Request, Routes},
    error::ApiError,
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on(get)
}

async fn get(cx: Cx, _: Request<GetScheduler>) -> Result<SchedulerState, ApiError> {
    let mut db = cx.pool().acquire().await?;
    let leader = sqlx::query_as("SELECT holder, token, until FROM leases WHERE name = 'scheduler' AND until > $1")
        .bind(cx.now())
        .fetch_optional(&mut *db)
        .await?;
    let loops = sqlx::query_as(
        "SELECT service, name, holder, every_ms, runs, failures, outcome, error, done, duration_ms, last_run_at,
                last_success_at, next_run_at
           FROM loop_runs ORDER BY service, name, holder",
    )
    .fetch_all(&mut *db)
    .await?;
    Ok(SchedulerState { leader, loops })
}
