//! An older version put back on a target, on purpose.

use std::time::Duration;

use certctl_tests::{foreign::Authority, world::World};
use serde_json::json;
use sqlx::PgPool;

const DAY: Duration = Duration::from_secs(86_400);

/// A world with one target and two versions of `mc-1`, the newer of which is served; ten days lie between them.
async fn two_versions(db: PgPool) -> (World, std::sync::Arc<certctl_tests::world::Host>) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], json!({})).await;
    w.settle().await;
    w.clock.advance(DAY * 10);
    w.post("/api/v1/certificates/mc-1/renew", json!({})).await.expect(202);
    w.settle().await;
    (w, host)
}

fn serial(host: &certctl_tests::world::Host) -> String {
    host.served("tgt-1").unwrap().serial.to_string()
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn an_older_version_goes_back_and_stays_until_the_newest_is_deployed_or_a_renewal_comes(db: PgPool) {
    let (w, host) = two_versions(db).await;
    let versions = w.versions("mc-1").await;
    let of = |n: usize, key: &str| versions[n][key].as_str().unwrap().to_owned();
    assert_eq!(serial(&host), of(0, "serial_number"));

    let done = w
        .post("/api/v1/certificates/mc-1/deploy", json!({ "version": 1 }))
        .await
        .expect(202);
    assert_eq!(done["job_ids"].as_array().unwrap().len(), 1);
    w.settle().await;
    assert_eq!(serial(&host), of(1, "serial_number"));
    // It ends when what is served ends, and is renewed by that.
    let certificate = w.get("/api/v1/certificates/mc-1").await.expect(200);
    assert_eq!(certificate["expires_at"].as_str().unwrap(), of(1, "not_after"));
    w.settle().await;
    assert_eq!(serial(&host), of(1, "serial_number"), "it stays");

    w.post("/api/v1/certificates/mc-1/deploy", json!({})).await.expect(202);
    w.settle().await;
    assert_eq!(
        serial(&host),
        of(0, "serial_number"),
        "the newest, when nobody says which"
    );
    let certificate = w.get("/api/v1/certificates/mc-1").await.expect(200);
    assert_eq!(certificate["expires_at"].as_str().unwrap(), of(0, "not_after"));

    w.post("/api/v1/certificates/mc-1/deploy", json!({ "version_id": of(1, "id") }))
        .await
        .expect(202);
    w.settle().await;
    assert_eq!(serial(&host), of(1, "serial_number"));
    let renew_at: certctl_model::time::Time = w.get("/api/v1/certificates/mc-1").await.expect(200)["renew_at"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    w.clock.advance(renew_at.since(w.clock.now()));
    w.settle().await;
    let versions = w.versions("mc-1").await;
    assert_eq!(versions.len(), 3, "renewed when the older version was due");
    assert_eq!(serial(&host), versions[0]["serial_number"].as_str().unwrap());
    assert_eq!(
        w.text("SELECT count(*)::text FROM certificate_targets WHERE chosen_version_id IS NOT NULL")
            .await,
        "0"
    );
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_version_that_has_ended_or_is_revoked_or_whose_key_nobody_has_is_not_put_back(db: PgPool) {
    let (w, host) = two_versions(db).await;
    let deploy = |body| w.post("/api/v1/certificates/mc-1/deploy", body);
    deploy(json!({ "version": 7 })).await.expect(422);
    deploy(json!({ "version_id": "cv-none" })).await.expect(422);

    // The agent has lost the key of the first version: the job says so, and what is served stays.
    let before = serial(&host);
    host.forget_keys("mc-1");
    deploy(json!({ "version": 1 })).await.expect(202);
    w.settle().await;
    assert_eq!(serial(&host), before);
    for hours in [1, 2] {
        w.clock.advance(DAY * hours / 24);
        w.settle().await;
    }
    let error = w
        .text("SELECT reason FROM jobs WHERE type = 'Deployment' AND status = 'Failed'")
        .await;
    assert!(error.contains("holds no key for this version"), "{error}");
    assert_eq!(
        w.text("SELECT count(*)::text FROM certificate_targets WHERE chosen_version_id IS NOT NULL")
            .await,
        "0"
    );

    let first = w.versions("mc-1").await[1].clone();
    let until: certctl_model::time::Time = first["not_after"].as_str().unwrap().parse().unwrap();
    w.sql(
        "INSERT INTO revocations (id, issuer_id, serial_number, certificate_id, reason, revoked_by, not_after, revoked_at)
         SELECT 'rev-1', issuer_id, serial_number, certificate_id, 'superseded', 'x', not_after, now()
           FROM certificate_versions WHERE version = 1",
    )
    .await;
    let problem = deploy(json!({ "version": 1 })).await.problem();
    assert!(
        problem.status == 409 && problem.detail.contains("revoked"),
        "{problem:?}"
    );
    w.sql("DELETE FROM revocations").await;
    w.clock.advance(until.since(w.clock.now()));
    let problem = deploy(json!({ "version": 1 })).await.problem();
    assert!(problem.status == 409 && problem.detail.contains("ended"), "{problem:?}");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn an_imported_version_has_no_key_anywhere_and_is_followed_by_one_of_ours_once_there_is_a_target(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    let theirs = Authority::new("Other");
    let pem = theirs.leaf(&["a.example.net"], -300, 65);
    let result = w
        .post("/api/v1/certificates/import", json!({ "pem": pem }))
        .await
        .expect(200);
    let id = result["data"][0]["certificate_id"].as_str().unwrap().to_owned();
    let at = format!("/api/v1/certificates/{id}");
    // Nobody can renew it, and that breaks nothing, however late it is.
    w.settle().await;
    assert_eq!(w.get(&at).await.expect(200)["renew_at"], json!(null));
    let problem = w.post(&format!("{at}/deploy"), json!({ "version": 1 })).await.problem();
    assert!(
        problem.status == 409 && problem.detail.contains("imported"),
        "{problem:?}"
    );
    w.post(&format!("{at}/deploy"), json!({})).await.expect(409);
    let problem = w.post(&format!("{at}/revoke"), json!({})).await.problem();
    assert!(
        problem.status == 409 && problem.detail.contains("Other CA"),
        "{problem:?}"
    );
    let version = w.versions(&id).await[0].clone();
    assert_eq!((&version["csr_pem"], &version["version"]), (&json!(""), &json!(1)));

    w.put(&at, json!({ "target_ids": ["tgt-1"] })).await.expect(200);
    w.settle().await;
    let versions = w.versions(&id).await;
    assert_eq!(versions.len(), 2);
    assert_eq!(serial(&host), versions[0]["serial_number"].as_str().unwrap());
    assert_eq!(w.status(&id).await, "Active");
    // What is ours can be revoked; what is not, only by its issuer.
    w.post(&format!("{at}/revoke"), json!({})).await.expect(200);
    assert_eq!(w.text("SELECT count(*)::text FROM revocations").await, "1");
}
