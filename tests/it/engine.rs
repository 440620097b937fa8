//! What the engine does with jobs that nobody moves, and what it tells of itself.

use std::time::Duration;

use certctl_tests::world::World;
use serde_json::{Value, json};
use sqlx::PgPool;

const HOUR: Duration = Duration::from_secs(3_600);

async fn job(w: &World, kind: &str) -> Value {
    let jobs = w
        .get(&format!("/api/v1/jobs?type={kind}&sort=-createdAt"))
        .await
        .expect(200);
    jobs["data"][0].clone()
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_job_whose_agent_sends_no_request_fails_and_is_planned_again(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    host.set_away(true);
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], json!({})).await;
    w.settle().await;
    w.clock.advance(HOUR * 24 - Duration::from_secs(1));
    w.settle().await;
    assert_eq!(job(&w, "Issuance").await["status"], "AwaitingCSR");
    w.clock.advance(Duration::from_secs(1));
    w.settle().await;
    let failed = job(&w, "Issuance").await;
    assert_eq!(
        (&failed["status"], &failed["last_error"]),
        (
            &json!("Failed"),
            &json!("its agent did not send a certification request within 1day")
        )
    );
    assert_eq!(w.status("mc-1").await, "Failed");
    let told = w.text("SELECT string_agg(DISTINCT type, ',') FROM notifications").await;
    assert_eq!(told, "RenewalFailure");

    w.clock.advance(HOUR);
    w.settle().await;
    assert_eq!(job(&w, "Issuance").await["status"], "AwaitingCSR", "asked again");
    host.set_away(false);
    w.settle().await;
    assert_eq!(w.status("mc-1").await, "Active");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_deployment_waits_for_its_agent_as_long_as_it_takes_but_not_for_its_report(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], json!({})).await;
    w.settle().await;
    host.set_away(true);
    w.clock.advance(HOUR);
    w.post("/api/v1/certificates/mc-1/deploy", json!({})).await.expect(202);
    w.clock.advance(HOUR * 48);
    w.settle().await;
    let waiting = job(&w, "Deployment").await;
    assert_eq!(waiting["status"], "Pending");

    // It begins, and is not heard of again.
    let path = format!(
        "/api/v1/agents/{}/jobs/{}/status",
        host.id(),
        waiting["id"].as_str().unwrap()
    );
    w.raw(
        http::Method::POST,
        &path,
        Some(&host.key()),
        json!({ "status": "Running" }).to_string(),
    )
    .await
    .expect(200);
    w.clock.advance(HOUR - Duration::from_secs(1));
    w.settle().await;
    assert_eq!(job(&w, "Deployment").await["status"], "Running");
    w.clock.advance(Duration::from_secs(1));
    w.settle().await;
    let failed = job(&w, "Deployment").await;
    assert_eq!(
        (&failed["status"], &failed["last_error"]),
        (
            &json!("Failed"),
            &json!("its agent began to deploy and did not tell what became of it within 1h")
        )
    );
    let told = "SELECT count(*)::text FROM notifications WHERE type = 'DeploymentFailure' AND channel = 'Webhook'";
    assert_eq!(w.text(told).await, "1");
}
