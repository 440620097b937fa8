//! Stories over a real database, as the scheduler's own role, with a signer that behaves as it is told.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Json, Router, extract::State, http::StatusCode, response::IntoResponse, routing::post};
use certctl_client::Client;
use certctl_contract::{
    problem::{Kind, Problem},
    signer::{CrlPublished, CrlRequest, IssueBatchRequest, IssueOutcome, Issued, IssuedBatch},
};
use certctl_model::{
    key::KeyFacts,
    time::{Clock, Time},
};
use certctl_runtime::{serve, tasks::Tasks};
use certctl_x509::{csr, keys::KeyPair, pem};
use clap::Parser;
use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType, IsCa};
use sqlx::{PgPool, postgres::PgPoolOptions};
use tempfile::TempDir;

use crate::{Scheduler, config::Config, crls, leader, notices, renewals, worker};

const NAME: &str = "shop.example.net";

/// How the signer behaves.
#[derive(Clone, Copy)]
enum Mood {
    Signs,
    /// Signs, but for a key of its own.
    SignsAnotherKey,
    /// Signs, but not for job `j-3`.
    RefusesTheThird,
    Answers(StatusCode, &'static str),
}

struct Signer {
    db: PgPool,
    mood: Mood,
    ca: CertifiedIssuer<'static, rcgen::KeyPair>,
    calls: Mutex<BTreeMap<String, usize>>,
}

impl Signer {
    fn calls(&self) -> BTreeMap<String, usize> {
        self.calls.lock().unwrap().clone()
    }

    fn count(&self, what: &str) {
        *self.calls.lock().unwrap().entry(what.to_owned()).or_default() += 1;
    }
}

async fn issue(State(signer): State<Arc<Signer>>, Json(request): Json<IssueBatchRequest>) -> axum::response::Response {
    let mut outcomes = Vec::new();
    for job in &request.job_ids {
        signer.count(job.as_str());
        let csr_der: Vec<u8> = match signer.mood {
            Mood::Signs | Mood::RefusesTheThird => sqlx::query_scalar("SELECT csr_der FROM jobs WHERE id = $1")
                .bind(job)
                .fetch_one(&signer.db)
                .await
                .unwrap(),
            Mood::SignsAnotherKey => a_request(),
            Mood::Answers(status, detail) => {
                return (status, Json(serde_json::json!({ "detail": detail }))).into_response();
            }
        };
        if matches!(signer.mood, Mood::RefusesTheThird) && job.as_str() == "j-3" {
            outcomes.push(IssueOutcome::Refused(Problem::new(Kind::Invalid, "not this one")));
            continue;
        }
        let params = CertificateSigningRequestParams::from_pem(&pem::encode("CERTIFICATE REQUEST", &csr_der)).unwrap();
        outcomes.push(IssueOutcome::Issued(Issued {
            certificate_pem: params.signed_by(&signer.ca).unwrap().pem(),
            chain_pem: signer.ca.pem(),
        }));
    }
    Json(IssuedBatch { outcomes }).into_response()
}

async fn publish(State(signer): State<Arc<Signer>>, Json(request): Json<CrlRequest>) -> axum::response::Response {
    signer.count(request.issuer_id.as_str());
    match signer.mood {
        Mood::Answers(status, detail) => (status, Json(serde_json::json!({ "detail": detail }))).into_response(),
        _ => Json(CrlPublished { number: 1, entries: 0 }).into_response(),
    }
}

fn a_request() -> Vec<u8> {
    csr::generate(
        &KeyPair::generate(KeyFacts::P256).unwrap(),
        NAME,
        &[NAME.parse().unwrap()],
    )
    .unwrap()
}

struct World {
    db: PgPool,
    clock: Clock,
    signer: Arc<Signer>,
    scheduler: Arc<Scheduler>,
    _socket: TempDir,
    _tasks: Tasks,
}

impl World {
    async fn new(db: PgPool, mood: Mood) -> Self {
        Self::with(db, Some(mood)).await
    }

