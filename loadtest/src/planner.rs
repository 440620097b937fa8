//! Renewals that fall due at once among many certificates: how long two schedulers take to plan them.

use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};
use sqlx::{PgConnection, PgPool};
use tokio::time::{Instant, sleep};

use crate::{cli::Planner, connect, cpu, load::round, memory::Memory};

const LOOK_EVERY: Duration = Duration::from_millis(20);
const WAIT_AT_MOST: Duration = Duration::from_secs(120);
const AGENTS: i64 = 2_000;

/// Seeds certificates, lets some of them fall due, and waits until each has its job.
///
/// # Errors
/// When the database is not on this machine, or when not every certificate that is due has one job and one event.
pub(crate) async fn run(args: &Planner) -> anyhow::Result<Value> {
    let pool = connect(&args.database.database_url, 3).await?;
    seed(&pool, args).await?;
    let bare = bare_insert(&pool, args.due).await?;
    let mut before = Vec::new();
    for pid in &args.scheduler_pids {
        before.push((Memory::reset(*pid)?.now, cpu::of_process(*pid)?));
    }

    sqlx::query("UPDATE certificates SET renew_at = now() - interval '1 hour' WHERE current_version_id IS NOT NULL")
        .execute(&pool)
        .await?;
    let (mut began, waited) = (None, Instant::now());
    loop {
        let jobs = jobs(&pool).await?;
        if jobs > 0 {
            began.get_or_insert_with(Instant::now);
        }
        if jobs >= args.due {
            break;
        }
        ensure!(waited.elapsed() < WAIT_AT_MOST, "{jobs} of {} are planned", args.due);
        sleep(LOOK_EVERY).await;
    }
    // What was planned first was committed before it was seen.
    let seconds = began
        .map_or(Duration::ZERO, |began| began.elapsed() + LOOK_EVERY)
        .as_secs_f64();
    // Whoever would plan something twice has the time to.
    sleep(Duration::from_secs(3)).await;
    let (jobs, events): (i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM audit_events WHERE action = 'renewal_job_created')",
    )
    .fetch_one(&pool)
    .await?;
    ensure!(
        (jobs, events) == (args.due, args.due),
        "{} certificates were due; there are {jobs} jobs and {events} events",
        args.due
    );
    let (mut rss, mut growth, mut spent) = (0, 0, Duration::ZERO);
    for (pid, (resident, used)) in args.scheduler_pids.iter().zip(before) {
        let peak = Memory::of(*pid)?.peak;
        (rss, growth) = (rss.max(peak), growth.max(peak.saturating_sub(resident)));
        spent += cpu::of_process(*pid)? - used;
    }
    Ok(json!({
        "name": "planner-1m",
        "rows": args.rows,
        "due": args.due,
        "schedulers": args.scheduler_pids.len(),
        "seconds": round(seconds),
        "rss_mb": rss / 1024,
        "rss_growth_mb": growth / 1024,
        "jobs": jobs,
        "events": events,
        "scheduler_cpu_seconds": round(spent.as_secs_f64()),
        "ceilings": { "bare_insert_seconds": round(bare) },
        "seconds_over_bare_insert": round(seconds / bare.max(0.001)),
    }))
}

async fn jobs(pool: &PgPool) -> anyhow::Result<i64> {
    let count = "SELECT coalesce(sum(delta), 0)::bigint FROM tallies WHERE subject = 'job'";
    Ok(sqlx::query_scalar(count).fetch_one(pool).await?)
}

