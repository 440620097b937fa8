//! A server whose configuration is broken when a certificate comes.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use certctl_tests::eventually;
use certctl_tests::stage::Stage;
use serde_json::Value;

#[tokio::test]
async fn a_broken_configuration_fails_the_deployment_with_nginx_s_words_and_leaves_everything_as_it_was() {
    let stage = Stage::set(|builder, _| builder).await;
    stage.demo_is_served().await;
    let demo = stage.demo();
    let before = (demo.served().await.unwrap(), files(&stage));
    let config = fs::read_to_string(demo.config_path()).unwrap();
    fs::write(demo.config_path(), config.replacen("listen", "attend", 1)).unwrap();

    let renewal = stage.cli(&["renew-cert", "mc-demo", "--wait", "--timeout", "60"]).await;
    assert_eq!(renewal.code, Some(1), "{}", renewal.text);
    let job = eventually("the deployment to fail", Duration::from_secs(20), async || {
        let job = newest_deployment(&stage).await?;
        ensure!(job["attempts"] == 1 && job["status"] == "Pending", "{job}");
        Ok(job)
    })
    .await;
    let reason = job["last_error"].as_str().unwrap();
    assert!(reason.contains("unknown directive \"attend\""), "{reason}");
    assert!(renewal.text.contains("unknown directive"), "{}", renewal.text);
    assert_eq!((demo.served().await.unwrap(), files(&stage)), before);

    fs::write(demo.config_path(), config).unwrap();
    // Due in an hour; an operator need not wait.
    stage.cli(&["jobs", "retry", job["id"].as_str().unwrap()]).await.ok();
    eventually("the retried deployment", Duration::from_secs(20), async || {
        let job = newest_deployment(&stage).await?;
        ensure!(
            job["status"] == "Completed",
            "it is {}: {}",
            job["status"],
            job["last_error"]
        );
        Ok(())
    })
    .await;
    let version = stage.versions("mc-demo").await.remove(0);
    let served = demo.served().await.unwrap();
    assert_ne!(served, before.0);
    assert_eq!(served.fingerprint, version["fingerprint_sha256"].as_str().unwrap());
}

/// Every file beside the certificate, with its contents.
fn files(stage: &Stage) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = stage.demo().cert_path();
    let entries = fs::read_dir(dir.parent().unwrap()).unwrap();
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

async fn newest_deployment(stage: &Stage) -> anyhow::Result<Value> {
    let jobs = stage
        .api()
        .list("/api/v1/jobs?certificate_id=mc-demo&type=Deployment&sort=-createdAt")
        .await?;
    ensure!(!jobs.is_empty(), "there is no deployment");
    Ok(jobs[0].clone())
}