    /// Without a mood nobody listens on the signer's socket.
    async fn with(db: PgPool, mood: Option<Mood>) -> Self {
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name.push(DnType::CommonName, "Test CA");
        let signer = Arc::new(Signer {
            db: db.clone(),
            mood: mood.unwrap_or(Mood::Signs),
            ca: CertifiedIssuer::self_signed(ca, rcgen::KeyPair::generate().unwrap()).unwrap(),
            calls: Mutex::default(),
        });
        let (socket, tasks) = (tempfile::tempdir().unwrap(), Tasks::new());
        let path = socket.path().join("signer.sock");
        if mood.is_some() {
            let router = Router::new()
                .route("/v1/issue-batch", post(issue))
                .route("/v1/crl", post(publish))
                .with_state(signer.clone());
            serve::serve_unix(&path, router, &tasks).await.unwrap();
        }
        let client = Client::builder("http://localhost").unix_socket(&path).build().unwrap();
        let clock = Clock::manual(Time::from_unix(1_800_000_000));
        let scheduler = Self::scheduler(&db, &clock, client);
        let world = Self {
            db,
            clock,
            signer,
            scheduler,
            _socket: socket,
            _tasks: tasks,
        };
        world
            .sql(
                "INSERT INTO agents (id, name, hostname, api_key_hash, registered_at, updated_at)
                 VALUES ('a-1', 'web-1', 'web-1', 'x', $1, $1)",
            )
            .await;
        world
            .sql(
                "INSERT INTO targets (id, name, type, agent_id, created_at, updated_at)
                 VALUES ('tgt-1', 'nginx', 'NGINX', 'a-1', $1, $1)",
            )
            .await;
        world
    }

    fn scheduler(db: &PgPool, clock: &Clock, signer: Client) -> Arc<Scheduler> {
        let config = Config::parse_from(["certctl-scheduler", "--database-url", "postgres://unused"]);
        let options = (*db.connect_options()).clone().options([("role", "certctl_scheduler")]);
        let as_scheduler = PgPoolOptions::new().max_connections(20).connect_lazy_with(options);
        Scheduler::over(as_scheduler, &config, clock.clone(), signer).unwrap()
    }

    /// Runs a statement whose only parameter is the time.
    async fn sql(&self, sql: &str) {
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(self.clock.now())
            .execute(&self.db)
            .await
            .unwrap();
    }

    async fn text(&self, sql: &str) -> String {
        let text: Option<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
            .fetch_one(&self.db)
            .await
            .unwrap();
        text.unwrap_or_default()
    }

    async fn certificate(&self, n: usize) {
        self.sql(&format!(
            "INSERT INTO certificates (id, name, common_name, sans, owner_id, team_id, issuer_id, renewal_policy_id,
                                       created_at, updated_at)
             VALUES ('mc-{n}', 'shop-{n}', '{NAME}', '{{}}', 'o-unassigned', 't-unassigned', 'iss-local', 'rp-default',
                     $1, $1)"
        ))
        .await;
        let mapped = format!("INSERT INTO certificate_targets SELECT 'mc-{n}', 'tgt-1' WHERE $1 IS NOT NULL");
        self.sql(&mapped.replace("$1", "$1::timestamptz")).await;
    }

    /// A job that has its request and waits to be signed.
    async fn running_job(&self, n: usize) {
        self.certificate(n).await;
        sqlx::query(
            "INSERT INTO jobs (id, type, certificate_id, agent_id, status, csr_der, run_at, created_at)
             VALUES ($1, 'Issuance', $2, 'a-1', 'Running', $3, $4, $4)",
        )
        .bind(format!("j-{n}"))
        .bind(format!("mc-{n}"))
        .bind(a_request())
        .bind(self.clock.now())
        .execute(&self.db)
        .await
        .unwrap();
    }

    async fn job(&self, n: usize) -> String {
        self.text(&format!(
            "SELECT concat_ws(' ', status, attempts, coalesce(reason, last_error)) FROM jobs WHERE id = 'j-{n}'"
        ))
        .await
    }
}

