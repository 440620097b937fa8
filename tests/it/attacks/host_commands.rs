//! Servers that try to make an agent run programs its host did not allow.

use certctl_tests::world::{Host, KEY, World};
use http::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

/// A target with these settings and a certificate for it; returns the deployment once nothing is left to do.
async fn deployed(w: &World, host: &Host, id: &str, config: Value) -> Value {
    let new = json!({ "id": id, "name": id, "type": "NGINX", "agent_id": host.id(), "config": config });
    w.post("/api/v1/targets", new).await.expect(201);
    let certificate = format!("mc-{id}");
    w.certificate(&certificate, &[id], json!({})).await;
    w.settle().await;
    let path = format!("/api/v1/jobs?certificate_id={certificate}&type=Deployment");
    w.get(&path).await.expect(200)["data"][0].clone()
}

fn said(job: &Value) -> &str {
    job["last_error"].as_str().unwrap_or_default()
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn an_agent_runs_nothing_that_its_host_did_not_allow(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host_with("web-1", &["default"]).await;
    let loot = tempfile::tempdir().unwrap();
    let file = loot.path().join("made-by-the-server");
    let shown = file.display();
    let own = loot.path().join("nginx");
    std::fs::write(&own, format!("#!/bin/sh\ntouch {shown}\n")).unwrap();
    std::fs::set_permissions(&own, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for (n, command) in [
        format!("service ../../usr/bin/touch {shown}"),
        format!("{} -t", own.display()),
        format!("nginx -t -e {shown}"),
        format!("nginx -t -c {shown}"),
        format!("setsid touch {shown}"),
        format!("env touch {shown}"),
        format!("systemctl link {shown}"),
        "systemctl restart ssh".to_owned(),
        format!("/usr/bin/../bin/touch {shown}"),
        format!("true {shown}"),
    ]
    .iter()
    .enumerate()
    {
        for (key, other) in [
            ("validate_command", "reload_command"),
            ("reload_command", "validate_command"),
        ] {
            let id = format!("t-{n}-{key}").replace('_', "-");
            let mut config = host.config(&id);
            config[key] = json!(command);
            config[other] = json!("true");
            let job = deployed(&w, &host, &id, config).await;
            assert_eq!(
                (&job["status"], &job["attempts"]),
                (&json!("Pending"), &json!(1)),
                "{command}: {job}"
            );
            assert!(said(&job).contains("CERTCTL_ALLOWED_COMMANDS"), "{command}: {job}");
            assert!(said(&job).ends_with("nothing was changed"), "{command}: {job}");
            assert!(host.served(&id).is_none(), "{command}");
        }
    }
    assert!(!file.exists());
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn an_agent_writes_nothing_outside_the_directories_of_its_host(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host_with("web-1", &[]).await;
    let elsewhere = tempfile::tempdir().unwrap();
    for (n, key) in ["cert_path", "chain_path", "key_path"].into_iter().enumerate() {
        let id = format!("t-{n}");
        let file = elsewhere.path().join(&id);
        let mut config = host.config(&id);
        config[key] = json!(file);
        let job = deployed(&w, &host, &id, config).await;
        assert_eq!(
            (&job["status"], &job["attempts"]),
            (&json!("Pending"), &json!(1)),
            "{job}"
        );
        assert!(said(&job).contains("CERTCTL_ALLOWED_DIRECTORIES"), "{job}");
        assert!(host.served(&id).is_none());
    }
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    // Nor where a link leads outside.
    let config = host.config("t-link");
    let path = config["cert_path"].as_str().unwrap().to_owned();
    std::fs::write(elsewhere.path().join("a.pem"), "").unwrap();
    std::os::unix::fs::symlink(elsewhere.path().join("a.pem"), &path).unwrap();
    let job = deployed(&w, &host, "t-link", config).await;
    assert!(said(&job).contains("CERTCTL_ALLOWED_DIRECTORIES"), "{job}");
    assert_eq!(std::fs::read(elsewhere.path().join("a.pem")).unwrap(), b"");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn an_agent_replaces_no_configuration_and_no_script(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host_with("web-1", &[]).await;
    let place = host.config("x")["cert_path"].as_str().unwrap().to_owned();
    let directory = std::path::Path::new(&place).parent().unwrap().to_owned();
    std::fs::create_dir_all(&directory).unwrap();
    let script = "export APACHE_RUN_USER=www-data\n";
    std::fs::write(directory.join("envvars"), script).unwrap();
    for (n, name) in ["envvars", "new.conf"].into_iter().enumerate() {
        let id = format!("t-{n}");
        let mut config = host.config(&id);
        config["cert_path"] = json!(directory.join(name));
        config["key_path"] = json!(directory.join(format!("{n}.key")));
        let job = deployed(&w, &host, &id, config).await;
        assert!(
            said(&job).contains("no certificate or key") && said(&job).contains("nothing was changed"),
            "{job}"
        );
        assert!(!directory.join(format!("{n}.key")).exists());
    }
    assert_eq!(std::fs::read_to_string(directory.join("envvars")).unwrap(), script);
    assert!(!directory.join("new.conf").exists());
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn what_a_command_wrote_is_shown_to_those_who_may_operate_alone(db: PgPool) {
    const OUTPUT: &str = "No such file or directory";
    let w = World::new(db).await;
    let host = w.host_with("web-1", &["ls /absent"]).await;
    // Files that exist are put back, and the deployment is tried again; where none were they stay, and it waits.
    for suffix in [".pem", ".key", "-chain.pem"] {
        let cert = host.config("t-old")["cert_path"]
            .as_str()
            .unwrap()
            .replace(".pem", suffix);
        std::fs::write(cert, "old").unwrap();
    }
    for (id, status) in [("t-old", "Pending"), ("t-new", "Running")] {
        let mut config = host.config(id);
        config["reload_command"] = json!("ls /absent");
        let job = deployed(&w, &host, id, config).await;
        assert_eq!(job["status"], status, "{job}");
        assert!(said(&job).contains(OUTPUT), "{job}");
        assert_eq!(job["last_error"], job["error_message"]);
    }
    // An agent of an earlier version does not tell its own words from the command's.
    w.target("t-early", &host).await;
    w.certificate("mc-early", &["t-early"], json!({})).await;
    w.settle().await;
    let secret = "root:$y$j9T$secret:19000";
    w.post("/api/v1/certificates/mc-early/deploy", Value::Null)
        .await
        .expect(202);
    let jobs = w
        .get("/api/v1/jobs?certificate_id=mc-early&type=Deployment&status=Pending")
        .await
        .expect(200);
    let early = jobs["data"][0]["id"].as_str().unwrap().to_owned();
    let report = format!("/api/v1/agents/{}/jobs/{early}/status", host.id());
    let body = json!({ "status": "Failed", "error": secret }).to_string();
    w.raw(Method::POST, &report, Some(KEY), body).await.expect(200);
    let job = w.get(&format!("/api/v1/jobs/{early}")).await.expect(200);
    assert_eq!(said(&job), secret);
    w.settle().await;

    let keys = ["viewer", "auditor"];
    for role in keys {
        let made = w
            .post("/api/v1/api-keys", json!({ "name": role, "role": role }))
            .await
            .expect(201);
        let key = made["api_key"].as_str().unwrap();
        let mut paths = vec![
            "/api/v1/jobs?per_page=500".to_owned(),
            "/api/v1/audit?per_page=500".to_owned(),
        ];
        paths.extend(["certificates", "notifications", "endpoints"].map(|list| format!("/api/v1/{list}?per_page=500")));
        for id in ["mc-t-old", "mc-t-new", "mc-early"] {
            paths.extend(["", "/explain", "/deployments"].map(|end| format!("/api/v1/certificates/{id}{end}")));
        }
        paths.push(format!("/api/v1/jobs/{early}"));
        for path in paths {
            let answer = w.raw(Method::GET, &path, Some(key), "").await;
            if answer.status == 403 {
                continue;
            }
            let text = answer.expect(200).to_string();
            assert!(!text.contains(OUTPUT) && !text.contains("$y$"), "{role} {path}: {text}");
        }
    }
    let news = w.news.lock().unwrap().clone();
    assert!(
        !news.is_empty() && news.iter().all(|one| !one.to_string().contains(OUTPUT)),
        "{news:?}"
    );
}
