//! Tables, JSON, and a standard output that may be closed.

use std::io::{self, IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;

/// Columns of a table: heading and key.
pub(crate) type Columns = &'static [(&'static str, &'static str)];

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
pub(crate) fn rows(rows: &[Value], columns: Columns) -> io::Result<()> {
    let mut table = table();
    table.set_header(columns.iter().map(|(heading, _)| *heading));
    for row in rows {
        table.add_row(columns.iter().map(|(_, key)| cell(&row[*key])));
    }
    finish(table)
}

/// Writes one thing as a table of its keys; keys of inner objects follow a dot.
pub(crate) fn keys(value: &Value) -> io::Result<()> {
    let mut pairs = Vec::new();
    flatten("", value, &mut pairs);
    let mut table = table();
    for (key, text) in pairs {
        table.add_row([key, text]);
    }
    finish(table)
}

fn table() -> Table {
    let mut table = Table::new();
    if io::stdout().is_terminal() {
        table
            .load_style(presets::UTF8_HORIZONTAL_ONLY)
            .set_content_arrangement(ContentArrangement::Dynamic);
    } else {
        table.load_style(presets::NOTHING);
    }
    table
}

fn finish(mut table: Table) -> io::Result<()> {
    if !io::stdout().is_terminal() {
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
