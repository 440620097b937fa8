//! Tables, JSON, and a standard output that may be closed.

use std::io::{self, IsTerminal, Write};

use comfy_table::{Cell, Color, ColumnConstraint, ContentArrangement, Table, Width, presets};
use serde_json::Value;

/// Columns of a table: heading and key.
pub(crate) type Columns = &'static [(&'static str, &'static str)];
/// The same, made as needed.
pub(crate) type Column = (String, String);

/// The columns, owned.
pub(crate) fn owned(columns: Columns) -> Vec<Column> {
    columns
        .iter()
        .map(|(heading, key)| ((*heading).to_owned(), (*key).to_owned()))
        .collect()
}

/// Keys that say most about a thing, in the order in which they stand.
const TELLING: &[&str] = &[
    "id",
    "name",
    "common_name",
    "hostname",
    "type",
    "kind",
    "action",
    "role",
    "certificate_id",
    "status",
    "severity",
    "enabled",
    "outcome",
    "date",
    "count",
    "subject",
    "actor",
    "resource_id",
    "agent_id",
    "owner_id",
    "team_id",
    "email",
    "version",
    "serial_number",
    "not_after",
    "expires_at",
    "timestamp",
    "created_at",
];
const MOST_COLUMNS: usize = 7;

/// Columns for rows of any kind: what says most about them, else their first keys.
pub(crate) fn columns_of(rows: &[Value]) -> Vec<Column> {
    let Some(first) = rows.first().and_then(Value::as_object) else {
        return vec![("ID".to_owned(), "id".to_owned())];
    };
    let telling = TELLING
        .iter()
        .filter(|key| first.contains_key(**key))
        .map(|key| (*key).to_owned());
    let plain = first
        .iter()
        .filter(|(_, value)| !value.is_object() && !value.is_array());
    let plain = plain
        .map(|(key, _)| key.clone())
        .filter(|key| !TELLING.contains(&key.as_str()));
    let keys = telling.chain(plain).take(MOST_COLUMNS);
    keys.map(|key| (key.to_ascii_uppercase().replace('_', " "), key))
        .collect()
}

/// Whether tables are drawn for a terminal, and coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Style {
    terminal: bool,
    color: bool,
}

impl Style {
    /// Looks at standard output; what was asked for goes before.
    pub(crate) fn new(color: Option<bool>) -> Self {
        let terminal = io::stdout().is_terminal();
        Self {
            terminal,
            color: color.unwrap_or(terminal),
        }
    }

    /// Clears a terminal; anything else is left alone.
    pub(crate) fn clear(self) -> io::Result<()> {
        match self.terminal {
            true => write(b"\x1b[H\x1b[2J"),
            false => Ok(()),
        }
    }

    /// Words of states in the colour of what they mean.
    fn cell(self, key: &str, value: &Value) -> Cell {
        let text = cell(value);
        let states = matches!(key, "status" | "severity" | "outcome" | "enabled");
        let color = match text.to_ascii_lowercase().as_str() {
            _ if !self.color || !states => None,
            "active" | "completed" | "online" | "healthy" | "sent" | "created" | "managed" | "true" => {
                Some(Color::Green)
            }
            "expired" | "failed" | "revoked" | "offline" | "critical" | "error" | "rejected" => Some(Color::Red),
            "expiring" | "warning" | "awaitingapproval" | "cancelled" | "degraded" | "duplicate" => Some(Color::Yellow),
            "running" | "renewalinprogress" | "pending" | "awaitingcsr" => Some(Color::Cyan),
            _ => None,
        };
        match color {
            Some(color) => Cell::new(text).fg(color),
            None => Cell::new(text),
        }
    }
}

/// Writes to standard output.
///
/// # Errors
/// When it cannot be written, above all because the reader has gone.
pub(crate) fn write(octets: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(octets)?;
    out.flush()
}

/// Writes a line.
pub(crate) fn line(text: &str) -> io::Result<()> {
    write(format!("{text}\n").as_bytes())
}

/// Writes a line to standard error; when that is closed too, there is nobody to tell.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{}", harmless(text));
}

/// Writes JSON.
pub(crate) fn json(value: &Value) -> io::Result<()> {
    line(&format!("{value:#}"))
}

/// Writes rows as a table: with lines on a terminal, as plain columns elsewhere.
pub(crate) fn rows(rows: &[Value], columns: &[Column], style: Style) -> io::Result<()> {
    let mut table = table(style);
    table.set_header(columns.iter().map(|(heading, _)| heading));
    for row in rows {
        table.add_row(columns.iter().map(|(_, key)| style.cell(key, &row[key])));
    }
    finish(table, style)
}

/// A table that goes on page after page; its columns are at least as wide as those of the first.
pub(crate) struct Rolling {
    columns: Vec<Column>,
    style: Style,
    widths: Vec<u16>,
}

