//! Documents that are made from the sources say what the sources say. `UPDATE=1` writes them anew.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use certctl_contract::{catalogue, openapi};
use certctl_runtime::config::markdown;
use certctl_tests::{python, repository, run, target_dir};

/// Compares a file with what it should say, or writes it.
fn check(path: &str, expected: &str) {
    let file = repository().join(path);
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&file, expected).unwrap();
    }
    let found = fs::read_to_string(&file).unwrap_or_default();
    let line = found
        .lines()
        .zip(expected.lines())
        .position(|(a, b)| a != b)
        .map_or(0, |n| n + 1);
    assert!(
        found == expected,
        "{path} is out of date from line {line} on; write it anew with UPDATE=1"
    );
}

#[tokio::test]
async fn the_openapi_document_is_that_of_the_table_and_is_valid() {
    let document = serde_json::to_string_pretty(&openapi::document(&catalogue())).unwrap() + "\n";
    check("docs/openapi.json", &document);
    let file = repository().join("docs/openapi.json");
    let args = [
        "-m",
        "openapi_spec_validator",
        "--schema",
        "3.1",
        file.to_str().unwrap(),
    ];
    let said = run(python(), args).await.ok();
    assert!(said.contains("OK"), "{said}");
}

const HEAD: &str = "# Configuration

Every program reads its settings from variables, or from flags of the same meaning; a flag goes before a variable, and a
variable that is set to nothing counts as not set. A secret can be given in a file, named by the variable with `_FILE`.
This page is made from the programs' own `--help`.

";

/// Programs that are no services, with the arguments that make them print their help.
const CLIENTS: &[(&str, &[&str])] = &[
    ("certctl-cli", &["--help"]),
    ("certctl-mcp", &["--help"]),
    ("certctl-loadtest", &["main-job", "--help"]),
    ("certctl-local", &["up", "--help"]),
];

const OF_CLIENTS: &str = "## certctl-cli, certctl-mcp, certctl-loadtest

| variable | flag | default | meaning |
|---|---|---|---|
| `CERTCTL_SERVER_URL` | `--server` | `http://localhost:8443` | Address of the certctl API |
| `CERTCTL_API_KEY` | `--api-key` |  | API key |
| `CERTCTL_CA_CERT` | `--ca-cert` |  | Of certctl-cli and certctl-mcp: PEM file of authorities that the server's certificate may come from, besides those of the system |
| `CERTCTL_ALLOW_PLAIN_HTTP` | `--allow-plain-http` | `false` | Of certctl-cli and certctl-mcp: speak plain http to a server on another machine, where others could read the API key |
| `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY` | | | Of certctl-cli, certctl-mcp and certctl-agent: the proxy to an https server on another machine, and the hosts that are reached without it. Servers on this machine are; an API key never goes to a proxy over plain http |
| `CERTCTL_MCP_READ_ONLY` | `--read-only` | `false` | Of certctl-mcp: offer only tools that change nothing. `--read-only=false` does not override `true` here |
| `CERTCTL_DEMO_TLS` | `--demo-tls` | `127.0.0.1:8444` | Of certctl-loadtest: where the demo serves TLS, on loopback |

## certctl-local

| variable | flag | default | meaning |
|---|---|---|---|
| `CERTCTL_DATABASE_URL` | `--database-url` |  | Use this database instead of a private Postgres; its user owns it and may create roles |
| `CERTCTL_ALLOWED_COMMANDS` | `--allowed-commands` |  | Command lines that targets of the agent may use besides those of the demo, separated by semicolons |
| `CERTCTL_ALLOWED_DIRECTORIES` | `--allowed-directories` |  | Directories that targets of the agent may have files in besides the platform's and /tmp, separated by commas |
";

#[test]
fn the_page_of_settings_is_that_of_the_programs() {
    let pages = [
        markdown::<certctl_api::config::Config>("certctl-api"),
        markdown::<certctl_signer::config::Config>("certctl-signer"),
        markdown::<certctl_scheduler::config::Config>("certctl-scheduler"),
        markdown::<certctl_notifier::config::Config>("certctl-notifier"),
        markdown::<certctl_agent::config::Config>("certctl-agent"),
        OF_CLIENTS.to_owned(),
    ];
    check("docs/CONFIGURATION.md", &format!("{HEAD}{}", pages.join("\n")));
}

