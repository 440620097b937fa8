//! Every API call is in the trail, whatever happens to database and server.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::ensure;
use certctl_tests::{eventually, stage::Stage, world::World};
use http::Method;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::{sync::Notify, task::JoinSet};

const SOON: Duration = Duration::from_secs(20);

async fn count_is(w: &World, sql: &str, wanted: &str) {
    eventually(sql, SOON, async || {
        let found = w.text(sql).await;
        ensure!(found == wanted, "{found}");
        Ok(())
    })
    .await;
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_call_is_recorded_with_who_what_and_how_it_ended(db: PgPool) {
    let w = World::new(db).await;
    w.record_calls();
    let made = w.post("/api/v1/teams", json!({ "name": "a" })).await;
    w.get("/health").await.expect(200);
    let long = format!("/api/v1/teams/{}", "t".repeat(300));
    w.get(&long).await;
    count_is(
        &w,
        "SELECT count(*)::text FROM audit_events WHERE resource_type = 'api'",
        "2",
    )
    .await;
    let details = w
        .text("SELECT details::text FROM audit_events WHERE action = 'api_post' AND actor = 'api-key-user'")
        .await;
    let details: Value = serde_json::from_str(&details).unwrap();
    // SHA-256 of {"name":"a"}
    assert_eq!(details["body_hash"], "d9d719b27480b55c");
    assert_eq!(
        (&details["method"], &details["path"], &details["status"]),
        (&json!("POST"), &json!("/api/v1/teams"), &json!(201))
    );
    assert_eq!(details["request_id"], made.header("x-request-id"));
    assert_eq!(details["remote_address"], "127.0.0.1");
    assert_eq!(
        w.text("SELECT length(resource_id)::text FROM audit_events WHERE action = 'api_get'")
            .await,
        "255"
    );
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn denied_attempts_are_recorded_ten_a_minute_and_counted_beyond(db: PgPool) {
    let w = World::new(db).await;
    w.record_calls();
    for _ in 0..14 {
        w.raw(Method::GET, "/api/v1/teams", Some("the-wrong-key"), "")
            .await
            .problem();
    }
    let denied = "SELECT count(*)::text FROM audit_events WHERE action = 'access_denied'";
    count_is(&w, denied, "10").await;
    w.clock.advance(Duration::from_secs(60));
    count_is(&w, denied, "11").await;
    assert_eq!(
        w.text("SELECT max((details->>'unrecorded')::int)::text FROM audit_events")
            .await,
        "4"
    );
    assert_eq!(
        w.text("SELECT count(*)::text FROM audit_events WHERE details::text LIKE '%wrong-key%'")
            .await,
        "0"
    );
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn calls_wait_on_disk_while_the_trail_cannot_be_written(db: PgPool) {
    let w = World::new(db).await;
    let spool = w.record_calls();
    w.sql("ALTER TABLE audit_events RENAME TO away").await;
    for _ in 0..5 {
        w.get("/api/v1/teams").await.expect(200);
    }
    eventually("a segment on disk", SOON, async || {
        let octets: u64 = segments(&spool)
            .iter()
            .map(|path| fs::metadata(path).map_or(0, |m| m.len()))
            .sum();
        ensure!(octets > 1000, "{octets}");
        Ok(())
    })
    .await;
    w.sql("ALTER TABLE away RENAME TO audit_events").await;
    count_is(
        &w,
        "SELECT count(*)::text FROM audit_events WHERE action = 'api_get'",
        "5",
    )
    .await;
    eventually("an empty spool", SOON, async || {
        ensure!(segments(&spool).is_empty());
        Ok(())
    })
    .await;
}

fn segments(spool: &std::path::Path) -> Vec<std::path::PathBuf> {
    let homes = fs::read_dir(spool).unwrap().flatten();
    let files = homes.flat_map(|home| fs::read_dir(home.path()).unwrap().flatten());
    let mut paths: Vec<_> = files.map(|file| file.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|end| end == "ndjson"));
    paths
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn what_a_dead_server_left_is_taken_up_once(db: PgPool) {
    let w = World::new(db).await;
    let spool = w.spool();
    let home = spool.join("dead");
    fs::create_dir_all(&home).unwrap();
    fs::write(home.join("lock"), "").unwrap();
    let record = |id: &str| {
        let id = format!("audit-{id}");
        json!({ "id": id, "actor": "anna", "actor_type": "User", "action": "api_get", "resource_id": "/", "details": {},
                "at": "2027-01-15T08:00:00Z" })
        .to_string()
    };
    // One was inserted before the server died; of the last, half was written.
    w.sql(
        "INSERT INTO audit_events (id, actor, actor_type, action, resource_type, resource_id, at)
           VALUES ('audit-1', 'anna', 'User', 'api_get', 'api', '/', now())",
    )
    .await;
    fs::write(
        home.join("7.ndjson"),
        format!("{}\n{}\n{{\"id\":\"aud", record("1"), record("2")),
    )
    .unwrap();
    w.record_calls();
    count_is(
        &w,
        "SELECT string_agg(id, ' ' ORDER BY id) FROM audit_events WHERE action = 'api_get'",
        "audit-1 audit-2",
    )
    .await;
    count_is(
        &w,
        "SELECT count(*)::text FROM audit_events WHERE action = 'api_calls_lost'",
        "1",
    )
    .await;
    assert!(!home.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_what_25_writers_change_nothing_is_missing_in_the_trail_though_the_server_is_killed() {
    const WRITERS: usize = 25;
    const EACH: usize = 80;
    let mut stage = Stage::set(|builder, _| builder.without_demo()).await;
    let (url, key) = (stage.api().url().to_owned(), stage.api().key().to_owned());
    let (done, half) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (url, key, done, half) = (url.clone(), key.clone(), done.clone(), half.clone());
        writers.spawn(async move {
            let http = reqwest::Client::builder()
                .timeout(Duration::from_secs(30))
                .build()
                .unwrap();
            for n in 0..EACH {
                let id = format!("t-{writer}-{n}");
                loop {
                    let request = http.post(format!("{url}/api/v1/teams")).bearer_auth(&key);
                    let request = request
                        .header("idempotency-key", &id)
                        .json(&json!({ "id": id, "name": id }));
                    match request.send().await.map(|answer| answer.status().as_u16()) {
                        // 409: done before the server was killed, and not answered.
                        Ok(201 | 409) => break,
                        // Refused connections, broken ones, a server that starts.
                        Ok(429 | 500..) | Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                        Ok(status) => panic!("{id}: {status}"),
                    }
                }
                if done.fetch_add(1, Ordering::SeqCst) == WRITERS * EACH / 2 {
                    half.notify_one();
                }
            }
        });
    }
    half.notified().await;
    stage.platform.service("api").kill9();
    stage.platform.restart("api").await.unwrap();
    while let Some(writer) = writers.join_next().await {
        writer.unwrap();
    }
    let number = async |sql: &'static str| sqlx::query_scalar::<_, i64>(sql).fetch_one(&stage.db).await.unwrap();
    let all = (WRITERS * EACH) as i64;
    assert_eq!(number("SELECT count(*) FROM teams WHERE id LIKE 't-%-%'").await, all);
    let events = "SELECT count(*) FROM audit_events WHERE action = 'create_team' AND resource_id LIKE 't-%-%'";
    assert_eq!(number(events).await, all);
    let distinct = "SELECT count(DISTINCT resource_id) FROM audit_events WHERE action = 'create_team' AND resource_id LIKE 't-%-%'";
    assert_eq!(number(distinct).await, all);
    // A record is on disk a moment after its answer; those of that moment are the only ones that may be missing.
    let calls = "SELECT count(*) FROM audit_events WHERE action = 'api_post' AND details->>'path' = '/api/v1/teams' \
                    AND details->>'status' IN ('201', '409')";
    eventually("the calls", SOON, async || {
        let found = number(calls).await;
        ensure!(found >= all - WRITERS as i64, "{found} of {all}");
        Ok(())
    })
    .await;
    println!("{} calls of {all} changes are in the trail", number(calls).await);
    let twice =
        "SELECT count(*) - count(DISTINCT details->>'request_id') FROM audit_events WHERE resource_type = 'api'";
    assert_eq!(number(twice).await, 0);
}
