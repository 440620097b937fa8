//! Whether what clients connect to serves what was deployed.

use std::fs;
use std::time::Duration;

use anyhow::ensure;
use certctl_tests::beside::Backends;
use certctl_tests::eventually;
use certctl_tests::stage::{Stage, directory, preloaded};
use certctl_tests::world::{Host, World};
use serde_json::{Value, json};
use sqlx::PgPool;

const HOUR: Duration = Duration::from_secs(3_600);

/// Lets one look, and look again as often as is needed before something is called wrong.
async fn settle(w: &World) {
    for _ in 0..4 {
        w.settle().await;
        w.clock.advance(Duration::from_secs(10));
    }
}

/// What was seen, as `number of the backend: outcome`, for those that are not as they should be.
async fn wrong(w: &World, backends: &Backends) -> Vec<String> {
    let seen = w.get("/api/v1/endpoints").await.expect(200);
    let seen = seen["data"].as_array().unwrap().clone();
    let mut wrong: Vec<String> = seen
        .iter()
        .filter(|one| one["outcome"] != "Served")
        .map(|one| {
            let at = |address: &&std::net::SocketAddr| one["address"] == address.to_string();
            let number = backends.addresses.iter().position(|address| at(&address)).unwrap();
            format!("{number}: {}", one["outcome"].as_str().unwrap())
        })
        .collect();
    wrong.sort();
    wrong
}

async fn last_job(w: &World) -> Value {
    let jobs = w.get("/api/v1/jobs?type=Validation&sort=-createdAt").await.expect(200);
    jobs["data"][0].clone()
}

async fn events(w: &World) -> String {
    w.text(
        "SELECT coalesce(string_agg(action || ' ' || (details->>'address'), ', ' ORDER BY sequence), 'none')
           FROM audit_events WHERE action LIKE 'endpoint_%'",
    )
    .await
}

async fn warnings(w: &World) -> i64 {
    w.text("SELECT count(*)::text FROM notifications WHERE type = 'Drift' AND channel = 'Webhook'")
        .await
        .parse()
        .unwrap()
}

