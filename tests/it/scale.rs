//! What must not cost more because there is more of it, or go on when nobody wants it any more.

use std::{collections::HashMap, time::Duration};

use anyhow::ensure;
use certctl_store::jobs;
use certctl_tests::eventually;
use certctl_tests::world::World;
use serde_json::{Value, json};
use sqlx::{Connection, PgPool};

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn asking_for_work_reads_the_jobs_of_the_agent_that_asks_and_no_others(db: PgPool) {
    const ASKED: i64 = 5;
    let w = World::new(db).await;
    let (host, other) = (w.host("web-1").await, w.host("web-2").await);
    seed(
        &w,
        &[
            &many_certificates(5000),
            &format!(
                "INSERT INTO jobs (id, type, certificate_id, agent_id, status, run_at, created_at)
                 SELECT 'j-' || n, 'Issuance', 'mc-' || n, CASE WHEN n <= 3 THEN '{}' ELSE '{}' END, 'AwaitingCSR', now(),
                        now() FROM generate_series(1, 5000) n",
                host.id(),
                other.id()
            ),
        ],
    )
    .await;
    for _ in 0..ASKED {
        let work = w.get(&format!("/api/v1/agents/{}/work", host.id())).await.expect(200);
        assert_eq!(work["count"], 3);
    }
    let (one_by_one, fetched) = jobs_read(&w, ASKED).await;
    assert!(one_by_one == 0 && fetched <= 20 * ASKED, "{one_by_one}, {fetched}");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn claiming_reads_the_jobs_that_wait_and_none_of_those_that_are_over(db: PgPool) {
    const WAIT: i64 = 5;
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    seed(
        &w,
        &[
            &many_certificates(5000),
            &format!(
                "INSERT INTO jobs (id, type, certificate_id, agent_id, status, csr_der, run_at, created_at, finished_at)
                 SELECT 'j-' || n, 'Issuance', 'mc-' || n, '{}', CASE WHEN n <= {WAIT} THEN 'Running' ELSE 'Completed' END,
                        '', '{now}', '{now}', CASE WHEN n > {WAIT} THEN '{now}'::timestamptz END
                   FROM generate_series(1, 5000) n",
                host.id(),
                now = w.clock.now()
            ),
        ],
    )
    .await;
    let claimed = jobs::claim(&w.db, w.clock.now(), Duration::from_secs(60), 256, 256, &HashMap::new()).await;
    assert_eq!(claimed.unwrap().len() as i64, WAIT);
    let (one_by_one, fetched) = jobs_read(&w, 4).await;
    assert!(one_by_one == 0 && fetched <= 10 * WAIT, "{one_by_one}, {fetched}");
}

fn many_certificates(count: u32) -> String {
    format!(
        "INSERT INTO certificates (id, name, common_name, owner_id, team_id, issuer_id, renewal_policy_id, created_at, updated_at)
         SELECT 'mc-' || n, 'n-' || n, 'h-' || n || '.example', 'o-unassigned', 't-unassigned', 'iss-local', 'rp-default',
                now(), now() FROM generate_series(1, {count}) n"
    )
}

/// Puts rows there, and has it forgotten what that read.
async fn seed(w: &World, statements: &[&str]) {
    // A session of its own: what it read has been told of when it is gone.
    let mut session = sqlx::PgConnection::connect_with(&w.db.connect_options()).await.unwrap();
    for sql in statements {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_string()))
            .execute(&mut session)
            .await
            .unwrap();
    }
    sqlx::raw_sql("VACUUM (ANALYZE) jobs")
        .execute(&mut session)
        .await
        .unwrap();
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
        .fetch_one(&mut session)
        .await
        .unwrap();
    session.close().await.unwrap();
    eventually("the session to be gone", Duration::from_secs(10), async || {
        let there: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE pid = $1)")
            .bind(pid)
            .fetch_one(&w.db)
            .await?;
        ensure!(!there);
        Ok(())
    })
    .await;
    w.sql("SELECT pg_stat_reset()").await;
}

