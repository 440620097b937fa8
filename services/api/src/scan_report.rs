//! An agent's report of what it found, read as it arrives: piece by piece, off the async threads, in bounded memory.

use std::{
    fmt,
    io::{BufRead, BufReader, Read},
    marker::PhantomData,
};

use certctl_model::name::San;
use certctl_store::discovery::Found;
use certctl_x509::{facts::CertificateFacts, pem};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::Number;

/// Certificates in one report at most.
const MOST_CERTIFICATES: usize = 200_000;
/// Directories in one report at most.
const MOST_DIRECTORIES: usize = 10_000;
/// The longest PEM of one certificate that is read, in octets.
const MAX_PEM: usize = 256 * 1024;
/// The longest path, in octets.
const MAX_PATH: usize = 1024;

/// One piece of a report.
#[derive(Debug)]
pub enum Piece {
    /// A directory that was walked.
    Directory(String),
    /// A certificate that was found, or why it cannot be stored.
    Certificate(Result<Box<Found>, String>),
    /// What the agent could not read.
    Error(String),
    /// How long it took, in milliseconds.
    Duration(i64),
    /// Whether certificates were left out.
    Partial(bool),
}

/// Reads a report and hands on its pieces in the order they come in. As everywhere, no body and `null` count as `{}`.
///
/// # Errors
/// When it is not a report in JSON, or `emit` wants no more.
pub fn read(reader: impl Read, mut emit: impl FnMut(Piece) -> Result<(), String>) -> Result<(), serde_json::Error> {
    let mut reader = BufReader::with_capacity(64 * 1024, reader);
    if reader.fill_buf().map_err(serde_json::Error::io)?.is_empty() {
        return Ok(());
    }
    let mut json = serde_json::Deserializer::from_reader(reader);
    json.deserialize_option(Report { emit: &mut emit })?;
    json.end()
}

type Emit<'a> = &'a mut dyn FnMut(Piece) -> Result<(), String>;

struct Report<'a> {
    emit: Emit<'a>,
}

impl<'de> Visitor<'de> for Report<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a report: an object")
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_map(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "directories" => {
                    let piece = |text: String| Piece::Directory(cut(&text, MAX_PATH));
                    map.next_value_seed(Each::new(&mut *self.emit, MOST_DIRECTORIES, piece))?;
                }
                "certificates" => {
                    let piece = |entry: Entry| Piece::Certificate(entry.found().map(Box::new));
                    map.next_value_seed(Each::new(&mut *self.emit, MOST_CERTIFICATES, piece))?;
                }
                "errors" => {
                    let piece = |text: String| Piece::Error(cut(&text, 500));
                    map.next_value_seed(Each::new(&mut *self.emit, usize::MAX, piece))?;
                }
                "scan_duration_ms" => {
                    let duration = map.next_value::<Option<Number>>()?;
                    let duration = duration.map(|number| whole(&number)).transpose();
                    let duration = duration.map_err(serde::de::Error::custom)?.unwrap_or(0);
                    (self.emit)(Piece::Duration(duration)).map_err(serde::de::Error::custom)?;
                }
                "partial" => {
                    let partial = map.next_value::<Option<bool>>()?.unwrap_or(false);
                    (self.emit)(Piece::Partial(partial)).map_err(serde::de::Error::custom)?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// A whole number, `5.0` among them: to JSON Schema it is one.
fn whole(number: &Number) -> Result<i64, String> {
    let float = || number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 9e15);
    let whole = number.as_i64().or_else(|| float().map(|n| n as i64));
    whole.ok_or_else(|| format!("scan_duration_ms is a whole number, not {number}"))
}

/// The elements of an array, or none when it is null.
struct Each<'a, T, F: Fn(T) -> Piece> {
    emit: Emit<'a>,
    most: usize,
    piece: F,
    of: PhantomData<T>,
}

impl<'a, T, F: Fn(T) -> Piece> Each<'a, T, F> {
    fn new(emit: Emit<'a>, most: usize, piece: F) -> Self {
        let of = PhantomData;
        Self { emit, most, piece, of }
    }
}

impl<'de, T: Deserialize<'de>, F: Fn(T) -> Piece> DeserializeSeed<'de> for Each<'_, T, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_option(self)
    }
}

