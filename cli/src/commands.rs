//! What each command asks the server and shows.

use std::{
    fs,
    io::{self, IsTerminal, Read},
};

use certctl_client::{Body, Client};
use certctl_contract::{
    catalogue,
    certificates::{GetCertificate, RevokeCertificate},
    endpoint::{Endpoint, Operation},
    health::{ApiHealth, Health},
    metrics::{DashboardSummary, Metrics},
};
use serde_json::{Map, Value, json};

use crate::{
    args::{Action, Call, Command, Filter, Format},
    failure::Failure,
    import,
    output::{self, Columns},
    renew,
};

const CERTIFICATES: Columns = &[
    ("ID", "id"),
    ("COMMON NAME", "common_name"),
    ("STATUS", "status"),
    ("EXPIRES", "expires_at"),
    ("ISSUER", "issuer_id"),
];
const AGENTS: Columns = &[
    ("ID", "id"),
    ("HOST", "hostname"),
    ("STATUS", "status"),
    ("OS", "os"),
    ("ARCH", "architecture"),
    ("ADDRESS", "ip_address"),
    ("LAST HEARTBEAT", "last_heartbeat_at"),
];
const JOBS: Columns = &[
    ("ID", "id"),
    ("TYPE", "type"),
    ("CERTIFICATE", "certificate_id"),
    ("STATUS", "status"),
    ("ATTEMPTS", "attempts"),
    ("CREATED", "created_at"),
    ("LAST ERROR", "last_error"),
];
const OPERATIONS: Columns = &[
    ("OPERATION", "operation"),
    ("METHOD", "method"),
    ("PATH", "path"),
    ("SUMMARY", "summary"),
];

/// Does what was typed.
pub(crate) async fn run(client: &Client, command: Command, format: Option<Format>) -> Result<(), Failure> {
    let lists_as = format.unwrap_or(Format::Table);
    let things_as = format.unwrap_or(Format::Json);
    match command.into_action() {
        Action::ListCerts(filter) => list(client, filter, CERTIFICATES, lists_as).await,
        Action::ListAgents(filter) => list(client, filter, AGENTS, lists_as).await,
        Action::ListJobs(filter) => list(client, filter, JOBS, lists_as).await,
        Action::GetCert(which) => show(
            &ask::<GetCertificate>(client, json!({ "id": which.id })).await?,
            things_as,
        ),
        Action::Metrics => show(&ask::<Metrics>(client, json!({})).await?, things_as),
        Action::RenewCert(renew) => renew::run(client, renew, lists_as).await,
        Action::RevokeCert(revoke) => {
            let input = json!({ "id": revoke.id, "reason": revoke.reason });
            let answer = ask::<RevokeCertificate>(client, input).await?;
            tell(
                &answer,
                &format!("{} is revoked ({})", revoke.id, revoke.reason),
                lists_as,
            )
        }
        Action::Health => {
            let answer = ask::<Health>(client, json!({})).await?;
            tell(&answer, answer["status"].as_str().unwrap_or("?"), lists_as)
        }
        Action::Status => {
            let health = ask::<ApiHealth>(client, json!({})).await?;
            let summary = ask::<DashboardSummary>(client, json!({})).await?;
            show(&json!({ "health": health, "summary": summary }), lists_as)
        }
        Action::Import(files) => import::run(client, &files.files, lists_as).await,
        Action::Call(call) if call.list => operations(lists_as),
        Action::Call(call) => any(client, call, things_as).await,
        Action::Version => Ok(output::line(concat!("certctl-cli ", env!("CARGO_PKG_VERSION")))?),
    }
}

/// Calls an operation whose answer is JSON.
async fn ask<E: Endpoint>(client: &Client, input: Value) -> Result<Value, Failure> {
    let Value::Object(input) = input else {
        unreachable!("inputs are written as objects")
    };
    match client.call_json(&Operation::of::<E>("", ""), input).await?.body {
        Body::Json(value) => Ok(value),
        Body::Empty | Body::Bytes { .. } => Err(Failure::Failed(format!(
            "the server's answer to {} is not JSON; is the address right?",
            E::NAME
        ))),
    }
}

async fn list<E: Endpoint>(
    client: &Client,
    filter: Filter<E>,
    columns: Columns,
    format: Format,
) -> Result<(), Failure> {
    let page = ask::<E>(client, Value::Object(filter.query)).await?;
    if format == Format::Json {
        return Ok(output::json(&page)?);
    }
    let rows = page["data"].as_array().map(Vec::as_slice).unwrap_or_default();
    output::rows(rows, columns)?;
    output::line(&format!("{} of {}", rows.len(), page["total"]))?;
    if let Some(cursor) = page["next_cursor"].as_str() {
        output::line(&format!("more: --cursor {cursor}"))?;
    }
    Ok(())
}

/// Shows one thing.
pub(crate) fn show(value: &Value, format: Format) -> Result<(), Failure> {
    match format {
        Format::Json => output::json(value)?,
        Format::Table => output::keys(value)?,
    }
    Ok(())
}

/// Says what was done, or shows the server's answer.
pub(crate) fn tell(answer: &Value, sentence: &str, format: Format) -> Result<(), Failure> {
    match format {
        Format::Json => output::json(answer)?,
        Format::Table => output::line(sentence)?,
    }
    Ok(())
}

fn operations(format: Format) -> Result<(), Failure> {
    let row = |o: &Operation| json!({ "operation": o.id(), "method": o.method.as_str(), "path": o.path(), "summary": o.summary() });
    let rows: Vec<Value> = catalogue().iter().map(row).collect();
    match format {
        Format::Json => output::json(&Value::Array(rows))?,
        Format::Table => output::rows(&rows, OPERATIONS)?,
    }
    Ok(())
}

async fn any(client: &Client, call: Call, format: Format) -> Result<(), Failure> {
    let name = call.operation.unwrap_or_default().replace('-', "_");
    let id = name.strip_prefix("certctl_").unwrap_or(&name);
    let operation = catalogue().into_iter().find(|o| o.id() == id).ok_or_else(|| {
        Failure::Usage(format!(
            "there is no operation {name}; `certctl-cli call --list` lists them"
        ))
    })?;
    let input = input(call.json.as_deref())?;
    match client.call_json(&operation, input).await?.body {
        Body::Json(value) => show(&value, format),
        Body::Empty => Ok(()),
        Body::Bytes { content_type, bytes } if io::stdout().is_terminal() => {
            let note = "redirect standard output to have them";
            Ok(output::line(&format!(
                "{} octets of {content_type}; {note}",
                bytes.len()
            ))?)
        }
        Body::Bytes { bytes, .. } => Ok(output::write(&bytes)?),
    }
}

/// Reads the JSON itself, `@file`, or `-`.
fn input(given: Option<&str>) -> Result<Map<String, Value>, Failure> {
    let text = match given {
        None => return Ok(Map::new()),
        Some("-") => {
            let mut text = String::new();
            let read = io::stdin().read_to_string(&mut text);
            read.map_err(|e| Failure::Usage(format!("standard input: {e}")))?;
            text
        }
        Some(given) => match given.strip_prefix('@') {
            Some(path) => fs::read_to_string(path).map_err(|e| Failure::Usage(format!("{path}: {e}")))?,
            None => given.to_owned(),
        },
    };
    serde_json::from_str(&text).map_err(|e| Failure::Usage(format!("--json: an object is needed: {e}")))
}
