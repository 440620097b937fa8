//! Jobs that are issued together: whoever is killed between two steps, each is issued once.

use std::fs;
use std::time::Duration;

use anyhow::ensure;
use certctl_model::key::KeyFacts;
use certctl_tests::eventually;
use certctl_tests::stage::Stage;
use certctl_x509::{csr, keys::KeyPair};
use sqlx::PgPool;

/// Jobs of a batch.
const JOBS: i64 = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_dies_between_two_steps_is_issued_once() {
    let mut stage = Stage::set(|builder, dir| {
        let builder = builder.failpoints(&dir.join("failpoints")).without_demo();
        builder.env("scheduler", "CERTCTL_JOB_LEASE", "1500ms")
    })
    .await;
    let failpoints = stage.path("failpoints");
    fs::create_dir_all(&failpoints).unwrap();
    let mut batch = 0;
    for victim in ["signer", "scheduler"] {
        for point in [
            "scheduler.claimed",
            "signer.prepared",
            "signer.recorded",
            "signer.signed",
            "scheduler.signed",
            "scheduler.recorded",
        ] {
            batch += 1;
            let (held, reached) = (failpoints.join(point), failpoints.join(format!("{point}.reached")));
            fs::write(&held, "").unwrap();
            put(&stage.db, batch).await;
            let here = format!("{victim} at {point}");
            eventually(&here, Duration::from_secs(40), async || {
                ensure!(reached.exists(), "it is not reached");
                Ok(())
            })
            .await;
            stage.platform.service(victim).kill9();
            fs::remove_file(&held).unwrap();
            fs::remove_file(&reached).unwrap();
            stage.platform.restart(victim).await.unwrap();
            eventually(&here, Duration::from_secs(60), async || {
                let open: i64 = number(&stage.db, "SELECT count(*) FROM jobs WHERE status <> 'Completed'").await?;
                ensure!(open == 0, "{open} jobs are open");
                Ok(())
            })
            .await;
            for (what, sql) in [
                ("versions", "SELECT count(DISTINCT job_id) FROM certificate_versions"),
                ("versions", "SELECT count(*) FROM certificate_versions"),
                (
                    "certificates",
                    "SELECT count(*) FROM certificates WHERE current_version_id IS NOT NULL AND open_issuances = 0",
                ),
                (
                    "ledger entries",
                    "SELECT count(*) FROM ledger WHERE job_id LIKE 'j-batch-%' AND der IS NOT NULL",
                ),
                (
                    "ledger entries",
                    "SELECT count(*) FROM ledger WHERE job_id LIKE 'j-batch-%'",
                ),
                (
                    "ledger entries of versions",
                    "SELECT count(*) FROM ledger l JOIN certificate_versions v USING (job_id, issuer_id, serial_number)",
                ),
                (
                    "events",
                    "SELECT count(*) FROM audit_events WHERE action = 'certificate_issued'",
                ),
                (
                    "events",
                    "SELECT count(*) FROM audit_events WHERE action = 'job_completed'",
                ),
            ] {
                assert_eq!(number(&stage.db, sql).await.unwrap(), batch * JOBS, "{here}: {what}");
            }
        }
    }
}

/// Jobs with their requests, and certificates for them, at one instant.
async fn put(db: &PgPool, batch: i64) {
    let requests: Vec<Vec<u8>> = (0..JOBS)
        .map(|n| {
            let name = format!("host-{batch}-{n}.certctl.test");
            let key = KeyPair::generate(KeyFacts::P256).unwrap();
            csr::generate(&key, &name, &[name.parse().unwrap()]).unwrap()
        })
        .collect();
    let mut tx = certctl_store::tx::begin(db, None).await.unwrap();
    sqlx::query(
        "INSERT INTO certificates (id, name, common_name, owner_id, team_id, issuer_id, renewal_policy_id, created_at,
                                   updated_at)
         SELECT 'mc-batch-' || $1 || '-' || n, 'batch-' || $1 || '-' || n, 'host-' || $1 || '-' || n || '.certctl.test',
                'o-unassigned', 't-unassigned', 'iss-local', 'rp-default', now(), now()
           FROM generate_series(0, $2 - 1) n",
    )
    .bind(batch)
    .bind(JOBS)
    .execute(&mut *tx)
    .await
    .unwrap();
    sqlx::query(
        "INSERT INTO jobs (id, type, certificate_id, agent_id, status, csr_der, max_attempts, run_at, created_at)
         SELECT 'j-batch-' || $1 || '-' || (r.n - 1), 'Issuance', 'mc-batch-' || $1 || '-' || (r.n - 1),
                (SELECT min(id) FROM agents), 'Running',
                r.csr_der, 10, now(), now()
           FROM unnest($2::bytea[]) WITH ORDINALITY AS r (csr_der, n)",
    )
    .bind(batch)
    .bind(requests)
    .execute(&mut *tx)
    .await
    .unwrap();
    sqlx::query("SELECT pg_notify('certctl_jobs', '')")
        .execute(&mut *tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
}

async fn number(db: &PgPool, sql: &'static str) -> anyhow::Result<i64> {
    Ok(sqlx::query_scalar(sql).fetch_one(db).await?)
}
