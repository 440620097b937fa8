//! What the database itself refuses, whoever asks.

use certctl_store::tx::begin;
use certctl_tests::world::World;
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};

/// What became of a statement of a role, undone afterwards: `ok` or the code of the error.
pub(crate) async fn as_role(db: &PgPool, role: Option<&str>, sql: &str) -> String {
    let mut tx = begin(db, None).await.unwrap();
    if let Some(role) = role {
        sqlx::query(AssertSqlSafe(format!("SET LOCAL ROLE certctl_{role}")))
            .execute(&mut *tx)
            .await
            .unwrap();
    }
    let outcome = sqlx::query(AssertSqlSafe(sql)).execute(&mut *tx).await;
    tx.rollback().await.unwrap();
    match outcome {
        Ok(_) => "ok".to_owned(),
        Err(sqlx::Error::Database(error)) => error.code().unwrap_or_default().into_owned(),
        Err(error) => panic!("{sql}: {error}"),
    }
}

pub(crate) const DENIED: &str = "42501";

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn every_role_may_do_its_work_and_no_more(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], Value::Null).await;
    // The work itself: everything above and below ran under the roles.
    w.settle().await;
    w.post("/api/v1/certificates/mc-1/revoke", Value::Null)
        .await
        .expect(200);
    w.settle().await;
    for (role, sql, outcome) in [
        ("signer", "SELECT api_key_hash FROM agents", DENIED),
        ("signer", "SELECT 1 FROM owners", DENIED),
        ("signer", "SELECT 1 FROM notifications", DENIED),
        ("signer", "UPDATE jobs SET attempts = 1", DENIED),
        ("signer", "UPDATE certificates SET tags = '{}'", DENIED),
        ("signer", "INSERT INTO revocations SELECT * FROM revocations", DENIED),
        ("signer", "DELETE FROM revocations", DENIED),
        ("signer", "DELETE FROM ledger", DENIED),
        ("signer", "DELETE FROM authorities", DENIED),
        ("signer", "SELECT 1 FROM audit_events", DENIED),
        (
            "signer",
            "SELECT 1 FROM jobs, certificates, profiles, issuers, revocations, ledger, crls",
            "ok",
        ),
        ("api", "UPDATE ledger SET der = NULL", DENIED),
        ("api", "INSERT INTO ledger SELECT * FROM ledger", DENIED),
        (
            "api",
            "INSERT INTO certificate_versions SELECT * FROM certificate_versions",
            DENIED,
        ),
        ("api", "UPDATE certificate_versions SET serial_number = '1'", DENIED),
        ("api", "UPDATE authorities SET chain_pem = ''", DENIED),
        ("api", "INSERT INTO crls SELECT * FROM crls", DENIED),
        ("api", "DELETE FROM revocations", DENIED),
        ("api", "UPDATE revocations SET reason = 'superseded'", DENIED),
        ("api", "UPDATE revocations SET serial_number = '1'", DENIED),
        ("api", "UPDATE high_water SET mark = 0", DENIED),
        ("api", "UPDATE challenge_keys SET key = ''", DENIED),
        ("scheduler", "SELECT 1 FROM challenge_keys", DENIED),
        ("scheduler", "UPDATE fences SET lifted_at = now()", DENIED),
        ("signer", "UPDATE fences SET lifted_at = now()", DENIED),
        ("signer", "INSERT INTO blocked_keys SELECT * FROM blocked_keys", DENIED),
        ("api", "DELETE FROM jobs", DENIED),
        ("api", "UPDATE notifications SET status = 'pending'", DENIED),
        ("api", "UPDATE notifications SET read_at = now()", "ok"),
        ("api", "SELECT 1 FROM audit_events", "ok"),
        ("scheduler", "SELECT name, email FROM owners", "ok"),
        ("scheduler", "UPDATE owners SET email = ''", DENIED),
        ("scheduler", "DELETE FROM certificates", DENIED),
        ("scheduler", "INSERT INTO ledger SELECT * FROM ledger", DENIED),
        ("scheduler", "UPDATE authorities SET chain_pem = ''", DENIED),
        ("scheduler", "DELETE FROM revocations", DENIED),
        ("scheduler", "UPDATE issuers SET enabled = true", DENIED),
        ("scheduler", "SELECT 1 FROM audit_events", DENIED),
        ("notifier", "SELECT 1 FROM jobs", DENIED),
        ("notifier", "SELECT 1 FROM agents", DENIED),
        ("notifier", "SELECT 1 FROM ledger", DENIED),
        ("notifier", "UPDATE certificates SET tags = '{}'", DENIED),
        (
            "notifier",
            "INSERT INTO notifications SELECT * FROM notifications",
            DENIED,
        ),
        ("notifier", "SELECT 1 FROM notifications, certificates", "ok"),
    ] {
        assert_eq!(as_role(&w.db, Some(role), sql).await, outcome, "{role}: {sql}");
    }
    for role in ["api", "signer", "scheduler", "notifier"] {
        for sql in [
            "CREATE TABLE t (i int)",
            "DROP TABLE jobs",
            "TRUNCATE jobs",
            "CREATE ROLE other",
        ] {
            assert_eq!(as_role(&w.db, Some(role), sql).await, DENIED, "{role}: {sql}");
        }
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn the_trail_cannot_be_changed_by_anyone_its_owner_included(db: PgPool) {
    let w = World::new(db).await;
    w.post("/api/v1/teams", serde_json::json!({ "name": "a" }))
        .await
        .expect(201);
    assert_ne!(w.text("SELECT count(*)::text FROM audit_events").await, "0");
    for role in [None, Some("api"), Some("signer"), Some("scheduler"), Some("notifier")] {
        for sql in [
            "UPDATE audit_events SET actor = 'x'",
            "DELETE FROM audit_events",
            "TRUNCATE audit_events",
        ] {
            assert_eq!(as_role(&w.db, role, sql).await, DENIED, "{role:?}: {sql}");
        }
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn rows_that_contradict_themselves_are_refused_by_the_name_of_the_rule(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], Value::Null).await;
    let job = |columns: &str, values: &str| {
        format!(
            "INSERT INTO jobs (id, certificate_id, run_at, created_at, {columns}) VALUES ('j-x', 'mc-1', now(), now(), {values})"
        )
    };
    let open = w.text("SELECT id FROM jobs").await;
    for (sql, rule) in [
        (job("type, status", "'Issuance', 'Paused'"), "jobs_status_check"),
        (job("type, status", "'Baking', 'Pending'"), "jobs_type_check"),
        (job("type, status, finished_at", "'Issuance', 'Failed', now()"), "jobs_reason_check"),
        (job("type, status, reason", "'Issuance', 'Pending', 'because'"), "jobs_reason_check"),
        (job("type, status, csr_der", "'Issuance', 'Completed', ''"), "jobs_finished_check"),
        (job("type, status, finished_at", "'Issuance', 'Pending', now()"), "jobs_finished_check"),
        (job("type, status", "'Issuance', 'Running'"), "jobs_request_check"),
        (job("type, status", "'Deployment', 'Pending'"), "jobs_deployment_check"),
        (job("type, status, request_given", "'Issuance', 'Pending', true"), "jobs_given_request_check"),
        (job("type, status, agent_id", &format!("'Renewal', 'Pending', '{}'", host.id())), "jobs_one_open_issuance"),
        ("UPDATE certificates SET revoked_at = now(), revocation_reason = 'superseded'".to_owned(), "certificates_revoked_check"),
        ("UPDATE certificates SET revocation_reason = 'superseded'".to_owned(), "certificates_reason_check"),
        ("UPDATE certificates SET failed_at = now()".to_owned(), "certificates_failure_check"),
        ("UPDATE certificates SET current_version_id = 'cv-x'".to_owned(), "certificates_issued_check"),
        ("UPDATE certificates SET owner_id = 'o-none'".to_owned(), "certificates_owner_id_fkey"),
        ("DELETE FROM certificates".to_owned(), "jobs_certificate_id_fkey"),
        ("DELETE FROM issuers".to_owned(), "certificates_issuer_id_fkey"),
        ("UPDATE renewal_policies SET renew_at_permille = 1000".to_owned(), "renewal_policies_share_check"),
        ("INSERT INTO profiles (id, name, max_ttl_seconds, created_at, updated_at) VALUES ('p', 'p', -1, now(), now())".to_owned(), "profiles_max_ttl_check"),
        ("INSERT INTO notifications (id, type, channel, recipient, subject, message, dedup_key, status, not_before, created_at) \
          VALUES ('n', 't', 'Email', '', '', '', 'k', 'sent', now(), now())".to_owned(), "notifications_sent_check"),
    ] {
        let mut tx = begin(&w.db, None).await.unwrap();
        let error = sqlx::query(AssertSqlSafe(sql.as_str())).execute(&mut *tx).await.expect_err(&sql);
        let constraint = error.as_database_error().and_then(|error| error.constraint()).unwrap_or_default().to_owned();
        assert_eq!(constraint, rule, "{sql}: {error}");
    }
    assert_eq!(w.text("SELECT id FROM jobs").await, open);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn migrating_again_changes_nothing(db: PgPool) {
    let w = World::new(db).await;
    let before = w.contents().await;
    certctl_store::MIGRATOR.run(&w.db).await.unwrap();
    assert_eq!(w.contents().await, before);
    let applied = w
        .text("SELECT count(*)::text FROM _sqlx_migrations WHERE success")
        .await;
    assert_eq!(applied, certctl_store::MIGRATOR.iter().count().to_string());
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_new_database_has_what_everything_falls_back_on_and_no_demonstration(db: PgPool) {
    let mut rows = vec![];
    let tables: Vec<String> =
        sqlx::query_scalar("SELECT tablename::text FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
            .fetch_all(&db)
            .await
            .unwrap();
    for table in tables.iter().filter(|table| *table != "_sqlx_migrations") {
        let sql =
            format!("SELECT coalesce(t.id, '?') FROM (SELECT to_jsonb(r) ->> 'id' AS id FROM {table} r) t ORDER BY 1");
        let ids: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&db).await.unwrap();
        rows.extend(ids.into_iter().map(|id| format!("{table} {id}")));
    }
    assert_eq!(
        rows,
        [
            "challenge_keys true",
            "high_water true",
            "issuers iss-local",
            "ocsp_cache_key ?",
            "owners o-unassigned",
            "renewal_policies rp-default",
            "teams t-unassigned"
        ]
    );
}
