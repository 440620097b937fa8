//! Lists: one page, or all of them one after the other.

use certctl_contract::{endpoint::Operation, list::MAX_PER_PAGE};
use serde_json::{Map, Value, json};

use crate::{
    args::Format,
    commands::Session,
    failure::Failure,
    output::{self, Column, Columns},
};

const CERTIFICATES: Columns = &[
    ("ID", "id"),
    ("COMMON NAME", "common_name"),
    ("STATUS", "status"),
    ("DEPLOYMENT", "deployment_status"),
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

/// The columns of a list: those that were asked for, those chosen for its kind, or what its rows have.
pub(crate) fn columns(operation: &Operation, input: &Map<String, Value>, rows: &[Value]) -> Vec<Column> {
    if let Some(fields) = input.get("fields").and_then(Value::as_str) {
        let heading = |key: &str| (key.to_ascii_uppercase().replace('_', " "), key.to_owned());
        return fields
            .split(',')
            .map(str::trim)
            .filter(|key| !key.is_empty())
            .map(heading)
            .collect();
    }
    match operation.id().as_str() {
        "list_certificates" => output::owned(CERTIFICATES),
        "list_agents" => output::owned(AGENTS),
        "list_jobs" => output::owned(JOBS),
        _ => output::columns_of(rows),
    }
}

/// Shows one page.
pub(crate) async fn page(session: &Session, operation: &Operation, input: Map<String, Value>) -> Result<(), Failure> {
    let page = session.ask(operation, input.clone()).await?;
    show(session, operation, &input, &page)
}

/// Shows a page that has come.
pub(crate) fn show(
    session: &Session,
    operation: &Operation,
    input: &Map<String, Value>,
    page: &Value,
) -> Result<(), Failure> {
    if session.lists_as() == Format::Json {
        return Ok(output::json(page)?);
    }
    let rows = page["data"].as_array().map(Vec::as_slice).unwrap_or_default();
    output::rows(rows, &columns(operation, input, rows), session.style)?;
    output::line(&format!("{} of {}", rows.len(), page["total"]))?;
    if let Some(cursor) = page["next_cursor"].as_str() {
        output::line(&format!("more: --all, or --cursor {cursor}"))?;
    }
    Ok(())
}

/// Shows every page, holding one at a time. As JSON it is one document in the shape of a page.
pub(crate) async fn walk(
    session: &Session,
    operation: &Operation,
    mut input: Map<String, Value>,
) -> Result<(), Failure> {
    let size = ["page_size", "per_page"]
        .into_iter()
        .find_map(|name| input.get(name).cloned());
    input.retain(|name, _| !matches!(name.as_str(), "page" | "per_page"));
    input.insert("page_size".into(), size.unwrap_or_else(|| json!(MAX_PER_PAGE)));
    let format = session.lists_as();
    let (mut shown, mut table) = (0, None);
    if format == Format::Json {
        output::write(b"{\"data\":[")?;
    }
    loop {
        let page = session.ask(operation, input.clone()).await?;
        let rows = page["data"].as_array().map(Vec::as_slice).unwrap_or_default();
        match format {
            Format::Table => {
                let table =
                    table.get_or_insert_with(|| output::Rolling::new(columns(operation, &input, rows), session.style));
                table.rows(rows)?;
            }
            Format::Json => {
                let mut text = String::new();
                for (n, row) in rows.iter().enumerate() {
                    text.push_str(if shown + n > 0 { ",\n" } else { "\n" });
                    text.push_str(&output::escaped(&row.to_string()));
                }
                output::write(text.as_bytes())?;
            }
        }
        shown += rows.len();
        match page["next_cursor"].as_str() {
            Some(cursor) => input.insert("cursor".into(), json!(cursor)),
            None => break,
        };
    }
    match format {
        Format::Table => output::line(&format!("{shown} in all"))?,
        Format::Json => output::write(format!("\n],\"total\":{shown}}}\n").as_bytes())?,
    }
    Ok(())
}