#[tokio::test]
async fn every_variable_that_a_program_reads_is_on_the_page() {
    let page = fs::read_to_string(repository().join("docs/CONFIGURATION.md")).unwrap();
    for (program, args) in CLIENTS {
        let help = run(target_dir().join(program), *args).await.ok();
        let variables: Vec<_> = help
            .split("[env: ")
            .skip(1)
            .filter_map(|rest| rest.split(['=', ']']).next())
            .collect();
        for variable in &variables {
            assert!(page.contains(&format!("`{variable}`")), "{program} reads {variable}");
        }
        assert!(!variables.is_empty(), "{program}: {help}");
    }
}

#[test]
fn the_page_of_logs_names_every_field_that_is_logged() {
    let page = fs::read_to_string(repository().join("docs/LOGGING.md")).expect("docs/LOGGING.md is there");
    let mut fields = BTreeSet::new();
    for directory in ["shared", "services", "agent"] {
        for file in sources(&repository().join(directory)) {
            let text = fs::read_to_string(&file).unwrap();
            let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            fields.extend(logged(text));
        }
    }
    assert!(fields.len() > 10, "the sources log: {fields:?}");
    let missing: Vec<_> = fields
        .iter()
        .filter(|field| !page.contains(&format!("`{field}`")))
        .collect();
    assert!(missing.is_empty(), "docs/LOGGING.md does not name {missing:?}");
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("tests") {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
    found
}

/// Names of fields in the macros of tracing: what stands before the message.
fn logged(text: &str) -> BTreeSet<String> {
    let mut fields = BTreeSet::new();
    for name in [
        "error!(",
        "warn!(",
        "info!(",
        "debug!(",
        "trace!(",
        "info_span!(",
        "debug_span!(",
    ] {
        for (at, _) in text.match_indices(name) {
            let preceded = text[..at]
                .chars()
                .next_back()
                .is_some_and(|c| c.is_alphanumeric() || c == '_');
            if preceded {
                continue;
            }
            let span = name.contains("span");
            let mut arguments = arguments(&text[at + name.len()..]).into_iter();
            if span {
                arguments.next();
            }
            for argument in arguments {
                let argument = argument.trim();
                if argument.starts_with('"') {
                    break;
                }
                let field = argument.split('=').next().unwrap_or_default().trim();
                let field = field.trim_start_matches(['%', '?']);
                if !field.is_empty() && field.chars().all(|c| c.is_ascii_lowercase() || "._".contains(c)) {
                    fields.insert(field.to_owned());
                }
            }
        }
    }
    fields
}

/// The arguments of a macro up to its closing parenthesis, split at the commas between them.
fn arguments(text: &str) -> Vec<String> {
    let (mut depth, mut quoted, mut escaped) = (0, false, false);
    let mut arguments = vec![String::new()];
    for c in text.chars() {
        let last = arguments.last_mut().expect("there is always one");
        match c {
            _ if quoted => {
                last.push(c);
                quoted = escaped || c != '"';
                escaped = !escaped && c == '\\';
                continue;
            }
            '"' => quoted = true,
            '(' | '[' | '{' => depth += 1,
            ')' if depth == 0 => return arguments,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                arguments.push(String::new());
                continue;
            }
            _ => {}
        }
        last.push(c);
    }
    arguments
}

#[test]
fn fields_are_found_before_the_message() {
    let text = r#"info!(job.id = %id, kind, attempt = f(1, "x"), error = %why, "done {id}, {x}", x = 1); my_info!(no = 1);
        info_span!("job", serial = %s, agent.id = tracing::field::Empty)"#;
    let found: Vec<_> = logged(text).into_iter().collect();
    assert_eq!(found, ["agent.id", "attempt", "error", "job.id", "kind", "serial"]);
}

#[test]
fn one_toolchain_is_named_and_the_manifest_agrees() {
    let read = |name: &str| fs::read_to_string(repository().join(name)).unwrap();
    let of = |text: &str, key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim_matches(|c: char| !c.is_ascii_digit()).to_owned()
    };
    let channel = of(&read("rust-toolchain.toml"), "channel");
    let oldest = of(&read("Cargo.toml"), "rust-version");
    assert!(
        channel.starts_with(&format!("{oldest}.")),
        "{channel} is a release of {oldest}"
    );
}