impl<'de, T: Deserialize<'de>, F: Fn(T) -> Piece> Visitor<'de> for Each<'_, T, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array or null")
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_seq(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        let mut count = 0;
        while let Some(element) = elements.next_element::<T>()? {
            count += 1;
            if count > self.most {
                let most = self.most;
                return Err(serde::de::Error::custom(format!("more than {most} in one array")));
            }
            (self.emit)((self.piece)(element)).map_err(serde::de::Error::custom)?;
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    pem_data: Option<String>,
    #[serde(default)]
    source_path: Option<String>,
    #[serde(default)]
    source_format: Option<String>,
}

impl Entry {
    /// Reads the certificate. What the report claims of it does not matter.
    fn found(self) -> Result<Found, String> {
        let path = self.source_path.unwrap_or_default();
        let of = |why: String| format!("{}: {why}", cut(&path, 200));
        if path.len() > MAX_PATH || path.contains('\0') {
            return Err(of(format!(
                "the path is longer than {MAX_PATH} octets or holds a NUL character"
            )));
        }
        let blocks = pem::decode_all(self.pem_data.as_deref().unwrap_or_default(), MAX_PEM);
        let blocks = blocks.map_err(|error| of(error.to_string()))?;
        let block = blocks.into_iter().find(|block| block.label == "CERTIFICATE");
        let block = block.ok_or_else(|| of("its pem_data holds no certificate".to_owned()))?;
        let facts = CertificateFacts::inventory_der(&block.der).map_err(|error| of(error.to_string()))?;
        Ok(Found {
            fingerprint: facts.fingerprint,
            common_name: cut(facts.common_name.as_deref().unwrap_or_default(), 255),
            sans: facts.sans.iter().map(San::to_string).collect(),
            serial: facts.serial,
            issuer: cut(&facts.issuer, 1024),
            subject: cut(&facts.subject, 1024),
            not_before: facts.not_before,
            not_after: facts.not_after,
            key: facts.key,
            is_ca: facts.is_ca,
            der: facts.der,
            format: cut(self.source_format.as_deref().unwrap_or("PEM"), 16),
            path,
        })
    }
}

/// A text without control characters, cut to so many characters.
pub fn cut(text: &str, most: usize) -> String {
    text.chars()
        .filter(|c| !certctl_model::text::is_hidden(*c))
        .take(most)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(json: &str) -> Result<Vec<Piece>, String> {
        let mut all = vec![];
        read(json.as_bytes(), |piece| {
            all.push(piece);
            Ok(())
        })
        .map(|()| all)
        .map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_in_any_spelling_is_an_empty_report() {
        for json in [
            "",
            "null",
            "{}",
            r#"{"directories": null, "certificates": null, "errors": null, "more": {"a": [1]}}"#,
            r#"{"directories": [], "certificates": [], "errors": []}"#,
        ] {
            assert_eq!(pieces(json).unwrap().len(), 0, "{json}");
        }
    }

    #[test]
    fn a_whole_number_may_be_written_as_a_fraction() {
        for (json, expected) in [("7.0", 7), ("-1e3", -1000), ("12", 12), ("null", 0)] {
            let all = pieces(&format!(r#"{{"scan_duration_ms": {json}}}"#)).unwrap();
            assert!(
                matches!(all[..], [Piece::Duration(ms)] if ms == expected),
                "{json}: {all:?}"
            );
        }
    }

    #[test]
    fn what_is_not_a_report_is_refused() {
        for json in [
            " ",
            "[]",
            "{",
            "null {}",
            r#"{"certificates": [{]}"#,
            r#"{"certificates": {}}"#,
            r#"{"certificates": ["text"]}"#,
            r#"{"directories": [1]}"#,
            r#"{"scan_duration_ms": "long"}"#,
            r#"{"scan_duration_ms": 1.5}"#,
            r#"{"scan_duration_ms": 1e300}"#,
            "{} {}",
        ] {
            assert!(pieces(json).is_err(), "{json}");
        }
    }

    #[test]
    fn an_entry_that_holds_no_certificate_spoils_nothing_else() {
        let long = "x".repeat(2000);
        let json = format!(
            r#"{{"errors": ["a\u0000b"], "certificates": [{{}}, {{"pem_data": "-----BEGIN CERTIFICATE-----\nAQI=\n-----END CERTIFICATE-----"}},
                {{"source_path": "{long}"}}, {{"source_path": "/a\u0000b"}}], "scan_duration_ms": 7}}"#
        );
        let all = pieces(&json).unwrap();
        let bad = all
            .iter()
            .filter(|piece| matches!(piece, Piece::Certificate(Err(_))))
            .count();
        assert_eq!((all.len(), bad), (6, 4));
        assert!(matches!(&all[0], Piece::Error(text) if text == "ab"));
    }

    #[test]
    fn whoever_wants_no_more_gets_no_more() {
        let mut seen = 0;
        let done = read(r#"{"directories": ["a", "b", "c"]}"#.as_bytes(), |_| {
            seen += 1;
            Err("enough".to_owned())
        });
        assert!(done.is_err());
        assert_eq!(seen, 1);
    }
}
