//! The demo: from a request to the certificate being served, told step by step.

use std::fs;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::{Instant, sleep};

use crate::nginx::{Demo, SERVER_NAME};
use crate::platform::{AGENT_NAME, Api, Platform, Say};

/// The demo's certificate.
pub const CERTIFICATE: &str = "mc-demo";
/// The demo's target.
pub const TARGET: &str = "t-demo";

const TARGET_NAME: &str = "demo-nginx";
const POLL: Duration = Duration::from_millis(25);
const TIMEOUT: Duration = Duration::from_secs(90);

/// Tells the story: requests the certificate and waits until nginx serves it, or shows what an earlier run left.
///
/// Also writes the CA's certificate to `<dir>/ca.pem`.
///
/// # Errors
///
/// A step failed, with the reason the job gives, or takes too long.
pub async fn tell(platform: &Platform, say: Say<'_>) -> anyhow::Result<()> {
    let demo = platform.demo().context("the platform has no demo nginx")?;
    let api = platform.api();
    let ca = api
        .download("/ca/iss-local.crt")
        .await
        .context("cannot read the CA's certificate")?;
    fs::write(
        platform.dir().join("ca.pem"),
        pem::encode(&pem::Pem::new("CERTIFICATE", ca)),
    )?;

    let target = register_target(api, demo).await?;
    match api.get(&format!("/api/v1/certificates/{CERTIFICATE}")).await? {
        None => request(api, demo, &target, say).await,
        Some(certificate) => show(api, demo, &certificate, say).await,
    }
}

/// Makes the target, or brings the one of an earlier run up to date, and returns its id.
///
/// # Errors
///
/// The platform's agent does not appear, or the API refuses.
pub async fn register_target(api: &Api, demo: &Demo) -> anyhow::Result<String> {
    let agent = agent_id(api).await?;
    let config = demo.target_config();
    let found = api.list("/api/v1/targets?per_page=500").await?;
    let found = found.iter().find(|target| target["name"] == TARGET_NAME);
    match found {
        None => {
            let body = json!({
                "id": TARGET, "name": TARGET_NAME, "type": "NGINX", "agent_id": agent, "config": config, "enabled": true
            });
            text(&api.post("/api/v1/targets", &body).await?, "id")
        }
        Some(target) => {
            let id = text(target, "id")?;
            if target["config"] != config || target["agent_id"] != agent {
                let change = json!({ "agent_id": agent, "config": config });
                api.put(&format!("/api/v1/targets/{id}"), &change).await?;
            }
            Ok(id)
        }
    }
}

async fn agent_id(api: &Api) -> anyhow::Result<String> {
    let started = Instant::now();
    loop {
        let agents = api.list("/api/v1/agents?per_page=500").await?;
        if let Some(agent) = agents.iter().find(|agent| agent["name"] == AGENT_NAME) {
            return text(agent, "id");
        }
        ensure!(
            started.elapsed() < TIMEOUT,
            "the agent does not register; its log says why"
        );
        sleep(POLL).await;
    }
}

