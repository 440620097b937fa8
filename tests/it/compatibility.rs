//! Clients that exist go on working: what they send, and what they read.

use certctl_tests::{
    requests,
    world::{KEY, World},
};
use certctl_x509::facts::CertificateFacts;
use http::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

fn has(value: &Value, names: &str) {
    for name in names.split_whitespace() {
        assert!(value.get(name).is_some(), "{name} is missing in {value}");
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn an_agent_that_knows_only_the_old_requests_deploys_a_certificate(db: PgPool) {
    let w = World::new(db).await;
    let registered = w
        .post(
            "/api/v1/agents",
            json!({ "name": "old", "hostname": "old.example.net" }),
        )
        .await
        .expect(201);
    let id = registered["id"].as_str().unwrap();
    assert_eq!(registered["api_key"].as_str().unwrap().len(), 64);
    let target = json!({
        "id": "tgt-9", "name": "nginx", "type": "nginx", "agent_id": id, "hostname": "ignored",
        "config": { "cert_path": "/etc/nginx/tls/blog.pem", "reload_cmd": "nginx -s reload" }
    });
    let target = w.post("/api/v1/targets", target).await.expect(201);
    assert_eq!(target["type"], "NGINX");
    let new = json!({ "id": "mc-shop", "name": "shop", "common_name": "shop.example.net", "sans": ["shop.example.net", "10.0.0.7"],
        "owner_id": "o-unassigned", "team_id": "t-unassigned", "issuer_id": "iss-local", "target_ids": ["tgt-9"] });
    w.post("/api/v1/certificates", new).await.expect(201);
    w.settle().await;

    let agent = format!("/api/v1/agents/{id}");
    // Exactly what it sends, every key and no more.
    let beat =
        json!({ "version": "1.0.0", "hostname": "old", "os": "linux", "architecture": "amd64", "ip_address": "" });
    let beat = w.post(&format!("{agent}/heartbeat"), beat).await.expect(200);
    assert_eq!(beat, json!({ "status": "heartbeat_recorded" }));
    let work = w
        .raw(Method::GET, &format!("{agent}/work"), Some(KEY), "")
        .await
        .expect(200);
    assert_eq!(work["count"], 1);
    let item = &work["jobs"][0];
    let expected = json!({ "type": "Issuance", "certificate_id": "mc-shop", "common_name": "shop.example.net", "status": "AwaitingCSR" });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&item[key], value, "{item}");
    }
    assert_eq!(item["sans"], json!(["shop.example.net", "10.0.0.7"]));

    // It puts every name into a DNS entry, the address as well.
    let csr = requests::request("shop.example.net", &["shop.example.net", "10.0.0.7"]);
    let csr = w
        .post(
            &format!("{agent}/csr"),
            json!({ "csr_pem": csr, "certificate_id": "mc-shop" }),
        )
        .await
        .expect(202);
    assert_eq!(keys(&csr), ["status"]);
    let work = w.get(&format!("{agent}/work")).await.expect(200);
    assert_eq!(
        work,
        json!({ "jobs": [], "count": 0 }),
        "what was accepted leaves the list at once"
    );
    w.settle().await;

    let work = w.get(&format!("{agent}/work")).await.expect(200);
    let item = &work["jobs"][0];
    let expected = json!({
        "type": "Deployment", "certificate_id": "mc-shop", "target_id": "tgt-9", "target_type": "NGINX", "status": "Pending",
        "target_config": {
            "cert_path": "/etc/nginx/tls/blog.pem", "chain_path": "/etc/nginx/tls/blog-chain.pem",
            "key_path": "/etc/nginx/tls/blog.key", "validate_command": "nginx -t", "reload_command": "nginx -s reload"
        }
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&item[key], value, "{item}");
    }
    let status = format!("{agent}/jobs/{}/status", item["id"].as_str().unwrap());
    let updated = json!({ "status": "updated" });
    assert_eq!(
        w.post(&status, json!({ "status": "Running" })).await.expect(200),
        updated
    );
    let pickup = w.get(&format!("{agent}/certificates/mc-shop")).await.expect(200);
    assert_eq!(keys(&pickup), ["certificate_pem"]);
    let text = pickup["certificate_pem"].as_str().unwrap();
    let chain = CertificateFacts::parse_pem_chain(text).unwrap();
    assert_eq!((chain.len(), chain[0].is_ca, chain[1].is_ca), (2, false, true));
    assert!(
        text.contains("-----END CERTIFICATE-----\n\n-----BEGIN CERTIFICATE-----"),
        "a blank line between them"
    );
    let names: Vec<_> = chain[0].sans.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["shop.example.net", "10.0.0.7"]);
    chain[0].verify_issued_by(&chain[1]).unwrap();
    for _ in 0..2 {
        // A report that is repeated is answered in the same way.
        assert_eq!(
            w.post(&status, json!({ "status": "Completed" })).await.expect(200),
            updated
        );
    }
    assert_eq!(w.status("mc-shop").await, "Active");
    assert_eq!(
        w.text("SELECT count(*)::text FROM jobs WHERE finished_at IS NULL")
            .await,
        "0"
    );

    // Failing, in its words.
    w.post("/api/v1/certificates/mc-shop/deploy", Value::Null)
        .await
        .expect(202);
    let work = w.get(&format!("{agent}/work")).await.expect(200);
    let job = work["jobs"][0]["id"].as_str().unwrap();
    let failed = json!({ "status": "Failed", "error": "nginx: [emerg] unexpected end of file" });
    assert_eq!(
        w.post(&format!("{agent}/jobs/{job}/status"), failed).await.expect(200),
        updated
    );
    let job = w.get(&format!("/api/v1/jobs/{job}")).await.expect(200);
    let said = json!("nginx: [emerg] unexpected end of file");
    assert_eq!(
        (
            &job["status"],
            &job["attempts"],
            &job["last_error"],
            &job["error_message"]
        ),
        (&json!("Pending"), &json!(1), &said, &said)
    );
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn answers_have_the_keys_that_clients_read(db: PgPool) {
    let w = World::new(db).await;
    for list in ["certificates", "targets", "agents", "jobs", "profiles"] {
        let empty = w.get(&format!("/api/v1/{list}")).await.expect(200);
        assert_eq!(
            empty,
            json!({ "data": [], "total": 0, "page": 1, "per_page": 50 }),
            "{list}"
        );
    }
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], json!({ "tags": { "tier": "low" } }))
        .await;
    let pending = w.get("/api/v1/certificates/mc-1").await.expect(200);
    assert_eq!(
        (&pending["status"], &pending["expires_at"]),
        (&json!("Pending"), &Value::Null)
    );
    w.settle().await;

    let page = w.get("/api/v1/certificates").await.expect(200);
    assert_eq!(keys(&page), ["data", "page", "per_page", "total"]);
    has(
        &page["data"][0],
        "id name common_name sans environment owner_id team_id issuer_id target_ids renewal_policy_id status expires_at
         tags last_deployment_at created_at updated_at serial_number fingerprint key_algorithm key_size issued_at",
    );
    assert_eq!(page["data"][0]["target_ids"], json!(["tgt-1"]));
    let versions = w.get("/api/v1/certificates/mc-1/versions").await.expect(200);
    has(
        &versions["data"][0],
        "id certificate_id serial_number not_before not_after fingerprint_sha256 pem_chain csr_pem key_algorithm key_size
         created_at version fingerprint cert_pem chain_pem",
    );
    assert!(!versions.to_string().contains("PRIVATE KEY"));
    let deployments = w.get("/api/v1/certificates/mc-1/deployments").await.expect(200);
    assert_eq!(keys(&deployments), ["data", "total"]);
    has(
        &deployments["data"][0],
        "id name type agent_id config enabled created_at updated_at hostname status",
    );
    let jobs = w.get("/api/v1/jobs").await.expect(200);
    has(
        &jobs["data"][0],
        "id type certificate_id status attempts max_attempts scheduled_at created_at completed_at",
    );
    let agents = w.get("/api/v1/agents").await.expect(200);
    has(
        &agents["data"][0],
        "id name hostname status last_heartbeat_at registered_at api_key_hash os architecture ip_address version
         last_heartbeat created_at updated_at capabilities tags",
    );
    assert_eq!(agents["data"][0]["api_key_hash"], "");
    has(
        &w.get("/api/v1/issuers/iss-local").await.expect(200),
        "id name type config enabled created_at updated_at status",
    );
    has(
        &w.get("/api/v1/audit").await.expect(200)["data"][0],
        "id actor actor_type action resource_type resource_id details timestamp",
    );
    let summary = w.get("/api/v1/stats/summary").await.expect(200);
    has(
        &summary,
        "total_certificates expiring_certificates expired_certificates revoked_certificates active_agents offline_agents
         total_agents pending_jobs failed_jobs complete_jobs completed_at",
    );
    assert_eq!(
        (&summary["total_certificates"], &summary["total_agents"]),
        (&json!(1), &json!(1))
    );
    let metrics = w.get("/api/v1/metrics").await.expect(200);
    has(
        &metrics["gauge"],
        "certificate_total certificate_active certificate_expiring_soon certificate_expired certificate_revoked
         agent_total agent_online job_pending",
    );
    has(&metrics["counter"], "job_completed_total job_failed_total");
    has(&metrics["uptime"], "uptime_seconds server_started measured_at");

    let renewed = w
        .post("/api/v1/certificates/mc-1/renew", json!({ "force": false }))
        .await
        .expect(202);
    assert_eq!(renewed["status"], "renewal_triggered");
    has(&renewed, "job_id job_ids");
    w.settle().await;
    let deployed = w.post("/api/v1/certificates/mc-1/deploy", json!({})).await.expect(202);
    assert_eq!(deployed["status"], "deployment_triggered");
    w.settle().await;
    let revoked = w
        .post("/api/v1/certificates/mc-1/revoke", json!({ "reason": "keyCompromise" }))
        .await
        .expect(200);
    assert_eq!(revoked, json!({ "status": "revoked" }));
    let crl = w.get("/api/v1/crl").await.expect(200);
    assert_eq!(
        (keys(&crl), &crl["total"]),
        (vec!["entries", "generated_at", "total", "version"], &json!(2))
    );
    assert_eq!(
        keys(&crl["entries"][0]),
        ["issuer_id", "revocation_date", "revocation_reason", "serial_number"]
    );
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn doors_that_are_open_need_no_key_and_every_answer_has_a_request_id(db: PgPool) {
    let w = World::new(db).await;
    for (path, answer) in [
        ("/health", json!({ "status": "healthy" })),
        ("/ready", json!({ "status": "ready" })),
        ("/api/v1/auth/info", json!({ "auth_type": "api-key", "required": true })),
    ] {
        assert_eq!(w.raw(Method::GET, path, None, "").await.expect(200), answer, "{path}");
    }
    let health = w.raw(Method::GET, "/api/v1/health", None, "").await.expect(200);
    assert_eq!(health, json!({ "status": "healthy", "timestamp": w.clock.now() }));
    assert_eq!(
        w.get("/api/v1/auth/check").await.expect(200),
        json!({ "status": "authenticated" })
    );
    w.settle().await;
    for (path, media) in [
        ("/ca/iss-local.crt", "application/pkix-cert"),
        ("/crl/iss-local.crl", "application/pkix-crl"),
        ("/api/v1/crl/iss-local", "application/pkix-crl"),
        ("/api/v1/ocsp/iss-local/1", "application/ocsp-response"),
    ] {
        let answer = w.raw(Method::GET, path, None, "").await;
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (200, media),
            "{answer:?}"
        );
    }
    let mut ids = std::collections::HashSet::new();
    for (path, status) in [
        ("/health", 200),
        ("/api/v1/teams", 200),
        ("/api/v1/teams/none", 404),
        ("/nonsense", 404),
        ("/ca/iss-local.crt", 200),
        ("/crl/none.crl", 404),
        ("/ocsp/iss-local/AAAA", 200),
        ("/api/v1/teams?x=1", 400),
    ] {
        let answer = w.get(path).await;
        assert_eq!(answer.status, status, "{answer:?}");
        let id = answer.header("x-request-id").to_owned();
        assert_eq!(id.len(), 36, "{path}: {id}");
        assert!(ids.insert(id), "each has its own");
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn partial_bodies_merge_and_unknown_keys_do_no_harm(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    for (path, new, change) in [
        (
            "teams",
            json!({ "name": "a", "description": "d" }),
            json!({ "description": "e" }),
        ),
        (
            "owners",
            json!({ "name": "a", "email": "a@example.net" }),
            json!({ "name": "b" }),
        ),
        (
            "profiles",
            json!({ "name": "a", "description": "d", "max_ttl_seconds": 86400, "allowed_ekus": ["clientAuth"] }),
            json!({ "enabled": false }),
        ),
        (
            "renewal-policies",
            json!({ "name": "a", "renew_at_permille": 500 }),
            json!({ "max_retries": 7 }),
        ),
        (
            "issuers",
            json!({ "name": "a", "type": "GenericCA", "config": { "ca_common_name": "A" } }),
            json!({ "enabled": false }),
        ),
        (
            "targets",
            json!({ "name": "a", "type": "NGINX", "agent_id": host.id(), "config": host.config("a") }),
            json!({ "enabled": false }),
        ),
        (
            "certificates",
            json!({ "common_name": "a.example.net", "sans": ["b.example.net"], "tags": { "a": "b" }, "environment": "production", "target_ids": ["tgt-1"] }),
            json!({ "environment": "staging" }),
        ),
    ] {
        let created = w.post(&format!("/api/v1/{path}"), new).await.expect(201);
        let one = format!("/api/v1/{path}/{}", created["id"].as_str().unwrap());
        assert_eq!(w.get(&one).await.expect(200), created, "{path}");
        w.clock.advance(std::time::Duration::from_secs(1));
        // The id in the body is what tools send; the other key is nobody's.
        let mut body = change.clone();
        body["id"] = json!("another");
        body["colour"] = json!({ "red": [1, 2, 3] });
        let updated = w.put(&one, body).await.expect(200);
        let mut expected = created.clone();
        expected
            .as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        expected["updated_at"] = json!(w.clock.now());
        expected["status"] = updated["status"].clone();
        if expected["status"].is_null() {
            expected.as_object_mut().unwrap().remove("status");
        }
        assert_eq!(updated, expected, "{path}");
        // Nothing at all changes nothing.
        for body in [json!({}), Value::Null] {
            let mut same = w.put(&one, body).await.expect(200);
            same["updated_at"] = updated["updated_at"].clone();
            assert_eq!(same, updated, "{path}");
        }
        let deleted = w.delete(&one).await;
        assert_eq!(
            (deleted.status, deleted.octets.len(), deleted.header("content-type")),
            (204, 0, ""),
            "{deleted:?}"
        );
        let gone = w.get(&one).await;
        assert_eq!(gone.status, if path == "certificates" { 200 } else { 404 }, "{gone:?}");
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn requests_are_taken_in_the_shapes_that_clients_send(db: PgPool) {
    let w = World::new(db).await;
    // The importer of the command line.
    let import = json!({ "common_name": "old.example.net", "sans": null, "issuer_id": "iss-local", "environment": "imported",
        "status": "Active", "serial_number": "01ab" });
    for name in ["old.example.net", "old.example.net-2", "old.example.net-3"] {
        let imported = w.post("/api/v1/certificates", import.clone()).await.expect(201);
        let defaults = [
            &imported["name"],
            &imported["owner_id"],
            &imported["team_id"],
            &imported["renewal_policy_id"],
            &imported["status"],
        ];
        assert_eq!(
            defaults,
            [name, "o-unassigned", "t-unassigned", "rp-default", "Pending"]
                .map(Value::from)
                .each_ref()
        );
    }
    // The dashboard sends empty texts for what was left blank.
    let blank = json!({ "id": "", "name": "", "common_name": "blank.example.net", "owner_id": "o-unassigned",
        "team_id": "", "issuer_id": "iss-local", "renewal_policy_id": "", "certificate_profile_id": "" });
    let blank = w.post("/api/v1/certificates", blank).await.expect(201);
    assert_eq!(
        (&blank["renewal_policy_id"], &blank["name"]),
        (&json!("rp-default"), &json!("blank.example.net"))
    );
    // An absent body, and any media type.
    let id = blank["id"].as_str().unwrap();
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.put(
        &format!("/api/v1/certificates/{id}"),
        json!({ "target_ids": ["tgt-1"] }),
    )
    .await
    .expect(200);
    w.settle().await;
    for verb in ["renew", "deploy"] {
        for media in [None, Some("text/plain"), Some("application/json")] {
            let mut request = w
                .http
                .post(format!("{}/api/v1/certificates/{id}/{verb}", w.url))
                .bearer_auth(KEY);
            if let Some(media) = media {
                request = request.header("content-type", media);
            }
            let answer = request.send().await.unwrap();
            assert_eq!(
                answer.status(),
                202,
                "{verb} {media:?}: {}",
                answer.text().await.unwrap()
            );
            w.settle().await;
        }
    }
    // Every spelling of a reason's absence, and of a serial number.
    let revoked = w
        .post(&format!("/api/v1/certificates/{id}/revoke"), json!({ "reason": "" }))
        .await
        .expect(200);
    assert_eq!(revoked["status"], "revoked");
    let certificate = w.get(&format!("/api/v1/certificates/{id}")).await.expect(200);
    assert_eq!(certificate["revocation_reason"], "unspecified");
    let serial = certificate["serial_number"].as_str().unwrap();
    let pairs: Vec<_> = format!("{serial:0>40}")
        .into_bytes()
        .chunks(2)
        .map(|two| String::from_utf8_lossy(two).into_owned())
        .collect();
    for spelling in [
        serial.to_owned(),
        serial.to_uppercase(),
        format!("000{serial}"),
        pairs.join(":"),
    ] {
        let found = w
            .get(&format!("/api/v1/certificates/{id}/versions?serial_number={spelling}"))
            .await
            .expect(200);
        assert_eq!(found["total"], 1, "{spelling}");
        let ocsp = w.get(&format!("/api/v1/ocsp/iss-local/{spelling}")).await;
        assert_eq!(ocsp.status, 200, "{ocsp:?}");
        let status = certctl_x509::ocsp::status_of(&ocsp.octets, &serial.parse().unwrap()).unwrap();
        assert!(format!("{status:?}").starts_with("Revoked"), "{spelling}: {status:?}");
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_question_for_work_is_answered_as_soon_as_there_is_some(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    host.set_away(true);
    let path = format!("/api/v1/agents/{}/work?wait=30s", host.id());
    let began = tokio::time::Instant::now();
    let (work, ()) = tokio::join!(w.get(&path), async {
        w.certificate("mc-1", &["tgt-1"], Value::Null).await;
        w.settle().await;
    });
    assert_eq!(work.expect(200)["count"], 1);
    assert!(began.elapsed().as_secs() < 20, "it did not wait to the end");
    let problem = w.get(&path.replace("30s", "soon")).await.problem();
    assert_eq!((problem.status, problem.errors[0].field.as_str()), (400, "wait"));
}
