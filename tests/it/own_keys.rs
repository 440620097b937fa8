//! Certificates without an agent: for a request of one's own, for a key that the server shows once, or tracked only.

use std::{path::Path, time::Duration};

use certctl_scheduler::notices;
use certctl_tests::{
    Ran, requests, run_command, target_dir,
    world::{KEY, World},
};
use certctl_x509::{csr::CertificationRequest, facts::CertificateFacts, keys::KeyPair};
use http::Method;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::process::Command;

const CERTIFICATES: &str = "/api/v1/certificates";
const DAY: Duration = Duration::from_secs(86_400);

/// The certificate and its chain, as they are exported.
async fn exported(w: &World, id: &str) -> Vec<CertificateFacts> {
    let answer = w.get(&format!("{CERTIFICATES}/{id}/export")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    CertificateFacts::parse_pem_chain(std::str::from_utf8(&answer.octets).unwrap()).unwrap()
}

fn spki(request: &str) -> Vec<u8> {
    CertificationRequest::parse_pem(request).unwrap().spki_der().to_vec()
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_certificate_is_issued_and_renewed_for_requests_that_come_with_the_call(db: PgPool) {
    let w = World::new(db).await;
    let request = requests::request("www.example.net", &["www.example.net", "example.net"]);
    let created = w
        .post(CERTIFICATES, json!({ "id": "mc-1", "csr_pem": request }))
        .await
        .expect(201);
    assert_eq!(created["common_name"], "www.example.net");
    assert_eq!(created["sans"], json!(["www.example.net", "example.net"]));
    assert_eq!(w.status("mc-1").await, "Pending");
    let explained = w.get(&format!("{CERTIFICATES}/mc-1/explain")).await.expect(200);
    assert_eq!(explained["cause"], "InProgress", "{explained:#}");
    w.settle().await;
    let chain = exported(&w, "mc-1").await;
    assert_eq!(chain[0].spki_der, spki(&request));
    assert!(chain.len() > 1, "with its issuer's certificate");
    assert_eq!(w.status("mc-1").await, "Active");
    let explained = w.get(&format!("{CERTIFICATES}/mc-1/explain")).await.expect(200);
    let how = "send a certification request: certctl-cli issue --renew mc-1 --csr FILE";
    assert!(
        explained["would_change"].as_array().unwrap().contains(&json!(how)),
        "{explained:#}"
    );

    // Nobody here has the key: it is not renewed by itself, and not without another request.
    w.clock.advance(60 * DAY);
    w.settle().await;
    assert_eq!(w.versions("mc-1").await.len(), 1);
    let refused = w
        .post(&format!("{CERTIFICATES}/mc-1/renew"), json!({ "force": false }))
        .await;
    assert_eq!(refused.status, 409);
    assert!(refused.problem().detail.contains("csr_pem"), "{refused:?}");
    let next = requests::good("example.net");
    w.post(&format!("{CERTIFICATES}/mc-1/renew"), json!({ "csr_pem": next }))
        .await
        .expect(202);
    assert_eq!(w.status("mc-1").await, "RenewalInProgress");
    w.settle().await;
    let chain = exported(&w, "mc-1").await;
    assert_eq!(
        (chain[0].spki_der.clone(), chain[0].sans.len()),
        (spki(&next), 2),
        "all names of the record"
    );
    assert_eq!(w.versions("mc-1").await[0]["agent_id"], Value::Null);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_request_that_must_not_be_signed_is_refused_at_once_and_leaves_nothing(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.certificate("mc-agent", &["tgt-1"], json!({})).await;
    let profile = json!({ "id": "cp-rsa", "name": "rsa",
                          "allowed_key_algorithms": [{ "algorithm": "RSA", "min_size": 3072 }] });
    w.post("/api/v1/profiles", profile).await.expect(201);
    w.settle().await;
    let good = requests::good("a.example.net");
    let blocked = requests::good("a.example.net");
    let key = CertificationRequest::parse_pem(&blocked)
        .unwrap()
        .key_fingerprint()
        .to_string();
    w.post(
        "/api/v1/blocked-keys",
        json!({ "spki_sha256": key, "reason": "leaked" }),
    )
    .await
    .expect(201);
    for (new, field) in [
        (json!({ "csr_pem": "-----BEGIN CERTIFICATE REQUEST-----" }), "csr_pem"),
        (
            json!({ "csr_pem": requests::with_bad_signature("a.example.net") }),
            "csr_pem",
        ),
        (
            json!({ "csr_pem": requests::request("a host", &["a.example.net"]) }),
            "csr_pem",
        ),
        (json!({ "csr_pem": blocked }), "csr_pem"),
        (
            json!({ "csr_pem": good, "common_name": "b.example.net", "sans": [] }),
            "csr_pem",
        ),
        (json!({ "csr_pem": good, "target_ids": ["tgt-1"] }), "csr_pem"),
        (
            json!({ "csr_pem": good, "certificate_profile_id": "cp-rsa" }),
            "csr_pem",
        ),
        (
            json!({ "csr_pem": requests::request("a.example.net", &["x y"]) }),
            "csr_pem",
        ),
        (json!({ "sans": ["a.example.net"] }), "common_name"),
        (json!({ "csr_pem": "" }), "common_name"),
    ] {
        let answer = w.post(CERTIFICATES, new.clone()).await;
        assert_eq!(answer.status, 422, "{new}: {answer:?}");
        assert!(
            answer.problem().errors.iter().any(|e| e.field == field),
            "{new}: {answer:?}"
        );
    }
    let listed = w.get(CERTIFICATES).await.expect(200);
    assert_eq!(listed["total"], 1);
    // Where agents make the keys, a person's key has no place.
    let answer = w
        .post(
            &format!("{CERTIFICATES}/mc-agent/renew"),
            json!({ "csr_pem": requests::good("mc-agent.example.net") }),
        )
        .await;
    assert_eq!(answer.status, 409, "{answer:?}");
    // A name the certificate does not have.
    w.post(CERTIFICATES, json!({ "id": "mc-1", "csr_pem": good }))
        .await
        .expect(201);
    w.settle().await;
    let answer = w
        .post(
            &format!("{CERTIFICATES}/mc-1/renew"),
            json!({ "csr_pem": requests::good("b.example.net") }),
        )
        .await;
    assert_eq!(answer.status, 422, "{answer:?}");
    assert_eq!(w.versions("mc-1").await.len(), 1);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn who_sends_a_request_does_not_approve_it(db: PgPool) {
    let w = World::new(db).await;
    let policy = json!({ "id": "rp-strict", "name": "strict", "approval": "always", "approvers": 1 });
    w.post("/api/v1/renewal-policies", policy).await.expect(201);
    let key = async |name: &str| {
        let new = json!({ "name": name, "role": "operator" });
        let key = w.post("/api/v1/api-keys", new).await.expect(201);
        key["api_key"].as_str().unwrap().to_owned()
    };
    let (ann, bob) = (key("ann").await, key("bob").await);
    let request = requests::good("a.example.net");
    let new = json!({ "id": "mc-1", "csr_pem": request, "renewal_policy_id": "rp-strict" });
    w.raw(Method::POST, CERTIFICATES, Some(&ann), new.to_string())
        .await
        .expect(201);
    w.settle().await;
    let jobs = w.get("/api/v1/jobs?certificate_id=mc-1").await.expect(200);
    let job = &jobs["data"][0];
    assert_eq!(job["status"], "AwaitingApproval", "{job:#}");
    let approve = format!("/api/v1/jobs/{}/approve", job["id"].as_str().unwrap());
    let answer = w.raw(Method::POST, &approve, Some(&ann), "{}").await;
    assert_eq!(answer.status, 403, "{answer:?}");
    let answer = w.raw(Method::POST, &approve, Some(&bob), "{}").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    w.settle().await;
    assert_eq!(exported(&w, "mc-1").await[0].spki_der, spki(&request));
}

/// The sequence of earlier quick starts: create without targets, renew, export.
#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn where_the_server_makes_keys_the_renewal_shows_the_key_once_and_it_is_kept_nowhere(db: PgPool) {
    let w = World::with_api(db, &[("--keygen-mode", "server")]).await;
    let new = json!({ "id": "mc-1", "common_name": "www.example.net", "issuer_id": "iss-local",
                      "owner_id": "o-unassigned", "team_id": "t-unassigned", "status": "Active" });
    w.post(CERTIFICATES, new).await.expect(201);
    let renew = format!("{CERTIFICATES}/mc-1/renew");
    let named = [("idempotency-key", "renew-1")];
    let triggered = w
        .with_headers(Method::POST, &renew, Some(KEY), &named, r#"{"force":false}"#)
        .await
        .expect(202);
    assert_eq!(triggered["status"], "renewal_triggered");
    let key = triggered["private_key_pem"].as_str().unwrap();
    let key_pair = KeyPair::from_pem(key, None).unwrap();
    w.settle().await;
    assert_eq!(exported(&w, "mc-1").await[0].spki_der, key_pair.spki_der());
    // Not again, and not anywhere.
    let again = w
        .with_headers(Method::POST, &renew, Some(KEY), &named, r#"{"force":false}"#)
        .await;
    assert_eq!(again.status, 409, "{again:?}");
    let line = key.lines().nth(1).unwrap();
    for (table, rows) in w.contents().await {
        assert!(
            !rows.contains(line) && !rows.contains("PRIVATE KEY"),
            "{table} has the key"
        );
    }
    for path in [
        "/api/v1/certificates/mc-1",
        "/api/v1/certificates/mc-1/versions",
        "/api/v1/audit",
        "/api/v1/jobs",
    ] {
        assert!(!w.get(path).await.json().to_string().contains("PRIVATE"), "{path}");
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn the_server_makes_keys_for_certificates_without_targets_only_and_as_their_profile_demands(db: PgPool) {
    let w = World::with_api(db, &[("--keygen-mode", "server")]).await;
    let profile = json!({ "id": "cp-rsa", "name": "rsa",
                          "allowed_key_algorithms": [{ "algorithm": "RSA", "min_size": 3072 }] });
    w.post("/api/v1/profiles", profile).await.expect(201);
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    let renew = async |id: &str| {
        let path = format!("{CERTIFICATES}/{id}/renew");
        w.post(&path, json!({ "force": true })).await.expect(202)
    };
    w.certificate("mc-rsa", &[], json!({ "certificate_profile_id": "cp-rsa" }))
        .await;
    let triggered = renew("mc-rsa").await;
    let key = KeyPair::from_pem(triggered["private_key_pem"].as_str().unwrap(), None).unwrap();
    assert_eq!(key.facts().to_string(), "RSA 3072");
    w.settle().await;
    assert_eq!(exported(&w, "mc-rsa").await[0].spki_der, key.spki_der());

    w.certificate("mc-agent", &["tgt-1"], json!({})).await;
    w.settle().await;
    assert_eq!(renew("mc-agent").await.get("private_key_pem"), None);
    w.settle().await;
    assert_eq!(w.versions("mc-agent").await.len(), 2);
    assert!(host.served("tgt-1").is_some());
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_deployment_to_another_target_maps_it_and_issues_what_is_missing(db: PgPool) {
    let w = World::new(db).await;
    let (one, two) = (w.host("web-1").await, w.host("web-2").await);
    w.target("tgt-1", &one).await;
    w.target("tgt-2", &two).await;
    w.certificate("mc-1", &[], json!({})).await;
    w.settle().await;
    let deploy = format!("{CERTIFICATES}/mc-1/deploy");
    for (target, host, versions) in [("tgt-1", &one, 1), ("tgt-2", &two, 2)] {
        let done = w.post(&deploy, json!({ "target_id": target })).await.expect(202);
        assert_eq!(done["status"], "deployment_triggered");
        assert!(done["job_id"].is_string(), "{done}");
        w.settle().await;
        assert_eq!(
            w.versions("mc-1").await.len(),
            versions,
            "{:#}",
            w.get("/api/v1/jobs").await.json()
        );
        assert!(host.served(target).is_some(), "{target} serves it");
    }
    let found = w.get(&format!("{CERTIFICATES}/mc-1")).await.expect(200);
    assert_eq!(found["target_ids"], json!(["tgt-1", "tgt-2"]));
    let events = w
        .get("/api/v1/audit?action=certificate_updated&resource_id=mc-1")
        .await
        .expect(200);
    assert_eq!(events["total"], 2, "{events:#}");
    // A target belongs to one certificate.
    w.certificate("mc-2", &[], json!({})).await;
    let refused = w
        .post(&format!("{CERTIFICATES}/mc-2/deploy"), json!({ "target_id": "tgt-1" }))
        .await;
    assert_eq!(refused.status, 409, "{refused:?}");
    assert!(refused.problem().detail.contains("mc-1"), "{refused:?}");
    let unknown = w.post(&deploy, json!({ "target_id": "tgt-none" })).await;
    assert!((400..500).contains(&unknown.status), "{unknown:?}");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_certificate_that_is_tracked_only_is_warned_about_and_not_renewed(db: PgPool) {
    let w = World::new(db).await;
    let until = |days: u32| json!(w.clock.now() + days * DAY);
    let new = json!({ "id": "mc-1", "common_name": "legacy.example.net", "status": "Active", "expires_at": until(40) });
    let created = w.post(CERTIFICATES, new).await.expect(201);
    assert_eq!(
        (&created["status"], &created["expires_at"]),
        (&json!("Active"), &until(40))
    );
    // What earlier programs write for no time.
    let new = json!({ "id": "mc-2", "common_name": "new.example.net", "expires_at": "0001-01-01T00:00:00Z" });
    let created = w.post(CERTIFICATES, new).await.expect(201);
    assert_eq!(
        (&created["status"], &created["expires_at"]),
        (&json!("Pending"), &Value::Null)
    );

    let warned = async || {
        while notices::warn_of_ends(w.scheduler.clone()).await.unwrap() > 0 {}
        w.text("SELECT string_agg(DISTINCT message, ' ') FROM notifications WHERE type = 'ExpirationWarning'")
            .await
    };
    w.settle().await;
    w.clock.advance(15 * DAY);
    w.settle().await;
    assert_eq!(w.status("mc-1").await, "Expiring");
    assert!(warned().await.contains("[threshold:30]"));
    let counted = "SELECT count(*)::text FROM notifications WHERE type = 'ExpirationWarning'";
    let before = w.text(counted).await;
    warned().await;
    assert_eq!(w.text(counted).await, before, "each threshold once");
    let explained = w.get(&format!("{CERTIFICATES}/mc-1/explain")).await.expect(200);
    assert!(
        explained["summary"].as_str().unwrap().contains("tracked only"),
        "{explained:#}"
    );
    assert_eq!(w.get("/api/v1/jobs").await.expect(200)["total"], 0);
    let listed = w.get(&format!("{CERTIFICATES}?status=Expiring")).await.expect(200);
    assert_eq!(listed["total"], 1);

    // Renewed elsewhere.
    let later = until(90);
    w.put(&format!("{CERTIFICATES}/mc-1"), json!({ "expires_at": later }))
        .await
        .expect(200);
    assert_eq!(w.status("mc-1").await, "Active");
    w.clock.advance(91 * DAY);
    assert_eq!(w.status("mc-1").await, "Expired");
    // Taken over: from then on its dates are those of what is issued.
    let request = requests::good("legacy.example.net");
    w.post(&format!("{CERTIFICATES}/mc-1/renew"), json!({ "csr_pem": request }))
        .await
        .expect(202);
    w.settle().await;
    assert_eq!(w.status("mc-1").await, "Active");
    let end = w.get(&format!("{CERTIFICATES}/mc-1")).await.expect(200)["expires_at"].clone();
    w.put(&format!("{CERTIFICATES}/mc-1"), json!({ "expires_at": later }))
        .await
        .expect(200);
    assert_eq!(
        w.get(&format!("{CERTIFICATES}/mc-1")).await.expect(200)["expires_at"],
        end
    );
}

async fn cli(w: &World, key: &str, directory: &Path, arguments: &[&str]) -> Ran {
    let mut command = Command::new(target_dir().join("certctl-cli"));
    command
        .args(arguments)
        .current_dir(directory)
        .env("CERTCTL_SERVER_URL", &w.url)
        .env("CERTCTL_API_KEY", key);
    let settle = async {
        loop {
            w.settle().await;
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        ran = run_command(command) => ran,
        never = settle => never,
    }
}

/// Whether the key and the certificate of a directory belong together; the names of the certificate.
fn pair(directory: &Path) -> Vec<String> {
    let read = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap();
    let key = KeyPair::from_pem(&read("privkey.pem"), None).unwrap();
    let chain = CertificateFacts::parse_pem_chain(&read("fullchain.pem")).unwrap();
    assert_eq!(chain[0].spki_der, key.spki_der());
    assert_eq!(read("fullchain.pem"), read("cert.pem") + &read("chain.pem"));
    assert!(!directory.join("privkey.new.pem").exists());
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(directory.join("privkey.pem")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    chain[0].sans.iter().map(ToString::to_string).collect()
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn the_command_line_obtains_a_certificate_in_one_command(db: PgPool) {
    let w = World::new(db).await;
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let names = ["www.example.net", "10.0.0.1", "urn:example:app"];
    cli(&w, KEY, at, &["issue", names[0], names[1], names[2]]).await.ok();
    assert_eq!(pair(&at.join("www.example.net")), names);
    let id = w
        .text("SELECT id FROM certificates WHERE name = 'www.example.net'")
        .await;
    let before = std::fs::read(at.join("www.example.net/privkey.pem")).unwrap();
    cli(&w, KEY, at, &["issue", "--renew", &id, "--key-type", "rsa-2048"])
        .await
        .ok();
    assert_eq!(pair(&at.join("www.example.net")), names);
    assert_ne!(
        std::fs::read(at.join("www.example.net/privkey.pem")).unwrap(),
        before,
        "a new key"
    );
    assert_eq!(w.versions(&id).await.len(), 2);

    // With a request: to standard output, to files, or without waiting.
    let request = requests::rsa(2048, "b.example.net");
    std::fs::write(at.join("b.csr"), &request).unwrap();
    let text = cli(&w, KEY, at, &["issue", "--csr", "b.csr", "--wait"]).await.ok();
    assert_eq!(
        CertificateFacts::parse_pem_chain(&text).unwrap()[0].spki_der,
        spki(&request)
    );
    cli(&w, KEY, at, &["issue", "--csr", "b.csr", "--out", "b"]).await.ok();
    let quick = cli(&w, KEY, at, &["issue", "--csr", "b.csr", "--name", "third"])
        .await
        .ok();
    assert!(quick.contains("requested (j-"), "{quick}");
    for wrong in [
        &["issue"][..],
        &["issue", "a b"],
        &["issue", "--csr", "none.csr"],
        &["issue", "a.example.net", "--csr", "b.csr"],
        &["issue", "a.example.net", "--renew", "mc-1"],
    ] {
        let ran = cli(&w, KEY, at, wrong).await;
        assert_eq!(ran.code, Some(2), "{wrong:?}: {ran:?}");
    }
}

/// What a build job does, with a key that can do nothing else.
#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_ci_job_obtains_its_certificates_with_a_requesters_key_and_no_agent(db: PgPool) {
    let w = World::new(db).await;
    let new = json!({ "name": "ci", "role": "requester", "scope": { "domains": ["ci.example.net"] } });
    let key = w.post("/api/v1/api-keys", new).await.expect(201)["api_key"].clone();
    let key = key.as_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    cli(&w, key, at, &["issue", "build-1.ci.example.net", "--out", "tls"])
        .await
        .ok();
    assert_eq!(pair(&at.join("tls")), ["build-1.ci.example.net"]);
    let id = w.text("SELECT id FROM certificates").await;
    cli(&w, key, at, &["issue", "--renew", &id, "--out", "tls"]).await.ok();
    assert_eq!(w.versions(&id).await.len(), 2);
    // Nothing outside of its scope, also not by a request, and nothing of others.
    let outside = cli(&w, key, at, &["issue", "www.example.net"]).await;
    assert_eq!(outside.code, Some(1), "{outside:?}");
    std::fs::write(at.join("x.csr"), requests::good("www.example.net")).unwrap();
    let outside = cli(&w, key, at, &["issue", "--csr", "x.csr"]).await;
    assert_eq!(outside.code, Some(1), "{outside:?}");
    w.certificate("mc-other", &[], json!({ "common_name": "other.ci.example.net" }))
        .await;
    let others = cli(&w, key, at, &["issue", "--renew", "mc-other"]).await;
    assert_eq!(others.code, Some(1), "{others:?}");
    assert_eq!(w.text("SELECT count(*)::text FROM certificates").await, "2");
}