async fn request(api: &Api, demo: &Demo, target: &str, say: Say<'_>) -> anyhow::Result<()> {
    let body = json!({
        "id": CERTIFICATE, "name": CERTIFICATE, "common_name": SERVER_NAME, "sans": [SERVER_NAME],
        "issuer_id": "iss-local", "target_ids": [target], "environment": "demo",
    });
    let started = Instant::now();
    let mut step = |name: &str, what: &str| {
        let seconds = started.elapsed().as_secs_f64();
        say(&format!("  {name:<12} {seconds:>5.2} s  {what}"));
    };
    api.post("/api/v1/certificates", &body).await?;
    step(
        "requested",
        &format!("{CERTIFICATE} for {SERVER_NAME}, to be deployed to {TARGET_NAME}"),
    );

    wait_for(api, "a certification request", async |jobs: &[Value]| {
        let issuance = jobs.iter().find(|job| job["type"] != "Deployment");
        Ok(issuance
            .filter(|job| job["status"] == "Running" || job["status"] == "Completed")
            .map(|_| ()))
    })
    .await?;
    step(
        "key, CSR",
        "the agent made a key that stays on its host, and asked for a certificate",
    );

    let version = wait_for(api, "a certificate", async |_: &[Value]| newest(api).await).await?;
    step(
        "signed",
        &format!("serial {}, valid until {}", version.serial, version.not_after),
    );

    wait_for(api, "a deployment", async |jobs: &[Value]| {
        let deployed = |job: &&Value| job["type"] == "Deployment" && job["status"] == "Completed";
        Ok(jobs.iter().find(deployed).map(|_| ()))
    })
    .await?;
    step(
        "deployed",
        "the agent wrote the files, and nginx accepted and loaded them",
    );

    wait_for(api, "nginx to serve it", async |_: &[Value]| {
        Ok((demo.served().await?.fingerprint == version.fingerprint).then_some(()))
    })
    .await?;
    step(
        "verified",
        &format!("a TLS client of {} sees that serial", demo.address()),
    );
    Ok(())
}

/// Asks `done` about the certificate's jobs until it has an answer; a failed job ends the wait.
async fn wait_for<T>(
    api: &Api,
    what: &str,
    done: impl AsyncFn(&[Value]) -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let started = Instant::now();
    loop {
        let jobs = api
            .list(&format!("/api/v1/jobs?certificate_id={CERTIFICATE}&per_page=100"))
            .await?;
        if let Some(answer) = done(&jobs).await? {
            return Ok(answer);
        }
        if let Some(failed) = jobs.iter().find(|job| job["status"] == "Failed") {
            let (kind, error) = (
                text(failed, "type")?,
                failed["last_error"].as_str().unwrap_or("no reason given"),
            );
            bail!("the {kind} job failed: {error}");
        }
        ensure!(
            started.elapsed() < TIMEOUT,
            "waited {TIMEOUT:?} for {what}; the logs say more"
        );
        sleep(POLL).await;
    }
}

/// Shows what an earlier run left; the last deployment may still be under way.
async fn show(api: &Api, demo: &Demo, certificate: &Value, say: Say<'_>) -> anyhow::Result<()> {
    const SETTLE: Duration = Duration::from_secs(10);
    let status = text(certificate, "status")?;
    let Some(version) = newest(api).await? else {
        say(&format!("  {CERTIFICATE} is {status} and has no certificate yet"));
        return Ok(());
    };
    say(&format!(
        "  {CERTIFICATE} is {status}: serial {}, valid until {}",
        version.serial, version.not_after
    ));
    let started = Instant::now();
    loop {
        let served = demo.served().await?;
        if served.fingerprint == version.fingerprint {
            say(&format!("  {TARGET_NAME} serves it on {}", demo.address()));
            return Ok(());
        }
        if started.elapsed() > SETTLE {
            let (serial, address) = (&served.serial, demo.address());
            say(&format!(
                "  {TARGET_NAME} serves another one on {address}: serial {serial}"
            ));
            return Ok(());
        }
        sleep(POLL).await;
    }
}

struct Version {
    serial: String,
    fingerprint: String,
    not_after: String,
}

async fn newest(api: &Api) -> anyhow::Result<Option<Version>> {
    let versions = api
        .list(&format!("/api/v1/certificates/{CERTIFICATE}/versions"))
        .await?;
    let Some(version) = versions.first() else {
        return Ok(None);
    };
    let not_after = OffsetDateTime::parse(&text(version, "not_after")?, &Rfc3339)?;
    Ok(Some(Version {
        serial: text(version, "serial_number")?,
        fingerprint: text(version, "fingerprint_sha256")?,
        not_after: not_after.replace_nanosecond(0)?.format(&Rfc3339)?,
    }))
}

fn text(value: &Value, key: &str) -> anyhow::Result<String> {
    let text = value[key]
        .as_str()
        .with_context(|| format!("the answer has no {key}"))?;
    Ok(text.to_owned())
}
