//! Services that try to use their database role for more than their work.

use certctl_store::tx::begin;
use certctl_tests::world::World;
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};

use crate::schema::{DENIED, as_role};

const ROLES: [&str; 4] = ["api", "signer", "scheduler", "notifier"];

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn no_service_creates_tables_functions_or_temporary_tables(db: PgPool) {
    for role in ROLES {
        for sql in [
            "CREATE TEMP TABLE jobs (id text, type text, finished_at timestamptz)",
            "CREATE TABLE public.mine (id text)",
            "CREATE FUNCTION public.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "CREATE FUNCTION pg_temp.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "CREATE SCHEMA mine",
        ] {
            assert_eq!(as_role(&db, Some(role), sql).await, DENIED, "{role}: {sql}");
        }
    }
}

/// The two measures are independent: here temporary tables are allowed.
#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn temporary_tables_do_not_hide_what_a_definer_function_reads(db: PgPool) {
    let mut tx = begin(&db, None).await.unwrap();
    let mut run = async |sql: &'static str| sqlx::raw_sql(sql).execute(&mut *tx).await.map(|_| ());
    run(
        "DO $$ BEGIN EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO certctl_scheduler', current_database()); END $$",
    )
    .await
    .unwrap();
    run("SET LOCAL ROLE certctl_scheduler").await.unwrap();
    run("CREATE FUNCTION pg_temp.boom() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN RAISE EXCEPTION 'a trigger of the caller runs as %', current_user; END $$")
    .await
    .unwrap();
    for table in [
        "jobs",
        "tallies",
        "certificates",
        "certificate_names",
        "orders",
        "domain_orders",
        "approvals",
    ] {
        let sql = format!(
            "CREATE TEMP TABLE {table} (id text, type text, finished_at timestamptz);
             CREATE TRIGGER boom BEFORE INSERT OR UPDATE OR DELETE ON pg_temp.{table}
                FOR EACH STATEMENT EXECUTE FUNCTION pg_temp.boom();"
        );
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *tx).await.unwrap();
    }
    for path in ["public", "pg_temp, public", "\"$user\""] {
        let sql = format!("SET LOCAL search_path = {path}");
        sqlx::query(AssertSqlSafe(sql)).execute(&mut *tx).await.unwrap();
        sqlx::query("SELECT public.forget_validations(now(), 10)")
            .execute(&mut *tx)
            .await
            .unwrap();
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn old_validations_are_removed_whatever_the_search_path_is(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], Value::Null).await;
    w.sql(
        "INSERT INTO jobs (id, type, certificate_id, status, run_at, created_at, finished_at)
         VALUES ('job-v', 'Validation', 'mc-1', 'Completed', now(), now(), now())",
    )
    .await;
    let mut tx = begin(&w.db, None).await.unwrap();
    sqlx::raw_sql("SET LOCAL ROLE certctl_scheduler; SET LOCAL search_path = pg_catalog")
        .execute(&mut *tx)
        .await
        .unwrap();
    let removed: i64 = sqlx::query_scalar("SELECT public.forget_validations(now() + interval '1 day', 10)")
        .fetch_one(&mut *tx)
        .await
        .unwrap();
    assert_eq!(removed, 1);
}

/// Fails for a later function that lacks one of these. A trigger function is called by triggers alone, and no service can
/// create a table to put one on.
#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn every_definer_function_has_a_fixed_path_and_named_callers(db: PgPool) {
    let open: Vec<String> = sqlx::query_scalar(
        "SELECT p.oid::regprocedure::text FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
          WHERE p.prosecdef AND n.nspname NOT IN ('pg_catalog', 'information_schema')
            AND (NOT coalesce(p.proconfig, '{}') @> ARRAY['search_path=pg_catalog, pg_temp']
                 OR p.prorettype <> 'trigger'::regtype AND has_function_privilege('public', p.oid, 'EXECUTE'))",
    )
    .fetch_all(&db)
    .await
    .unwrap();
    assert_eq!(
        open,
        Vec::<String>::new(),
        "SET search_path = pg_catalog, pg_temp; REVOKE ALL ... FROM PUBLIC"
    );
    let definers: i64 =
        sqlx::query_scalar("SELECT count(*) FROM pg_proc WHERE prosecdef AND pronamespace = 'public'::regnamespace")
            .fetch_one(&db)
            .await
            .unwrap();
    assert_ne!(definers, 0, "the query finds those there are");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn the_scheduler_cannot_change_what_others_decide(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web-1").await;
    w.target("tgt-1", &host).await;
    w.certificate("mc-1", &["tgt-1"], Value::Null).await;
    w.settle().await;
    for (table, columns) in [
        (
            "certificates",
            &[
                "id",
                "name",
                "common_name",
                "sans",
                "issuer_id",
                "renewal_policy_id",
                "profile_id",
                "environment",
                "tags",
            ][..],
        ),
        (
            "agents",
            &["id", "name", "api_key_hash", "hostname", "tags", "ip_address"],
        ),
        (
            "jobs",
            &[
                "id",
                "type",
                "certificate_id",
                "agent_id",
                "csr_der",
                "issuer_id",
                "deadline",
                "max_attempts",
            ],
        ),
        (
            "bulk_operations",
            &["actor", "actor_type", "action", "reason", "owner_id"],
        ),
        ("bulk_items", &["certificate_id"]),
    ] {
        for column in columns {
            let sql = format!("UPDATE {table} SET {column} = DEFAULT");
            assert_eq!(as_role(&w.db, Some("scheduler"), &sql).await, DENIED, "{sql}");
        }
    }
    w.sql(
        "INSERT INTO bulk_operations (id, action, dry_run, status, actor, actor_type, created_at, finished_at)
         VALUES ('bulk-x', 'renew', false, 'Completed', 'ann', 'User', now(), now())",
    )
    .await;
    let again = "UPDATE bulk_operations SET status = 'Running', finished_at = NULL";
    assert_eq!(as_role(&w.db, Some("scheduler"), again).await, DENIED, "{again}");
    let request = "INSERT INTO jobs (id, type, certificate_id, status, run_at, created_at, csr_der)
                   VALUES ('job-x', 'Renewal', 'mc-1', 'Running', now(), now(), '\\x30')";
    assert_eq!(as_role(&w.db, Some("scheduler"), request).await, DENIED);
    for (role, sql) in [
        ("signer", "UPDATE ledger SET tbs_der = ''"),
        ("signer", "UPDATE ledger SET serial_number = '1'"),
        (
            "scheduler",
            "UPDATE certificates SET failure = 'x', renewal_policy_id = 'rp-other'",
        ),
    ] {
        assert_eq!(as_role(&w.db, Some(role), sql).await, DENIED, "{role}: {sql}");
    }
}

