//! Replicas whose machines are an hour ahead or behind.

use std::fs;
use std::time::Duration;

use anyhow::ensure;
use certctl_tests::eventually;
use certctl_tests::stage::{Stage, preloaded};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_clock_is_an_hour_off_changes_nothing() {
    for (shift, word) in [("+3600s", "ahead of"), ("-3600s", "behind")] {
        // The first scheduler leads; the agent and the test ask the first API, the second is asked about status.
        let wrong = ["scheduler", "api-2"];
        let stage = Stage::set(|builder, _| {
            let builder = builder.apis(2).schedulers(2).without_demo();
            wrong.iter().fold(builder, |builder, service| {
                builder
                    .env(
                        service,
                        "LD_PRELOAD",
                        preloaded("faketime/libfaketimeMT.so.1").display(),
                    )
                    .env(service, "FAKETIME", shift)
                    .env(service, "FAKETIME_DONT_FAKE_MONOTONIC", "1")
                    .env(service, "DONT_FAKE_MONOTONIC", "1")
            })
        })
        .await;
        for service in wrong {
            let log = fs::read_to_string(stage.path(&format!("logs/{service}.log"))).unwrap();
            assert!(
                log.contains(&format!("clock is 3600 s {word} the database's")),
                "{service}: {log}"
            );
        }
        issued_once_and_judged_by_one_clock(&stage, shift).await;
    }
}

async fn issued_once_and_judged_by_one_clock(stage: &Stage, shift: &str) {
    const CERTIFICATES: i64 = 20;
    let target = stage.files_target("t-files").await;
    for n in 1..=CERTIFICATES {
        let body = json!({
            "id": format!("mc-{n}"), "common_name": format!("host-{n}.certctl.test"), "target_ids": [target.id],
        });
        stage.api().post("/api/v1/certificates", &body).await.unwrap();
    }
    let number = async |sql: &'static str| sqlx::query_scalar::<_, i64>(sql).fetch_one(&stage.db).await.unwrap();
    let done = async |jobs: i64| {
        eventually(
            &format!("{jobs} jobs to be completed at {shift}"),
            Duration::from_secs(60),
            async || {
                let sql = "SELECT count(*) FILTER (WHERE status = 'Completed'), count(*) FROM jobs";
                let counts: (i64, i64) = sqlx::query_as(sql).fetch_one(&stage.db).await?;
                ensure!(counts == (jobs, jobs), "{counts:?} of {jobs}");
                Ok(())
            },
        )
        .await;
    };
    done(2 * CERTIFICATES).await;

    // One ends in half an hour, of one the renewal is due in half an hour, and of one it has been for half an hour.
    for sql in [
        "UPDATE certificate_versions SET not_before = now() - interval '89 days', not_after = now() + interval '30 minutes'
          WHERE certificate_id IN ('mc-1', 'mc-3')",
        "UPDATE certificates SET not_before = now() - interval '89 days', not_after = now() + interval '30 minutes',
                                renew_at = now() + interval '30 minutes' WHERE id = 'mc-1'",
        "UPDATE certificates SET renew_at = now() + interval '30 minutes' WHERE id = 'mc-2'",
        "UPDATE certificates SET renew_at = now() - interval '30 minutes' WHERE id = 'mc-3'",
    ] {
        sqlx::query(sql).execute(&stage.db).await.unwrap();
    }
    done(2 * CERTIFICATES + 2).await;
    // By then statuses were settled again: more than once in the time a renewal takes.
    let settled = number("SELECT coalesce(sum(runs), 0)::bigint FROM loop_runs WHERE name = 'statuses'").await;
    eventually("statuses to be settled", Duration::from_secs(30), async || {
        let runs: i64 =
            sqlx::query_scalar("SELECT coalesce(sum(runs), 0)::bigint FROM loop_runs WHERE name = 'statuses'")
                .fetch_one(&stage.db)
                .await?;
        ensure!(runs > settled + 1, "{runs} runs");
        Ok(())
    })
    .await;
    done(2 * CERTIFICATES + 2).await;

    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for api in stage.platform.apis() {
        let ask = async |path: &str| -> Value {
            let asked = client
                .get(format!("http://{api}/api/v1/{path}"))
                .bearer_auth(stage.api().key());
            asked
                .send()
                .await
                .unwrap()
                .error_for_status()
                .unwrap()
                .json()
                .await
                .unwrap()
        };
        assert_eq!(ask("certificates/mc-1").await["status"], "Expiring", "{shift} {api}");
        assert_eq!(ask("certificates?status=Expired").await["total"], 0, "{shift} {api}");
        let agents = ask("agents").await;
        assert_eq!(agents["data"][0]["status"], "Online", "{shift} {api}: {agents}");
    }
    assert_eq!(
        number("SELECT count(*) FROM certificates WHERE status = 'Expired'").await,
        0
    );
    for (what, sql, expected) in [
        (
            "versions",
            "SELECT count(*) FROM certificate_versions",
            CERTIFICATES + 1,
        ),
        (
            "entries of the ledger",
            "SELECT count(*) FROM ledger l JOIN jobs j ON j.id = l.job_id",
            CERTIFICATES + 1,
        ),
        (
            "events",
            "SELECT count(*) FROM audit_events WHERE action = 'certificate_issued'",
            CERTIFICATES + 1,
        ),
        (
            "renewals that were planned",
            "SELECT count(*) FROM audit_events WHERE action = 'renewal_job_created'",
            1,
        ),
        (
            "events from another hour",
            "SELECT count(*) FROM audit_events WHERE abs(extract(epoch FROM at - now())) > 1800",
            0,
        ),
        (
            "tries beyond the first",
            "SELECT count(*) FROM jobs WHERE attempts > 1",
            0,
        ),
    ] {
        assert_eq!(number(sql).await, expected, "{what} at {shift}");
    }
}
