//! A POST that is repeated with its `Idempotency-Key` is done once.

use certctl_tests::world::{Answer, BOOTSTRAP, KEY, World};
use serde_json::{Value, json};
use sqlx::PgPool;

async fn post(w: &World, path: &str, key: &str, body: &Value) -> Answer {
    let request = w.http.post(format!("{}{path}", w.url)).bearer_auth(KEY);
    w.ask(path, request.header("idempotency-key", key).body(body.to_string()))
        .await
}

const TEAMS: &str = "/api/v1/teams";

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn the_same_request_is_answered_with_what_was_answered_first(db: PgPool) {
    let w = World::new(db).await;
    let body = json!({ "name": "platform" });
    let first = post(&w, TEAMS, "k-1", &body).await;
    let again = post(&w, TEAMS, "k-1", &body).await;
    assert_eq!(first.expect(201), again.expect(201));
    assert_eq!(
        (
            first.header("idempotency-replayed"),
            again.header("idempotency-replayed")
        ),
        ("", "true")
    );
    assert_eq!(
        w.text("SELECT count(*)::text FROM teams WHERE name = 'platform'").await,
        "1"
    );
    assert_eq!(
        w.text("SELECT count(*)::text FROM audit_events WHERE action = 'create_team'")
            .await,
        "1"
    );

    for (path, body) in [(TEAMS, json!({ "name": "other" })), ("/api/v1/owners", body.clone())] {
        let problem = post(&w, path, "k-1", &body).await.problem();
        assert_eq!(problem.errors[0].field, "idempotency-key");
        assert_eq!(problem.status, 422);
    }
    // After a day the key is free again; the name is not.
    w.clock.advance(std::time::Duration::from_secs(24 * 3600));
    assert_eq!(post(&w, TEAMS, "k-1", &body).await.status, 409);
    post(&w, TEAMS, "k-1", &json!({ "name": "other" })).await.expect(201);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn of_many_at_once_one_is_done_and_all_hear_of_it(db: PgPool) {
    let w = World::new(db).await;
    let body = json!({ "name": "platform" });
    let send = || post(&w, TEAMS, "k-1", &body);
    let (a, b, c, d, e) = tokio::join!(send(), send(), send(), send(), send());
    let first = a.expect(201);
    assert!([b, c, d, e].iter().all(|answer| answer.expect(201) == first));
    assert_eq!(
        w.text("SELECT count(*)::text FROM teams WHERE name = 'platform'").await,
        "1"
    );
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_request_that_failed_can_be_tried_again_with_its_key(db: PgPool) {
    let w = World::new(db).await;
    post(&w, TEAMS, "k-1", &json!({ "name": "" })).await.problem();
    let taken = json!({ "name": "platform" });
    post(&w, TEAMS, "k-2", &taken).await.expect(201);
    assert_eq!(post(&w, TEAMS, "k-1", &taken).await.problem().status, 409);
    assert_eq!(w.text("SELECT string_agg(key, ' ') FROM idempotency_keys").await, "k-2");
    post(&w, TEAMS, "k-1", &json!({ "name": "other" })).await.expect(201);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn what_was_done_and_whose_answer_is_gone_is_not_done_again(db: PgPool) {
    let w = World::new(db).await;
    let body = json!({ "name": "platform" });
    post(&w, TEAMS, "k-1", &body).await.expect(201);
    // As a server leaves it that dies after the commit.
    w.sql("UPDATE idempotency_keys SET status = NULL, answer = NULL").await;
    let problem = post(&w, TEAMS, "k-1", &body).await.problem();
    assert_eq!(problem.status, 409);
    assert!(problem.detail.contains("not kept"), "{}", problem.detail);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn an_answer_that_holds_a_secret_is_not_kept(db: PgPool) {
    let w = World::new(db).await;
    let body = json!({ "name": "web-1", "hostname": "web-1" });
    let send = || {
        let request = w.http.post(format!("{}/api/v1/agents", w.url)).bearer_auth(BOOTSTRAP);
        w.ask(
            "register",
            request.header("idempotency-key", "k").body(body.to_string()),
        )
    };
    send().await.expect(201);
    assert_eq!(send().await.problem().status, 409);
    assert_eq!(w.text("SELECT count(answer)::text FROM idempotency_keys").await, "0");
    assert_eq!(w.text("SELECT count(*)::text FROM agents").await, "1");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_key_is_printable_ascii(db: PgPool) {
    let w = World::new(db).await;
    for (key, status) in [
        ("a b", 201),
        ("", 400),
        ("ü", 400),
        (&"x".repeat(255), 201),
        (&"x".repeat(256), 400),
    ] {
        let body = json!({ "name": format!("team {}", key.len()) });
        assert_eq!(post(&w, TEAMS, key, &body).await.status, status, "{key}");
    }
}
