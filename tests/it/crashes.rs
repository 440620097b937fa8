//! Any process may die between any two lines: every step of the story is held in turn while one process is killed.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use certctl_local::story;
use certctl_tests::eventually;
use certctl_tests::receivers::Webhook;
use certctl_tests::stage::{FileTarget, Stage};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Step of the story, failpoint, and what has to happen for it to be reached.
const ROWS: &[(u8, &str, Story)] = &[
    (1, "api.certificate_created", Story::Issue),
    (1, "api.renewal_triggered", Story::Renew),
    (1, "scheduler.renewal_planned", Story::FallDue),
    (2, "scheduler.csr_requested", Story::Issue),
    (3, "agent.csr_ready", Story::Issue),
    (4, "api.csr_accepted", Story::Issue),
    (4, "agent.csr_sent", Story::Issue),
    (5, "scheduler.claimed", Story::Issue),
    (6, "signer.prepared", Story::Issue),
    (6, "signer.recorded", Story::Issue),
    (6, "signer.signed", Story::Issue),
    (7, "scheduler.signed", Story::Issue),
    (7, "scheduler.recorded", Story::Issue),
    (8, "api.deployment_started", Story::Serve),
    (8, "agent.deploy_started", Story::Serve),
    (8, "agent.deploy_renamed", Story::Serve),
    (9, "agent.deployed", Story::Serve),
    (9, "api.deployment_reported", Story::Serve),
    (9, "agent.reported", Story::Serve),
    (10, "notifier.claimed", Story::Issue),
    (10, "notifier.delivered", Story::Issue),
    (10, "notifier.settled", Story::Issue),
    (11, "api.revoked", Story::Revoke),
    (11, "signer.crl_written", Story::Revoke),
    (11, "signer.crl_stored", Story::Revoke),
    (11, "signer.crl_numbered", Story::Revoke),
    (11, "scheduler.crl_published", Story::Revoke),
];
const VICTIMS: &[&str] = &["api", "signer", "scheduler", "notifier", "agent", "postgres"];

/// What is begun.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Story {
    /// A new certificate for files.
    Issue,
    /// A new certificate for nginx.
    Serve,
    /// An operator renews a certificate.
    Renew,
    /// The day of a certificate's renewal comes.
    FallDue,
    /// A certificate is revoked.
    Revoke,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_killed_at_whichever_step_the_story_ends_well_and_happens_once() {
    let hook = Webhook::start().await;
    let mut stage = Stage::set(|builder, dir| {
        // Before the services begin: afterwards they reach what was there.
        fs::create_dir_all(dir.join("failpoints")).unwrap();
        let builder = builder.failpoints(&dir.join("failpoints"));
        builder
            .env("notifier", "CERTCTL_WEBHOOK_URL", &hook.url)
            .env("notifier", "CERTCTL_WEBHOOK_SECRET", &hook.secret)
            .env("notifier", "CERTCTL_NOTIFIER_LEASE", "3s")
            .env("scheduler", "CERTCTL_JOB_LEASE", "1500ms")
            .env("agent", "CERTCTL_LONG_POLL", "1s")
    })
    .await;
    let failpoints = stage.path("failpoints");
    let files = stage.files_target("t-files").await;
    story::register_target(stage.api(), stage.demo()).await.unwrap();
    let table = Table {
        files,
        failpoints: &failpoints,
    };
    for story in [Story::Renew, Story::FallDue] {
        let certificate = table.certificate(&stage, story, 0).await;
        table.ends_well(&stage, &certificate, Story::Issue, 1).await;
    }

    let started = Instant::now();
    let mut number = 0;
    for (row, point, story) in ROWS {
        for victim in VICTIMS {
            number += 1;
            let cell = Cell {
                point,
                victim,
                story: *story,
                number,
            };
            let took = table.play(&mut stage, &cell).await;
            println!("row {row:>2}  {point:<26} {victim:<10} {:>5.1} s", took.as_secs_f64());
        }
    }
    println!("{number} crashes in {:.0?}", started.elapsed());
    told(&stage.db, &hook).await;
}

struct Table<'a> {
    files: FileTarget,
    failpoints: &'a Path,
}

struct Cell<'a> {
    point: &'a str,
    victim: &'a str,
    story: Story,
    number: u32,
}

