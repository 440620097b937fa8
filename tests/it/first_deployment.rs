//! A real nginx and its first certificates: on a host that had none, with two kinds of key, with a placeholder.

use std::{net::SocketAddr, time::Duration};

use certctl_model::key::KeyAlgorithm;
use certctl_tests::nginx::{Nginx, free_address};
use certctl_tests::repository;
use certctl_tests::world::{Host, KEY, World};
use serde_json::{Value, json};
use sqlx::PgPool;

/// The newest deployment of a certificate, as an operator sees it.
async fn deployment(w: &World, certificate: &str) -> Value {
    let path = format!("/api/v1/jobs?certificate_id={certificate}&type=Deployment&sort=-createdAt");
    w.get(&path).await.expect(200)["data"][0].clone()
}

async fn is_served(w: &World, certificate: &str, address: SocketAddr, key: KeyAlgorithm) -> bool {
    let name = format!("{certificate}.example.net");
    let served = certctl_agent::served::fingerprint(&address.to_string(), &name, key).await;
    let newest = &w.versions(certificate).await[0]["fingerprint_sha256"];
    served.is_ok_and(|served| *newest == json!(served))
}

fn server(host: &Host, target: &str, address: SocketAddr) -> String {
    format!("server {{ listen {address} ssl; {} }}\n", pair(host, target))
}

fn pair(host: &Host, target: &str) -> String {
    let cert = host.config(target)["cert_path"].as_str().unwrap().to_owned();
    let key = cert.replace(".pem", ".key");
    format!("ssl_certificate {cert}; ssl_certificate_key {key};")
}

