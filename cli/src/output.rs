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

/// Writes to standard output, as it is: octets of a file, or text that was made here.
///
/// # Errors
/// When it cannot be written, above all because the reader has gone.
pub(crate) fn write(octets: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(octets)?;
    out.flush()
}

/// Writes what a server sent, piece by piece: as it is, unless a terminal would obey it.
#[derive(Default)]
pub(crate) struct Passing {
    /// The beginning of a character whose rest has not come.
    rest: Vec<u8>,
}

impl Passing {
    /// Writes the next octets.
    ///
    /// # Errors
    /// As [`write()`].
    pub(crate) fn write(&mut self, octets: &[u8]) -> io::Result<()> {
        match io::stdout().is_terminal() {
            true => write(self.shown(octets).as_bytes()),
            false => write(octets),
        }
    }

    fn shown(&mut self, octets: &[u8]) -> String {
        let mut all = std::mem::take(&mut self.rest);
        all.extend_from_slice(octets);
        let whole = match std::str::from_utf8(&all) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => all.len(),
        };
        self.rest = all.split_off(whole);
        let text = String::from_utf8_lossy(&all).replace("\r\n", "\n");
        let kept = |c| if matches!(c, '\n' | '\t') { c } else { visible(c) };
        text.chars().map(kept).collect()
    }
}

/// Writes one line, whatever the text holds.
pub(crate) fn line(text: &str) -> io::Result<()> {
    write(format!("{}\n", harmless(text)).as_bytes())
}

/// Writes one line to standard error, whatever the text holds; when that is closed too, there is nobody to tell.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{}", harmless(text));
}

/// Writes JSON.
pub(crate) fn json(value: &Value) -> io::Result<()> {
    write(format!("{}\n", escaped(&format!("{value:#}"))).as_bytes())
}

/// JSON in which characters that steer a terminal are escape sequences of JSON: the same to every parser. JSON itself
/// asks for that of the controls of ASCII only, DEL not included.
pub(crate) fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match steers(c) && c != '\n' {
            true => text.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => text.push(c),
        }
    }
    text
}

/// Controls of ASCII and of ISO 6429 (C1), separators of lines, and what turns the direction of text or hides in it.
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

fn visible(c: char) -> char {
    if steers(c) { '\u{fffd}' } else { c }
}

/// Text of one line that cannot steer a terminal.
pub(crate) fn harmless(text: &str) -> String {
    text.trim_end_matches('\n')
        .chars()
        .map(|c| if c == '\n' { ' ' } else { visible(c) })
        .collect()
}

/// Writes rows as a table: with lines on a terminal, as plain columns elsewhere.
pub(crate) fn rows(rows: &[Value], columns: &[Column], style: Style) -> io::Result<()> {
    let mut table = table(style);
    table.set_header(columns.iter().map(|(heading, _)| harmless(heading)));
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
            table.set_header(self.columns.iter().map(|(heading, _)| harmless(heading)));
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
        table.add_row([Cell::new(harmless(&key)), value]);
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
    // Colours are sequences that we made; cells hold none of their own.
    write(format!("{}\n", table.trim_fmt()).as_bytes())
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
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => harmless(&value.to_string()),
    }
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
            (json!("a\nb\u{9b}2Jc\u{7f}"), "a b\u{fffd}2Jc\u{fffd}"),
            (json!("x\u{202e}txt.exe\u{2066}"), "x\u{fffd}txt.exe\u{fffd}"),
            (json!({ "k\u{9b}": "\u{202e}" }), "{\"k\u{fffd}\":\"\u{fffd}\"}"),
            (json!(null), "-"),
            (json!(""), "-"),
            (json!(["a", "b"]), "a, b"),
            (json!(3), "3"),
        ] {
            assert_eq!(cell(&value), text);
        }
    }

    #[test]
    fn json_is_the_same_value_and_cannot_steer_the_terminal() {
        let value = json!({ "a\u{1b}[2J\u{9b}": "x\u{202e}\u{7f}\u{2028}\nü\u{1f600}" });
        for text in [format!("{value:#}"), value.to_string()] {
            let text = escaped(&text);
            assert!(!text.chars().any(|c| steers(c) && c != '\n'), "{text:?}");
            assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
        }
    }

    #[test]
    fn a_message_is_one_line() {
        assert_eq!(
            harmless("error: a\nerror: b\r\u{1b}[1A\n"),
            "error: a error: b\u{fffd}\u{fffd}[1A"
        );
    }

    #[test]
    fn a_file_on_a_terminal_cannot_steer_it_wherever_its_pieces_end() {
        let text = "a\tü\r\nb\u{9b}2J\u{1b}]0;x\u{202e}\n";
        for size in 1..text.len() {
            let mut passing = Passing::default();
            let shown: String = text.as_bytes().chunks(size).map(|piece| passing.shown(piece)).collect();
            let shown = shown.replace(['\u{fffd}', '\r'], "");
            assert_eq!(shown, "a\tü\nb2J]0;x\n", "pieces of {size}");
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
