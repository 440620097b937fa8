//! Failed deployments are retried, and the deployment status tells what targets have and serve.

use std::fs;
use std::time::Duration;

use anyhow::ensure;
use certctl_model::time::Time;
use certctl_tests::beside::Backends;
use certctl_tests::eventually;
use certctl_tests::stage::{Stage, directory};
use certctl_tests::world::{Host, World};
use serde_json::{Value, json};
use sqlx::PgPool;

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);
const PATIENCE: Duration = Duration::from_secs(60);

/// Puts a directory where the agent writes the certificate of a target, so that every deployment fails.
fn block(host: &Host, target: &str) {
    let path = host.config(target)["cert_path"].as_str().unwrap().to_owned();
    let _ = fs::remove_file(&path);
    fs::create_dir(path).unwrap();
}

fn unblock(host: &Host, target: &str) {
    fs::remove_dir(host.config(target)["cert_path"].as_str().unwrap()).unwrap();
}

async fn certificate(w: &World) -> Value {
    w.get("/api/v1/certificates/mc-1").await.expect(200)
}

async fn renew(w: &World) {
    w.post("/api/v1/certificates/mc-1/renew", Value::Null).await.expect(202);
    w.settle().await;
}

/// The newest deployment.
async fn deployment(w: &World) -> Value {
    let jobs = w.get("/api/v1/jobs?type=Deployment&sort=-createdAt").await.expect(200);
    jobs["data"][0].clone()
}

/// The newest deployment as `status attempts`, and the seconds until the next attempt.
async fn attempts(w: &World) -> (String, i64) {
    let job = deployment(w).await;
    let next = job["retry_at"].as_str().or(job["scheduled_at"].as_str()).unwrap();
    let next: Time = next.parse().unwrap();
    (
        format!("{} {}", job["status"].as_str().unwrap(), job["attempts"]),
        next.seconds_since(w.clock.now()),
    )
}