impl fmt::Display for Cell<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} with {} killed at {}", self.story, self.victim, self.point)
    }
}

impl Table<'_> {
    /// Holds the story at the point, kills the victim, lets go, starts it again, and looks at the end.
    async fn play(&self, stage: &mut Stage, cell: &Cell<'_>) -> Duration {
        let certificate = match cell.story {
            Story::Revoke => {
                let certificate = self.certificate(stage, cell.story, cell.number).await;
                self.ends_well(stage, &certificate, Story::Issue, 1).await;
                certificate
            }
            Story::Renew | Story::FallDue => id(cell.story, 0),
            Story::Issue | Story::Serve => id(cell.story, cell.number),
        };
        let versions = versions(&stage.db, &certificate).await.unwrap();
        if cell.point.starts_with("notifier.") {
            // What stories before this one left to be told again would get there before this one is begun.
            nothing_is_left_to_tell(&stage.db).await;
        }
        let started = Instant::now();
        let (point, reached) = (self.failpoints.join(cell.point), format!("{}.reached", cell.point));
        let reached = self.failpoints.join(reached);
        fs::write(&point, "").unwrap();
        let mut begun = self.begin(stage, cell, &certificate).await;
        eventually(&format!("{cell}: to get there"), Duration::from_secs(40), async || {
            ensure!(reached.exists(), "{}", state(&stage.db, &certificate).await?);
            Ok(())
        })
        .await;

        match cell.victim {
            "postgres" => stage.platform.postgres().expect("the stage has its own").kill9(),
            service => stage.platform.service(service).kill9(),
        }
        fs::remove_file(&point).unwrap();
        fs::remove_file(&reached).unwrap();
        let restarted = match cell.victim {
            "postgres" => {
                stage
                    .platform
                    .postgres()
                    .expect("the stage has its own")
                    .restart()
                    .await
            }
            service => stage.platform.restart(service).await,
        };
        restarted.unwrap_or_else(|error| panic!("{cell}: {error:#}"));
        while begun.join_next().await.is_some() {}

        let expected = match cell.story {
            Story::Revoke => versions,
            _ => versions + 1,
        };
        self.ends_well(stage, &certificate, cell.story, expected).await;
        started.elapsed()
    }

    /// Sets the story going. Its request may be cut off: whoever asked finds out later what became of it.
    async fn begin(&self, stage: &Stage, cell: &Cell<'_>, certificate: &str) -> JoinSet<()> {
        let mut begun = JoinSet::new();
        let api = stage.api();
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(20))
            .build()
            .unwrap();
        let post = |path: String, body: Value| {
            client
                .post(format!("{}{path}", api.url()))
                .bearer_auth(api.key())
                .json(&body)
        };
        if cell.story == Story::Serve {
            // The target has one certificate at a time.
            let sql = "DELETE FROM certificate_targets WHERE target_id = $1";
            sqlx::query(sql).bind(story::TARGET).execute(&stage.db).await.unwrap();
        }
        let request = match cell.story {
            Story::Issue | Story::Serve => post("/api/v1/certificates".into(), self.body(cell.story, certificate)),
            Story::Renew => post(format!("/api/v1/certificates/{certificate}/renew"), json!({})),
            Story::Revoke => post(
                format!("/api/v1/certificates/{certificate}/revoke"),
                json!({ "reason": "superseded" }),
            ),
            Story::FallDue => {
                for sql in [
                    "UPDATE certificate_versions
                        SET not_before = now() - interval '89 days', not_after = now() + interval '1 day'
                      WHERE certificate_id = $1",
                    "UPDATE certificates SET renew_at = now() WHERE id = $1",
                ] {
                    sqlx::query(sql).bind(certificate).execute(&stage.db).await.unwrap();
                }
                return begun;
            }
        };
        begun.spawn(async move {
            if let Ok(answer) = request.send().await {
                let status = answer.status();
                let text = answer.text().await.unwrap_or_default();
                // 503 is what the API says while the database is away.
                assert!(status.is_success() || status.as_u16() == 503, "{status}: {text}");
            }
        });
        begun
    }

    fn body(&self, story: Story, certificate: &str) -> Value {
        let (name, target) = match story {
            Story::Serve => (certctl_local::nginx::SERVER_NAME.to_owned(), story::TARGET),
            _ => (format!("{certificate}.certctl.test"), self.files.id.as_str()),
        };
        json!({ "id": certificate, "name": certificate, "common_name": name, "target_ids": [target] })
    }

    async fn certificate(&self, stage: &Stage, story: Story, number: u32) -> String {
        let certificate = id(story, number);
        stage
            .api()
            .post("/api/v1/certificates", &self.body(story, &certificate))
            .await
            .unwrap();
        certificate
    }

    /// Waits for the end of the story, and checks that everything in it happened once and was written down.
    async fn ends_well(&self, stage: &Stage, certificate: &str, story: Story, versions: i64) {
        let (db, revoked) = (&stage.db, story == Story::Revoke);
        let at_the_end = async || {
            let end = End::of(db, certificate).await?;
            let wanted = if revoked { "Revoked" } else { "Active" };
            ensure!(
                end.status == wanted && end.open == 0 && end.versions == versions,
                "{}",
                state(db, certificate).await?
            );
            ensure!(!revoked || end.published, "no CRL covers the revocation");
            Ok(end)
        };
        let end = eventually(
            &format!("the end of {certificate}"),
            Duration::from_secs(90),
            at_the_end,
        )
        .await;
        let state = state(db, certificate).await.unwrap();
        assert_eq!(end.unfinished, 0, "{state}");
        // Of a job: one entry of the ledger and one version, or one deployment; and its whole trail.
        let jobs: Vec<(String, String, i64, i64, Vec<String>)> = sqlx::query_as(
            "SELECT j.id, j.type,
                    (SELECT count(*) FROM ledger l WHERE l.job_id = j.id AND l.der IS NOT NULL),
                    (SELECT count(*) FROM certificate_versions v WHERE v.job_id = j.id),
                    array(SELECT e.action FROM audit_events e
                           WHERE e.resource_type = 'job' AND e.resource_id = j.id ORDER BY e.sequence)
               FROM jobs j WHERE j.certificate_id = $1",
        )
        .bind(certificate)
        .fetch_all(db)
        .await
        .unwrap();
        let (mut issuances, mut deployments) = (0, 0);
        for (job, kind, entries, made, trail) in &jobs {
            let steps: &[&str] = match kind.as_str() {
                "Deployment" => {
                    deployments += 1;
                    &["job_started", "job_completed"]
                }
                _ => {
                    issuances += 1;
                    assert_eq!((*entries, *made), (1, 1), "ledger and versions of {job}: {state}");
                    &["job_csr_requested", "job_csr_accepted", "job_completed"]
                }
            };
            assert_eq!(trail, steps, "the trail of {job}: {state}");
        }
        assert_eq!((issuances, deployments), (versions, versions), "{state}");
        let trail: Vec<(String, i64)> = sqlx::query_as(
            "SELECT action, count(*) FROM audit_events
              WHERE resource_type = 'certificate' AND resource_id = $1 GROUP BY action",
        )
        .bind(certificate)
        .fetch_all(db)
        .await
        .unwrap();
        let times = |wanted: &str| {
            trail
                .iter()
                .find(|(action, _)| action == wanted)
                .map_or(0, |(_, times)| *times)
        };
        assert_eq!(times("certificate_created"), 1, "{trail:?}");
        assert_eq!(
            times("issuance_job_created") + times("renewal_job_created"),
            versions,
            "{trail:?}"
        );
        for action in ["certificate_issued", "deployment_job_created", "deployment_completed"] {
            assert_eq!(times(action), versions, "{action}: {trail:?}");
        }
        assert_eq!(times("certificate_revoked"), i64::from(revoked), "{trail:?}");
        assert_eq!(end.revocations, if revoked { versions } else { 0 });
        if revoked {
            return;
        }
        match story {
            Story::Serve => assert_eq!(stage.demo().served().await.unwrap().fingerprint, end.fingerprint),
            _ => {
                let path = self.files.cert_path.to_str().unwrap().replace("{id}", certificate);
                let leaf = fs::read_to_string(path).unwrap();
                assert_eq!(
                    leaf.trim_end(),
                    end.leaf.trim_end(),
                    "other files are in place: {state}"
                );
            }
        }
    }
}

