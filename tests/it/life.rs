//! A certificate and its jobs through the API: what is asked for begins at once, and what happened is told afterwards.

use std::time::Duration;

use certctl_tests::world::World;
use serde_json::{Value, json};
use sqlx::PgPool;

/// One job, by its id.
async fn job(w: &World, id: &str) -> Value {
    w.get(&format!("/api/v1/jobs/{id}")).await.expect(200)
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_renewal_and_a_deployment_are_jobs_at_once_that_tell_their_tries_and_times(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.target("tgt-2", &host).await;
    w.certificate("mc-1", &["tgt-1", "tgt-2"], Value::Null).await;
    w.settle().await;

    w.clock.advance(Duration::from_secs(60));
    let asked = w.clock.now();
    let renewed = w.post("/api/v1/certificates/mc-1/renew", Value::Null).await.expect(202);
    let id = renewed["job_id"].as_str().unwrap();
    assert_eq!(renewed["job_ids"], json!([id]));
    let fresh = job(&w, id).await;
    let facts = [
        "type",
        "status",
        "attempts",
        "agent_id",
        "created_at",
        "started_at",
        "completed_at",
    ];
    assert_eq!(
        facts.map(|fact| fresh[fact].clone()),
        [
            json!("Renewal"),
            json!("Pending"),
            json!(0),
            json!(host.id()),
            json!(asked),
            Value::Null,
            Value::Null
        ]
    );
    assert_eq!(w.status("mc-1").await, "RenewalInProgress");
    let again = w.post("/api/v1/certificates/mc-1/renew", Value::Null).await.problem();
    assert!(again.status == 409 && again.detail.contains(id), "{again:?}");

    w.clock.advance(Duration::from_secs(60));
    w.settle().await;
    let done = job(&w, id).await;
    assert_eq!(
        facts[1..3].iter().map(|fact| &done[fact]).collect::<Vec<_>>(),
        [&json!("Completed"), &json!(1)]
    );
    assert_eq!(
        (&done["started_at"], &done["completed_at"]),
        (&json!(w.clock.now()), &json!(w.clock.now()))
    );
    let certificate = w.get("/api/v1/certificates/mc-1").await.expect(200);
    assert_eq!(
        (&certificate["last_renewal_at"], &certificate["last_deployment_at"]),
        (&json!(w.clock.now()), &json!(w.clock.now()))
    );

    // Everywhere, or on one target; each a job.
    w.clock.advance(Duration::from_secs(60));
    for (body, targets) in [
        (json!({}), vec!["tgt-1", "tgt-2"]),
        (json!({ "target_id": "tgt-2" }), vec!["tgt-2"]),
    ] {
        let deployed = w.post("/api/v1/certificates/mc-1/deploy", body).await.expect(202);
        let ids: Vec<&str> = deployed["job_ids"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(Value::as_str)
            .collect();
        let mut on = vec![];
        for id in ids {
            let job = job(&w, id).await;
            assert_eq!(
                (&job["type"], &job["status"]),
                (&json!("Deployment"), &json!("Pending"))
            );
            on.push(job["target_id"].as_str().unwrap().to_owned());
        }
        on.sort_unstable();
        assert_eq!(on, targets);
        w.settle().await;
    }
    let nowhere = w
        .post("/api/v1/certificates/mc-1/deploy", json!({ "target_id": "tgt-none" }))
        .await;
    assert_eq!(nowhere.problem().errors[0].field, "target_id");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_job_that_waits_for_its_agent_can_be_cancelled_and_begun_anew(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    host.set_away(true);
    w.certificate("mc-1", &["tgt-1"], Value::Null).await;
    w.settle().await;
    let id = w.text("SELECT id FROM jobs").await;
    assert_eq!(job(&w, &id).await["status"], "AwaitingCSR");
    let cancelled = w
        .post(&format!("/api/v1/jobs/{id}/cancel"), json!({}))
        .await
        .expect(200);
    assert_eq!(cancelled, json!({ "status": "job_cancelled" }));
    let job = job(&w, &id).await;
    assert_eq!(job["status"], "Cancelled");
    assert!(!job["last_error"].as_str().unwrap().is_empty(), "it says why: {job}");
    host.set_away(false);
    w.post("/api/v1/certificates/mc-1/renew", Value::Null).await.expect(202);
    w.settle().await;
    assert_eq!(w.status("mc-1").await, "Active");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn what_is_archived_stays_revoked(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], Value::Null).await;
    w.settle().await;
    let revoked = json!({ "reason": "keyCompromise" });
    w.post("/api/v1/certificates/mc-1/revoke", revoked).await.expect(200);
    w.delete("/api/v1/certificates/mc-1").await.expect(204);
    let certificate = w.get("/api/v1/certificates/mc-1").await.expect(200);
    assert_eq!(
        ["status", "revoked_at", "revocation_reason"].map(|key| certificate[key].clone()),
        [json!("Archived"), json!(w.clock.now()), json!("keyCompromise")]
    );
    assert_eq!(w.get("/api/v1/crl").await.expect(200)["total"], 1);
    let serial = certificate["serial_number"].as_str().unwrap();
    let ocsp = w.get(&format!("/api/v1/ocsp/iss-local/{serial}")).await;
    let status = certctl_x509::ocsp::status_of(&ocsp.octets, &serial.parse().unwrap()).unwrap();
    assert!(format!("{status:?}").starts_with("Revoked"), "{status:?}");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn an_agent_that_registers_and_is_never_heard_of_goes_offline(db: PgPool) {
    let w = World::new(db).await;
    let new = json!({ "name": "silent", "hostname": "silent.example.net" });
    let made = w.post("/api/v1/agents", new).await.expect(201);
    let path = format!("/api/v1/agents/{}", made["id"].as_str().unwrap());
    assert_eq!(made["status"], "Online");
    w.clock.advance(Duration::from_secs(200));
    w.settle().await;
    assert_eq!(w.get(&path).await.expect(200)["status"], "Offline");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn an_event_is_fetched_by_its_own_id_and_by_no_other(db: PgPool) {
    let w = World::new(db).await;
    for name in ["a", "b", "c"] {
        w.post("/api/v1/teams", json!({ "id": format!("t-{name}"), "name": name }))
            .await
            .expect(201);
    }
    let events = w.get("/api/v1/audit?action=create_team").await.expect(200);
    assert_eq!(events["total"], 3);
    for event in events["data"].as_array().unwrap() {
        let one = w
            .get(&format!("/api/v1/audit/{}", event["id"].as_str().unwrap()))
            .await
            .expect(200);
        assert_eq!(&one, event);
    }
    assert_eq!(w.get("/api/v1/audit/t-a").await.problem().status, 404);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn what_is_created_with_its_name_alone_has_no_settings_and_is_enabled(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    let config = host.config("a");
    for (path, new) in [
        ("issuers", json!({ "name": "a", "type": "local" })),
        (
            "targets",
            json!({ "name": "a", "type": "NGINX", "agent_id": host.id(), "config": config }),
        ),
        ("policies", json!({ "name": "a", "type": "RequiredMetadata" })),
        ("profiles", json!({ "name": "a" })),
        ("agent-groups", json!({ "name": "a" })),
    ] {
        let created = w.post(&format!("/api/v1/{path}"), new).await.expect(201);
        assert_eq!(created["enabled"], true, "{path}");
        if path == "issuers" {
            assert!(created["config"].is_object(), "{created}");
        }
    }
}