/// Rows as many as are due would be: jobs without anything that comes with them, undone again.
async fn bare_insert(pool: &PgPool, due: i64) -> anyhow::Result<f64> {
    let mut db = pool.acquire().await?;
    sqlx::raw_sql("BEGIN").execute(&mut *db).await?;
    let began = Instant::now();
    sqlx::query(
        "INSERT INTO jobs (id, type, certificate_id, agent_id, status, run_at, created_at)
         SELECT 'j-bare-' || n, 'Renewal', 'mc-plan-' || n, 'a-plan-' || n % $2, 'Pending', now(), now()
           FROM generate_series(1, $1) n",
    )
    .bind(due)
    .bind(AGENTS)
    .execute(&mut *db)
    .await?;
    let seconds = began.elapsed().as_secs_f64();
    sqlx::raw_sql("ROLLBACK").execute(&mut *db).await?;
    Ok(seconds)
}

/// Certificates that each have a target; those that will be due also have a version of 47 days, of which two thirds are just
/// over.
async fn seed(pool: &PgPool, args: &Planner) -> anyhow::Result<()> {
    let mut db = pool.acquire().await?;
    // Tallies and the like are not needed of what only stands there.
    sqlx::raw_sql("SET session_replication_role = replica")
        .execute(&mut *db)
        .await?;
    insert(&mut db, args).await?;
    for statement in [
        "RESET session_replication_role",
        "VACUUM (ANALYZE) certificates, certificate_targets, certificate_versions, targets, jobs",
        "CHECKPOINT",
    ] {
        sqlx::raw_sql(statement).execute(&mut *db).await?;
    }
    Ok(())
}

async fn insert(db: &mut PgConnection, args: &Planner) -> anyhow::Result<()> {
    for sql in [
        "INSERT INTO agents (id, name, hostname, api_key_hash, last_heartbeat_at, registered_at, updated_at)
         SELECT 'a-plan-' || n, 'plan-' || n, 'plan-' || n, md5('agent' || n), now(), now(), now()
           FROM generate_series(0, $3 - 1) n WHERE $1 > 0 AND $2 > 0",
        "INSERT INTO targets (id, name, type, agent_id, created_at, updated_at)
         SELECT 't-plan-' || n, 'plan-' || n, 'NGINX', 'a-plan-' || n, now(), now()
           FROM generate_series(0, $3 - 1) n WHERE $1 > 0 AND $2 > 0",
        "INSERT INTO certificates (id, name, common_name, environment, owner_id, team_id, issuer_id, renewal_policy_id,
                                   current_version_id, not_before, not_after, renew_at, created_at, updated_at)
         SELECT 'mc-plan-' || n, 'plan-' || n, 'plan-' || n || '.example.net', 'bench', 'o-unassigned',
                't-unassigned', 'iss-local', 'rp-default', CASE WHEN n <= $2 THEN 'cv-plan-' || n END,
                CASE WHEN n <= $2 THEN now() - interval '32 days' END,
                CASE WHEN n <= $2 THEN now() + interval '15 days' END,
                now() + interval '1 day' + n * interval '1 second', now(), now()
           FROM generate_series(1, $1) n WHERE $3 > 0",
        "INSERT INTO certificate_targets (certificate_id, target_id)
         SELECT 'mc-plan-' || n, 't-plan-' || n % $3 FROM generate_series(1, $1) n WHERE $2 > 0",
        "INSERT INTO certificate_versions (id, certificate_id, job_id, issuer_id, agent_id, version, serial_number,
                                           not_before, not_after, fingerprint_sha256, spki_sha256, cert_pem, chain_pem,
                                           csr_der, key_algorithm, key_size, created_at)
         SELECT 'cv-plan-' || n, 'mc-plan-' || n, 'j-plan-' || n, 'iss-local', 'a-plan-' || n % $3, 1,
                '7' || md5('plan' || n), now() - interval '32 days', now() + interval '15 days', md5('f' || n),
                md5('k' || n), '', '', '', 'ECDSA', 256, now()
           FROM generate_series(1, $2) n WHERE $1 > 0",
    ] {
        sqlx::query(sql)
            .bind(args.rows)
            .bind(args.due)
            .bind(AGENTS)
            .execute(&mut *db)
            .await?;
    }
    Ok(())
}