/// Rows of jobs read one after the other, and those fetched by an index, once it was looked at so often.
async fn jobs_read(w: &World, looks: i64) -> (i64, i64) {
    // The database tells what its sessions read when they rest.
    eventually("the sessions to tell", Duration::from_secs(30), async || {
        let (scans, one_by_one, fetched): (i64, i64, i64) = sqlx::query_as(
            "SELECT coalesce(idx_scan, 0) + coalesce(seq_scan, 0), coalesce(seq_tup_read, 0), coalesce(idx_tup_fetch, 0)
               FROM pg_stat_user_tables WHERE relname = 'jobs'",
        )
        .fetch_one(&w.db)
        .await?;
        ensure!(scans >= looks, "{scans} scans");
        Ok((one_by_one, fetched))
    })
    .await
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn what_nobody_waits_for_any_more_is_not_done(db: PgPool) {
    let w = World::new(db).await;
    w.certificate("mc-1", &[], json!({ "environment": "before" })).await;
    let mut holds = certctl_store::tx::begin(&w.db, None).await.unwrap();
    sqlx::query("SELECT 1 FROM certificates FOR UPDATE")
        .execute(&mut *holds)
        .await
        .unwrap();
    let waiting = async |wanted: i64| {
        eventually(&format!("{wanted} to wait"), Duration::from_secs(20), async || {
            let sql =
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
            let waiting: i64 = sqlx::query_scalar(sql).fetch_one(&w.db).await?;
            ensure!(waiting == wanted, "{waiting}");
            Ok(())
        })
        .await;
    };
    let change = w.put("/api/v1/certificates/mc-1", json!({ "environment": "after" }));
    tokio::select! {
        _ = change => panic!("it is held"),
        () = waiting(1) => {}
    }
    // Who asked is gone; what held it goes on.
    holds.rollback().await.unwrap();
    waiting(0).await;
    let again = w
        .put("/api/v1/certificates/mc-1", json!({ "tags": { "a": "b" } }))
        .await
        .expect(200);
    assert_eq!(again["environment"], "before");
    let changes = "SELECT count(*)::text FROM audit_events WHERE action = 'certificate_updated'";
    assert_eq!(w.text(changes).await, "1");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn what_is_asked_often_is_answered_from_an_index(db: PgPool) {
    let w = World::new(db).await;
    for sql in [
        "SELECT * FROM jobs WHERE type = 'Renewal' ORDER BY created_at DESC, id DESC LIMIT 50",
        "SELECT * FROM jobs WHERE status = 'Failed' ORDER BY created_at DESC, id DESC LIMIT 50",
        "SELECT * FROM jobs WHERE certificate_id = 'mc-1' ORDER BY created_at DESC, id DESC LIMIT 50",
        "SELECT id FROM jobs WHERE type = 'Validation' AND status IN ('Pending', 'Running') AND run_at <= now()
          ORDER BY run_at, id LIMIT 64",
        "SELECT id, renew_at FROM certificates WHERE renew_at <= now() AND revoked_at IS NULL AND archived_at IS NULL
          ORDER BY renew_at, id LIMIT 1000",
        "SELECT * FROM certificate_targets WHERE validate_at <= now() ORDER BY validate_at, certificate_id, target_id LIMIT 500",
        "SELECT * FROM certificate_versions WHERE issuer_id = 'iss-local' AND serial_number = '7f'",
        "SELECT * FROM notifications WHERE dedup_key = 'x'",
        "SELECT * FROM notifications WHERE type = 'Drift' ORDER BY created_at DESC, id DESC LIMIT 50",
        "SELECT * FROM audit_events WHERE resource_type = 'job' AND resource_id = 'j-1'",
        "SELECT * FROM endpoints WHERE outcome = 'Differs' ORDER BY checked_at DESC, id DESC LIMIT 50",
    ] {
        let mut session = certctl_store::tx::begin(&w.db, None).await.unwrap();
        // A table this small is read whole, unless that is out of the question.
        for set in [
            "SET LOCAL enable_seqscan = off",
            "SET LOCAL enable_bitmapscan = off",
            "SET LOCAL enable_sort = off",
        ] {
            sqlx::query(set).execute(&mut *session).await.unwrap();
        }
        let plan: Value = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("EXPLAIN (FORMAT JSON) {sql}")))
            .fetch_one(&mut *session)
            .await
            .unwrap();
        let plan = plan.to_string();
        assert!(
            plan.contains("Index") && !plan.contains("\"Seq Scan\"") && !plan.contains("\"Sort\""),
            "{sql}: {plan}"
        );
    }
}
