//! Jobs by the batch, two schedulers, and an issuer that counts: whoever is killed, paused for longer than a lease or cut
//! off at whichever step, each job is ordered, issued and written down once.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use certctl_model::key::KeyFacts;
use certctl_tests::eventually;
use certctl_tests::orders::Counting;
use certctl_tests::stage::Stage;
use certctl_x509::{csr, keys::KeyPair};
use futures_util::future::join_all;
use serde_json::json;
use sqlx::PgPool;
use tokio::time::Instant;

/// Jobs of a batch.
const JOBS: i64 = 32;
const STEPS: &[&str] = &[
    "scheduler.renewal_planned",
    "scheduler.csr_requested",
    "scheduler.claimed",
    "signer.prepared",
    "signer.recorded",
    "signer.signed",
    "scheduler.signed",
    "scheduler.recorded",
];
/// Where a scheduler that is late has something to write which it must not write any more.
const FENCED: &[&str] = &["scheduler.claimed", "scheduler.signed"];
const PROCESSES: &[&str] = &["scheduler", "scheduler-2", "signer"];

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Whoever is at the step is killed.
    Killed,
    /// It is stopped until another has taken its jobs, and goes on then.
    Paused,
    /// The database is killed and comes back.
    DatabaseKilled,
    /// All connections to the database end.
    CutOff,
}

struct Cell {
    step: &'static str,
    fault: Fault,
    number: i64,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch {}, {:?} at {}", self.number, self.fault, self.step)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_jobs_are_issued_once_whatever_is_killed_or_paused_at_whichever_step() {
    let mut counting = None;
    let stage = Stage::set(|builder, dir| {
        let (socket, failpoints) = (dir.join("orders.sock"), dir.join("failpoints"));
        // The signer can write only into what is there when it starts.
        fs::create_dir_all(&failpoints).unwrap();
        counting = Some(Counting::between(&socket, &dir.join("run/signer.sock")));
        builder
            .failpoints(&failpoints)
            .schedulers(2)
            .without_demo()
            .env("scheduler", "CERTCTL_SIGNER_SOCKET", socket.display())
            .env("scheduler", "CERTCTL_JOB_LEASE", "1500ms")
    })
    .await;
    let mut table = Table {
        counting: counting.expect("the stage was set"),
        failpoints: stage.path("failpoints"),
        http: reqwest::Client::builder().no_proxy().build().unwrap(),
        stage,
    };
    table.agent().await;
    let started = Instant::now();
    let mut number = 0;
    for step in STEPS {
        for fault in [Fault::Killed, Fault::Paused, Fault::DatabaseKilled, Fault::CutOff] {
            number += 1;
            let (cell, began) = (Cell { step, fault, number }, Instant::now());
            table.play(&cell).await;
            table.happened_once(&cell).await;
            println!("{cell}: {:.1} s", began.elapsed().as_secs_f64());
        }
    }
    println!("{} jobs in {:.0?}", number * JOBS, started.elapsed());
    assert!(number * JOBS > 1_000);
}

struct Table {
    counting: Counting,
    failpoints: PathBuf,
    http: reqwest::Client,
    stage: Stage,
}

impl Table {
    /// An agent that sends requests and deploys nothing.
    async fn agent(&self) {
        for sql in [
            "INSERT INTO agents (id, name, hostname, api_key_hash, last_heartbeat_at, registered_at, updated_at)
             VALUES ('a-hand', 'hand', 'hand', 'none', now(), now(), now())",
            "INSERT INTO targets (id, name, type, agent_id, created_at, updated_at)
             VALUES ('t-hand', 'hand', 'NGINX', 'a-hand', now(), now())",
        ] {
            sqlx::query(sql).execute(&self.stage.db).await.unwrap();
        }
    }

