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

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_target_belongs_to_one_certificate_and_a_file_to_one_target(db: PgPool) {
    let w = World::new(db).await;
    let (host, other) = (w.host("web-1").await, w.host("web-2").await);
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1", "tgt-1"], json!({})).await;
    w.put("/api/v1/certificates/mc-1", json!({ "target_ids": ["tgt-1", "tgt-1"] }))
        .await
        .expect(200);
    let second = json!({ "id": "mc-2", "common_name": "mc-2.example.net", "target_ids": ["tgt-1"] });
    let refused = w.post("/api/v1/certificates", second.clone()).await.problem();
    assert_eq!(refused.status, 409);
    assert!(
        refused.detail.contains("certificate mc-1 (mc-1.example.net)") && refused.detail.contains("{id}"),
        "{}",
        refused.detail
    );
    w.certificate("mc-3", &[], json!({})).await;
    let refused = w
        .put("/api/v1/certificates/mc-3", json!({ "target_ids": ["tgt-1"] }))
        .await
        .problem();
    assert!(
        refused.status == 409 && refused.detail.contains("mc-1"),
        "{}",
        refused.detail
    );

    // The same file in another spelling, and as another file of the target.
    let path = host.config("tgt-1")["cert_path"]
        .as_str()
        .unwrap()
        .replace("/tls/", "//tls/./");
    let key = path.replace(".pem", ".key");
    let fresh = host.config("tgt-x")["cert_path"].clone();
    let config = |cert: &Value, key: Value| json!({ "cert_path": cert, "key_path": key, "validate_command": "true", "reload_command": "true" });
    let new = |id: &str, agent: &str, config: Value| json!({ "id": id, "name": id, "type": "NGINX", "agent_id": agent, "config": config });
    for config in [config(&json!(path), Value::Null), config(&fresh, json!(key))] {
        let refused = w
            .post("/api/v1/targets", new("tgt-2", host.id(), config))
            .await
            .problem();
        assert!(
            refused.status == 409 && refused.detail.contains("target tgt-1 (tgt-1)"),
            "{}",
            refused.detail
        );
    }
    let same = config(&json!(path), Value::Null);
    w.post("/api/v1/targets", new("tgt-9", other.id(), same.clone()))
        .await
        .expect(201);
    w.target("tgt-2", &host).await;
    let refused = w
        .put("/api/v1/targets/tgt-2", json!({ "config": same.clone() }))
        .await
        .problem();
    assert_eq!(refused.status, 409);
    w.put("/api/v1/targets/tgt-1", json!({ "enabled": false }))
        .await
        .expect(200);
    w.put("/api/v1/targets/tgt-2", json!({ "config": same }))
        .await
        .expect(200);
    assert_eq!(
        w.put("/api/v1/targets/tgt-1", json!({ "enabled": true })).await.status,
        409
    );
    w.put("/api/v1/targets/tgt-1", json!({ "name": "renamed" }))
        .await
        .expect(200);

    // What is archived holds its target no longer.
    w.put("/api/v1/targets/tgt-2", json!({ "enabled": false }))
        .await
        .expect(200);
    w.put("/api/v1/targets/tgt-1", json!({ "enabled": true }))
        .await
        .expect(200);
    w.delete("/api/v1/certificates/mc-1").await.expect(204);
    w.post("/api/v1/certificates", second).await.expect(201);
    w.settle().await;
    assert_eq!(serving(&host, "tgt-1"), Some(newest(&w, "mc-2").await));

    // Nor does what is on hold, which is released to its targets only while nobody else has them.
    w.post(
        "/api/v1/certificates/mc-2/revoke",
        json!({ "reason": "certificateHold" }),
    )
    .await
    .expect(200);
    let targets = |ids: Value| w.put("/api/v1/certificates/mc-3", json!({ "target_ids": ids }));
    targets(json!(["tgt-1"])).await.expect(200);
    let refused = w.post("/api/v1/certificates/mc-2/release", json!({})).await.problem();
    assert!(
        refused.status == 409 && refused.detail.contains("mc-3"),
        "{}",
        refused.detail
    );
    assert_eq!(w.status("mc-2").await, "Revoked");
    targets(json!([])).await.expect(200);
    w.post("/api/v1/certificates/mc-2/release", json!({})).await.expect(200);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_target_whose_paths_have_a_placeholder_takes_several_certificates(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    let shared = |id: &str, cert: &str| json!({ "id": id, "name": id, "type": "NGINX", "agent_id": host.id(), "config": host.config(cert) });
    w.post("/api/v1/targets", shared("tgt-1", "{id}")).await.expect(201);
    w.post("/api/v1/targets", shared("tgt-2", "by-{name}"))
        .await
        .expect(201);
    for id in ["mc-1", "mc-2"] {
        w.certificate(id, &["tgt-1", "tgt-2"], json!({})).await;
    }
    w.settle().await;
    for id in ["mc-1", "mc-2"] {
        let newest = Some(newest(&w, id).await);
        assert_eq!(serving(&host, id), newest);
        assert_eq!(serving(&host, &format!("by-{id}.example.net")), newest);
    }
    // A name that stands for the same file, and a target with the same file of its own.
    let named = json!({ "id": "mc-3", "name": "mc-1*example.net", "common_name": "mc-3.example.net" });
    w.post("/api/v1/certificates", named).await.expect(201);
    w.put("/api/v1/certificates/mc-3", json!({ "target_ids": ["tgt-2"] }))
        .await
        .expect(200);
    let refused = w
        .put("/api/v1/certificates/mc-3", json!({ "name": "mc-1/example.net" }))
        .await;
    assert_eq!(refused.status, 200);
    w.put("/api/v1/certificates/mc-2", json!({ "name": "mc-1_example.net" }))
        .await
        .problem();
    let refused = w.post("/api/v1/targets", shared("tgt-3", "mc-1")).await.problem();
    assert!(
        refused.status == 409 && refused.detail.contains("target tgt-1"),
        "{}",
        refused.detail
    );
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn two_certificates_that_ask_for_one_target_at_once_do_not_both_get_it(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    let ask = async |n: u32| {
        let body = json!({ "common_name": format!("n{n}.example.net"), "target_ids": ["tgt-1"] });
        w.post("/api/v1/certificates", body).await.status
    };
    let (a, b, c, d) = tokio::join!(ask(1), ask(2), ask(3), ask(4));
    let mut answers = [a, b, c, d];
    answers.sort_unstable();
    assert_eq!(answers, [201, 409, 409, 409]);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn settings_of_a_target_that_mean_nothing_are_told(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    let mut config = host.config("tgt-1");
    config["restart_command"] = json!("true");
    config["ssl"] = json!({ "on": true });
    let new = json!({ "id": "tgt-1", "name": "tgt-1", "type": "NGINX", "agent_id": host.id(), "config": config });
    let made = w.post("/api/v1/targets", new).await.expect(201);
    assert_eq!(made["ignored"], json!(["restart_command", "ssl"]));
    assert_eq!(made["config"].get("ssl"), None);
    assert_eq!(w.get("/api/v1/targets/tgt-1").await.expect(200).get("ignored"), None);
    let joined = json!({ "config": { "cert_path": host.config("tgt-1")["cert_path"], "reload_cmd": "true && true" } });
    let changed = w.put("/api/v1/targets/tgt-1", joined).await.expect(200);
    assert_eq!(changed.get("ignored"), None);
    assert_eq!(
        (
            &changed["config"]["validate_command"],
            &changed["config"]["reload_command"]
        ),
        (&json!("true"), &json!("true"))
    );
}
