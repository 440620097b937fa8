//! Writers that change something again and again, and the events that tell of it.

use std::{sync::Arc, time::Duration};

use certctl_contract::{
    endpoint::{Endpoint, NoBody},
    query::{Id, NoParams},
    teams::{GetTeam, TeamChanges, UpdateTeam},
};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::time::{Instant, sleep};

use crate::{
    ceilings,
    cli::Changes,
    connect,
    load::{self, Done, Report, round},
    mixes,
};

/// How long records of calls, which are written behind the answers, may take to arrive.
const CALLS_WITHIN: Duration = Duration::from_secs(30);

/// Makes the changes and counts the events.
///
/// # Errors
/// When server or database are not on this machine or do not answer.
pub(crate) async fn run(args: &Changes) -> anyhow::Result<Value> {
    let client = args.server.client().await?;
    let pool = connect(&args.database.database_url, args.writers).await?;
    let teams = Arc::new(mixes::teams(&client, args.writers).await?);
    let id = teams[0].parse()?;
    let team = client.call::<GetTeam>(Id { id }, NoParams, NoBody).await?;
    let (events_before, calls_before) = (events(&pool).await?, calls(&pool).await?);
    let writer = (client.clone(), teams.clone());
    let report = load::closed(
        args.changes,
        Duration::from_secs(args.max_time),
        args.writers,
        move |n| mixes::write(writer.0.clone(), writer.1.clone(), n),
    )
    .await;
    let whole = report.whole();
    let told = events(&pool).await? - events_before;
    let made = whole.succeeded() + whole.failed();
    let since = Instant::now();
    let mut recorded = calls(&pool).await? - calls_before;
    while recorded < made as i64 && since.elapsed() < CALLS_WITHIN {
        sleep(Duration::from_millis(200)).await;
        recorded = calls(&pool).await? - calls_before;
    }
    let raw = raw_changes(&pool, args.writers).await?;
    let select_1 = ceilings::select_1(&pool, args.writers).await;
    let path = {
        let team = team.id.clone();
        move || Id { id: team.clone() }
    };
    let (bare, octets) =
        ceilings::bare::<UpdateTeam>(&team, args.writers, path, || NoParams, TeamChanges::default).await?;
    Ok(json!({
        "name": "audit-25",
        "per_second": report.per_second(),
        "writers": args.writers,
        "changes": whole.succeeded(),
        "failed": whole.failed(),
        "events": told,
        "calls_recorded": recorded,
        "p50_ms": whole.percentile(50.0),
        "p99_ms": whole.percentile(99.0),
        "seconds": round(report.elapsed.as_secs_f64()),
        "ceilings": {
            "same_rows_in_bare_sql": ceilings::json(&raw),
            "select_1": ceilings::json(&select_1),
            "bare_hyper": ceilings::json(&bare), "octets": octets,
        },
        "over_bare_sql": round(report.per_second() / raw.per_second().max(0.001)),
        "operation": UpdateTeam::NAME,
    }))
}

/// Events that tell of changes of our teams.
async fn events(pool: &PgPool) -> anyhow::Result<i64> {
    let count = "SELECT count(*) FROM audit_events WHERE resource_id LIKE 't-loadtest-%' AND action LIKE '%update%'";
    Ok(sqlx::query_scalar(count).fetch_one(pool).await?)
}

/// Records of the calls themselves.
async fn calls(pool: &PgPool) -> anyhow::Result<i64> {
    let count = "SELECT count(*) FROM audit_events WHERE resource_type = 'api' AND resource_id LIKE '%/t-loadtest-%'";
    Ok(sqlx::query_scalar(count).fetch_one(pool).await?)
}

/// The same rows without anything around: a row changed and an event inserted, in one transaction, as often as they go.
async fn raw_changes(pool: &PgPool, writers: u32) -> anyhow::Result<Report> {
    sqlx::raw_sql(
        "CREATE TABLE loadtest_rows (LIKE teams INCLUDING ALL);
         CREATE TABLE loadtest_events (LIKE audit_events INCLUDING ALL)",
    )
    .execute(pool)
    .await?;
    sqlx::query(
        "INSERT INTO loadtest_rows (id, name, created_at, updated_at)
         SELECT n::text, n::text, now(), now() FROM generate_series(0, $1 - 1) n",
    )
    .bind(writers as i32)
    .execute(pool)
    .await?;
    let db = pool.clone();
    let report = load::closed(u64::MAX, Duration::from_secs(3), writers, move |n| {
        let db = db.clone();
        async move {
            let changed = sqlx::query(
                "WITH changed AS (
                     UPDATE loadtest_rows SET description = $1::text, updated_at = now() WHERE id = $2 RETURNING id
                 )
                 INSERT INTO loadtest_events (id, actor, actor_type, action, resource_type, resource_id, at)
                 SELECT gen_random_uuid()::text, 'loadtest', 'User', 'update_team', 'team', id, now() FROM changed",
            )
            .bind(format!("Change {n}"))
            .bind((n % u64::from(writers)).to_string())
            .execute(&db)
            .await;
            Done {
                operation: "change",
                status: if changed.is_ok() { 200 } else { 0 },
            }
        }
    })
    .await;
    sqlx::raw_sql("DROP TABLE loadtest_rows, loadtest_events")
        .execute(pool)
        .await?;
    Ok(report)
}