impl Rolling {
    /// Begins one.
    pub(crate) fn new(columns: Vec<Column>, style: Style) -> Self {
        Self {
            columns,
            style,
            widths: vec![],
        }
    }

    /// Writes more rows; the heading stands above the first.
    pub(crate) fn rows(&mut self, rows: &[Value]) -> io::Result<()> {
        let mut table = table(self.style);
        table.load_style(presets::NOTHING);
        if self.widths.is_empty() {
            table.set_header(self.columns.iter().map(|(heading, _)| heading));
        }
        for row in rows {
            table.add_row(self.columns.iter().map(|(_, key)| self.style.cell(key, &row[key])));
        }
        if self.widths.is_empty() {
            self.widths = table
                .column_max_content_widths()
                .iter()
                .map(|width| width.saturating_add(2))
                .collect();
        } else if rows.is_empty() {
            return Ok(());
        }
        table.set_constraints(
            self.widths
                .iter()
                .map(|width| ColumnConstraint::LowerBoundary(Width::Fixed(*width))),
        );
        finish(
            table,
            Style {
                terminal: false,
                ..self.style
            },
        )
    }
}

/// Writes one thing as a table of its keys; keys of inner objects follow a dot.
pub(crate) fn keys(value: &Value, style: Style) -> io::Result<()> {
    let mut pairs = Vec::new();
    flatten("", value, &mut pairs);
    let mut table = table(style);
    for (key, text) in pairs {
        let value = style.cell(key.rsplit('.').next().unwrap_or(&key), &Value::from(text));
        table.add_row([Cell::new(key), value]);
    }
    finish(table, style)
}

fn table(style: Style) -> Table {
    let mut table = Table::new();
    if style.terminal {
        table
            .load_style(presets::UTF8_HORIZONTAL_ONLY)
            .set_content_arrangement(ContentArrangement::Dynamic);
    } else {
        table.load_style(presets::NOTHING);
    }
    match style.color {
        true => table.enforce_styling(),
        false => table.force_no_tty(),
    };
    table
}

fn finish(mut table: Table, style: Style) -> io::Result<()> {
    if !style.terminal {
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
    }
    line(&table.trim_fmt())
}

fn flatten(path: &str, value: &Value, pairs: &mut Vec<(String, String)>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, inner) in map {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                flatten(&path, inner, pairs);
            }
        }
        _ => pairs.push((path.to_owned(), cell(value))),
    }
}

/// A value as it stands in a table: times in UTC without fractions, and nothing that could steer the terminal.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => moment(text).unwrap_or_else(|| harmless(text)),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => value.to_string(),
    }
}

fn harmless(text: &str) -> String {
    let visible = |c: char| if c.is_control() && c != '\n' { '\u{fffd}' } else { c };
    text.chars().map(visible).collect()
}

/// `2026-11-23T12:07:06.549528Z` as `2026-11-23 12:07:06Z`. The API writes every time in UTC.
fn moment(text: &str) -> Option<String> {
    const SHAPE: &str = "dddd-dd-ddTdd:dd:dd";
    let (whole, rest) = text.strip_suffix('Z')?.split_at_checked(SHAPE.len())?;
    let fits = |(c, shape): (char, char)| if shape == 'd' { c.is_ascii_digit() } else { c == shape };
    let is_fraction = rest.is_empty() || rest.strip_prefix('.')?.bytes().all(|b| b.is_ascii_digit());
    (is_fraction && whole.chars().zip(SHAPE.chars()).all(fits)).then(|| format!("{}Z", whole.replace('T', " ")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn cells_are_for_people_and_cannot_steer_the_terminal() {
        for (value, text) in [
            (json!("2026-11-23T12:07:06.549528Z"), "2026-11-23 12:07:06Z"),
            (json!("2026-11-23T12:07:06Z"), "2026-11-23 12:07:06Z"),
            (json!("2026-11-23T12:07:06 no Z"), "2026-11-23T12:07:06 no Z"),
            (json!("évidemment pas un temps Z"), "évidemment pas un temps Z"),
            (json!("a\u{1b}[2Jb\tc"), "a\u{fffd}[2Jb\u{fffd}c"),
            (json!(null), "-"),
            (json!(""), "-"),
            (json!(["a", "b"]), "a, b"),
            (json!(3), "3"),
        ] {
            assert_eq!(cell(&value), text);
        }
    }

    #[test]
    fn keys_of_inner_objects_follow_a_dot() {
        let mut pairs = Vec::new();
        flatten("", &json!({ "a": 1, "b": { "c": "x", "d": {} } }), &mut pairs);
        let pairs: Vec<String> = pairs.into_iter().map(|(key, text)| format!("{key}={text}")).collect();
        assert_eq!(pairs, ["a=1", "b.c=x", "b.d={}"]);
    }
}
