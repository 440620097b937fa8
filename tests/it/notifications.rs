//! News on its way to people and programs: real SMTP, a real webhook.

use std::fs;
use std::time::Duration;

use anyhow::ensure;
use certctl_tests::eventually;
use certctl_tests::receivers::{Delivery, Mailbox, Security, Webhook};
use certctl_tests::stage::{Stage, directory};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

const OWNER: &str = "anna@example.org";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn news_of_a_renewal_arrives_by_mail_and_by_a_signed_webhook_and_refusals_are_settled() {
    let dir = directory();
    let mailbox = Mailbox::start(&dir.path().join("mails"), Security::Plain).await;
    let hook = Webhook::start().await;
    let stage = Stage::set(|builder, _| {
        builder
            .env("notifier", "CERTCTL_SMTP_HOST", "127.0.0.1")
            .env("notifier", "CERTCTL_SMTP_PORT", mailbox.port)
            .env("notifier", "CERTCTL_SMTP_SECURITY", "none")
            .env("notifier", "CERTCTL_SMTP_FROM", "certctl@example.org")
            .env("notifier", "CERTCTL_WEBHOOK_URL", &hook.url)
            .env("notifier", "CERTCTL_WEBHOOK_SECRET", &hook.secret)
            .without_demo()
    })
    .await;
    // The first deployment's news is told at the third attempt, and that of the revocation never.
    hook.answer("DeploymentSuccess", &[500, 503]);
    hook.answer("Revocation", &[410]);
    owned_certificate(&stage).await;
    told(&stage, "DeploymentSuccess", "Webhook", "sent").await;
    let attempts: Vec<_> = of(&hook, "DeploymentSuccess")
        .iter()
        .map(|delivery| delivery.status)
        .collect();
    assert_eq!(attempts, [500, 503, 200]);
    let keys: Vec<_> = of(&hook, "DeploymentSuccess")
        .into_iter()
        .map(|delivery| delivery.idempotency_key)
        .collect();
    assert!(
        keys.iter().all(|key| *key == keys[0] && key.starts_with("ne-")),
        "{keys:?}"
    );

    stage
        .cli(&["renew-cert", "mc-told", "--wait", "--timeout", "60"])
        .await
        .ok();
    told(&stage, "RenewalSuccess", "Email", "sent").await;
    told(&stage, "RenewalSuccess", "Webhook", "sent").await;
    let serial = stage.versions("mc-told").await[0]["serial_number"]
        .as_str()
        .unwrap()
        .to_owned();
    let renewal = &of(&hook, "RenewalSuccess")[..];
    assert_eq!(renewal.len(), 1, "{renewal:?}");
    assert!(renewal[0].signed, "{renewal:?}");
    assert_eq!(renewal[0].text("type"), "event");
    assert_eq!(renewal[0].text("certificate_id"), "mc-told");
    assert_eq!(renewal[0].text("event_id"), renewal[0].idempotency_key);
    assert!(renewal[0].text("body").contains(&serial), "{renewal:?}");
    let mails = mails_about(&mailbox, "was renewed");
    assert_eq!(mails.len(), 1, "{mails:?}");
    assert_eq!(mails[0]["to"], json!([OWNER]));
    assert_eq!(mails[0]["from"], "certctl@example.org");
    assert_eq!(mails[0]["tls"], false);
    assert!(mails[0]["body"].as_str().unwrap().contains(&serial), "{mails:?}");

    // A receiver that refuses for good is not asked again, and the others are told all the same.
    stage
        .cli(&["revoke-cert", "mc-told", "--reason", "superseded"])
        .await
        .ok();
    let dead = told(&stage, "Revocation", "Webhook", "failed").await;
    assert!(dead.contains("410"), "{dead}");
    told(&stage, "Revocation", "Email", "sent").await;
    assert_eq!(of(&hook, "Revocation").len(), 1);
    assert_eq!(mails_about(&mailbox, "was revoked").len(), 1);
    assert!(hook.deliveries().iter().all(|delivery| delivery.signed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_goes_over_verified_starttls_with_a_name_and_a_password() {
    let dir = directory();
    let (ca, cert, key) = (
        dir.path().join("ca.pem"),
        dir.path().join("cert.pem"),
        dir.path().join("key.pem"),
    );
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().unwrap();
    let authority = params.self_signed(&ca_key).unwrap();
    fs::write(&ca, authority.pem()).unwrap();
    let pair = KeyPair::generate().unwrap();
    let server = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    let server = server.signed_by(&pair, &Issuer::new(params, ca_key)).unwrap();
    fs::write(&cert, server.pem()).unwrap();
    fs::write(&key, pair.serialize_pem()).unwrap();
    let security = Security::StartTls {
        cert: &cert,
        key: &key,
        username: "certctl",
        password: "geheim",
    };
    let mailbox = Mailbox::start(&dir.path().join("mails"), security).await;
    let stage = Stage::set(|builder, _| {
        builder
            .env("notifier", "CERTCTL_SMTP_HOST", "127.0.0.1")
            .env("notifier", "CERTCTL_SMTP_PORT", mailbox.port)
            .env("notifier", "CERTCTL_SMTP_SECURITY", "starttls")
            .env("notifier", "CERTCTL_SMTP_FROM", "certctl@example.org")
            .env("notifier", "CERTCTL_SMTP_USERNAME", "certctl")
            .env("notifier", "CERTCTL_SMTP_PASSWORD", "geheim")
            .env("notifier", "CERTCTL_SMTP_CA_FILE", ca.display())
            .without_demo()
    })
    .await;
    owned_certificate(&stage).await;
    told(&stage, "DeploymentSuccess", "Email", "sent").await;
    let mails = mails_about(&mailbox, "is deployed");
    assert_eq!(mails.len(), 1, "{mails:?}");
    assert_eq!(
        (&mails[0]["to"], &mails[0]["tls"], &mails[0]["user"]),
        (&json!([OWNER]), &json!(true), &json!("certctl"))
    );
    // There is no webhook here, so nothing is enqueued for one.
    let rows = stage.api().get("/api/v1/notifications?channel=Webhook").await.unwrap();
    assert_eq!(rows.unwrap()["total"], 0);
}

/// `mc-told`, deployed to a target of files, and owned by somebody with an address.
async fn owned_certificate(stage: &Stage) {
    let api = stage.api();
    let owner = json!({ "id": "o-anna", "name": "Anna", "email": OWNER, "team_id": "t-unassigned" });
    api.post("/api/v1/owners", &owner).await.unwrap();
    let target = stage.file_target("t-files").await;
    let certificate = json!({
        "id": "mc-told", "name": "mc-told", "common_name": "told.certctl.test", "owner_id": "o-anna",
        "target_ids": [target.id],
    });
    api.post("/api/v1/certificates", &certificate).await.unwrap();
    eventually("the first deployment", Duration::from_secs(30), async || {
        ensure!(target.cert_path.exists(), "there is no {}", target.cert_path.display());
        Ok(())
    })
    .await;
}

/// Waits until the news has come to this end, and returns the error that is noted with it.
async fn told(stage: &Stage, kind: &str, channel: &str, status: &str) -> String {
    eventually(
        &format!("{kind} by {channel} to be {status}"),
        Duration::from_secs(60),
        async || {
            let rows: Vec<(String, Option<String>, i32)> =
                sqlx::query_as("SELECT status, error, attempts FROM notifications WHERE type = $1 AND channel = $2")
                    .bind(kind)
                    .bind(channel)
                    .fetch_all(&stage.db)
                    .await?;
            ensure!(rows.len() == 1 && rows[0].0 == status, "there is {rows:?}");
            Ok(rows[0].1.clone().unwrap_or_default())
        },
    )
    .await
}

fn of(hook: &Webhook, kind: &str) -> Vec<Delivery> {
    hook.deliveries()
        .into_iter()
        .filter(|delivery| delivery.text("event_type") == kind)
        .collect()
}

fn mails_about(mailbox: &Mailbox, words: &str) -> Vec<Value> {
    let about = |mail: &Value| {
        mail["headers"]["subject"]
            .as_str()
            .is_some_and(|subject| subject.contains(words))
    };
    mailbox.messages().into_iter().filter(about).collect()
}