async fn endpoints(w: &World, host: &Host, backends: &Backends) {
    let mut config = host.config("tgt-1");
    config["endpoints"] = json!(backends.addresses);
    w.put("/api/v1/targets/tgt-1", json!({ "config": config }))
        .await
        .expect(200);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn of_four_backends_the_one_that_serves_the_old_certificate_is_named_within_one_interval(db: PgPool) {
    let (w, dir) = (World::new(db).await, directory());
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], json!({})).await;
    w.settle().await;
    let old = host.bundle("tgt-1");
    let mut backends = Backends::start(dir.path(), &[old.as_str(); 4]).await;
    let deployments = "SELECT count(*)::text FROM jobs WHERE type = 'Deployment'";
    let deployed = w.text(deployments).await;
    endpoints(&w, &host, &backends).await;
    settle(&w).await;
    assert_eq!(
        w.text(deployments).await,
        deployed,
        "where clients connect is nothing to deploy for"
    );
    assert_eq!(last_job(&w).await["status"], "Completed");
    let seen = w
        .get("/api/v1/endpoints?certificate_id=mc-1&outcome=Served")
        .await
        .expect(200);
    assert_eq!(seen["total"], 4);

    // The renewal reaches three of them.
    let serial = |version: &Value| version["serial_number"].as_str().unwrap().to_owned();
    let before = serial(&w.versions("mc-1").await[0]);
    w.post("/api/v1/certificates/mc-1/renew", Value::Null).await.expect(202);
    w.settle().await;
    let new = host.bundle("tgt-1");
    assert_ne!(old, new);
    for number in [0, 1, 3] {
        backends.serve(number, &new).await;
    }
    settle(&w).await;
    assert_eq!(wrong(&w, &backends).await, ["2: Differs"]);
    let job = last_job(&w).await;
    let address = backends.addresses[2].to_string();
    let why = job["last_error"].as_str().unwrap();
    assert_eq!((&job["status"], &job["attempts"]), (&json!("Failed"), &json!(3)));
    assert!(
        why.starts_with(&address) && why.contains(&before) && !why.contains("; "),
        "{why}"
    );
    assert_eq!(
        (events(&w).await, warnings(&w).await),
        (format!("endpoint_drifted {address}"), 1)
    );

    // It stays so: nothing new is told.
    w.clock.advance(13 * HOUR);
    settle(&w).await;
    assert_eq!((wrong(&w, &backends).await.len(), warnings(&w).await), (1, 1));

    // It is mended, and another goes back without anybody having deployed.
    backends.serve(2, &new).await;
    w.clock.advance(13 * HOUR);
    settle(&w).await;
    assert_eq!(wrong(&w, &backends).await, [""; 0]);
    assert_eq!(last_job(&w).await["status"], "Completed");
    backends.serve(0, &old).await;
    w.clock.advance(12 * HOUR);
    settle(&w).await;
    assert_eq!(wrong(&w, &backends).await, ["0: Differs"]);
    let first = backends.addresses[0];
    assert_eq!(
        (events(&w).await, warnings(&w).await),
        (
            format!("endpoint_drifted {address}, endpoint_restored {address}, endpoint_drifted {first}"),
            2
        )
    );

    // Nobody answers: seen when somebody asks.
    backends.stop();
    let asked = w
        .post("/api/v1/certificates/mc-1/validate", json!({}))
        .await
        .expect(202);
    assert_eq!(asked["status"], "validation_triggered");
    let again = w.post("/api/v1/certificates/mc-1/validate", json!({})).await.problem();
    assert_eq!(again.status, 409);
    settle(&w).await;
    assert_eq!(
        wrong(&w, &backends).await,
        ["0: Unreachable", "1: Unreachable", "2: Unreachable", "3: Unreachable"]
    );
    assert_eq!(last_job(&w).await["id"], asked["job_id"]);

    // Jobs that looked go after a month, and those that did something stay.
    let jobs = "SELECT string_agg(type || ' ' || n, ', ' ORDER BY type)
                  FROM (SELECT type, count(*) AS n FROM jobs GROUP BY type) j";
    assert_eq!(w.text(jobs).await, "Deployment 2, Issuance 1, Renewal 1, Validation 6");
    w.clock.advance(29 * 24 * HOUR);
    settle(&w).await;
    w.clock.advance(28 * HOUR);
    settle(&w).await;
    assert_eq!(w.text(jobs).await, "Deployment 2, Issuance 1, Renewal 1, Validation 2");

    // What is not looked at any more is forgotten.
    w.put("/api/v1/targets/tgt-1", json!({ "config": host.config("tgt-1") }))
        .await
        .expect(200);
    let nowhere = w
        .post("/api/v1/certificates/mc-1/validate", json!({ "target_id": "tgt-1" }))
        .await;
    assert!(nowhere.problem().detail.contains("nowhere to look"));
    let other = w
        .post("/api/v1/certificates/mc-1/validate", json!({ "target_id": "tgt-2" }))
        .await;
    assert!(other.problem().detail.contains("not mapped"));
    w.put("/api/v1/certificates/mc-1", json!({ "target_ids": [] }))
        .await
        .expect(200);
    assert_eq!(w.get("/api/v1/endpoints").await.expect(200)["total"], 0);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn what_was_never_deployed_and_what_is_being_deployed_is_not_called_drift(db: PgPool) {
    let (w, dir) = (World::new(db).await, directory());
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.certificate("mc-0", &["tgt-1"], json!({})).await;
    w.settle().await;
    let old = host.bundle("tgt-1");
    let backends = Backends::start(dir.path(), &[old.as_str()]).await;
    endpoints(&w, &host, &backends).await;
    settle(&w).await;
    assert_eq!(last_job(&w).await["status"], "Completed");

    // Its agent says that it began, and no more.
    host.set_away(true);
    w.post("/api/v1/certificates/mc-0/deploy", Value::Null)
        .await
        .expect(202);
    w.sql("UPDATE jobs SET status = 'Running', started_at = now() WHERE type = 'Deployment' AND status = 'Pending'")
        .await;
    let asked = w
        .post("/api/v1/certificates/mc-0/validate", json!({}))
        .await
        .expect(202);
    settle(&w).await;
    let path = format!("/api/v1/jobs/{}", asked["job_id"].as_str().unwrap());
    let waiting = w.get(&path).await.expect(200);
    assert_eq!(
        (&waiting["status"], &waiting["attempts"]),
        (&json!("Running"), &json!(0))
    );
    assert_eq!(waiting["last_error"], "a deployment to this target is under way");
    w.sql("UPDATE jobs SET status = 'Completed', finished_at = now() WHERE type = 'Deployment' AND status = 'Running'")
        .await;
    settle(&w).await;
    assert_eq!(w.get(&path).await.expect(200)["status"], "Completed");

    // A second certificate for the same target, whose agent is away.
    w.put("/api/v1/certificates/mc-0", json!({ "target_ids": [] }))
        .await
        .expect(200);
    w.certificate("mc-1", &["tgt-1"], json!({})).await;
    let asked = w
        .post("/api/v1/certificates/mc-1/validate", json!({}))
        .await
        .expect(202);
    settle(&w).await;
    let path = format!("/api/v1/jobs/{}", asked["job_id"].as_str().unwrap());
    let failed = w.get(&path).await.expect(200);
    assert_eq!(failed["last_error"], "nothing was deployed to this target yet");
    assert_eq!((events(&w).await.as_str(), warnings(&w).await), ("none", 0));

    // By itself nobody looks there.
    w.put("/api/v1/targets/tgt-1", json!({ "name": "changed" }))
        .await
        .expect(200);
    w.clock.advance(13 * HOUR);
    settle(&w).await;
    let looked = "SELECT count(*)::text FROM jobs WHERE type = 'Validation' AND certificate_id = 'mc-1'";
    assert_eq!(w.text(looked).await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_the_addresses_behind_a_name_the_one_that_goes_back_to_the_old_certificate_is_named() {
    let stage = Stage::set(|builder, dir| {
        let hosts: String = (1..=4).map(|n| format!("127.0.0.{n} www.certctl.test\n")).collect();
        let file = dir.join("hosts");
        fs::write(&file, hosts).unwrap();
        builder
            .without_demo()
            // The file of names is none that a scheduler reads.
            .env("scheduler", "CERTCTL_HARDENING", "off")
            .env("scheduler", "LD_PRELOAD", preloaded("libnss_wrapper.so").display())
            .env("scheduler", "NSS_WRAPPER_HOSTS", file.display())
            .env("scheduler", "CERTCTL_SCHEDULER_VALIDATION_INTERVAL", "5s")
    })
    .await;
    let target = stage.file_target("t-www").await;
    let body = json!({ "id": "mc-www", "common_name": "www.certctl.test", "target_ids": [target.id] });
    stage.api().post("/api/v1/certificates", &body).await.unwrap();
    let deployed = async |times: usize| {
        eventually(&format!("{times} deployments"), Duration::from_secs(60), async || {
            let jobs = stage
                .api()
                .list("/api/v1/jobs?type=Deployment&status=Completed")
                .await?;
            ensure!(jobs.len() == times, "{jobs:?}");
            Ok(())
        })
        .await;
        let read = |path| fs::read_to_string(path).unwrap();
        read(&target.cert_path) + &read(&target.key_path)
    };
    let old = deployed(1).await;
    let dir = directory();
    let mut backends = Backends::of_one_name(dir.path(), &[old.as_str(); 4]).await;
    let addresses = backends.addresses.clone();
    let mut config = stage.api().get("/api/v1/targets/t-www").await.unwrap().unwrap()["config"].clone();
    config["endpoints"] = json!([format!("www.certctl.test:{}", addresses[0].port())]);
    stage
        .api()
        .put("/api/v1/targets/t-www", &json!({ "config": config }))
        .await
        .unwrap();
    let seen = async |what: &str, wanted: &[(&str, usize)]| {
        eventually(what, Duration::from_secs(60), async || {
            let endpoints = stage.api().list("/api/v1/endpoints").await?;
            let mut outcomes: Vec<(&str, usize)> = endpoints
                .iter()
                .map(|one| {
                    let at = |address: &&std::net::SocketAddr| one["address"] == address.to_string();
                    let number = addresses.iter().position(|address| at(&address));
                    (one["outcome"].as_str().unwrap(), number.unwrap())
                })
                .collect();
            outcomes.sort_by_key(|(_, number)| *number);
            ensure!(outcomes == wanted, "{endpoints:?}");
            Ok(())
        })
        .await;
    };
    let served = [("Served", 0), ("Served", 1), ("Served", 2), ("Served", 3)];
    seen("four addresses to be seen", &served).await;

    // One goes back to what was served before, and nobody asks for a look.
    let renew = "/api/v1/certificates/mc-www/renew";
    stage.api().post(renew, &json!({})).await.unwrap();
    let new = deployed(2).await;
    assert_ne!(old, new);
    for number in 0..4 {
        backends.serve(number, &new).await;
    }
    seen("the new one at all four", &served).await;
    backends.serve(2, &old).await;
    let drifted = [("Served", 0), ("Served", 1), ("Differs", 2), ("Served", 3)];
    seen("the one that went back", &drifted).await;
}