fn id(story: Story, number: u32) -> String {
    format!("mc-{}-{number}", format!("{story:?}").to_lowercase())
}

/// How a certificate stands.
#[derive(sqlx::FromRow)]
struct End {
    status: String,
    open: i64,
    unfinished: i64,
    versions: i64,
    revocations: i64,
    published: bool,
    fingerprint: String,
    leaf: String,
}

impl End {
    async fn of(db: &PgPool, certificate: &str) -> anyhow::Result<Self> {
        let found = sqlx::query_as(
            "SELECT certificate_status(c, now()) AS status,
                    (SELECT count(*) FROM jobs WHERE certificate_id = c.id
                        AND status NOT IN ('Completed', 'Failed', 'Cancelled')) AS open,
                    (SELECT count(*) FROM jobs WHERE certificate_id = c.id AND status <> 'Completed') AS unfinished,
                    (SELECT count(*) FROM certificate_versions WHERE certificate_id = c.id) AS versions,
                    (SELECT count(*) FROM revocations WHERE certificate_id = c.id) AS revocations,
                    EXISTS (SELECT 1 FROM crls WHERE issuer_id = c.issuer_id)
                        AND NOT EXISTS (SELECT 1 FROM crl_dirt WHERE issuer_id = c.issuer_id) AS published,
                    v.fingerprint_sha256 AS fingerprint, v.cert_pem AS leaf
               FROM certificates c JOIN certificate_versions v ON v.id = c.current_version_id
              WHERE c.id = $1",
        )
        .bind(certificate)
        .fetch_optional(db)
        .await?;
        found.context("nothing is issued")
    }
}

