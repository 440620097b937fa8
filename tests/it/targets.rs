//! Certificates follow their targets: what is added, enabled, changed, taken away or deleted.

use std::time::Duration;

use certctl_tests::world::{Host, World};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

const DAY: Duration = Duration::from_secs(86_400);

fn serving(host: &Host, target: &str) -> Option<String> {
    host.served(target).map(|leaf| leaf.serial.to_string())
}

async fn newest(w: &World, id: &str) -> String {
    w.versions(id).await[0]["serial_number"].as_str().unwrap().to_owned()
}

async fn open_jobs(w: &World) -> String {
    w.text(
        "SELECT coalesce(string_agg(type || ' ' || status, ', ' ORDER BY created_at, id), 'none') FROM jobs
             WHERE status NOT IN ('Completed', 'Failed', 'Cancelled')",
    )
    .await
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_target_that_is_enabled_gets_its_certificate(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.put("/api/v1/targets/tgt-1", json!({ "enabled": false }))
        .await
        .expect(200);
    w.certificate("mc-1", &["tgt-1"], json!({})).await;
    w.settle().await;
    assert_eq!(
        (w.status("mc-1").await.as_str(), open_jobs(&w).await.as_str()),
        ("Pending", "none")
    );
    w.put("/api/v1/targets/tgt-1", json!({ "enabled": true }))
        .await
        .expect(200);
    w.settle().await;
    assert_eq!(serving(&host, "tgt-1"), Some(newest(&w, "mc-1").await));

    // Disabled while a renewal is recorded, then enabled.
    w.target("tgt-2", &host).await;
    w.put("/api/v1/certificates/mc-1", json!({ "target_ids": ["tgt-1", "tgt-2"] }))
        .await
        .expect(200);
    w.settle().await;
    w.put("/api/v1/targets/tgt-1", json!({ "enabled": false }))
        .await
        .expect(200);
    w.post("/api/v1/certificates/mc-1/renew", Value::Null).await.expect(202);
    w.settle().await;
    assert_ne!(serving(&host, "tgt-1"), Some(newest(&w, "mc-1").await));
    w.put("/api/v1/targets/tgt-1", json!({ "enabled": true }))
        .await
        .expect(200);
    w.settle().await;
    assert_eq!(serving(&host, "tgt-1"), Some(newest(&w, "mc-1").await));
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_target_whose_settings_change_is_deployed_to_again(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], json!({})).await;
    w.settle().await;
    let elsewhere = host.config("tgt-other");
    w.put("/api/v1/targets/tgt-1", json!({ "config": elsewhere }))
        .await
        .expect(200);
    w.settle().await;
    assert_eq!(serving(&host, "tgt-other"), Some(newest(&w, "mc-1").await));
    w.put("/api/v1/targets/tgt-1", json!({ "name": "renamed" }))
        .await
        .expect(200);
    assert_eq!(open_jobs(&w).await, "none", "a name changes nothing on the host");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn an_agent_whose_first_request_failed_is_asked_again_although_another_succeeded(db: PgPool) {
    let w = World::new(db).await;
    let (one, two) = (w.host("web-1").await, w.host("web-2").await);
    w.target("tgt-1", &one).await;
    w.target("tgt-2", &two).await;
    two.set_away(true);
    w.certificate("mc-1", &["tgt-1", "tgt-2"], json!({})).await;
    w.settle().await;
    let job = w.text("SELECT id FROM jobs WHERE status = 'AwaitingCSR'").await;
    let path = format!("/api/v1/agents/{}/jobs/{job}/status", two.id());
    w.post(&path, json!({ "status": "Failed", "error": "the disk is full" }))
        .await
        .expect(200);
    let certificate = w.get("/api/v1/certificates/mc-1").await.expect(200);
    assert_eq!(
        (&certificate["status"], &certificate["failure"]),
        (&json!("Failed"), &json!("the disk is full"))
    );

    two.set_away(false);
    w.clock.advance(Duration::from_secs(3599));
    w.settle().await;
    assert_eq!(serving(&two, "tgt-2"), None, "the retry interval is not over");
    w.clock.advance(Duration::from_secs(1));
    w.settle().await;
    assert!(serving(&two, "tgt-2").is_some());
    assert_eq!(
        (w.versions("mc-1").await.len(), w.status("mc-1").await.as_str()),
        (2, "Active")
    );
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn the_dates_of_a_certificate_are_those_of_what_its_targets_serve(db: PgPool) {
    let w = World::new(db).await;
    let (one, two) = (w.host("web-1").await, w.host("web-2").await);
    w.target("tgt-1", &one).await;
    w.target("tgt-2", &two).await;
    w.certificate("mc-1", &["tgt-1"], json!({})).await;
    w.settle().await;
    w.clock.advance(DAY * 40);
    w.put("/api/v1/certificates/mc-1", json!({ "target_ids": ["tgt-1", "tgt-2"] }))
        .await
        .expect(200);
    w.settle().await;
    let ends = async || w.get("/api/v1/certificates/mc-1").await.expect(200)["expires_at"].clone();
    let of = |host: &Host, target: &str| json!(host.served(target).unwrap().not_after);
    assert_eq!(ends().await, of(&one, "tgt-1"), "the first to end");
    w.put("/api/v1/certificates/mc-1", json!({ "target_ids": ["tgt-2"] }))
        .await
        .expect(200);
    assert_eq!(
        ends().await,
        of(&two, "tgt-2"),
        "what is not served any more does not count"
    );

    // Mapped back after what its agent holds has ended: it gets a new one, not the old one.
    w.clock.advance(DAY * 51);
    w.put("/api/v1/certificates/mc-1", json!({ "target_ids": ["tgt-1", "tgt-2"] }))
        .await
        .expect(200);
    w.settle().await;
    assert!(one.served("tgt-1").unwrap().not_after > w.clock.now());
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_target_that_is_deleted_is_waited_for_no_longer(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], json!({})).await;
    w.settle().await;
    host.set_away(true);
    w.post("/api/v1/certificates/mc-1/renew", Value::Null).await.expect(202);
    w.settle().await;
    assert_eq!(w.status("mc-1").await, "RenewalInProgress");
    w.delete("/api/v1/targets/tgt-1").await.expect(204);
    assert_eq!(
        (w.status("mc-1").await.as_str(), open_jobs(&w).await.as_str()),
        ("Active", "none")
    );
    w.delete("/api/v1/targets/tgt-1").await.expect(404);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn an_older_version_is_never_put_over_a_newer_one(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], json!({})).await;
    w.settle().await;
    // A deployment that was begun and left, and one that was never begun, of what is old by now.
    w.post("/api/v1/certificates/mc-1/deploy", Value::Null)
        .await
        .expect(202);
    let left = w.text("SELECT id FROM jobs WHERE status = 'Pending'").await;
    let path = format!("/api/v1/agents/{}/jobs/{left}/status", host.id());
    w.post(&path, json!({ "status": "Running" })).await.expect(200);
    w.sql("UPDATE jobs SET run_at = run_at + interval '1 year' WHERE status = 'Running'")
        .await;
    w.post("/api/v1/certificates/mc-1/renew", Value::Null).await.expect(202);
    w.settle().await;
    assert_eq!(serving(&host, "tgt-1"), Some(newest(&w, "mc-1").await));
    assert_eq!(open_jobs(&w).await, "none", "nothing is left of the older deployment");
    let refused = w
        .post(&format!("/api/v1/jobs/{left}/retry"), Value::Null)
        .await
        .problem();
    assert_eq!(refused.status, 409);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn what_is_being_signed_does_not_change_its_names(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], json!({})).await;
    w.settle().await;
    w.post("/api/v1/certificates/mc-1/renew", Value::Null).await.expect(202);
    w.sql("UPDATE jobs SET status = 'Running', csr_der = '' WHERE status = 'Pending'")
        .await;
    for change in [
        json!({ "sans": ["other.example.net"] }),
        json!({ "issuer_id": "iss-local" }),
    ] {
        let refused = w.put("/api/v1/certificates/mc-1", change).await.problem();
        assert_eq!(
            (refused.status, refused.kind.as_str()),
            (409, "urn:certctl:problem:wrong-state")
        );
    }
    w.put("/api/v1/certificates/mc-1", json!({ "tags": { "tier": "one" } }))
        .await
        .expect(200);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_profile_that_was_tightened_does_not_stop_other_changes(db: PgPool) {
    let w = World::new(db).await;
    w.post("/api/v1/profiles", json!({ "id": "prof-1", "name": "one" }))
        .await
        .expect(201);
    w.certificate("mc-1", &[], json!({ "certificate_profile_id": "prof-1" }))
        .await;
    w.put("/api/v1/profiles/prof-1", json!({ "enabled": false }))
        .await
        .expect(200);
    w.put("/api/v1/certificates/mc-1", json!({ "environment": "staging" }))
        .await
        .expect(200);
    let refused = w
        .put("/api/v1/certificates/mc-1", json!({ "sans": ["a.example.net"] }))
        .await
        .problem();
    assert_eq!(
        (refused.status, refused.errors[0].field.as_str()),
        (422, "certificate_profile_id")
    );
    w.delete("/api/v1/profiles/prof-1").await.expect(409);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_certificate_that_has_ended_can_still_be_revoked_and_is_told_so(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.post(
        "/api/v1/renewal-policies",
        json!({ "id": "rp-never", "name": "never", "auto_renew": false }),
    )
    .await
    .expect(201);
    w.certificate("mc-1", &["tgt-1"], json!({ "renewal_policy_id": "rp-never" }))
        .await;
    w.settle().await;
    w.clock.advance(DAY * 100);
    w.post("/api/v1/certificates/mc-1/revoke", json!({ "reason": "superseded" }))
        .await
        .expect(200);
    let crl = w.get("/api/v1/crl").await.expect(200);
    assert_eq!(crl["entries"][0]["serial_number"], newest(&w, "mc-1").await);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn an_agent_that_keeps_one_key_gets_no_older_deployment_while_its_next_is_signed(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], json!({})).await;
    w.settle().await;
    w.post("/api/v1/certificates/mc-1/deploy", Value::Null)
        .await
        .expect(202);
    w.post("/api/v1/certificates/mc-1/renew", Value::Null).await.expect(202);
    w.sql("UPDATE jobs SET status = 'Running', csr_der = '' WHERE status = 'Pending' AND type = 'Renewal'")
        .await;
    let path = format!("/api/v1/agents/{}/work", host.id());
    let work = w.raw(Method::GET, &path, Some(&host.key()), "").await.expect(200);
    assert_eq!(work, json!({ "jobs": [], "count": 0 }));
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_report_that_skips_the_beginning_completes_the_deployment_all_the_same(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], json!({})).await;
    w.settle().await;
    let jobs = w
        .post("/api/v1/certificates/mc-1/deploy", Value::Null)
        .await
        .expect(202);
    let job = jobs["job_id"].as_str().unwrap();
    let path = format!("/api/v1/agents/{}/jobs/{job}/status", host.id());
    w.post(&path, json!({ "status": "Completed" })).await.expect(200);
    let job = w.get(&format!("/api/v1/jobs/{job}")).await.expect(200);
    assert_eq!((&job["status"], &job["attempts"]), (&json!("Completed"), &json!(1)));
}