/// A target of this nginx, with more settings.
async fn target(w: &World, host: &Host, nginx: &Nginx, id: &str, more: Value) {
    let mut config = host.config(id);
    let own = json!({ "validate_command": nginx.validate(), "reload_command": nginx.reload() });
    for settings in [own, more] {
        config
            .as_object_mut()
            .unwrap()
            .extend(settings.as_object().unwrap().clone());
    }
    let new = json!({ "id": id, "name": id, "type": "NGINX", "agent_id": host.id(), "config": config });
    w.post("/api/v1/targets", new).await.expect(201);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn new_targets_of_a_server_that_never_ran_are_deployed_once_it_is_started(db: PgPool) {
    let w = World::new(db).await;
    let mut nginx = Nginx::prepare();
    let host = w.host_with("web-1", &[&nginx.validate(), &nginx.reload()]).await;
    let (one, two) = (free_address(), free_address());
    nginx.configure(&(server(&host, "tgt-1", one) + &server(&host, "tgt-2", two)));
    for (id, address) in [("tgt-1", one), ("tgt-2", two)] {
        target(&w, &host, &nginx, id, json!({ "verify_address": address.to_string() })).await;
    }
    w.certificate("mc-1", &["tgt-1"], json!({})).await;
    w.certificate("mc-2", &["tgt-2"], json!({})).await;
    w.settle().await;
    for certificate in ["mc-1", "mc-2"] {
        let job = deployment(&w, certificate).await;
        assert_eq!(job["status"], "Running", "{job}");
        let said = job["last_error"].as_str().unwrap();
        assert!(said.contains("the files are "), "{said}");
    }
    // What one of them lacked was the other's file; now the server itself is missing.
    let said = deployment(&w, "mc-2").await["last_error"].as_str().unwrap().to_owned();
    assert!(
        said.contains("-s reload\" failed") && said.contains("nginx.pid"),
        "{said}"
    );

    nginx.start(one).await;
    w.settle().await;
    for (certificate, address) in [("mc-1", one), ("mc-2", two)] {
        let job = deployment(&w, certificate).await;
        assert_eq!(
            (&job["status"], &job["last_error"]),
            (&json!("Completed"), &Value::Null),
            "{job}"
        );
        assert!(is_served(&w, certificate, address, KeyAlgorithm::Ecdsa).await);
    }
    w.post("/api/v1/certificates/mc-1/renew", Value::Null).await.expect(202);
    w.settle().await;
    assert!(is_served(&w, "mc-1", one, KeyAlgorithm::Ecdsa).await);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_placeholder_lets_a_server_start_before_there_is_a_certificate(db: PgPool) {
    let w = World::new(db).await;
    let mut nginx = Nginx::prepare();
    let host = w.host_with("web-1", &[&nginx.validate(), &nginx.reload()]).await;
    let address = free_address();
    nginx.configure(&server(&host, "tgt-1", address));
    let settings = json!({ "verify_address": address.to_string(), "placeholder": true });
    target(&w, &host, &nginx, "tgt-1", settings).await;
    w.settle().await;
    let placeholder = host.served("tgt-1").expect("it is there");
    assert_eq!(placeholder.common_name.as_deref(), Some("certctl placeholder"));
    nginx.start(address).await;
    w.settle().await;
    assert_eq!(host.served("tgt-1").unwrap(), placeholder, "it is written once");

    w.certificate("mc-1", &["tgt-1"], json!({})).await;
    w.settle().await;
    assert_eq!(deployment(&w, "mc-1").await["status"], "Completed");
    assert!(is_served(&w, "mc-1", address, KeyAlgorithm::Ecdsa).await);
    let beat = format!("/api/v1/agents/{}/heartbeat", host.id());
    let heard = w.post(&beat, json!({})).await.expect(200);
    assert_eq!(heard, json!({ "status": "heartbeat_recorded" }));
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn two_certificates_of_one_target_are_served_and_a_third_that_would_replace_one_is_refused(db: PgPool) {
    let w = World::new(db).await;
    let mut nginx = Nginx::prepare();
    let host = w.host_with("web-1", &[&nginx.validate(), &nginx.reload()]).await;
    let address = free_address();
    let block = |id: &str| {
        let files = pair(&host, id);
        format!("server {{ listen {address} ssl; server_name {id}.example.net; {files} }}\n")
    };
    nginx.configure(&(block("mc-1") + &block("mc-2")));
    let shared = host.config("{id}")["cert_path"].clone();
    let settings = json!({ "verify_address": address.to_string(), "cert_path": shared });
    target(&w, &host, &nginx, "tgt-shared", settings).await;
    for certificate in ["mc-1", "mc-2"] {
        w.certificate(certificate, &["tgt-shared"], json!({})).await;
    }
    w.settle().await;
    nginx.start(address).await;
    w.settle().await;

    // A target with a file of the first, and a certificate for it.
    let new = json!({ "id": "tgt-2", "name": "tgt-2", "type": "NGINX", "agent_id": host.id(),
                      "config": host.config("mc-1") });
    let refused = w.post("/api/v1/targets", new).await.problem();
    assert!(refused.status == 409 && refused.detail.contains("mc-1"), "{refused:?}");

    let table = certctl_tests::stage::cli(&w.url, KEY, &["list-certs"]).await.ok();
    assert_eq!(table.matches("Deployed").count(), 2, "{table}");
    let metrics = w.get("/api/v1/metrics").await.expect(200);
    assert_eq!(
        metrics["gauge"]["certificate_by_deployment_status"]["Deployed"], 2,
        "{metrics}"
    );
    for certificate in ["mc-1", "mc-2"] {
        assert!(
            is_served(&w, certificate, address, KeyAlgorithm::Ecdsa).await,
            "{certificate}"
        );
        let path = format!("/api/v1/certificates/{certificate}");
        assert_eq!(w.get(&path).await.expect(200)["deployment_status"], "Deployed");
        let explained = w.get(&format!("{path}/explain")).await.expect(200);
        assert_eq!(explained["cause"], "NotDue", "{explained}");
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn the_readme_s_way_to_the_first_certificate_leads_there(db: PgPool) {
    let readme = std::fs::read_to_string(repository().join("README.md")).unwrap();
    let section = readme
        .split("## An agent on a host")
        .nth(1)
        .unwrap()
        .split("\n## ")
        .next()
        .unwrap();
    let between = |begin: &str, end: &str| {
        let (_, rest) = section
            .split_once(begin)
            .unwrap_or_else(|| panic!("the README has {begin}"));
        rest.split_once(end).unwrap().0.to_owned()
    };
    let block = format!("server {{{}}}", between("server {", "}\n"));
    let target = between("create_target --json '", "'\n");
    let certificate = between("create_certificate --json '", "'\n");

    let w = World::new(db).await;
    let mut nginx = Nginx::prepare();
    let host = w.host_with("web-1", &[&nginx.validate(), &nginx.reload()]).await;
    let address = free_address();
    let files = host.config("x")["cert_path"].as_str().unwrap().replace("/x.pem", "");
    nginx.configure(
        &block
            .replace("listen 443", &format!("listen {address}"))
            .replace("/etc/nginx/tls", &files),
    );

    let mut target: Value = serde_json::from_str(&target).unwrap();
    assert_eq!(target["agent_id"], "a-…");
    target["agent_id"] = json!(host.id());
    let config = &mut target["config"];
    assert_eq!(
        (&config["verify_address"], &config["validate_command"]),
        (&json!("127.0.0.1:443"), &Value::Null)
    );
    assert_eq!(config["reload_command"], "systemctl reload-or-restart nginx");
    config["verify_address"] = json!(address.to_string());
    config["cert_path"] = json!(config["cert_path"].as_str().unwrap().replace("/etc/nginx/tls", &files));
    config["validate_command"] = json!(nginx.validate());
    config["reload_command"] = json!(nginx.reload());
    let target = w.post("/api/v1/targets", target).await.expect(201);
    assert_eq!(target.get("ignored"), None);

    let mut certificate: Value = serde_json::from_str(&certificate).unwrap();
    assert_eq!(certificate["target_ids"], json!(["tgt-…"]));
    certificate["target_ids"] = json!([target["id"]]);
    let certificate = w.post("/api/v1/certificates", certificate).await.expect(201);
    let id = certificate["id"].as_str().unwrap();
    w.settle().await;
    // Without systemd nothing starts the server but we.
    assert_eq!(deployment(&w, id).await["status"], "Running");
    nginx.start(address).await;
    w.settle().await;
    assert_eq!(deployment(&w, id).await["status"], "Completed");
    let served = certctl_agent::served::fingerprint(&address.to_string(), "www.example.com", KeyAlgorithm::Ecdsa).await;
    assert_eq!(json!(served.unwrap()), w.versions(id).await[0]["fingerprint_sha256"]);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_server_with_an_rsa_and_an_ecdsa_certificate_gets_both(db: PgPool) {
    let w = World::new(db).await;
    let mut nginx = Nginx::prepare();
    let host = w.host_with("web-1", &[&nginx.validate(), &nginx.reload()]).await;
    let (both, old) = (free_address(), free_address());
    let pairs = pair(&host, "tgt-rsa") + &pair(&host, "tgt-ec");
    // The second server has key exchange by RSA alone.
    nginx.configure(&format!(
        "server {{ listen {both} ssl; {pairs} }}
         server {{ listen {old} ssl; {} ssl_protocols TLSv1.2; ssl_ciphers AES128-GCM-SHA256; }}",
        pair(&host, "tgt-rsa")
    ));
    let at = |endpoints: &[SocketAddr]| {
        let endpoints: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
        json!({ "verify_address": both.to_string(), "endpoints": endpoints })
    };
    target(&w, &host, &nginx, "tgt-ec", at(&[both])).await;
    target(&w, &host, &nginx, "tgt-rsa", at(&[both, old])).await;
    let rules = json!({ "name": "rsa", "allowed_key_algorithms": [{ "algorithm": "RSA", "min_size": 2048 }] });
    let profile = w.post("/api/v1/profiles", rules).await.expect(201);
    w.certificate("mc-ec", &["tgt-ec"], json!({})).await;
    w.certificate(
        "mc-rsa",
        &["tgt-rsa"],
        json!({ "certificate_profile_id": profile["id"] }),
    )
    .await;
    w.settle().await;
    nginx.start(both).await;
    w.settle().await;
    for (certificate, key) in [("mc-ec", KeyAlgorithm::Ecdsa), ("mc-rsa", KeyAlgorithm::Rsa)] {
        for _ in 0..2 {
            let job = deployment(&w, certificate).await;
            assert_eq!(job["status"], "Completed", "{job}");
            assert!(is_served(&w, certificate, both, key).await);
            w.post(&format!("/api/v1/certificates/{certificate}/renew"), Value::Null)
                .await
                .expect(202);
            w.settle().await;
        }
    }
    // A deployment has its endpoints looked at.
    for _ in 0..10 {
        w.settle().await;
        w.clock.advance(Duration::from_secs(60));
    }
    let seen = w.get("/api/v1/endpoints").await.expect(200);
    let seen = seen["data"].as_array().unwrap();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|one| one["outcome"] == "Served"), "{seen:?}");
}