async fn failures_announced(w: &World) -> String {
    w.text("SELECT count(*)::text FROM notifications WHERE type = 'DeploymentFailure' AND channel = 'Webhook'")
        .await
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn failed_deployments_are_retried_with_back_off_then_at_a_low_rate(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], json!({})).await;
    assert_eq!(certificate(&w).await["deployment_status"], "Pending");
    w.settle().await;
    assert_eq!(certificate(&w).await["deployment_status"], "Deployed");

    block(&host, "tgt-1");
    w.clock.advance(DAY);
    renew(&w).await;
    assert_eq!(attempts(&w).await, ("Pending 1".to_owned(), 3_600));
    let failed = certificate(&w).await;
    assert_eq!(
        (&failed["status"], &failed["deployment_status"]),
        (&json!("Active"), &json!("Failed"))
    );
    let reason = failed["deployment_status_reason"].as_str().unwrap();
    assert!(
        reason.starts_with("target tgt-1: attempt 1 of 3 failed: ") && reason.contains("version 1, valid until"),
        "{reason}"
    );
    let first = w.versions("mc-1").await[1].clone();
    assert_eq!(failed["expires_at"], first["not_after"], "of what is served");

    w.clock.advance(HOUR - Duration::from_secs(1));
    w.settle().await;
    assert_eq!(attempts(&w).await, ("Pending 1".to_owned(), 1));
    w.clock.advance(Duration::from_secs(1));
    w.settle().await;
    assert_eq!(attempts(&w).await, ("Pending 2".to_owned(), 7_200));
    w.clock.advance(2 * HOUR);
    w.settle().await;
    assert_eq!(attempts(&w).await, ("Failed 3".to_owned(), 4 * 3_600));
    let path = format!("/api/v1/jobs/{}/explain", deployment(&w).await["id"].as_str().unwrap());
    assert_eq!(w.get(&path).await.expect(200)["cause"], "Retrying");
    for _ in 0..3 {
        w.clock.advance(4 * HOUR);
        w.settle().await;
        assert_eq!(attempts(&w).await, ("Failed 3".to_owned(), 4 * 3_600));
    }
    assert_eq!(failures_announced(&w).await, "2", "the first and the last of three");
    let still = certificate(&w).await;
    assert_eq!(
        (&still["deployment_status"], &still["deployment_status_since"]),
        (&json!("Failed"), &failed["deployment_status_since"])
    );

    unblock(&host, "tgt-1");
    w.clock.advance(4 * HOUR);
    w.settle().await;
    assert_eq!(deployment(&w).await["status"], "Completed");
    let newest = w.versions("mc-1").await.remove(0);
    assert_eq!(
        host.served("tgt-1").unwrap().serial.to_string(),
        newest["serial_number"]
    );
    let deployed = certificate(&w).await;
    assert_eq!(
        (&deployed["deployment_status"], &deployed["expires_at"]),
        (&json!("Deployed"), &newest["not_after"])
    );
    // There is nowhere to look, and it is not claimed that somebody looked.
    let reason = deployed["deployment_status_reason"].as_str().unwrap();
    assert!(reason.contains("no endpoints"), "{reason}");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_waiting_deployment_is_tried_at_once_or_ended_by_an_operator(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    block(&host, "tgt-1");
    w.certificate("mc-1", &["tgt-1"], json!({})).await;
    w.settle().await;
    let job = deployment(&w).await["id"].as_str().unwrap().to_owned();
    assert_eq!(attempts(&w).await, ("Pending 1".to_owned(), 3_600));

    // A report whose answer was lost comes again, and is no second attempt.
    let status = format!("/api/v1/agents/{}/jobs/{job}/status", host.id());
    w.post(&status, json!({ "status": "Failed", "error": "again" }))
        .await
        .expect(200);
    assert_eq!(attempts(&w).await, ("Pending 1".to_owned(), 3_600));

    w.post(&format!("/api/v1/jobs/{job}/retry"), Value::Null)
        .await
        .expect(200);
    w.settle().await;
    assert_eq!(attempts(&w).await, ("Pending 2".to_owned(), 7_200));
    let asked = w.post("/api/v1/certificates/mc-1/deploy", json!({})).await.expect(202);
    assert_eq!(asked["job_ids"], json!([job]));
    w.settle().await;
    assert_eq!(attempts(&w).await, ("Failed 3".to_owned(), 4 * 3_600));

    w.post(&format!("/api/v1/jobs/{job}/cancel"), Value::Null)
        .await
        .expect(200);
    let again = w.post(&format!("/api/v1/jobs/{job}/cancel"), Value::Null).await;
    assert_eq!(again.problem().status, 409);
    w.clock.advance(DAY);
    w.settle().await;
    assert_eq!(deployment(&w).await["status"], "Cancelled");
    let cancelled = certificate(&w).await;
    assert_eq!(cancelled["deployment_status"], "Failed");
    let reason = cancelled["deployment_status_reason"].as_str().unwrap();
    assert!(reason.contains("was cancelled"), "{reason}");

    // What failed for the last time is not tried again when another version takes its place.
    renew(&w).await;
    for wait in [1, 2] {
        w.clock.advance(wait * HOUR);
        w.settle().await;
    }
    assert_eq!(attempts(&w).await.0, "Failed 3");
    renew(&w).await;
    let retried = "SELECT count(*)::text FROM jobs WHERE retry_at IS NOT NULL";
    assert_eq!(
        (attempts(&w).await.0.as_str(), w.text(retried).await.as_str()),
        ("Pending 1", "0")
    );

    // Without targets, and archived, there is no deployment status.
    w.put("/api/v1/certificates/mc-1", json!({ "target_ids": [] }))
        .await
        .expect(200);
    assert_eq!(certificate(&w).await.get("deployment_status"), None);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn one_of_two_targets_that_fails_is_partial_and_warned_of(db: PgPool) {
    let w = World::new(db).await;
    let (one, two) = (w.host("web-1").await, w.host("web-2").await);
    w.target("tgt-1", &one).await;
    w.target("tgt-2", &two).await;
    w.target("tgt-3", &one).await;
    w.certificate("mc-1", &["tgt-1", "tgt-2"], json!({})).await;
    w.certificate("mc-2", &["tgt-3"], json!({})).await;
    w.certificate("mc-3", &[], json!({})).await;
    w.settle().await;
    let served = w
        .versions("mc-1")
        .await
        .iter()
        .map(|one| one["not_after"].as_str().unwrap().to_owned())
        .min();
    block(&two, "tgt-2");
    w.clock.advance(10 * DAY);
    renew(&w).await;

    let partial = certificate(&w).await;
    assert_eq!(partial["deployment_status"], "Partial");
    let reason = partial["deployment_status_reason"].as_str().unwrap();
    assert!(
        reason.starts_with("target tgt-2: ") && !reason.contains("tgt-1"),
        "{reason}"
    );
    assert_eq!(
        partial["expires_at"].as_str(),
        served.as_deref(),
        "the oldest that is served"
    );
    for (status, ids) in [
        ("Partial", vec!["mc-1"]),
        ("Deployed", vec!["mc-2"]),
        ("Drifted", vec![]),
    ] {
        let page = w
            .get(&format!("/api/v1/certificates?deployment_status={status}"))
            .await
            .expect(200);
        let found: Vec<&str> = page["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["id"].as_str().unwrap())
            .collect();
        assert_eq!((found, &page["total"]), (ids.clone(), &json!(ids.len())), "{status}");
    }
    let figures = json!({ "Deployed": 1, "Partial": 1, "Pending": 0, "Failed": 0, "Drifted": 0 });
    let metrics = w.get("/api/v1/metrics").await.expect(200);
    assert_eq!(metrics["gauge"]["certificate_by_deployment_status"], figures);
    let summary = w.get("/api/v1/stats/summary").await.expect(200);
    assert_eq!(summary["by_deployment_status"], figures);
    let explained = w.get("/api/v1/certificates/mc-1/explain").await.expect(200);
    assert_eq!(explained["cause"], "NotDeployed");
    assert!(
        explained["next"]["what"].as_str().unwrap().contains("next attempt"),
        "{explained}"
    );
    assert_eq!(explained["jobs"][0]["cause"], "Retrying");

    // Two weeks before the end of what the second host still serves its owner is warned, once.
    let end: Time = served.unwrap().parse().unwrap();
    w.clock.advance((end - 14 * DAY).since(w.clock.now()));
    w.settle().await;
    for _ in 0..2 {
        certctl_scheduler::notices::warn_of_ends(w.scheduler.clone())
            .await
            .unwrap();
    }
    let warnings = "SELECT count(*) || ' ' || max(message) FROM notifications
                     WHERE type = 'ExpirationWarning' AND certificate_id = 'mc-1' AND channel = 'Webhook'";
    let warned = w.text(warnings).await;
    assert!(
        warned.starts_with("1 ")
            && warned.contains("Deployment status Partial: target tgt-2")
            && warned.contains("[threshold:14]"),
        "{warned}"
    );
    assert_eq!(w.status("mc-1").await, "Expiring");

    unblock(&two, "tgt-2");
    w.clock.advance(6 * HOUR);
    w.settle().await;
    let whole = certificate(&w).await;
    assert_eq!(
        (&whole["status"], &whole["deployment_status"]),
        (&json!("Active"), &json!("Deployed"))
    );
}

async fn endpoints(w: &World, host: &Host, target: &str, backends: &Backends) {
    let mut config = host.config(target);
    config["endpoints"] = json!(backends.addresses);
    let path = format!("/api/v1/targets/{target}");
    w.put(&path, json!({ "config": config })).await.expect(200);
}

/// Lets a validation look as often as it does before something is called wrong.
async fn look(w: &World) {
    for _ in 0..4 {
        w.settle().await;
        w.clock.advance(Duration::from_secs(10));
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn deployed_means_observed_and_drift_shows_at_once(db: PgPool) {
    let (w, dir) = (World::new(db).await, directory());
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], json!({})).await;
    w.settle().await;
    let old = host.bundle("tgt-1");
    let mut backends = Backends::start(dir.path(), &[old.as_str()]).await;
    endpoints(&w, &host, "tgt-1", &backends).await;
    let unchecked = certificate(&w).await;
    assert_eq!(unchecked["deployment_status"], "Pending", "nobody has looked there yet");
    look(&w).await;
    let served = certificate(&w).await;
    assert_eq!(
        (&served["deployment_status"], served.get("deployment_status_reason")),
        (&json!("Deployed"), None)
    );

    // A deployment ends what is known of the address: healthy is what was seen since.
    w.post("/api/v1/certificates/mc-1/renew", Value::Null).await.expect(202);
    w.settle().await;
    let endpoint = w.get("/api/v1/endpoints?outcome=Unchecked").await.expect(200);
    assert_eq!(
        (&endpoint["total"], &certificate(&w).await["deployment_status"]),
        (&json!(1), &json!("Pending"))
    );
    let new = host.bundle("tgt-1");
    backends.serve(0, &new).await;
    look(&w).await;
    assert_eq!(certificate(&w).await["deployment_status"], "Deployed");
    assert_eq!(w.get("/api/v1/endpoints?outcome=Served").await.expect(200)["total"], 1);

    // The server goes back to the old one by itself.
    backends.serve(0, &old).await;
    w.clock.advance(12 * HOUR);
    look(&w).await;
    let drifted = certificate(&w).await;
    assert_eq!(drifted["deployment_status"], "Drifted");
    let reason = drifted["deployment_status_reason"].as_str().unwrap();
    assert!(reason.contains(&backends.addresses[0].to_string()), "{reason}");
    let explained = w.get("/api/v1/certificates/mc-1/explain").await.expect(200);
    assert_eq!(explained["cause"], "Drifted");

    // It is looked at again after the retry interval, not only at the next turn.
    backends.serve(0, &new).await;
    w.clock.advance(HOUR);
    look(&w).await;
    assert_eq!(certificate(&w).await["deployment_status"], "Deployed");

    // Another certificate is deployed to the same address.
    w.target("tgt-2", &host).await;
    endpoints(&w, &host, "tgt-2", &backends).await;
    w.certificate("mc-2", &["tgt-2"], json!({})).await;
    look(&w).await;
    assert_eq!(certificate(&w).await["deployment_status"], "Deployed");
    let other = w.get("/api/v1/certificates/mc-2").await.expect(200);
    assert_eq!(other["deployment_status"], "Drifted", "the first is served there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_deployment_shows_everywhere_and_heals_by_itself() {
    let stage = Stage::set(|builder, _| builder).await;
    stage.demo_is_served().await;
    let policy = json!({ "retry_interval_seconds": 1, "max_retries": 20 });
    stage
        .api()
        .put("/api/v1/renewal-policies/rp-default", &policy)
        .await
        .unwrap();
    let demo = stage.demo();
    let before = demo.served().await.unwrap();
    let get = async |path: &str| Ok::<_, anyhow::Error>(stage.api().get(path).await?.unwrap_or_default());
    let becomes = async |status: &str| {
        eventually(status, PATIENCE, async || {
            let certificate = get("/api/v1/certificates/mc-demo").await?;
            ensure!(certificate["deployment_status"] == status, "{certificate}");
            Ok(certificate)
        })
        .await
    };
    becomes("Deployed").await;

    let config = fs::read_to_string(demo.config_path()).unwrap();
    fs::write(demo.config_path(), config.replacen("listen", "attend", 1)).unwrap();
    stage
        .api()
        .post("/api/v1/certificates/mc-demo/renew", &json!({}))
        .await
        .unwrap();
    let failed = becomes("Failed").await;
    let version = stage.versions("mc-demo").await;
    assert_eq!(
        (&failed["status"], &failed["expires_at"]),
        (&json!("Active"), &version[1]["not_after"]),
        "what is served is the older one"
    );
    assert_eq!(demo.served().await.unwrap(), before);
    let list = stage
        .api()
        .list("/api/v1/certificates?deployment_status=Failed")
        .await
        .unwrap();
    assert_eq!(list.len(), 1);
    let table = stage.cli(&["list-certs"]).await.ok();
    assert!(table.contains("DEPLOYMENT") && table.contains("Failed"), "{table}");
    let shown = stage.cli(&["certs", "get", "mc-demo"]).await.ok();
    assert!(shown.contains("\"deployment_status\": \"Failed\""), "{shown}");
    let explained = stage.cli(&["explain", "certificate", "mc-demo"]).await.ok();
    assert!(explained.contains("NotDeployed"), "{explained}");
    let metrics = get("/api/v1/metrics").await.unwrap();
    assert_eq!(metrics["gauge"]["certificate_by_deployment_status"]["Failed"], 1);
    let attempts = async || {
        let jobs = stage
            .api()
            .list("/api/v1/jobs?certificate_id=mc-demo&type=Deployment&sort=-createdAt")
            .await?;
        Ok::<_, anyhow::Error>(jobs[0]["attempts"].as_i64().unwrap())
    };
    eventually("a further attempt", PATIENCE, async || {
        ensure!(attempts().await? > 1);
        Ok(())
    })
    .await;

    fs::write(demo.config_path(), config).unwrap();
    let healed = becomes("Deployed").await;
    let served = demo.served().await.unwrap();
    assert_eq!(healed["fingerprint"], served.fingerprint.as_str());
    assert_ne!(served, before);
    let metrics = get("/api/v1/metrics").await.unwrap();
    assert_eq!(metrics["gauge"]["certificate_by_deployment_status"]["Failed"], 0);
}