#[sqlx::test(migrations = "../../migrations")]
async fn two_workers_issue_every_job_once(db: PgPool) {
    let w = World::new(db, Mood::Signs).await;
    for n in 0..40 {
        w.running_job(n).await;
    }
    let (a, b) = tokio::join!(worker::drain(w.scheduler.clone()), worker::drain(w.scheduler.clone()));
    assert_eq!(a.unwrap() + b.unwrap(), 40);
    assert!(w.signer.calls().values().all(|calls| *calls == 1));
    let outcome = w.text(
        "SELECT concat_ws(' ', (SELECT count(*) FROM jobs WHERE type = 'Issuance' AND status = 'Completed'),
                               (SELECT count(DISTINCT job_id) FROM certificate_versions),
                               (SELECT count(*) FROM jobs WHERE type = 'Deployment' AND status = 'Pending'),
                               (SELECT count(*) FROM audit_events WHERE action = 'certificate_issued'),
                               (SELECT count(*) FROM audit_events WHERE action = 'job_completed'))",
    );
    assert_eq!(outcome.await, "40 40 40 40 40");
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_new_job_waits_for_its_agents_request_unless_the_certificate_is_archived(db: PgPool) {
    let w = World::new(db, Mood::Signs).await;
    for n in 1..=2 {
        w.certificate(n).await;
        w.sql(&format!(
            "INSERT INTO jobs (id, type, certificate_id, agent_id, status, run_at, created_at)
             VALUES ('j-{n}', 'Issuance', 'mc-{n}', 'a-1', 'Pending', $1, $1)"
        ))
        .await;
    }
    w.sql("UPDATE certificates SET archived_at = $1 WHERE id = 'mc-2'")
        .await;
    worker::drain(w.scheduler.clone()).await.unwrap();
    assert_eq!(w.job(1).await, "AwaitingCSR 0");
    assert_eq!(w.job(2).await, "Cancelled 0 certificate mc-2 is archived");
    assert_eq!(w.signer.calls(), BTreeMap::new());
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_refused_issuance_fails_the_job_with_its_reason(db: PgPool) {
    let refusal = Mood::Answers(StatusCode::UNPROCESSABLE_ENTITY, "the profile wants ECDSA");
    let w = World::new(db, refusal).await;
    w.running_job(1).await;
    worker::drain(w.scheduler.clone()).await.unwrap();
    assert_eq!(w.job(1).await, "Failed 1 the profile wants ECDSA");
    assert_eq!(
        w.text("SELECT failure FROM certificates").await,
        "the profile wants ECDSA"
    );
    assert_eq!(
        w.text("SELECT string_agg(DISTINCT type, ' ') FROM notifications").await,
        "RenewalFailure"
    );
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_refused_job_and_one_that_cannot_be_recorded_spoil_nothing_for_the_others(db: PgPool) {
    let w = World::new(db, Mood::RefusesTheThird).await;
    for n in 1..=9 {
        w.running_job(n).await;
    }
    // A version that a mistake of ours recorded for a job that still runs.
    w.sql(
        "INSERT INTO certificate_versions (id, certificate_id, job_id, issuer_id, version, serial_number, not_before,
                                           not_after, fingerprint_sha256, spki_sha256, cert_pem, chain_pem, csr_der,
                                           key_algorithm, key_size, created_at)
         VALUES ('cv-5', 'mc-5', 'j-5', 'iss-local', 1, '5', $1, $1, 'f', 's', '', '', '', 'ECDSA', 256, $1)",
    )
    .await;
    worker::drain(w.scheduler.clone()).await.unwrap();
    assert_eq!(w.job(3).await, "Failed 1 not this one");
    assert!(
        w.job(5)
            .await
            .starts_with("Running 1 the value is in use (certificate_versions"),
        "{}",
        w.job(5).await
    );
    let done = "SELECT string_agg(id, ' ' ORDER BY id) FROM jobs WHERE type = 'Issuance' AND status = 'Completed'";
    assert_eq!(w.text(done).await, "j-1 j-2 j-4 j-6 j-7 j-8 j-9");
    let told = "SELECT string_agg(details->>'job_id', ' ' ORDER BY details->>'job_id') FROM audit_events
                 WHERE action = 'certificate_issued'";
    assert_eq!(w.text(told).await, "j-1 j-2 j-4 j-6 j-7 j-8 j-9");
}

#[sqlx::test(migrations = "../../migrations")]
async fn two_agents_of_one_certificate_have_their_versions_from_one_batch(db: PgPool) {
    let w = World::new(db, Mood::Signs).await;
    w.sql(
        "INSERT INTO agents (id, name, hostname, api_key_hash, registered_at, updated_at)
         VALUES ('a-2', 'web-2', 'web-2', 'x', $1, $1)",
    )
    .await;
    w.sql(
        "INSERT INTO targets (id, name, type, agent_id, created_at, updated_at)
         VALUES ('tgt-2', 'nginx', 'NGINX', 'a-2', $1, $1)",
    )
    .await;
    w.running_job(1).await;
    w.sql("INSERT INTO certificate_targets SELECT 'mc-1', 'tgt-2' WHERE $1::timestamptz IS NOT NULL")
        .await;
    sqlx::query(
        "INSERT INTO jobs (id, type, certificate_id, agent_id, status, csr_der, run_at, created_at)
         VALUES ('j-2', 'Issuance', 'mc-1', 'a-2', 'Running', $1, $2, $2)",
    )
    .bind(a_request())
    .bind(w.clock.now())
    .execute(&w.db)
    .await
    .unwrap();
    assert_eq!(w.text("SELECT open_issuances::text FROM certificates").await, "2");
    worker::drain(w.scheduler.clone()).await.unwrap();
    let versions = "SELECT string_agg(v.version || ' ' || (v.id = c.current_version_id), ', ' ORDER BY v.version)
                      FROM certificate_versions v JOIN certificates c ON c.id = v.certificate_id";
    assert_eq!(w.text(versions).await, "1 false, 2 true");
    let deployed = "SELECT string_agg(j.target_id || ' ' || j.status, ', ' ORDER BY j.target_id)
                      FROM jobs j JOIN certificate_versions v ON v.id = j.version_id AND v.agent_id = j.agent_id
                     WHERE j.type = 'Deployment'";
    assert_eq!(w.text(deployed).await, "tgt-1 Pending, tgt-2 Pending");
    let certificate = "SELECT concat_ws(' ', status, open_issuances) FROM certificates";
    assert_eq!(w.text(certificate).await, "Active 0");
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_certificate_for_another_key_is_never_recorded(db: PgPool) {
    let w = World::new(db, Mood::SignsAnotherKey).await;
    w.running_job(1).await;
    worker::drain(w.scheduler.clone()).await.unwrap();
    assert_eq!(
        w.job(1).await,
        "Failed 1 issuer iss-local gave a certificate that was not asked for: its key is not the key of the request"
    );
    assert_eq!(w.text("SELECT count(*)::text FROM certificate_versions").await, "0");
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_disabled_issuer_is_not_asked(db: PgPool) {
    let w = World::new(db, Mood::Signs).await;
    w.running_job(1).await;
    w.sql(
        "UPDATE issuers SET enabled = false WHERE $1 IS NOT NULL AND id = 'iss-local'"
            .replace("$1", "$1::timestamptz")
            .as_str(),
    )
    .await;
    worker::drain(w.scheduler.clone()).await.unwrap();
    assert_eq!(w.job(1).await, "Failed 1 issuer iss-local is disabled");
    assert_eq!(w.signer.calls(), BTreeMap::new());
}

#[sqlx::test(migrations = "../../migrations")]
async fn an_unreachable_signer_is_asked_again_without_counting(db: PgPool) {
    let w = World::with(db, None).await;
    w.running_job(1).await;
    for _ in 0..5 {
        assert_eq!(worker::drain(w.scheduler.clone()).await.unwrap(), 1);
        assert_eq!(worker::drain(w.scheduler.clone()).await.unwrap(), 0, "it waits");
        assert!(
            w.job(1).await.starts_with("Running 0 the signer: cannot reach"),
            "{}",
            w.job(1).await
        );
        w.clock.advance(Duration::from_secs(60));
    }
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_busy_signer_is_asked_again_without_counting(db: PgPool) {
    let w = World::new(db, Mood::Answers(StatusCode::SERVICE_UNAVAILABLE, "not now")).await;
    w.running_job(1).await;
    for _ in 0..5 {
        assert_eq!(worker::drain(w.scheduler.clone()).await.unwrap(), 1);
        assert!(
            w.job(1).await.starts_with("Running 0 the signer: 503"),
            "{}",
            w.job(1).await
        );
        w.clock.advance(Duration::from_secs(60));
    }
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_failing_signer_is_asked_as_often_as_the_job_allows(db: PgPool) {
    let w = World::new(db, Mood::Answers(StatusCode::INTERNAL_SERVER_ERROR, "see the log")).await;
    w.running_job(1).await;
    for _ in 0..4 {
        worker::drain(w.scheduler.clone()).await.unwrap();
        w.clock.advance(Duration::from_secs(60));
    }
    assert!(
        w.job(1)
            .await
            .starts_with("Failed 3 given up after 3 tries: the signer: 500"),
        "{}",
        w.job(1).await
    );
    assert_eq!(w.signer.calls()["j-1"], 3);
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_job_whose_worker_died_is_issued_by_the_next_one(db: PgPool) {
    let w = World::new(db, Mood::Signs).await;
    w.running_job(1).await;
    let lease = Duration::from_secs(30);
    let dead = certctl_store::jobs::claim(&w.db, w.clock.now(), lease, 16, 16, &Default::default())
        .await
        .unwrap();
    assert_eq!(worker::drain(w.scheduler.clone()).await.unwrap(), 0);
    w.clock.advance(lease);
    assert_eq!(worker::drain(w.scheduler.clone()).await.unwrap(), 1);
    assert_eq!(w.job(1).await, "Completed 1");
    let late = certctl_store::jobs::put_back(&w.db, &dead[0], w.clock.now(), "late", true).await;
    assert!(matches!(late, Err(certctl_store::Error::LeaseLost)), "{late:?}");
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_renewal_is_planned_once_when_it_is_due(db: PgPool) {
    let w = World::new(db, Mood::Signs).await;
    w.running_job(1).await;
    worker::drain(w.scheduler.clone()).await.unwrap();
    w.sql("UPDATE certificates SET renew_at = $1 + interval '1 hour'").await;
    w.sql(
        "UPDATE certificate_versions
            SET not_before = $1 - interval '60 days', not_after = $1 + interval '30 days'",
    )
    .await;
    assert_eq!(renewals::sweep(w.scheduler.clone()).await.unwrap(), 0);
    w.clock.advance(Duration::from_secs(3600));
    let (a, b) = tokio::join!(
        renewals::sweep(w.scheduler.clone()),
        renewals::sweep(w.scheduler.clone())
    );
    assert_eq!(a.unwrap() + b.unwrap(), 1);
    assert_eq!(renewals::sweep(w.scheduler.clone()).await.unwrap(), 0);
    let jobs = "SELECT string_agg(status || ' ' || agent_id, ',') FROM jobs WHERE type = 'Renewal'";
    assert_eq!(w.text(jobs).await, "Pending a-1");
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_renewal_that_a_rule_blocks_is_told_of_once_also_when_nothing_else_is_planned(db: PgPool) {
    let w = World::new(db, Mood::Signs).await;
    w.certificate(1).await;
    w.sql("UPDATE certificates SET renew_at = $1").await;
    w.sql(
        r#"INSERT INTO policy_rules (id, name, type, severity, config, created_at, updated_at)
           VALUES ('pol-1', 'only there', 'AllowedEnvironments', 'Error', '{"environments": ["there"]}', $1, $1)"#,
    )
    .await;
    for _ in 0..2 {
        assert_eq!(renewals::sweep(w.scheduler.clone()).await.unwrap(), 0);
        let told = "SELECT concat_ws(' ', (SELECT count(*) FROM jobs),
                                     (SELECT count(*) FROM policy_violations WHERE closed_at IS NULL),
                                     (SELECT count(*) FROM audit_events WHERE action = 'job_blocked'))";
        assert_eq!(w.text(told).await, "0 1 1");
    }
}

#[sqlx::test(migrations = "../../migrations")]
async fn what_falls_due_at_once_is_planned_once_by_two_schedulers(db: PgPool) {
    let w = World::new(db, Mood::Signs).await;
    w.sql(
        "INSERT INTO certificates (id, name, common_name, owner_id, team_id, issuer_id, renewal_policy_id, renew_at,
                                   created_at, updated_at)
         SELECT 'mc-' || n, 'shop-' || n, 'shop.example.net', 'o-unassigned', 't-unassigned', 'iss-local', 'rp-default',
                $1, $1, $1 FROM generate_series(1, 1100) n",
    )
    .await;
    w.sql("INSERT INTO certificate_targets SELECT id, 'tgt-1' FROM certificates WHERE renew_at = $1")
        .await;
    let (a, b) = tokio::join!(
        renewals::sweep(w.scheduler.clone()),
        renewals::sweep(w.scheduler.clone())
    );
    assert_eq!(a.unwrap() + b.unwrap(), 1100);
    let planned =
        "SELECT concat_ws(' ', (SELECT count(*) FROM jobs), (SELECT count(DISTINCT certificate_id) FROM jobs),
                                    (SELECT count(*) FROM audit_events WHERE action = 'issuance_job_created'))";
    assert_eq!(w.text(planned).await, "1100 1100 1100");
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_late_certificate_is_warned_of_once_for_each_threshold_and_only_the_tightest(db: PgPool) {
    let w = World::new(db, Mood::Signs).await;
    w.running_job(1).await;
    worker::drain(w.scheduler.clone()).await.unwrap();
    w.sql("UPDATE certificates SET not_before = $1, not_after = $1 + interval '90 days', renew_at = $1 + interval '61 days'")
        .await;
    let day = Duration::from_secs(86_400);
    let mut passed = 0;
    for (at, warned) in [(59, 0), (60, 0), (75, 0), (76, 1), (77, 1), (89, 2), (90, 3), (200, 3)] {
        w.clock.advance(day * (at - passed));
        passed = at;
        notices::warn_of_ends(w.scheduler.clone()).await.unwrap();
        let emails = "SELECT count(*)::text FROM notifications WHERE type = 'ExpirationWarning' AND channel = 'Email'";
        assert_eq!(w.text(emails).await, warned.to_string(), "after {at} days");
    }
    let subjects = "SELECT string_agg(subject, ', ' ORDER BY id) FROM notifications
                     WHERE type = 'ExpirationWarning' AND channel = 'Webhook'";
    assert_eq!(
        w.text(subjects).await,
        format!("{NAME} expires in 14 days, {NAME} expires within a day, {NAME} has expired")
    );
    let events = "SELECT count(*)::text FROM audit_events WHERE action = 'expiration_alert_sent'";
    assert_eq!(w.text(events).await, "3");
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_threshold_of_many_months_is_reached_in_time(db: PgPool) {
    let w = World::new(db, Mood::Signs).await;
    w.running_job(1).await;
    worker::drain(w.scheduler.clone()).await.unwrap();
    w.sql("UPDATE renewal_policies SET alert_thresholds_days = array[200, 10] WHERE $1 IS NOT NULL")
        .await;
    w.sql("UPDATE certificates SET not_before = $1, not_after = $1 + interval '800 days', renew_at = $1 + interval '500 days'")
        .await;
    let mut passed = 0;
    for (at, warned) in [(599, "0"), (601, "1"), (789, "1"), (791, "2")] {
        w.clock.advance(Duration::from_secs(86_400) * (at - passed));
        passed = at;
        notices::warn_of_ends(w.scheduler.clone()).await.unwrap();
        let emails = "SELECT count(*)::text FROM notifications WHERE type = 'ExpirationWarning' AND channel = 'Email'";
        assert_eq!(w.text(emails).await, warned, "after {at} days");
    }
}

#[sqlx::test(migrations = "../../migrations")]
async fn one_scheduler_leads_until_it_is_gone(db: PgPool) {
    let w = World::new(db.clone(), Mood::Signs).await;
    let other = World::scheduler(&db, &w.clock, w.scheduler.signer.clone());
    leader::keep(w.scheduler.clone()).await.unwrap();
    leader::keep(other.clone()).await.unwrap();
    assert_eq!((w.scheduler.leader.leads(), other.leader.leads()), (true, false));
    w.clock.advance(Duration::from_secs(11));
    leader::keep(other.clone()).await.unwrap();
    leader::keep(w.scheduler.clone()).await.unwrap();
    assert_eq!((w.scheduler.leader.leads(), other.leader.leads()), (false, true));
}

/// What a signer would have published at this instant.
fn crl(number: i64, shard: i32, base: &str) -> String {
    format!(
        "INSERT INTO crls (issuer_id, shard, number, base, body, length, digest, entries, this_update, next_update)
         VALUES ('iss-local', {shard}, {number}, {base}, {number}, 0, '', 0, $1, $1 + interval '24 hours')"
    )
}

fn revoked(serial: &str) -> String {
    format!(
        "INSERT INTO revocations (id, issuer_id, serial_number, certificate_id, reason, revoked_by, not_after, revoked_at)
         VALUES ('rev-{serial}', 'iss-local', '{serial}', 'mc-1', 'certificateHold', 'test', $1 + interval '90 days', $1)"
    )
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_crl_is_made_when_missing_old_or_silent_about_a_revocation(db: PgPool) {
    let w = World::new(db, Mood::Signs).await;
    let published = async || {
        let before = w.signer.calls().get("iss-local").copied().unwrap_or(0);
        crls::refresh(w.scheduler.clone()).await.unwrap();
        w.signer.calls().get("iss-local").copied().unwrap_or(0) > before
    };
    assert!(!published().await, "there is no authority yet");
    w.sql("INSERT INTO authorities VALUES ('iss-local', '', '', $1, $1)")
        .await;
    assert!(published().await, "there is none");
    w.sql(&crl(1, 0, "NULL")).await;
    assert!(!published().await, "it is fresh");
    w.clock.advance(Duration::from_secs(8 * 3600 + 1));
    assert!(published().await, "a third of its life is over");
    w.sql(&crl(2, 0, "NULL")).await;
    assert!(!published().await, "it is fresh again");
    w.certificate(1).await;
    w.sql(&revoked("1")).await;
    assert!(published().await, "a revocation became visible");
    w.text("WITH gone AS (DELETE FROM crl_dirt), told AS (DELETE FROM crl_changes) SELECT 'ok'")
        .await;
    assert!(!published().await, "it was told");
    w.text("WITH done AS (UPDATE revocations SET reason = 'keyCompromise') SELECT 'ok'")
        .await;
    assert!(published().await, "a reason changed");
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_shard_is_made_for_its_own_revocations_and_goes_on_though_the_issuer_has_fewer(db: PgPool) {
    let w = World::new(db, Mood::Signs).await;
    w.sql("INSERT INTO authorities VALUES ('iss-local', '', '', $1, $1)")
        .await;
    let due = async || {
        let all = certctl_store::crls::standings(&w.db).await.unwrap();
        let now = w.clock.now();
        let due = all.iter().filter(|list| list.due(now) == certctl_store::crls::Due::Now);
        due.map(|standing| standing.list.path()).collect::<Vec<_>>()
    };
    w.text("WITH done AS (UPDATE issuers SET config = '{\"crl_shards\": 3}') SELECT 'ok'")
        .await;
    let full = "/crl/iss-local.crl";
    let shards = [1, 2, 3].map(|shard| format!("/crl/iss-local/{shard}.crl"));
    assert_eq!(due().await, [full, &shards[0], &shards[1], &shards[2]]);
    for shard in 0..=3 {
        w.sql(&crl(1, shard, "NULL")).await;
    }
    assert!(due().await.is_empty());
    w.certificate(1).await;
    w.text("WITH done AS (UPDATE issuers SET config = '{}') SELECT 'ok'")
        .await;
    w.sql(
        "INSERT INTO ledger (issuer_id, serial_number, job_id, tbs_der, not_after, short_lived, recorded_at, shard)
         VALUES ('iss-local', '5', 'j-5', '', $1, false, $1, 3)",
    )
    .await;
    w.sql(&revoked("5")).await;
    assert_eq!(due().await, [full, &shards[2]], "the shard is that of the ledger");
}

#[sqlx::test(migrations = "../../migrations")]
async fn with_deltas_the_full_crl_waits_and_the_delta_does_not(db: PgPool) {
    let w = World::new(db, Mood::Signs).await;
    w.sql("INSERT INTO authorities VALUES ('iss-local', '', '', $1, $1)")
        .await;
    w.sql(&crl(1, 0, "NULL")).await;
    let due = async || {
        let all = certctl_store::crls::standings(&w.db).await.unwrap();
        let now = w.clock.now();
        let due = all.iter().filter(|list| list.due(now) == certctl_store::crls::Due::Now);
        due.map(|standing| standing.list.path()).collect::<Vec<_>>()
    };
    w.text("WITH done AS (UPDATE issuers SET config = '{\"crl_delta\": true}') SELECT 'ok'")
        .await;
    assert_eq!(due().await, ["/crl/iss-local/delta.crl"]);
    w.sql(&crl(2, 0, "1")).await;
    assert!(due().await.is_empty());
    w.certificate(1).await;
    w.sql(&revoked("1")).await;
    assert_eq!(due().await, ["/crl/iss-local/delta.crl"]);
    w.clock.advance(Duration::from_secs(3600));
    assert_eq!(due().await, ["/crl/iss-local.crl", "/crl/iss-local/delta.crl"]);
    w.sql(&crl(3, 0, "NULL")).await;
    w.text("WITH gone AS (DELETE FROM crl_changes), dirt AS (DELETE FROM crl_dirt) SELECT 'ok'")
        .await;
    assert_eq!(due().await, ["/crl/iss-local/delta.crl"], "it builds upon an older one");
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_crl_that_ends_soon_is_told_of_once(db: PgPool) {
    let w = World::new(db, Mood::Signs).await;
    w.sql("INSERT INTO authorities VALUES ('iss-local', '', '', $1, $1)")
        .await;
    let told = async || {
        crls::watch(w.scheduler.clone()).await.unwrap();
        w.text("SELECT coalesce(string_agg(type || ' ' || subject, ', '), '') FROM notifications")
            .await
    };
    assert_eq!(told().await, "", "there is none yet, and the next round makes it");
    w.sql(&crl(7, 0, "NULL")).await;
    w.clock.advance(Duration::from_secs(16 * 3600));
    assert_eq!(told().await, "");
    w.clock.advance(Duration::from_secs(1));
    for _ in 0..2 {
        assert_eq!(told().await, "CrlLate the CRL of iss-local was not made in time");
    }
    assert_eq!(
        w.text("SELECT string_agg(action || ' ' || resource_id, ', ') FROM audit_events")
            .await,
        "crl_late_alert_sent iss-local"
    );
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_crl_that_could_not_be_made_is_tried_again_soon(db: PgPool) {
    let w = World::new(db, Mood::Answers(StatusCode::SERVICE_UNAVAILABLE, "not now")).await;
    w.sql("INSERT INTO authorities VALUES ('iss-local', '', '', $1, $1)")
        .await;
    let bell = &w.scheduler.crl_retry.bell;
    let mut rung = bell.subscribe();
    crls::refresh(w.scheduler.clone()).await.unwrap();
    let rings = async {
        tokio::select! {
            () = bell.run() => unreachable!("it runs for ever"),
            change = rung.changed() => change.unwrap(),
        }
    };
    tokio::time::timeout(Duration::from_secs(5), rings).await.unwrap();
    assert_eq!(w.signer.calls()["iss-local"], 1);
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_late_certificate_that_is_not_renewed_by_itself_is_warned_of_too(db: PgPool) {
    let w = World::new(db, Mood::Signs).await;
    w.running_job(1).await;
    worker::drain(w.scheduler.clone()).await.unwrap();
    w.sql("UPDATE certificates SET not_before = $1 - interval '80 days', not_after = $1 + interval '10 days', renew_at = NULL")
        .await;
    assert_eq!(notices::warn_of_ends(w.scheduler.clone()).await.unwrap(), 1);
    assert_eq!(notices::warn_of_ends(w.scheduler.clone()).await.unwrap(), 0);
}
