//! Rows in the text format of `COPY`.

use std::fmt::Write as _;

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::estate::Millis;

/// Rows of one table, as text.
#[derive(Default)]
pub(crate) struct Rows {
    text: String,
    count: u64,
}

impl Rows {
    /// Adds a row, which `fill` writes field by field.
    pub(crate) fn row(&mut self, fill: impl FnOnce(&mut Row<'_>)) {
        fill(&mut Row {
            text: &mut self.text,
            started: false,
        });
        self.text.push('\n');
        self.count += 1;
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn octets(self) -> Vec<u8> {
        self.text.into_bytes()
    }
}

/// One row under construction.
pub(crate) struct Row<'a> {
    text: &'a mut String,
    started: bool,
}

impl Row<'_> {
    fn next(&mut self) -> &mut Self {
        if self.started {
            self.text.push('\t');
        }
        self.started = true;
        self
    }

    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.next();
        for c in text.chars() {
            match c {
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                c => self.text.push(c),
            }
        }
        self
    }

    pub(crate) fn null(&mut self) -> &mut Self {
        self.next().text.push_str("\\N");
        self
    }

    pub(crate) fn maybe(&mut self, text: Option<&str>) -> &mut Self {
        match text {
            Some(text) => self.text(text),
            None => self.null(),
        }
    }

    pub(crate) fn number(&mut self, number: u64) -> &mut Self {
        let _ = write!(self.next().text, "{number}");
        self
    }

    pub(crate) fn time(&mut self, at: Millis) -> &mut Self {
        let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(at) * 1_000_000).expect("years of four digits");
        let text = at.format(&Rfc3339).expect("years of four digits");
        self.next().text.push_str(&text);
        self
    }

    pub(crate) fn maybe_time(&mut self, at: Option<Millis>) -> &mut Self {
        match at {
            Some(at) => self.time(at),
            None => self.null(),
        }
    }

    /// An array of texts.
    pub(crate) fn list<T: AsRef<str>>(&mut self, items: &[T]) -> &mut Self {
        let quoted = |item: &T| format!("\"{}\"", item.as_ref().replace('\\', "\\\\").replace('"', "\\\""));
        let items: Vec<String> = items.iter().map(quoted).collect();
        self.text(&format!("{{{}}}", items.join(",")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_separated_and_escaped() {
        let mut rows = Rows::default();
        rows.row(|row| {
            row.text("a\tb\\\n").null().number(7).time(1_500).list(&["x", "\"y\""]);
        });
        rows.row(|row| {
            row.maybe(None).maybe_time(None);
        });
        assert_eq!(rows.count(), 2);
        assert_eq!(
            String::from_utf8(rows.octets()).unwrap(),
            "a\\tb\\\\\\n\t\\N\t7\t1970-01-01T00:00:01.5Z\t{\"x\",\"\\\\\"y\\\\\"\"}\n\\N\t\\N\n"
        );
    }
}