    async fn play(&mut self, cell: &Cell) {
        let (held, reached) = (
            self.failpoints.join(cell.step),
            self.failpoints.join(format!("{}.reached", cell.step)),
        );
        fs::write(&held, "").unwrap();
        put(&self.stage.db, cell.number).await;
        eventually(&format!("{cell}: to get there"), Duration::from_secs(40), async || {
            self.send_requests().await?;
            ensure!(reached.exists(), "{}", state(&self.stage.db).await?);
            Ok(())
        })
        .await;
        // The file may be there before what it says.
        let mut holder = None;
        eventually(&format!("{cell}: a holder"), Duration::from_secs(5), async || {
            let pid: u32 = fs::read_to_string(&reached)?.parse()?;
            let platform = &mut self.stage.platform;
            holder = PROCESSES.iter().find(|name| platform.service(name).pid() == Some(pid));
            holder.map(|_| ()).context("nobody has this process id")
        })
        .await;
        let holder = holder.expect("it was found");
        let release = || {
            fs::remove_file(&held).unwrap();
            fs::remove_file(&reached).unwrap();
        };
        match cell.fault {
            Fault::Killed => {
                self.stage.platform.service(holder).kill9();
                release();
                self.stage.platform.restart(holder).await.unwrap();
            }
            Fault::Paused => {
                self.stage.platform.service(holder).pause();
                release();
                self.taken_over(cell, holder).await;
                self.stage.platform.service(holder).resume();
            }
            Fault::DatabaseKilled => {
                let postgres = self.stage.platform.postgres().expect("the stage has its own");
                postgres.kill9();
                release();
                postgres.restart().await.unwrap();
            }
            Fault::CutOff => {
                let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                            WHERE application_name LIKE 'certctl_%' AND pid <> pg_backend_pid()";
                let ended: i64 = sqlx::query_scalar(cut).fetch_one(&self.stage.db).await.unwrap();
                assert!(ended > 0, "{cell}: nobody was cut off");
                release();
            }
        }
        self.done(cell).await;
        if matches!(cell.fault, Fault::Paused) && FENCED.contains(&cell.step) {
            let ops = self.stage.platform.ops(holder);
            let at_most = Duration::from_secs(20);
            eventually(&format!("{cell}: {holder} to be refused"), at_most, async || {
                let metrics = self
                    .http
                    .get(format!("http://{ops}/metrics"))
                    .send()
                    .await?
                    .text()
                    .await?;
                let lost = metrics
                    .lines()
                    .find_map(|line| line.strip_prefix("job_leases_lost_total "));
                let lost: f64 = lost.context("it lost nothing")?.parse()?;
                ensure!(lost >= 1.0, "{lost}");
                Ok(())
            })
            .await;
        }
    }

    /// Waits for longer than the lease of whoever is paused, or until its jobs are done.
    async fn taken_over(&self, cell: &Cell, holder: &str) {
        if holder != "signer" {
            return self.done(cell).await;
        }
        // Nobody else signs; but the jobs are claimed anew.
        let tokens = async || -> anyhow::Result<i64> {
            let sql = "SELECT min(lease_token) FROM jobs WHERE type = 'Issuance' AND status = 'Running'";
            let least: Option<i64> = sqlx::query_scalar(sql).fetch_one(&self.stage.db).await?;
            least.context("no job runs")
        };
        let before = tokens().await.unwrap();
        eventually(
            &format!("{cell}: the leases to run out"),
            Duration::from_secs(20),
            async || {
                ensure!(tokens().await? > before);
                Ok(())
            },
        )
        .await;
    }

    async fn done(&self, cell: &Cell) {
        eventually(&format!("the end of {cell}"), Duration::from_secs(90), async || {
            self.send_requests().await?;
            let done = "SELECT count(*) FROM jobs WHERE type = 'Issuance' AND status = 'Completed'";
            let done: i64 = number(&self.stage.db, done).await?;
            ensure!(done == cell.number * JOBS, "{}", state(&self.stage.db).await?);
            Ok(())
        })
        .await;
    }

    /// Sends the requests that are awaited. One that does not get through is sent again next time.
    async fn send_requests(&self) -> anyhow::Result<()> {
        let sql = "SELECT certificate_id, common_name FROM jobs j JOIN certificates c ON c.id = j.certificate_id
                    WHERE j.status = 'AwaitingCSR'";
        let awaited: Vec<(String, String)> = sqlx::query_as(sql).fetch_all(&self.stage.db).await?;
        let api = self.stage.api();
        let url = format!("{}/api/v1/agents/a-hand/csr", api.url());
        let sent = awaited.into_iter().map(async |(certificate, name)| {
            let key = KeyPair::generate(KeyFacts::P256).unwrap();
            let request = csr::generate(&key, &name, &[name.parse().unwrap()]).unwrap();
            let pem = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", request));
            let body = json!({ "certificate_id": certificate, "csr_pem": pem });
            let sent = self.http.post(&url).bearer_auth(api.key()).json(&body).send().await;
            if let Ok(answer) = sent {
                let (status, text) = (answer.status().as_u16(), answer.text().await.unwrap_or_default());
                // While the database is away; and what was taken though the answer was lost.
                assert!(matches!(status, 202 | 404 | 409 | 503), "{status}: {text}");
            }
        });
        join_all(sent).await;
        Ok(())
    }

