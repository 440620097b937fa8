//! Databases that are reached through a pooler, have settings of their own, or can no longer be written.

use std::{net::SocketAddr, time::Duration};

use anyhow::ensure;
use certctl_model::time::Clock;
use certctl_tests::{beside::PgBouncer, eventually, stage::Stage, world::World};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, ConnectOptions, PgPool};

const PATIENCE: Duration = Duration::from_secs(60);

async fn run(db: &PgPool, sql: impl Into<String>) {
    sqlx::raw_sql(AssertSqlSafe(sql.into())).execute(db).await.unwrap();
}

async fn name(db: &PgPool) -> String {
    sqlx::query_scalar("SELECT current_database()::text")
        .fetch_one(db)
        .await
        .unwrap()
}

/// A login of the API that has the settings of its sessions itself, as the documentation says.
async fn login(db: &PgPool, database: &str) -> String {
    let login = format!("pooled_{database}");
    run(
        db,
        format!("CREATE ROLE \"{login}\" LOGIN PASSWORD 'pooled' IN ROLE certctl_api"),
    )
    .await;
    for (setting, value) in [
        ("role", "certctl_api"),
        ("search_path", "public, pg_temp"),
        ("timezone", "UTC"),
        ("statement_timeout", "30s"),
        ("lock_timeout", "10s"),
        ("idle_in_transaction_session_timeout", "10s"),
    ] {
        let value = if setting == "search_path" {
            value.to_owned()
        } else {
            format!("'{value}'")
        };
        run(
            db,
            format!("ALTER ROLE \"{login}\" IN DATABASE \"{database}\" SET {setting} = {value}"),
        )
        .await;
    }
    login
}