fn event(actor: &str, kind: &str, at: &str) -> String {
    format!(
        "INSERT INTO audit_events (id, actor, actor_type, action, resource_type, resource_id, at)
         VALUES ('audit-x', '{actor}', '{kind}', 'certificate_revoked', 'certificate', 'mc-1', {at})"
    )
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn services_that_authenticate_nobody_act_for_themselves(db: PgPool) {
    for role in ["signer", "scheduler", "notifier"] {
        for (actor, kind, outcome) in [
            ("system", "System", "ok"),
            ("alice", "User", DENIED),
            ("system", "User", DENIED),
            ("agent-1", "Agent", DENIED),
            ("alice", "System", DENIED),
        ] {
            let sql = event(actor, kind, "now()");
            assert_eq!(as_role(&db, Some(role), &sql).await, outcome, "{role}: {actor} {kind}");
        }
    }
    // For the time of a bulk operation the scheduler does what its actor asked for.
    sqlx::query(
        "INSERT INTO bulk_operations (id, action, dry_run, status, actor, actor_type, created_at)
         VALUES ('bulk-1', 'renew', false, 'Running', 'alice', 'User', now())",
    )
    .execute(&db)
    .await
    .unwrap();
    let (alice, bob) = (event("alice", "User", "now()"), event("bob", "User", "now()"));
    assert_eq!(as_role(&db, Some("scheduler"), &alice).await, "ok");
    assert_eq!(as_role(&db, Some("scheduler"), &bob).await, DENIED);
    assert_eq!(as_role(&db, Some("signer"), &alice).await, DENIED);
    sqlx::query("UPDATE bulk_operations SET status = 'Completed', finished_at = now()")
        .execute(&db)
        .await
        .unwrap();
    assert_eq!(as_role(&db, Some("scheduler"), &alice).await, DENIED);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn no_service_dates_or_orders_an_event_as_it_likes(db: PgPool) {
    for role in ROLES {
        for (at, kept) in [
            ("now() - interval '1 minute'", true),
            ("now() - interval '1 year'", false),
            ("now() + interval '1 hour'", false),
            ("'infinity'", false),
        ] {
            let mut tx = begin(&db, None).await.unwrap();
            let sql = format!(
                "SET LOCAL ROLE certctl_{role}; {}; RESET ROLE",
                event("system", "System", at)
            );
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *tx).await.unwrap();
            let sql = format!(
                "SELECT at = {at}, at BETWEEN now() - interval '5 minutes' AND clock_timestamp() FROM audit_events"
            );
            let found: (bool, bool) = sqlx::query_as(AssertSqlSafe(sql)).fetch_one(&mut *tx).await.unwrap();
            assert_eq!(found, (kept, true), "{role}: {at}");
        }
        let sql = "INSERT INTO audit_events (id, sequence, actor, actor_type, action, resource_type, resource_id, at)
                   OVERRIDING SYSTEM VALUE VALUES ('audit-x', 1, 'system', 'System', 'a', 'b', 'c', now())";
        assert_eq!(as_role(&db, Some(role), sql).await, DENIED, "{role}");
        let sql =
            "CREATE OR REPLACE FUNCTION audit_skew() RETURNS interval LANGUAGE sql AS $$ SELECT interval '9 years' $$";
        assert_eq!(as_role(&db, Some(role), sql).await, DENIED, "{role}");
    }
    // Records of calls wait on the API's disk while the database is away.
    let mut tx = begin(&db, None).await.unwrap();
    sqlx::raw_sql(
        "SET LOCAL ROLE certctl_api;
         INSERT INTO audit_events (id, actor, actor_type, action, resource_type, resource_id, at)
         VALUES ('audit-x', 'alice', 'User', 'api_post', 'api', '/', '2026-01-01Z');",
    )
    .execute(&mut *tx)
    .await
    .unwrap();
    let late: bool = sqlx::query_scalar("SELECT at = '2026-01-01Z' FROM audit_events")
        .fetch_one(&mut *tx)
        .await
        .unwrap();
    assert!(late);
}
