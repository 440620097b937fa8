//! Schemathesis, a program of other people, reads the OpenAPI document and asks the server what it can think of.

use std::fs;

use certctl_contract::{catalogue, openapi};
use certctl_tests::{
    python, run_command,
    world::{KEY, World},
};
use serde_json::json;
use sqlx::PgPool;

/// How long it may invent requests beside those that every operation gets.
const SECONDS: u32 = 150;

/// A request that keeps to the schema may still be refused for what no schema can say: that is 422 or 409, and never 400.
/// It also puts empty texts into paths, which makes other paths of them: 405.
const SETTINGS: &str = r#"
[generation]
allow-x00 = false

[output.sanitization]
enabled = false

[checks.positive_data_acceptance]
expected-statuses = ["2xx", "304", "401", "403", "404", "405", "409", "422"]
"#;

/// Cursors are taken from answers: an invented one is refused, though it looks like one. Nobody waits for work.
const HOOKS: &str = r#"
import schemathesis


@schemathesis.hook
def map_query(context, query):
    if query:
        query = {name: value for name, value in query.items() if name not in ("cursor", "wait")}
    return query
"#;

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn a_program_of_other_people_finds_no_answer_that_the_document_does_not_promise(db: PgPool) {
    let w = World::new(db).await;
    let host = w.host("web").await;
    w.target("tgt-1", &host).await;
    w.certificate("mc-a", &["tgt-1"], json!({ "tags": { "a": "b" } })).await;
    w.settle().await;

    let dir = tempfile::tempdir().unwrap();
    let (document, settings) = (dir.path().join("openapi.json"), dir.path().join("schemathesis.toml"));
    fs::write(&document, openapi::document(&catalogue()).to_string()).unwrap();
    fs::write(&settings, SETTINGS).unwrap();
    fs::write(dir.path().join("hooks.py"), HOOKS).unwrap();
    let program = python().with_file_name("schemathesis");
    let (seconds, key) = (SECONDS.to_string(), format!("Authorization: Bearer {KEY}"));
    let args: [&str; 23] = [
        "--config-file",
        settings.to_str().unwrap(),
        "run",
        document.to_str().unwrap(),
        "--url",
        &w.url,
        "--header",
        &key,
        "--checks",
        "all",
        "--max-examples",
        "20",
        "--max-time",
        &seconds,
        "--seed",
        "1",
        "--generation-database",
        "none",
        "--continue-on-failure",
        "--request-timeout",
        "90",
        "--no-color",
        "--no-shrink",
    ];
    let mut command = tokio::process::Command::new(&program);
    command
        .args(args)
        .current_dir(dir.path())
        .env("SCHEMATHESIS_HOOKS", "hooks.py");
    let said = run_command(command).await;
    println!("{}", said.text);
    said.ok();
}
