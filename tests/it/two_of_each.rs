//! Two schedulers and two notifiers over one database.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use certctl_contract::scheduler::{LoopState, SchedulerState};
use certctl_local::platform::Platform;
use certctl_tests::eventually;
use certctl_tests::receivers::Webhook;
use certctl_tests::stage::Stage;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_schedulers_and_two_notifiers_issue_once_and_tell_once() {
    const CERTIFICATES: usize = 60;
    let hook = Webhook::start().await;
    let stage = Stage::set(|builder, _| {
        builder
            .schedulers(2)
            .notifiers(2)
            .env("notifier", "CERTCTL_WEBHOOK_URL", &hook.url)
            .env("notifier", "CERTCTL_WEBHOOK_SECRET", &hook.secret)
            .without_demo()
    })
    .await;
    let target = stage.files_target("t-files").await;
    let started = Instant::now();
    let bodies = (1..=CERTIFICATES).map(|n| {
        let body = json!({
            "id": format!("mc-{n}"), "common_name": format!("host-{n}.certctl.test"), "target_ids": [target.id],
        });
        ("/api/v1/certificates".to_owned(), body)
    });
    post_at_once(&stage.platform, bodies).await;
    finished(&stage, CERTIFICATES).await;
    println!(
        "{CERTIFICATES} certificates issued and deployed in {:?}",
        started.elapsed()
    );

    // And once more: this is what people are told about.
    let started = Instant::now();
    let renewals = (1..=CERTIFICATES).map(|n| (format!("/api/v1/certificates/mc-{n}/renew"), json!({})));
    post_at_once(&stage.platform, renewals).await;
    finished(&stage, 2 * CERTIFICATES).await;
    println!(
        "{CERTIFICATES} certificates renewed and deployed in {:?}",
        started.elapsed()
    );

    let number = async |sql: &'static str| sqlx::query_scalar::<_, i64>(sql).fetch_one(&stage.db).await.unwrap();
    let issued = 2 * CERTIFICATES as i64;
    // The responder of OCSP has entries of its own.
    let ledger = "SELECT count(*) FROM ledger l JOIN jobs j ON j.id = l.job_id WHERE l.der IS NOT NULL";
    assert_eq!(number(ledger).await, issued);
    assert_eq!(
        number("SELECT count(*) FROM ledger WHERE job_id LIKE 'j-%'").await,
        issued
    );
    assert_eq!(number("SELECT count(*) FROM certificate_versions").await, issued);
    assert_eq!(number("SELECT count(*) FROM jobs").await, 2 * issued);
    assert_eq!(
        number("SELECT count(*) FROM audit_events WHERE action = 'certificate_issued'").await,
        issued
    );
    assert_eq!(
        number("SELECT count(*) FROM audit_events WHERE action = 'job_completed'").await,
        2 * issued
    );

    eventually("everything to be told", Duration::from_secs(60), async || {
        let open = number("SELECT count(*) FROM notifications WHERE status = 'pending'").await;
        ensure!(open == 0, "{open} notifications are pending");
        Ok(())
    })
    .await;
    // Every deployment, and every renewal that began and ended.
    let news = issued + 2 * CERTIFICATES as i64;
    assert_eq!(
        number("SELECT count(*) FROM notifications WHERE channel = 'Webhook' AND status = 'sent'").await,
        news
    );
    assert_eq!(
        number("SELECT count(*) FROM notifications WHERE attempts <> 1").await,
        0
    );
    let deliveries = hook.deliveries();
    let distinct: BTreeSet<_> = deliveries.iter().map(|delivery| &delivery.idempotency_key).collect();
    assert_eq!((deliveries.len() as i64, distinct.len() as i64), (news, news));
    one_of_several_leads(&stage).await;
}

/// What the API tells of the loops: those of the leader are run by it alone, and all went well.
async fn one_of_several_leads(stage: &Stage) {
    let api = stage.platform.api();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let ask = client
        .get(format!("{}/api/v1/scheduler", api.url()))
        .bearer_auth(api.key());
    eventually(
        "four processes to tell of their loops",
        Duration::from_secs(30),
        async || {
            let asked = ask.try_clone().unwrap().send().await?.error_for_status()?;
            let state: SchedulerState = asked.json().await?;
            let leader = state.leader.context("nobody leads")?.holder;
            let of = |service: &str, name: &str| -> Vec<&LoopState> {
                let all = state.loops.iter();
                all.filter(|one| one.service == service && one.name == name).collect()
            };
            ensure!(of("notifier", "emails").len() == 2, "{:?}", state.loops);
            ensure!(
                of("scheduler", "jobs").iter().filter(|one| one.runs > 0).count() == 2,
                "{:?}",
                state.loops
            );
            let renewals = of("scheduler", "renewals");
            ensure!(renewals.len() == 2, "{renewals:?}");
            for one in renewals {
                ensure!((one.runs > 0) == (one.holder == leader), "{leader} leads: {one:?}");
                ensure!(one.next_run_at >= one.last_run_at && one.every_ms > 0, "{one:?}");
            }
            ensure!(state.loops.iter().all(|one| one.failures == 0), "{:?}", state.loops);
            Ok(())
        },
    )
    .await;
}

async fn post_at_once(platform: &Platform, requests: impl Iterator<Item = (String, serde_json::Value)>) {
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(60))
        .build()
        .unwrap();
    let (url, key) = (platform.api().url(), Arc::new(platform.api().key().to_owned()));
    let mut posts = JoinSet::new();
    for (path, body) in requests {
        let request = client.post(format!("{url}{path}")).bearer_auth(&key).json(&body);
        posts.spawn(async move {
            let answer = request.send().await.unwrap();
            let status = answer.status();
            assert!(status.is_success(), "{status}: {}", answer.text().await.unwrap());
        });
    }
    posts.join_all().await;
}

/// Waits until this many deployments are completed and nothing is open.
async fn finished(stage: &Stage, deployments: usize) {
    eventually("all jobs to be completed", Duration::from_secs(120), async || {
        let states: Vec<(String, String, i64)> =
            sqlx::query_as("SELECT type, status, count(*) FROM jobs GROUP BY type, status ORDER BY type, status")
                .fetch_all(&stage.db)
                .await?;
        let completed = |row: &(String, String, i64)| row.1 == "Completed";
        let deployed = states
            .iter()
            .filter(|row| row.0 == "Deployment" && completed(row))
            .map(|row| row.2)
            .sum::<i64>();
        ensure!(
            states.iter().all(completed) && deployed == deployments as i64,
            "there are {states:?}"
        );
        Ok(())
    })
    .await;
}
