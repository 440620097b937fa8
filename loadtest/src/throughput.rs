//! Jobs from their claim to their end, with an issuer that does nothing: what the engine itself costs.

use std::{collections::HashMap, time::Duration};

use anyhow::ensure;
use certctl_model::{audit::Actor, job::Running, time::Clock};
use certctl_store::{Tx, certificates, jobs};
use futures_util::future::try_join_all;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::time::Instant;

use crate::{cli::Throughput, connect, load::round};

/// Jobs of one batch, as in the scheduler.
const BATCH: i64 = 256;
const LEASE: Duration = Duration::from_secs(60);

/// Seeds jobs that wait with their requests, and has workers claim and complete them.
///
/// # Errors
/// When the database is not on this machine, or when not every job has ended with one event.
pub(crate) async fn run(args: &Throughput) -> anyhow::Result<Value> {
    let pool = connect(&args.database.database_url, args.workers + 1).await?;
    seed(&pool, args.jobs).await?;
    let ceiling = raw(&pool, args).await?;
    let began = Instant::now();
    let workers = (0..args.workers).map(|_| work(&pool));
    let done: i64 = try_join_all(workers).await?.into_iter().sum();
    let seconds = began.elapsed().as_secs_f64();
    let (completed, events): (i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM jobs WHERE status = 'Completed'),
                (SELECT count(DISTINCT resource_id) FROM audit_events WHERE action = 'job_completed')",
    )
    .fetch_one(&pool)
    .await?;
    ensure!(
        (done, completed, events) == (args.jobs, args.jobs, args.jobs),
        "of {} jobs {done} were done, {completed} are completed, and {events} have their event",
        args.jobs
    );
    let per_second = args.jobs as f64 / seconds;
    Ok(json!({
        "name": "jobs-50k",
        "per_second": round(per_second),
        "ceiling_ratio": round(per_second / ceiling),
        "jobs": args.jobs,
        "workers": args.workers,
        "batch": BATCH,
        "seconds": round(seconds),
        "ceilings": { "update_skip_locked_returning_per_second": round(ceiling) },
    }))
}

/// Claims and completes until nothing is left. Returns how many.
async fn work(pool: &PgPool) -> anyhow::Result<i64> {
    let (clock, by, mut done) = (Clock::system(), Actor::system(), 0);
    loop {
        let claims = jobs::claim(pool, clock.now(), LEASE, BATCH, i64::MAX, &HashMap::new()).await?;
        if claims.is_empty() {
            return Ok(done);
        }
        let mut tx = Tx::begin(pool, &by, clock.now()).await?;
        let locked: Vec<_> = claims.iter().map(|claim| &claim.facts.certificate).collect();
        certificates::lock_all(&mut tx, &locked).await?;
        let held = jobs::hold::<Running>(&mut tx, &claims).await?;
        let transitions = held.into_iter().map(|job| job.complete(&by)).collect();
        done += jobs::apply_all(&mut tx, transitions).await?.len() as i64;
        tx.commit().await?;
    }
}

/// As many rows, taken and changed in the same batches by as many workers, and nothing else.
async fn raw(pool: &PgPool, args: &Throughput) -> anyhow::Result<f64> {
    for sql in [
        "CREATE TABLE raw_jobs (id text PRIMARY KEY, status text NOT NULL, certificate_id text NOT NULL)",
        "INSERT INTO raw_jobs SELECT id, status, certificate_id FROM jobs",
        "CREATE INDEX raw_jobs_idx ON raw_jobs (id) WHERE status = 'Running'",
        "VACUUM (ANALYZE) raw_jobs",
    ] {
        sqlx::raw_sql(sql).execute(pool).await?;
    }
    let take = async || -> anyhow::Result<()> {
        loop {
            let taken: Vec<String> = sqlx::query_scalar(
                "UPDATE raw_jobs SET status = 'Completed'
                  WHERE id = ANY (ARRAY(SELECT id FROM raw_jobs WHERE status = 'Running' ORDER BY id LIMIT $1
                                           FOR UPDATE SKIP LOCKED))
                 RETURNING id",
            )
            .bind(BATCH)
            .fetch_all(pool)
            .await?;
            if taken.is_empty() {
                return Ok(());
            }
        }
    };
    let began = Instant::now();
    try_join_all((0..args.workers).map(|_| take())).await?;
    Ok(args.jobs as f64 / began.elapsed().as_secs_f64())
}

async fn seed(pool: &PgPool, count: i64) -> anyhow::Result<()> {
    for sql in [
        "INSERT INTO agents (id, name, hostname, api_key_hash, registered_at, updated_at)
         SELECT 'a-1', 'bench', 'bench', 'none', now(), now() WHERE $1 > 0",
        "INSERT INTO certificates (id, name, common_name, owner_id, team_id, issuer_id, renewal_policy_id, created_at,
                                   updated_at)
         SELECT 'mc-' || n, 'bench-' || n, 'host-' || n || '.bench.certctl.test', 'o-unassigned', 't-unassigned',
                'iss-local', 'rp-default', now(), now() FROM generate_series(1, $1) n",
        "INSERT INTO jobs (id, type, certificate_id, agent_id, status, csr_der, run_at, created_at)
         SELECT 'j-' || lpad(n::text, 9, '0'), 'Issuance', 'mc-' || n, 'a-1', 'Running', '', now(), now()
           FROM generate_series(1, $1) n",
    ] {
        sqlx::query(sql).bind(count).execute(pool).await?;
    }
    sqlx::raw_sql("VACUUM (ANALYZE) certificates, jobs")
        .execute(pool)
        .await?;
    sqlx::raw_sql("CHECKPOINT").execute(pool).await?;
    Ok(())
}