async fn versions(db: &PgPool, certificate: &str) -> anyhow::Result<i64> {
    let count = sqlx::query_scalar("SELECT count(*) FROM certificate_versions WHERE certificate_id = $1");
    Ok(count.bind(certificate).fetch_one(db).await?)
}

/// The jobs of a certificate, for messages.
async fn state(db: &PgPool, certificate: &str) -> anyhow::Result<String> {
    let jobs: Vec<(String, String, String, i32, Option<String>)> = sqlx::query_as(
        "SELECT id, type, status, attempts, last_error FROM jobs WHERE certificate_id = $1 ORDER BY created_at, id",
    )
    .bind(certificate)
    .fetch_all(db)
    .await?;
    Ok(format!("{certificate} has the jobs {jobs:?}"))
}

async fn nothing_is_left_to_tell(db: &PgPool) {
    eventually("everything to be told", Duration::from_secs(90), async || {
        let open: i64 = sqlx::query_scalar("SELECT count(*) FROM notifications WHERE status = 'pending'")
            .fetch_one(db)
            .await?;
        ensure!(open == 0, "{open} notifications are pending");
        Ok(())
    })
    .await;
}

/// Every piece of news was told; a repetition is possible only where its sender died, and can be recognised.
async fn told(db: &PgPool, hook: &Webhook) {
    nothing_is_left_to_tell(db).await;
    let sent: Vec<String> =
        sqlx::query_scalar("SELECT id FROM notifications WHERE channel = 'Webhook' AND status = 'sent'")
            .fetch_all(db)
            .await
            .unwrap();
    let other: Vec<(String, String, Option<String>)> = sqlx::query_as(
        "SELECT id, status, error FROM notifications
          WHERE (channel = 'Webhook' AND status <> 'sent') OR (channel = 'Email' AND status <> 'skipped')",
    )
    .fetch_all(db)
    .await
    .unwrap();
    assert!(other.is_empty(), "{other:?}");
    let deliveries = hook.deliveries();
    for id in &sent {
        assert!(
            deliveries.iter().any(|delivery| delivery.idempotency_key == *id),
            "{id} was never told"
        );
    }
    assert!(
        deliveries
            .iter()
            .all(|delivery| delivery.signed && sent.contains(&delivery.idempotency_key))
    );
    let repeated = deliveries.len() - sent.len();
    println!("{} pieces of news were told, {repeated} of them twice", sent.len());
    // The notifier or the database died while news was on its way: in the rows of reports and of notifications.
    let risky = ROWS.iter().filter(|(row, ..)| [9, 10].contains(row)).count() * 2;
    assert!(repeated <= risky, "{repeated}");
}
