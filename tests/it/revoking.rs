//! Revoking and what undoes it: holds and their release, keys that are blocked, proofs that a key is known, and what is
//! kept outside the database.

use std::{fs, path::Path, time::Duration};

use certctl_contract::key_compromise::signed_octets;
use certctl_model::{key::KeyFacts, name::San, revocation::RevocationReason, time::Time};
use certctl_tests::{
    foreign::Authority,
    world::{Host, World},
};
use certctl_x509::{
    csr,
    keys::{self, KeyPair},
    ocsp::{self, CertStatus},
    pem,
};
use http::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

const BASE64: base64::engine::GeneralPurpose = base64::engine::general_purpose::STANDARD;

async fn estate(w: &World, ids: &[&str]) {
    let host = w.host("web").await;
    w.shared_target("tgt-1", &host).await;
    for id in ids {
        w.certificate(id, &["tgt-1"], json!({})).await;
    }
    w.settle().await;
}

async fn serial(w: &World, id: &str) -> String {
    w.versions(id).await[0]["serial_number"].as_str().unwrap().to_owned()
}

/// What OCSP says of a serial number.
async fn ocsp_status(w: &World, serial: &str) -> CertStatus {
    let answer = w.get(&format!("/api/v1/ocsp/iss-local/{serial}")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    ocsp::status_of(&answer.octets, &serial.parse().unwrap()).unwrap()
}

fn is_revoked(status: &CertStatus, because: RevocationReason) -> bool {
    matches!(status, CertStatus::Revoked { reason, .. } if *reason == Some(because))
}

/// The serial numbers of the newest full CRL, and its number.
async fn crl(w: &World) -> (Vec<String>, u64) {
    use x509_parser::prelude::{CertificateRevocationList, FromDer};
    let answer = w.get("/api/v1/crl/iss-local").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let (_, list) = CertificateRevocationList::from_der(&answer.octets).unwrap();
    let serials = list.iter_revoked_certificates().map(|entry| {
        let serial: certctl_model::serial::Serial = entry.raw_serial_as_string().parse().unwrap();
        serial.to_string()
    });
    let number = list.crl_number().unwrap().iter_u64_digits().next().unwrap();
    (serials.collect(), number)
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_certificate_that_is_held_can_be_released_renewed_and_revoked_again(db: PgPool) {
    let w = World::new(db).await;
    estate(&w, &["mc-a"]).await;
    let held = serial(&w, "mc-a").await;
    let revoke = |reason: &str| json!({ "reason": reason });
    w.post("/api/v1/certificates/mc-a/release", json!({})).await.expect(409);
    w.post("/api/v1/certificates/mc-a/revoke", revoke("certificateHold"))
        .await
        .expect(200);
    w.settle().await;
    assert_eq!(w.status("mc-a").await, "Revoked");
    assert!(is_revoked(
        &ocsp_status(&w, &held).await,
        RevocationReason::CertificateHold
    ));
    assert!(crl(&w).await.0.contains(&held));
    w.post("/api/v1/certificates/mc-a/renew", json!({})).await.expect(409);
    w.post("/api/v1/certificates/mc-a/revoke", revoke("certificateHold"))
        .await
        .expect(409);

    w.clock.advance(Duration::from_secs(60));
    let released = w.post("/api/v1/certificates/mc-a/release", json!({})).await.expect(200);
    assert_eq!(released, json!({ "status": "released" }));
    w.settle().await;
    assert_eq!(w.status("mc-a").await, "Active");
    assert_eq!(ocsp_status(&w, &held).await, CertStatus::Good);
    assert!(!crl(&w).await.0.contains(&held));
    assert_eq!(w.versions("mc-a").await[0]["revoked_at"], Value::Null);
    w.post("/api/v1/certificates/mc-a/renew", json!({})).await.expect(202);
    w.settle().await;
    assert_eq!(w.versions("mc-a").await.len(), 2);

    w.clock.advance(Duration::from_secs(60));
    w.post("/api/v1/certificates/mc-a/revoke", revoke("keyCompromise"))
        .await
        .expect(200);
    w.settle().await;
    assert!(is_revoked(
        &ocsp_status(&w, &held).await,
        RevocationReason::KeyCompromise
    ));
    assert!(crl(&w).await.0.contains(&held));
    w.post("/api/v1/certificates/mc-a/release", json!({})).await.expect(409);
    let trail = w.text(
        "SELECT string_agg(action, ' ' ORDER BY sequence) FROM audit_events
          WHERE resource_id = 'mc-a' AND action LIKE 'certificate_re%'",
    );
    assert_eq!(
        trail.await,
        "certificate_revoked certificate_released certificate_revoked"
    );
    let told = w.text("SELECT count(*)::text FROM notifications WHERE type = 'Revocation' AND channel = 'Webhook'");
    assert_eq!(told.await, "2");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_hold_can_be_made_final_as_of_its_day(db: PgPool) {
    let w = World::new(db).await;
    estate(&w, &["mc-a"]).await;
    let serial = serial(&w, "mc-a").await;
    let path = "/api/v1/certificates/mc-a/revoke";
    w.post(path, json!({ "reason": "certificateHold" })).await.expect(200);
    let since = w.clock.now();
    w.clock.advance(Duration::from_secs(3600));
    w.post(path, json!({ "reason": "keyCompromise" })).await.expect(200);
    let status = ocsp_status(&w, &serial).await;
    let expected = CertStatus::Revoked {
        at: since,
        reason: Some(RevocationReason::KeyCompromise),
    };
    assert_eq!(status, expected);
    w.post("/api/v1/certificates/mc-a/release", json!({})).await.expect(409);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn an_invalidity_date_lies_between_the_beginning_and_now(db: PgPool) {
    let w = World::new(db).await;
    estate(&w, &["mc-a"]).await;
    w.clock.advance(Duration::from_secs(7200));
    let now = w.clock.now();
    let path = "/api/v1/certificates/mc-a/revoke";
    for (date, status) in [
        (json!(now + Duration::from_secs(1)), 422),
        (json!(now - Duration::from_secs(86_400)), 422),
        (json!("yesterday"), 400),
        (json!(now - Duration::from_secs(3600)), 200),
    ] {
        let answer = w
            .post(path, json!({ "reason": "keyCompromise", "invalidity_date": date }))
            .await;
        assert_eq!(answer.status, status, "{date} {answer:?}");
    }
    let kept = w
        .text("SELECT to_char(invalidity_date, 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') FROM revocations")
        .await;
    assert_eq!(kept, (now - Duration::from_secs(3600)).to_string());
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn how_far_a_revocation_has_come_is_seen_from_outside_and_can_be_asked(db: PgPool) {
    let w = World::new(db).await;
    estate(&w, &["mc-a"]).await;
    let path = "/api/v1/certificates/mc-a/revocation";
    w.get(path).await.expect(404);
    w.probe().await;
    w.post("/api/v1/certificates/mc-a/revoke", json!({ "reason": "superseded" }))
        .await
        .expect(200);
    let revoked_at = w.clock.now();
    w.clock.advance(Duration::from_secs(1));
    w.probe().await;
    let seen = |said: &Value| said["serials"][0]["sightings"][0].clone();
    let said = w.get(path).await.expect(200);
    let expected = json!({ "edge": w.url, "ocsp_at": w.clock.now() });
    assert_eq!(seen(&said), expected, "{said}");
    assert_eq!(said["serials"][0]["revoked_at"], json!(revoked_at));
    w.settle().await;
    w.clock.advance(Duration::from_secs(1));
    w.probe().await;
    let said = w.get(path).await.expect(200);
    let (_, number) = crl(&w).await;
    let expected = json!({
        "edge": w.url, "ocsp_at": w.clock.now() - Duration::from_secs(1), "crl_at": w.clock.now(), "crl_number": number,
    });
    assert_eq!(seen(&said), expected, "{said}");
    let serial = &said["serials"][0];
    assert_eq!(
        (&serial["crl_number"], &serial["crl_shard"], &serial["published"]),
        (&json!(number), &json!(0), &json!(true))
    );
}

/// The records of all files of a journal.
fn journal(directory: &Path) -> Vec<Value> {
    let mut files: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    let lines = files.into_iter().flat_map(|file| {
        let text = fs::read_to_string(file).unwrap();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    });
    lines.map(|line| serde_json::from_str(&line).unwrap()).collect()
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn what_is_revoked_or_released_is_in_the_journal_when_the_caller_hears_of_it(db: PgPool) {
    let dir = tempfile::tempdir().unwrap();
    let directory = dir.path().join("journal");
    let w = World::with_api(db, &[("--revocation-journal-dir", directory.to_str().unwrap())]).await;
    estate(&w, &["mc-a", "mc-b"]).await;
    let serial = serial(&w, "mc-a").await;
    w.post(
        "/api/v1/certificates/mc-a/revoke",
        json!({ "reason": "certificateHold" }),
    )
    .await
    .expect(200);
    let held = w.clock.now();
    let records = journal(&directory);
    assert_eq!(records.len(), 1);
    assert_eq!(records[0]["serial_number"], serial);
    assert_eq!(records[0]["revoked_at"], json!(held));
    for (key, value) in [
        ("issuer_id", "iss-local"),
        ("certificate_id", "mc-a"),
        ("reason", "certificateHold"),
        ("revoked_by", "api-key-user"),
    ] {
        assert_eq!(records[0][key], value, "{key}");
    }
    w.clock.advance(Duration::from_secs(5));
    w.post("/api/v1/certificates/mc-a/release", json!({})).await.expect(200);
    assert_eq!(journal(&directory)[1]["released_at"], json!(w.clock.now()));
    assert_eq!(w.text("SELECT count(*)::text FROM journal_due").await, "0");

    // Somebody recorded a revocation and died before it was in a journal.
    w.sql("INSERT INTO revocations (id, issuer_id, serial_number, certificate_id, reason, revoked_by, not_after, revoked_at)
           VALUES ('rev-x', 'iss-local', 'abc', 'mc-b', 'superseded', 'somebody', now(), now())")
        .await;
    w.app.journal_rest().await;
    assert_eq!(journal(&directory)[2]["serial_number"], "abc");
    assert_eq!(w.text("SELECT count(*)::text FROM journal_due").await, "0");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_disk_that_takes_no_record_is_no_success(db: PgPool) {
    let dir = tempfile::tempdir().unwrap();
    let directory = dir.path().join("journal");
    let w = World::with_api(db, &[("--revocation-journal-dir", directory.to_str().unwrap())]).await;
    estate(&w, &["mc-a", "mc-b"]).await;
    // A full journal begins another file, which cannot be.
    fs::remove_dir_all(&directory).unwrap();
    fs::write(&directory, "").unwrap();
    w.app
        .journal
        .as_ref()
        .unwrap()
        .append(vec![b' '; 17 << 20])
        .await
        .unwrap();
    let answer = w.post("/api/v1/certificates/mc-a/revoke", json!({})).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(w.status("mc-a").await, "Revoked");
    fs::remove_file(&directory).unwrap();
    fs::create_dir(&directory).unwrap();
    w.app.journal_rest().await;
    assert_eq!(journal(&directory)[0]["certificate_id"], "mc-a");
}

/// Issues a certificate with a key of the test's own.
async fn issued_for(w: &World, host: &Host, id: &str, key: &KeyPair) -> String {
    let name = format!("{id}.example.net");
    let names: Vec<San> = vec![name.parse().unwrap()];
    w.certificate(id, &["tgt-1"], json!({})).await;
    w.settle().await;
    let request = csr::generate(key, &name, &names).unwrap();
    let body = json!({ "csr_pem": pem::encode("CERTIFICATE REQUEST", &request), "certificate_id": id });
    let path = format!("/api/v1/agents/{}/csr", host.id());
    let answer = w.raw(Method::POST, &path, Some(&host.key()), body.to_string()).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    w.settle().await;
    w.versions(id).await[0]["cert_pem"].as_str().unwrap().to_owned()
}

async fn away(w: &World) -> std::sync::Arc<Host> {
    let host = w.host("web").await;
    w.shared_target("tgt-1", &host).await;
    host.set_away(true);
    host
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_blocked_key_is_swept_and_never_certified_again(db: PgPool) {
    let w = World::new(db).await;
    let host = away(&w).await;
    let (key, other) = (
        KeyPair::generate(KeyFacts::P256).unwrap(),
        KeyPair::generate(KeyFacts::P256).unwrap(),
    );
    for id in ["mc-a", "mc-held", "mc-gone"] {
        issued_for(&w, &host, id, &key).await;
    }
    issued_for(&w, &host, "mc-other", &other).await;
    w.post(
        "/api/v1/certificates/mc-held/revoke",
        json!({ "reason": "certificateHold" }),
    )
    .await
    .expect(200);
    w.delete("/api/v1/certificates/mc-gone").await.expect(204);
    let spki = key.spki_sha256();
    let found = w
        .get(&format!("/api/v1/certificates?spki_sha256={}", spki.to_uppercase()))
        .await
        .expect(200);
    assert_eq!(found["total"], 3);

    let asked = json!({ "spki_sha256": spki, "reason": "found in a public repository" });
    let blocked = w.post("/api/v1/blocked-keys", asked.clone()).await.expect(201);
    assert_eq!(blocked["blocked_by"], "api-key-user");
    w.settle().await;
    let operation = format!("/api/v1/bulk/operations/{}", blocked["bulk_id"].as_str().unwrap());
    let operation = w.get(&operation).await.expect(200);
    assert_eq!(
        (&operation["status"], &operation["done"], &operation["refused"]),
        (&json!("Completed"), &json!(3), &json!(0))
    );
    for id in ["mc-a", "mc-held", "mc-gone"] {
        let status = ocsp_status(&w, &serial(&w, id).await).await;
        assert!(is_revoked(&status, RevocationReason::KeyCompromise), "{id} {status:?}");
    }
    assert_eq!(ocsp_status(&w, &serial(&w, "mc-other").await).await, CertStatus::Good);

    // Not again, at either door.
    w.certificate("mc-new", &["tgt-1"], json!({})).await;
    w.settle().await;
    let request = csr::generate(&key, "mc-new.example.net", &["mc-new.example.net".parse().unwrap()]).unwrap();
    let body = json!({ "csr_pem": pem::encode("CERTIFICATE REQUEST", &request), "certificate_id": "mc-new" });
    let path = format!("/api/v1/agents/{}/csr", host.id());
    let refused = w.raw(Method::POST, &path, Some(&host.key()), body.to_string()).await;
    assert_eq!(refused.status, 422, "{refused:?}");
    assert!(refused.problem().detail.contains("is blocked"), "{refused:?}");

    // Unblocked, what was revoked stays so.
    let path = format!("/api/v1/blocked-keys/{spki}");
    assert_eq!(w.get(&path).await.expect(200)["reason"], "found in a public repository");
    w.delete(&path).await.expect(204);
    w.delete(&path).await.expect(404);
    assert_eq!(w.status("mc-a").await, "Revoked");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_blocked_key_is_marked_and_counted_wherever_it_is_used(db: PgPool) {
    let w = World::new(db).await;
    let host = away(&w).await;
    let theirs = Authority::new("Other");
    let key = KeyPair::from_pem(&theirs.leaf_key(), None).unwrap();
    issued_for(&w, &host, "mc-ours", &key).await;
    host.set_away(false);
    let (imported, found) = (
        theirs.leaf(&["imported.example.net"], -10, 80),
        theirs.leaf(&["found.example.net"], -10, 80),
    );
    let expired = theirs.leaf(&["expired.example.net"], -90, -1);
    let both = json!({ "pem": format!("{imported}{expired}") });
    let both = w.post("/api/v1/certificates/import", both).await.expect(200);
    let import = both["data"][0]["certificate_id"].as_str().unwrap().to_owned();
    let file = |path: &str, pem: &str| json!({ "pem_data": pem, "source_path": path, "source_format": "PEM" });
    let other = Authority::new("Unrelated").leaf(&["other.example.net"], -10, 80);
    let report = json!({ "directories": ["/etc/tls"], "certificates": [
        file("/etc/tls/found.pem", &found), file("/etc/tls/imported.pem", &imported), file("/etc/tls/other.pem", &other),
    ] });
    let path = format!("/api/v1/agents/{}/discoveries", host.id());
    let report = w.raw(Method::POST, &path, Some(&host.key()), report.to_string()).await;
    report.expect(202);

    let spki = key.spki_sha256();
    let asked = json!({ "spki_sha256": spki, "reason": "found in a public repository" });
    let blocked = w.post("/api/v1/blocked-keys", asked).await.expect(201);
    let usage = &blocked["usage"];
    assert_eq!(
        json!([usage["revocable_here"], usage["revocable_elsewhere"]]),
        json!([1, 2]),
        "{usage}"
    );
    let hosts = usage["hosts"].as_array().unwrap();
    let places: Vec<Value> = hosts
        .iter()
        .map(|host| json!([host["evidence"], host["location"]]))
        .collect();
    assert_eq!(
        json!(places),
        json!([["found", "/etc/tls/found.pem"], ["found", "/etc/tls/imported.pem"]])
    );
    assert!(
        hosts
            .iter()
            .all(|one| one["agent_id"] == host.id() && one["hostname"] != "")
    );
    let certificate = w.get(&format!("/api/v1/certificates/{import}")).await.expect(200);
    assert_eq!(certificate["key_blocked_at"], json!(w.clock.now()));
    assert_eq!(w.versions(&import).await[0]["key_blocked_at"], json!(w.clock.now()));
    let page = w
        .get("/api/v1/discovered-certificates?sort=commonName")
        .await
        .expect(200);
    let marked: Vec<Value> = page["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| json!([one["common_name"], one["key_blocked_at"]]))
        .collect();
    let now = w.clock.now();
    assert_eq!(
        json!(marked),
        json!([
            ["found.example.net", now],
            ["imported.example.net", now],
            ["other.example.net", null]
        ])
    );
    w.settle().await;
    let later = w.get(&format!("/api/v1/blocked-keys/{spki}")).await.expect(200);
    let later = &later["usage"];
    assert_eq!(
        json!([later["revocable_here"], later["revocable_elsewhere"]]),
        json!([0, 2])
    );
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_key_that_was_blocked_after_its_request_was_accepted_is_not_signed(db: PgPool) {
    let w = World::new(db).await;
    let host = away(&w).await;
    let key = KeyPair::generate(KeyFacts::P256).unwrap();
    w.certificate("mc-a", &["tgt-1"], json!({})).await;
    w.settle().await;
    let request = csr::generate(&key, "mc-a.example.net", &["mc-a.example.net".parse().unwrap()]).unwrap();
    let body = json!({ "csr_pem": pem::encode("CERTIFICATE REQUEST", &request), "certificate_id": "mc-a" });
    let path = format!("/api/v1/agents/{}/csr", host.id());
    w.raw(Method::POST, &path, Some(&host.key()), body.to_string())
        .await
        .expect(202);
    let asked = json!({ "spki_sha256": key.spki_sha256(), "reason": "lost" });
    w.post("/api/v1/blocked-keys", asked).await.expect(201);
    w.settle().await;
    assert_eq!(
        w.text("SELECT count(*)::text FROM ledger WHERE der IS NOT NULL AND job_id LIKE 'j-%'")
            .await,
        "0"
    );
    let why = w
        .text("SELECT reason FROM jobs WHERE certificate_id = 'mc-a' AND type = 'Issuance'")
        .await;
    assert!(why.contains("is blocked"), "{why}");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn who_shows_that_the_key_is_known_has_everything_revoked_that_has_it(db: PgPool) {
    let w = World::new(db).await;
    let host = away(&w).await;
    for (n, facts) in [
        KeyFacts::P256,
        KeyFacts {
            bits: 384,
            ..KeyFacts::P256
        },
        KeyFacts {
            algorithm: certctl_model::key::KeyAlgorithm::Ed25519,
            bits: 256,
        },
        KeyFacts {
            algorithm: certctl_model::key::KeyAlgorithm::Rsa,
            bits: 2048,
        },
    ]
    .into_iter()
    .enumerate()
    {
        let key = KeyPair::generate(facts).unwrap();
        let id = format!("mc-{n}");
        let certificate = issued_for(&w, &host, &id, &key).await;
        let proof = proof(&w, &key, json!({ "certificate_pem": certificate })).await;
        let done = w
            .raw(Method::POST, "/api/v1/key-compromise", None, proof.to_string())
            .await
            .expect(202);
        assert_eq!(done["spki_sha256"], key.spki_sha256());
        w.settle().await;
        let status = ocsp_status(&w, &serial(&w, &id).await).await;
        assert!(
            is_revoked(&status, RevocationReason::KeyCompromise),
            "{facts} {status:?}"
        );
        w.get(&format!("/api/v1/blocked-keys/{}", key.spki_sha256()))
            .await
            .expect(200);
    }
}

/// A proof, with what says which certificate it is about.
async fn proof(w: &World, key: &KeyPair, which: Value) -> Value {
    use base64::Engine;
    let given = w
        .raw(Method::GET, "/api/v1/key-compromise/challenge", None, "")
        .await
        .expect(200);
    let challenge = given["challenge"].as_str().unwrap();
    let octets = signed_octets(challenge, &keys::fingerprint(key.spki_der()));
    let mut proof = json!({ "challenge": challenge, "signature": BASE64.encode(key.sign(&octets).unwrap()) });
    proof
        .as_object_mut()
        .unwrap()
        .extend(which.as_object().unwrap().clone());
    proof
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_report_of_a_known_key_that_is_repeated_begins_nothing_anew(db: PgPool) {
    let w = World::new(db).await;
    let host = away(&w).await;
    let key = KeyPair::generate(KeyFacts::P256).unwrap();
    let certificate = issued_for(&w, &host, "mc-a", &key).await;
    let proof = proof(&w, &key, json!({ "certificate_pem": certificate })).await;
    let report = async || {
        let answer = w
            .raw(Method::POST, "/api/v1/key-compromise", None, proof.to_string())
            .await;
        answer.expect(202)["bulk_id"].as_str().unwrap().to_owned()
    };
    let told = async || {
        w.text(
            "SELECT (SELECT count(*) FROM bulk_operations) || ' '
                    || (SELECT count(*) FROM audit_events WHERE action IN ('key_blocked', 'bulk_requested'))",
        )
        .await
    };
    let first = report().await;
    for _ in 0..5 {
        assert_eq!(report().await, first, "while it is being revoked");
    }
    w.settle().await;
    for _ in 0..5 {
        assert_eq!(report().await, first, "when it is revoked");
    }
    assert_eq!(told().await, "1 2");
    // What comes to have the key later is another matter.
    w.sql("UPDATE certificates SET revoked_at = NULL, revocation_reason = NULL WHERE id = 'mc-a'")
        .await;
    assert_ne!(report().await, first);
    assert_eq!(told().await, "2 4");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_proof_that_proves_nothing_changes_nothing(db: PgPool) {
    let w = World::new(db).await;
    let host = away(&w).await;
    let (key, other) = (
        KeyPair::generate(KeyFacts::P256).unwrap(),
        KeyPair::generate(KeyFacts::P256).unwrap(),
    );
    let certificate = issued_for(&w, &host, "mc-a", &key).await;
    let which = json!({ "issuer_id": "iss-local", "serial_number": serial(&w, "mc-a").await });
    let good = proof(&w, &key, which.clone()).await;
    let with = |field: &str, value: Value| {
        let mut changed = good.clone();
        changed[field] = value;
        changed
    };
    let theirs = proof(&w, &other, which.clone()).await;
    let foreign = rcgen::generate_simple_self_signed(vec!["foreign.example.net".to_owned()])
        .unwrap()
        .cert
        .pem();
    for (proof, status) in [
        (theirs, 422),
        (with("signature", json!("AAAA")), 422),
        (with("signature", json!("not base64!")), 422),
        (with("challenge", json!("9999999999.AAAA.AAAA")), 422),
        (with("serial_number", json!("7bad5e71a1")), 404),
        (with("certificate_pem", json!(certificate)), 422),
        (proof(&w, &key, json!({ "certificate_pem": foreign })).await, 404),
        (json!({ "challenge": "x", "signature": "x" }), 422),
    ] {
        let answer = w
            .raw(Method::POST, "/api/v1/key-compromise", None, proof.to_string())
            .await;
        assert_eq!(answer.status, status, "{proof} {answer:?}");
    }
    // One that is too old.
    w.clock.advance(Duration::from_secs(16 * 60));
    let answer = w
        .raw(Method::POST, "/api/v1/key-compromise", None, good.to_string())
        .await;
    assert!(answer.problem().detail.contains("has expired"), "{answer:?}");
    assert_eq!(w.text("SELECT count(*)::text FROM blocked_keys").await, "0");
    assert_eq!(w.status("mc-a").await, "Active");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn records_of_a_journal_bring_back_what_the_database_forgot_and_nothing_twice(db: PgPool) {
    let w = World::new(db).await;
    estate(&w, &["mc-a", "mc-b"]).await;
    let (a, b) = (serial(&w, "mc-a").await, serial(&w, "mc-b").await);
    let now = w.clock.now();
    let at = |seconds: u64| now - Duration::from_secs(100 - seconds);
    let record = |serial: &str, certificate: Option<&str>, reason: &str, at: Time, released: Option<Time>| {
        json!({
            "issuer_id": "iss-local", "serial_number": serial, "certificate_id": certificate, "reason": reason,
            "revoked_by": "somebody", "revoked_at": at, "released_at": released,
            "not_after": now + Duration::from_secs(86_400),
        })
    };
    let records = json!({ "records": [
        record(&a, Some("mc-a"), "keyCompromise", at(1), None),
        // Held and released, in the wrong order.
        record(&b, Some("mc-b"), "certificateHold", at(2), Some(at(3))),
        record(&b, Some("mc-b"), "certificateHold", at(2), None),
        // Of a certificate that the database does not have.
        record("77aa", Some("mc-lost"), "superseded", at(4), None),
    ]});
    let path = "/api/v1/recovery/revocations";
    assert_eq!(
        w.post(path, records.clone()).await.expect(200),
        json!({ "restored": 3, "known": 1 })
    );
    w.settle().await;
    assert_eq!(
        (w.status("mc-a").await, w.status("mc-b").await),
        ("Revoked".to_owned(), "Active".to_owned())
    );
    assert!(is_revoked(&ocsp_status(&w, &a).await, RevocationReason::KeyCompromise));
    assert_eq!(ocsp_status(&w, &b).await, CertStatus::Good);
    assert!(is_revoked(&ocsp_status(&w, "77aa").await, RevocationReason::Superseded));
    let (listed, _) = crl(&w).await;
    assert!(
        listed.contains(&a) && listed.contains(&"77aa".to_owned()) && !listed.contains(&b),
        "{listed:?}"
    );

    let before = w.contents().await;
    assert_eq!(
        w.post(path, records).await.expect(200),
        json!({ "restored": 0, "known": 4 })
    );
    let after = w.contents().await;
    for table in ["revocations", "certificates", "audit_events"] {
        assert_eq!(before[table], after[table], "{table}");
    }
    for bad in [
        json!({ "records": [] }),
        json!({ "records": [record("1", None, "superseded", now + Duration::from_secs(1), None)] }),
        json!({ "records": [record("1", None, "superseded", at(1), Some(at(2)))] }),
    ] {
        w.post(path, bad).await.expect(422);
    }
}

/// So many certificates of one environment, as if the authority had issued them.
async fn many(w: &World, count: usize) {
    for sql in [
        "INSERT INTO certificates (id, name, common_name, environment, owner_id, team_id, issuer_id, renewal_policy_id,
                                   created_at, updated_at)
         SELECT 'mc-' || n, 'mc-' || n, 'host-' || n || '.example.net', 'drill', 'o-unassigned', 't-unassigned',
                'iss-local', 'rp-default', to_timestamp(1800000000), to_timestamp(1800000000)
           FROM generate_series(1, {count}) n",
        "INSERT INTO certificate_versions (id, certificate_id, job_id, issuer_id, version, serial_number, not_before,
                                           not_after, fingerprint_sha256, spki_sha256, cert_pem, chain_pem, csr_der,
                                           key_algorithm, key_size, created_at)
         SELECT 'cv-' || n, 'mc-' || n, 'j-' || n, 'iss-local', 1, '7' || md5(n::text), to_timestamp(1800000000),
                to_timestamp(1800864000), 'f' || n, 'k' || n, '', '', '', 'ECDSA', 256, to_timestamp(1800000000)
           FROM generate_series(1, {count}) n",
        "INSERT INTO ledger (issuer_id, serial_number, job_id, tbs_der, der, not_after, short_lived, recorded_at)
         SELECT issuer_id, serial_number, job_id, '', '', not_after, false, created_at
           FROM certificate_versions WHERE id LIKE 'cv-%' AND cert_pem = ''",
        "UPDATE certificates c SET current_version_id = v.id, not_before = v.not_before, not_after = v.not_after
           FROM certificate_versions v WHERE v.certificate_id = c.id AND c.environment = 'drill'",
    ] {
        w.sql(&sql.replace("{count}", &count.to_string())).await;
    }
}

/// The database as a whole, copied by the server itself.
struct Backup {
    server: PgPool,
    database: String,
    copy: String,
}

impl Backup {
    async fn of(w: &World) -> Self {
        let options = w.db.connect_options();
        let database = options.get_database().unwrap().to_owned();
        let server = PgPool::connect_lazy_with((*options).clone().database("postgres"));
        let backup = Self {
            server,
            // Longer names are cut off.
            copy: format!("{}_copy", &database[..database.len().min(50)]),
            database,
        };
        backup.copy(&backup.database, &backup.copy).await;
        backup
    }

    /// Nobody may be connected to what is copied.
    async fn copy(&self, from: &str, to: &str) {
        for sql in [
            format!("ALTER DATABASE \"{from}\" ALLOW_CONNECTIONS false"),
            format!(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname IN ('{from}', '{to}')"
            ),
            format!("DROP DATABASE IF EXISTS \"{to}\" WITH (FORCE)"),
            format!("CREATE DATABASE \"{to}\" TEMPLATE \"{from}\""),
            format!("ALTER DATABASE \"{from}\" ALLOW_CONNECTIONS true"),
        ] {
            sqlx::query(sqlx::AssertSqlSafe(sql))
                .execute(&self.server)
                .await
                .unwrap();
        }
    }

    async fn restore(self) {
        self.copy(&self.copy, &self.database).await;
        let sql = format!("DROP DATABASE \"{}\" WITH (FORCE)", self.copy);
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .execute(&self.server)
            .await
            .unwrap();
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn after_a_restore_nothing_is_issued_until_every_revocation_is_back(db: PgPool) {
    const REVOKED: usize = 1_000;
    let dir = tempfile::tempdir().unwrap();
    let directory = dir.path().join("journal");
    let w = World::with_api(db, &[("--revocation-journal-dir", directory.to_str().unwrap())]).await;
    estate(&w, &["mc-first"]).await;
    many(&w, REVOKED).await;
    w.settle().await;
    let backup = Backup::of(&w).await;

    let all = json!({ "filter": { "environment": "drill" }, "reason": "superseded" });
    let asked = w.post("/api/v1/bulk/revoke", all).await.expect(202);
    w.certificate("mc-lost", &["tgt-1"], json!({})).await;
    w.settle().await;
    w.post(
        "/api/v1/certificates/mc-lost/revoke",
        json!({ "reason": "keyCompromise" }),
    )
    .await
    .expect(200);
    w.settle().await;
    let operation = w
        .get(&format!("/api/v1/bulk/operations/{}", asked["id"].as_str().unwrap()))
        .await
        .expect(200);
    assert_eq!(
        (&operation["status"], &operation["done"]),
        (&json!("Completed"), &json!(REVOKED))
    );
    let lost = serial(&w, "mc-lost").await;
    let (listed, published) = crl(&w).await;
    assert_eq!(listed.len(), REVOKED + 1);
    let issued = w.text("SELECT string_agg(serial_number, ' ') FROM ledger").await;

    backup.restore().await;
    assert_eq!(w.text("SELECT count(*)::text FROM revocations").await, "0");
    w.certificate("mc-after", &["tgt-1"], json!({})).await;
    w.settle().await;
    assert_eq!(
        w.text("SELECT count(*)::text FROM ledger WHERE recorded_at > to_timestamp(1800000000)")
            .await,
        "0"
    );
    assert!(w.versions("mc-after").await.is_empty());
    let why = w
        .text("SELECT last_error FROM jobs WHERE certificate_id = 'mc-after' AND type = 'Issuance'")
        .await;
    assert!(why.contains("restored from a backup"), "{why}");
    assert_eq!(w.get("/api/v1/recovery").await.expect(200)["fenced"], true);
    // Nor is anything called good.
    let answer = w
        .get(&format!("/api/v1/ocsp/iss-local/{}", serial(&w, "mc-1").await))
        .await;
    assert_eq!(answer.octets, ocsp::error_response(ocsp::ErrorStatus::TryLater));

    let ran = certctl_tests::stage::cli(
        &w.url,
        certctl_tests::world::KEY,
        &["--format", "json", "restore-revocations", directory.to_str().unwrap()],
    )
    .await
    .ok();
    let said: Value = serde_json::from_str(&ran).unwrap();
    assert_eq!(
        (&said["restored"], &said["finished"]),
        (&json!(REVOKED + 1), &json!(true)),
        "{said}"
    );
    assert_eq!(w.get("/api/v1/recovery").await.expect(200)["fenced"], false);
    // The job that waited, and whoever waits for its next try.
    w.clock.advance(Duration::from_secs(600));
    w.settle().await;
    let (listed_again, number) = crl(&w).await;
    assert_eq!(listed_again.len(), REVOKED + 1);
    assert!(number > published, "{number} follows {published}");
    let once = ["mc-1".to_owned(), format!("mc-{REVOKED}")];
    for id in once.iter().map(String::as_str) {
        assert_eq!(w.status(id).await, "Revoked", "{id}");
    }
    for serial in listed {
        let status = ocsp_status(&w, &serial).await;
        let because = if serial == lost {
            RevocationReason::KeyCompromise
        } else {
            RevocationReason::Superseded
        };
        assert!(is_revoked(&status, because), "{serial} {status:?}");
        assert!(listed_again.contains(&serial), "{serial}");
    }
    let new = serial(&w, "mc-after").await;
    assert!(!issued.split(' ').any(|known| known == new) && new != lost, "{new}");

    // What was issued after the backup is known from the journal, and managed again.
    let unknown = format!("SELECT count(*)::text FROM certificate_versions WHERE serial_number = '{lost}'");
    assert_eq!(w.text(&unknown).await, "0");
    let mut arguments = vec!["--format".to_owned(), "json".to_owned(), "import".to_owned()];
    let files = std::fs::read_dir(directory.join("issued")).unwrap();
    arguments.extend(files.map(|file| file.unwrap().path().display().to_string()));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let ran = certctl_tests::stage::cli(&w.url, certctl_tests::world::KEY, &arguments)
        .await
        .ok();
    let said: Value = serde_json::from_str(&ran).unwrap();
    assert_eq!((&said["created"], &said["rejected"]), (&json!(1), &json!(0)), "{said}");
    assert_eq!(w.text(&unknown).await, "1");
}