    async fn happened_once(&self, cell: &Cell) {
        let db = &self.stage.db;
        let all = cell.number * JOBS;
        for (what, sql) in [
            ("jobs", "SELECT count(*) FROM jobs WHERE type = 'Issuance'"),
            ("versions", "SELECT count(*) FROM certificate_versions"),
            (
                "jobs with a version",
                "SELECT count(DISTINCT job_id) FROM certificate_versions",
            ),
            (
                "certificates",
                "SELECT count(*) FROM certificates WHERE current_version_id IS NOT NULL AND open_issuances = 0",
            ),
            (
                "intents",
                "SELECT count(*) FROM ledger l JOIN jobs j ON j.id = l.job_id",
            ),
            (
                "intents of versions",
                "SELECT count(*) FROM ledger l JOIN certificate_versions v USING (job_id, issuer_id, serial_number)
                  WHERE l.der IS NOT NULL",
            ),
            ("deployments", "SELECT count(*) FROM jobs WHERE type = 'Deployment'"),
            (
                "plans that were written down",
                "SELECT count(*) FROM audit_events WHERE action = 'issuance_job_created'",
            ),
            (
                "issues that were written down",
                "SELECT count(*) FROM audit_events WHERE action = 'certificate_issued'",
            ),
            (
                "whole trails",
                "SELECT count(*) FROM jobs j WHERE j.type = 'Issuance'
                    AND array(SELECT e.action FROM audit_events e
                               WHERE e.resource_type = 'job' AND e.resource_id = j.id ORDER BY e.sequence)
                        = array['job_csr_requested', 'job_csr_accepted', 'job_completed']",
            ),
        ] {
            assert_eq!(number(db, sql).await.unwrap(), all, "{cell}: {what}");
        }
        let versions: Vec<(String, String)> = sqlx::query_as("SELECT job_id, cert_pem FROM certificate_versions")
            .fetch_all(db)
            .await
            .unwrap();
        let orders = self.counting.orders();
        assert_eq!(orders.len() as i64, all, "{cell}: jobs that were ordered");
        for (job, pem) in versions {
            let given: Vec<&String> = orders[&job].given.iter().collect();
            assert_eq!(given, [&pem], "{cell}: what was given for {job}");
        }
    }
}

/// Certificates that are due, all of one agent.
async fn put(db: &PgPool, batch: i64) {
    let mut tx = certctl_store::tx::begin(db, None).await.unwrap();
    for sql in [
        "INSERT INTO certificates (id, name, common_name, owner_id, team_id, issuer_id, renewal_policy_id, renew_at,
                                   created_at, updated_at)
         SELECT 'mc-' || $1 || '-' || n, $1 || '-' || n, 'host-' || $1 || '-' || n || '.certctl.test', 'o-unassigned',
                't-unassigned', 'iss-local', 'rp-default', now(), now(), now()
           FROM generate_series(1, $2) n",
        "INSERT INTO certificate_targets (certificate_id, target_id)
         SELECT 'mc-' || $1 || '-' || n, 't-hand' FROM generate_series(1, $2) n",
    ] {
        sqlx::query(sql).bind(batch).bind(JOBS).execute(&mut *tx).await.unwrap();
    }
    tx.commit().await.unwrap();
}

async fn number(db: &PgPool, sql: &'static str) -> anyhow::Result<i64> {
    Ok(sqlx::query_scalar(sql).fetch_one(db).await?)
}

async fn state(db: &PgPool) -> anyhow::Result<String> {
    let jobs: Vec<(String, Option<String>, i64)> = sqlx::query_as(
        "SELECT status, last_error, count(*) FROM jobs WHERE type = 'Issuance' GROUP BY 1, 2 ORDER BY 1, 2",
    )
    .fetch_all(db)
    .await?;
    Ok(format!("there are {jobs:?}"))
}
