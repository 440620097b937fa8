//! The command line against the whole of certctl.

use std::{path::Path, time::Duration};

use anyhow::ensure;
use certctl_tests::{
    Ran, eventually, run_command, target_dir,
    world::{KEY, World},
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection, PgPool};
use tokio::process::Command;

async fn cli(w: &World, line: &str) -> Ran {
    let mut command = Command::new(target_dir().join("certctl-cli"));
    command
        .args(line.split_whitespace())
        .env("CERTCTL_SERVER_URL", &w.url)
        .env("CERTCTL_API_KEY", KEY);
    run_command(command).await
}

/// A bundle of this many certificates, and then of the authority that signed them.
fn bundle(file: &Path, count: usize) {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "An authority of others");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let root = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let leaf = |n: usize| {
        let mut params = CertificateParams::new(vec![format!("host-{n}.example.net")]).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("host-{n}.example.net"));
        params.signed_by(&key, &issuer).unwrap().pem()
    };
    let text: String = (0..count).map(leaf).chain([root]).collect();
    std::fs::write(file, text).unwrap();
}

/// How many certificates are imported; a large installation has ten thousand.
fn count() -> usize {
    let set = std::env::var_os("CERTCTL_TEST_IMPORT").and_then(|text| text.to_str()?.parse().ok());
    set.unwrap_or(1_200)
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_bundle_is_taken_over_once_however_often_it_is_sent_and_then_walked(db: PgPool) {
    let w = World::new(db).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bundle.pem");
    let count = count();
    bundle(&file, count);
    let import = format!("import {} --format json", file.display());
    for (created, duplicates) in [(count, 0), (0, count)] {
        let began = std::time::Instant::now();
        let counts: Value = serde_json::from_str(&cli(&w, &import).await.ok()).unwrap();
        println!("{count} certificates in {:?}", began.elapsed());
        let seen = (&counts["created"], &counts["duplicates"], &counts["rejected"]);
        assert_eq!(seen, (&created.into(), &duplicates.into(), &0.into()), "{counts}");
    }
    let all: Value = serde_json::from_str(&cli(&w, "certs list --all --fields id --format json").await.ok()).unwrap();
    assert_eq!(
        (all["data"].as_array().unwrap().len(), &all["total"]),
        (count, &count.into())
    );
    let id = all["data"][0]["id"].as_str().unwrap();
    let file = folder.path().join("one.pem");
    cli(&w, &format!("certs export {id} --output {}", file.display()))
        .await
        .ok();
    assert!(
        std::fs::read_to_string(&file)
            .unwrap()
            .starts_with("-----BEGIN CERTIFICATE-----")
    );
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn an_import_that_was_killed_is_finished_by_the_next_which_shows_how_far_it_is(db: PgPool) {
    const COUNT: usize = 1_200;
    let w = World::new(db).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bundle.pem");
    bundle(&file, COUNT);
    // Whoever adds to what is there already waits.
    w.sql(
        "CREATE FUNCTION wait_behind_the_first() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             IF EXISTS (SELECT FROM certificates) THEN PERFORM pg_advisory_xact_lock_shared(42); END IF;
             RETURN NULL;
         END $$",
    )
    .await;
    w.sql(
        "CREATE TRIGGER wait BEFORE INSERT ON certificates FOR EACH STATEMENT EXECUTE FUNCTION wait_behind_the_first()",
    )
    .await;
    let mut holds = w.db.acquire().await.unwrap();
    let lock = async |holds: &mut PgConnection, what: &str| {
        let sql = format!("SELECT pg_advisory_{what}(42)");
        sqlx::query(AssertSqlSafe(sql)).execute(holds).await.unwrap();
    };
    lock(&mut holds, "lock").await;
    let mut killed = Command::new(target_dir().join("certctl-cli"))
        .arg("import")
        .arg(&file)
        .env("CERTCTL_SERVER_URL", &w.url)
        .env("CERTCTL_API_KEY", KEY)
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    eventually("a batch to wait", Duration::from_secs(60), async || {
        let waits: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_locks WHERE objid = 42 AND NOT granted)")
            .fetch_one(&w.db)
            .await?;
        ensure!(waits);
        Ok(())
    })
    .await;
    killed.kill().await.unwrap();
    lock(&mut holds, "unlock").await;

    // On a terminal, where the bar is drawn.
    let line = format!(
        "{} import {}",
        target_dir().join("certctl-cli").display(),
        file.display()
    );
    let mut command = Command::new("script");
    command
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .env("CERTCTL_SERVER_URL", &w.url)
        .env("CERTCTL_API_KEY", KEY);
    let shown = run_command(command).await.ok();
    assert!(shown.contains(&format!("/{COUNT} ")), "no bar: {shown}");
    let (_, said) = shown.rsplit_once("\u{1b}[2K").expect("the bar is taken away");
    let numbers: Vec<usize> = said
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|n| n.parse().ok())
        .collect();
    assert_eq!((numbers[0] + numbers[1], numbers[2]), (COUNT, 0), "{said}");
    assert!(numbers[0] > 0 && numbers[1] > 0, "{said}");
    assert_eq!(
        w.text("SELECT count(*) || ' ' || count(DISTINCT name) FROM certificates")
            .await,
        format!("{COUNT} {COUNT}")
    );
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_resource_is_made_changed_shown_and_deleted_by_its_verbs(db: PgPool) {
    let w = World::new(db).await;
    for (line, code, said) in [
        ("teams create --id t-web --name web", 0, "\"t-web\""),
        ("teams update t-web --description x", 0, "\"x\""),
        ("teams list --fields id,description", 0, "DESCRIPTION"),
        (
            "get-team t-web --fields description",
            0,
            "{\n  \"description\": \"x\"\n}",
        ),
        ("teams create --name web", 1, "name"),
        (
            "profiles create --name p --allowed-ekus serverAuth --enabled=false",
            0,
            "\"enabled\": false",
        ),
        (
            "certs create --id mc-1 --common-name a.example.net --tags tier=low",
            0,
            "\"tier\": \"low\"",
        ),
        ("certs list --status Pending", 0, "a.example.net"),
        ("certs revoke mc-1 --reason nonsense", 1, "reason"),
        ("certs get mc-2", 1, "404 Not Found"),
        ("jobs list --colour red", 2, "--colour"),
        ("keys create --name k --role viewer", 0, "\"role\": \"viewer\""),
        ("bulk renew --ids mc-1 --dry-run", 0, "\"id\""),
        ("groups create --name linux --match-os linux", 0, "\"match_os\""),
        ("policies list", 0, "of"),
        ("notifications list", 0, "of"),
        ("discovery summary", 0, "{"),
        ("status", 0, "healthy"),
        ("metrics", 0, "certificate_total"),
        ("revocation get-crl", 0, "\"entries\""),
        ("teams delete t-web", 0, ""),
    ] {
        let ran = cli(&w, line).await;
        assert!(ran.code == Some(code) && ran.text.contains(said), "{line}: {ran:?}");
    }
}