async fn admitted(url: &str) -> Result<(), String> {
    let pool = certctl_store::connect(url, "certctl_api", 3, &Clock::told()).unwrap();
    let admitted = certctl_store::admit(&pool).await.map_err(|error| error.to_string());
    assert_eq!(pool.is_closed(), admitted.is_err());
    admitted
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_pooler_that_drops_settings_is_refused_with_what_to_do(db: PgPool) {
    let dir = tempfile::tempdir().unwrap();
    let direct = db.connect_options().to_url_lossy();
    let database = name(&db).await;
    for mode in ["transaction", "session"] {
        let pooler = PgBouncer::start(dir.path(), mode, &direct, &[]).await;
        let through = pooler.url(direct.username(), &database);
        let why = admitted(&through).await.unwrap_err();
        assert!(
            why.contains("not as certctl_api") && why.contains("statement_timeout") && why.contains("PgBouncer"),
            "{mode}: {why}"
        );
        let why = certctl_store::migrate(&through).await.unwrap_err().to_string();
        assert!(
            why.contains("migrations are not applied") && why.contains("directly"),
            "{mode}: {why}"
        );
    }
    admitted(direct.as_str()).await.unwrap();
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn session_mode_works_with_own_settings_and_transaction_mode_is_refused(db: PgPool) {
    let dir = tempfile::tempdir().unwrap();
    let direct = db.connect_options().to_url_lossy();
    let database = name(&db).await;
    let login = login(&db, &database).await;
    let users = [(login.as_str(), "pooled")];
    let pooler = PgBouncer::start(dir.path(), "session", &direct, &users).await;
    let outcome = admitted(&pooler.url(&login, &database)).await;
    let other = PgBouncer::start(dir.path(), "transaction", &direct, &users).await;
    let why = admitted(&other.url(&login, &database)).await;
    drop((pooler, other));
    // Roles belong to the whole cluster.
    run(&db, format!("DROP OWNED BY \"{login}\"; DROP ROLE \"{login}\"")).await;
    outcome.unwrap();
    let why = why.unwrap_err();
    assert!(why.contains("transaction mode does not work"), "{why}");
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_search_path_of_the_database_changes_nothing(db: PgPool) {
    let database = name(&db).await;
    run(
        &db,
        format!("ALTER DATABASE \"{database}\" SET search_path = '\"$user\"'"),
    )
    .await;
    let w = World::new(db).await;
    w.get("/api/v1/teams").await.expect(200);
    w.get("/ready").await.expect(200);
    w.post("/api/v1/teams", json!({ "name": "a" })).await.expect(201);
    certctl_store::migrate(w.db.connect_options().to_url_lossy().as_str())
        .await
        .unwrap();
}

#[sqlx::test(migrations = false)]
async fn migrations_create_the_schema_whatever_the_search_path_is(db: PgPool) {
    let database = name(&db).await;
    run(
        &db,
        format!("ALTER DATABASE \"{database}\" SET search_path = '\"$user\"'"),
    )
    .await;
    let url = db.connect_options().to_url_lossy();
    certctl_store::migrate(url.as_str()).await.unwrap();
    let pool = certctl_store::connect(url.as_str(), "certctl_api", 1, &Clock::told()).unwrap();
    certctl_store::ready(&pool).await.unwrap();
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_database_that_lacks_a_migration_is_not_ready(db: PgPool) {
    let pool = certctl_store::connect(
        db.connect_options().to_url_lossy().as_str(),
        "certctl_api",
        1,
        &Clock::told(),
    );
    let pool = pool.unwrap();
    certctl_store::ready(&pool).await.unwrap();
    run(
        &db,
        "DELETE FROM _sqlx_migrations WHERE version = (SELECT max(version) FROM _sqlx_migrations)",
    )
    .await;
    let why = certctl_store::ready(&pool).await.unwrap_err().to_string();
    assert!(why.contains("certctl-api --migrate"), "{why}");
    run(&db, "ALTER TABLE _sqlx_migrations RENAME TO away").await;
    let why = certctl_store::ready(&pool).await.unwrap_err().to_string();
    assert!(why.contains("certctl-api --migrate"), "{why}");
}

/// As after a switchover that leaves connections open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_becomes_read_only_is_unavailable_until_it_is_not() {
    let stage = Stage::set(|builder, _| builder.without_demo()).await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let post = async |name: &str| {
        let request = http.post(format!("{}/api/v1/teams", stage.api().url()));
        request
            .bearer_auth(stage.api().key())
            .json(&json!({ "name": name }))
            .send()
            .await
            .unwrap()
    };
    let ready = async |service: &str| {
        let asked = http
            .get(format!("http://{}/ready", stage.platform.ops(service)))
            .send()
            .await;
        asked.unwrap().status().as_u16()
    };
    assert_eq!(post("before").await.status(), 201);
    let set = async |value: &str| {
        run(&stage.db, "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE").await;
        let sql = format!("ALTER SYSTEM SET default_transaction_read_only = {value}");
        sqlx::query(AssertSqlSafe(sql)).execute(&stage.db).await.unwrap();
        run(&stage.db, "SELECT pg_reload_conf()").await;
    };
    set("on").await;
    let services = ["api", "signer", "scheduler", "notifier"];
    eventually("the services to notice", PATIENCE, async || {
        let answer = post("during").await;
        ensure!(answer.status() == 503, "it answers {}", answer.status());
        ensure!(answer.headers().contains_key("retry-after"), "without Retry-After");
        for service in services {
            ensure!(ready(service).await == 503, "{service} is ready");
        }
        Ok(())
    })
    .await;
    set("off").await;
    eventually("the services to go on", PATIENCE, async || {
        for service in services {
            ensure!(ready(service).await == 200, "{service} is not ready");
        }
        let answer = post("after").await;
        ensure!(answer.status() == 201, "it answers {}", answer.status());
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_database_is_found_at_the_start_and_by_readiness() {
    let mut stage = Stage::set(|builder, _| builder.without_demo()).await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let ready = async |address: SocketAddr| -> anyhow::Result<Value> {
        Ok(http.get(format!("http://{address}/ready")).send().await?.json().await?)
    };
    // As a backup has it: before the last thing that was signed.
    eventually("something to be signed", PATIENCE, async || {
        let back = sqlx::query("UPDATE high_water SET mark = mark - 1 WHERE mark > 0")
            .execute(&stage.db)
            .await?;
        ensure!(back.rows_affected() == 1, "nothing is signed yet");
        Ok(())
    })
    .await;
    stage.platform.restart("signer").await.unwrap();
    for service in ["signer", "scheduler"] {
        let address = stage.platform.ops(service);
        eventually("the service to say so", PATIENCE, async || {
            let said = ready(address).await?;
            ensure!(said["failing"] == json!(["recovery"]), "{service} says {said}");
            Ok(())
        })
        .await;
    }
    assert_eq!(
        stage.api().get("/api/v1/recovery").await.unwrap().unwrap()["fenced"],
        true
    );
    stage.api().post("/api/v1/recovery/finish", &Value::Null).await.unwrap();
    for service in ["signer", "scheduler"] {
        let address = stage.platform.ops(service);
        eventually("the service to go on", PATIENCE, async || {
            let said = ready(address).await?;
            ensure!(said["status"] == "ready", "{service} says {said}");
            Ok(())
        })
        .await;
    }
}
