//! PEM armour (RFC 7468): read leniently, written strictly.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose};
use zeroize::Zeroizing;

/// One armoured block.
#[derive(Clone, PartialEq, Eq)]
pub struct Block {
    /// What stands between `-----BEGIN ` and `-----`.
    pub label: String,
    /// The decoded bytes.
    pub der: Vec<u8>,
}

/// Shows no bytes: a block may hold a private key.
impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Block({}, {} bytes)", self.label, self.der.len())
    }
}

/// Why text is not PEM.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// The text is longer than the caller reads.
    #[error("the PEM text has {found} bytes; at most {limit} are accepted")]
    TooLarge {
        /// Length of the text in bytes.
        found: usize,
        /// The caller's limit in bytes.
        limit: usize,
    },
    /// A `BEGIN` line has no `END` line with the same label.
    #[error("the PEM block \"{0}\" has no matching END line; send the whole block")]
    Unterminated(String),
    /// The lines between `BEGIN` and `END` are not base64.
    #[error("the PEM block \"{0}\" holds something that is not base64")]
    NotBase64(String),
    /// The block carries headers such as `Proc-Type: 4,ENCRYPTED` (RFC 1421), which RFC 7468 does not have.
    #[error("the PEM block \"{0}\" uses the old encryption headers; convert it with `openssl pkcs8 -topk8`")]
    Headers(String),
}

/// Decodes every block of `text` in the order it stands; text around the blocks is ignored.
///
/// One pass over the text, after its length is compared with `max_bytes`.
pub fn decode_all(text: &str, max_bytes: usize) -> Result<Vec<Block>, PemError> {
    decode_each(text, max_bytes)?
        .into_iter()
        .map(|found| found.block)
        .collect()
}

/// Like [`decode_all`], with an outcome for each block: a broken one does not spoil the others. There is one for every
/// `BEGIN` marker.
///
/// # Errors
/// [`PemError::TooLarge`] when the text is longer than `max_bytes`.
pub fn decode_each(text: &str, max_bytes: usize) -> Result<Vec<Found>, PemError> {
    if text.len() > max_bytes {
        return Err(PemError::TooLarge {
            found: text.len(),
            limit: max_bytes,
        });
    }
    let mut parser = Parser::new(max_bytes);
    let mut blocks = Vec::new();
    for line in text.lines() {
        parser.line(line, |found| blocks.push(found));
    }
    blocks.extend(parser.finish());
    Ok(blocks)
}

/// One block as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The line of its `BEGIN` marker, from 1.
    pub line: usize,
    /// The block, or what is wrong with it.
    pub block: Result<Block, PemError>,
}

/// Reads PEM line by line, with one block in memory.
///
/// Accepts what other readers accept: a byte order mark in front of a marker, markers that follow each other on one line
/// (files concatenated without a line end), and base64 on the line of a marker.
#[derive(Debug)]
pub struct Parser {
    max_block: usize,
    line: usize,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    label: String,
    line: usize,
    base64: Zeroizing<String>,
    error: Option<PemError>,
}

impl Parser {
    /// `max_block` limits the base64 of one block, in bytes.
    pub fn new(max_block: usize) -> Self {
        Self {
            max_block,
            line: 0,
            open: None,
        }
    }

    /// Takes the next line, without its line end, and hands out the blocks that end in it.
    pub fn line(&mut self, line: &str, mut found: impl FnMut(Found)) {
        self.line += 1;
        let mut rest = line;
        while !rest.is_empty() {
            let (data, marker, after) = split_at_marker(rest);
            self.data(data);
            match marker {
                Some(Marker::Begin(label)) => {
                    found_unterminated(self.open.take(), &mut found);
                    self.open = Some(Open {
                        label: label.to_owned(),
                        line: self.line,
                        // Room for a private key of the usual kinds: a text that grows leaves copies of it behind.
                        base64: Zeroizing::new(String::with_capacity(4096)),
                        error: None,
                    });
                }
                Some(Marker::End(label)) => match self.open.take() {
                    Some(open) if open.label == label => found(open.close()),
                    open => found_unterminated(open, &mut found),
                },
                None => {}
            }
            rest = after;
        }
    }

    /// The block that the text ends in, if any: it is not terminated.
    pub fn finish(self) -> Option<Found> {
        self.open.map(Open::unterminated)
    }

    fn data(&mut self, data: &str) {
        let Some(open) = &mut self.open else { return };
        if open.error.is_some() {
            return;
        }
        if data.contains(':') {
            open.error = Some(PemError::Headers(open.label.clone()));
        } else if open.base64.len() + data.len() > self.max_block {
            open.error = Some(PemError::TooLarge {
                found: open.base64.len() + data.len(),
                limit: self.max_block,
            });
        } else {
            open.base64.extend(data.split_ascii_whitespace());
        }
    }
}

impl Open {
    fn close(self) -> Found {
        let block = match self.error {
            Some(error) => Err(error),
            None => match BASE64.decode(self.base64.as_bytes()) {
                Ok(der) => Ok(Block { label: self.label, der }),
                Err(_) => Err(PemError::NotBase64(self.label)),
            },
        };
        Found { line: self.line, block }
    }

    fn unterminated(self) -> Found {
        Found {
            line: self.line,
            block: Err(self.error.unwrap_or(PemError::Unterminated(self.label))),
        }
    }
}

fn found_unterminated(open: Option<Open>, found: &mut impl FnMut(Found)) {
    if let Some(open) = open {
        found(open.unterminated());
    }
}

enum Marker<'a> {
    Begin(&'a str),
    End(&'a str),
}

/// The text before the first marker, the marker, and the text after it.
fn split_at_marker(text: &str) -> (&str, Option<Marker<'_>>, &str) {
    const DASHES: &str = "-----";
    for (at, _) in text.match_indices(DASHES) {
        let after = &text[at + DASHES.len()..];
        let (begins, label) = if let Some(label) = after.strip_prefix("BEGIN ") {
            (true, label)
        } else if let Some(label) = after.strip_prefix("END ") {
            (false, label)
        } else {
            continue;
        };
        if let Some((label, rest)) = label.split_once(DASHES) {
            let marker = if begins {
                Marker::Begin(label)
            } else {
                Marker::End(label)
            };
            return (&text[..at], Some(marker), rest);
        }
    }
    (text, None, "")
}

/// Encodes one block: lines of 64 characters, each ended by LF.
pub fn encode(label: &str, der: &[u8]) -> String {
    let body = Zeroizing::new(general_purpose::STANDARD.encode(der));
    // Reserved in full: a text that grows would leave copies of a key behind.
    let mut text = String::with_capacity(body.len() + body.len() / 64 + 2 * label.len() + 40);
    text.push_str("-----BEGIN ");
    text.push_str(label);
    text.push_str("-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}

/// Accepts missing padding: some encoders leave it out, and the length of DER is inside it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded_again() {
        for length in [0, 1, 47, 48, 49, 500] {
            let der = vec![0xA5; length];
            let text = encode("CERTIFICATE", &der);
            assert!(text.lines().all(|line| line.len() <= 64));
            assert_eq!(
                decode_all(&text, 4096),
                Ok(vec![Block {
                    label: "CERTIFICATE".into(),
                    der
                }])
            );
        }
    }

    #[test]
    fn text_around_blocks_and_foreign_line_ends_are_accepted() {
        let text = "subject=CN = a\r\n-----BEGIN A-----\r\nAQI=\r\n-----END A-----\r\n\r\n-----BEGIN B-----\n  AQ\n ID\n-----END B-----";
        let blocks = decode_all(text, 4096).unwrap();
        assert_eq!(
            blocks[0],
            Block {
                label: "A".into(),
                der: vec![1, 2]
            }
        );
        assert_eq!(
            blocks[1],
            Block {
                label: "B".into(),
                der: vec![1, 2, 3]
            }
        );
    }

    #[test]
    fn what_is_not_pem_is_named() {
        let check = |text: &str, error: PemError| assert_eq!(decode_all(text, 64), Err(error), "{text}");
        check(&"x".repeat(65), PemError::TooLarge { found: 65, limit: 64 });
        check("-----BEGIN A-----\nAQI=\n", PemError::Unterminated("A".into()));
        check(
            "-----BEGIN A-----\nAQI=\n-----END B-----\n",
            PemError::Unterminated("A".into()),
        );
        check(
            "-----BEGIN A-----\nA*I=\n-----END A-----\n",
            PemError::NotBase64("A".into()),
        );
        check(
            "-----BEGIN A-----\nDEK-Info: x\n-----END A-----\n",
            PemError::Headers("A".into()),
        );
        assert_eq!(decode_all("no armour", 64), Ok(vec![]));
    }

    #[test]
    fn every_begin_marker_has_an_outcome() {
        let lines = |text: &str| -> Vec<(usize, bool)> {
            let found = decode_each(text, 4096).unwrap();
            found.iter().map(|found| (found.line, found.block.is_ok())).collect()
        };
        for (what, text, expected) in [
            ("one line", "-----BEGIN A-----AQI=-----END A-----", vec![(1, true)]),
            (
                "without a line end between them",
                "-----BEGIN A-----\nAQI=\n-----END A----------BEGIN A-----\nAQI=\n-----END A-----",
                vec![(1, true), (3, true)],
            ),
            (
                "a byte order mark",
                "\u{feff}-----BEGIN A-----\nAQI=\n-----END A-----\n",
                vec![(1, true)],
            ),
            (
                "a byte order mark in the middle",
                "-----BEGIN A-----\nAQI=\n-----END A-----\n\u{feff}-----BEGIN A-----\nAQI=\n-----END A-----\n",
                vec![(1, true), (4, true)],
            ),
            (
                "the first without an end",
                "-----BEGIN A-----\nAQI=\n-----BEGIN B-----\nAQI=\n-----END B-----",
                vec![(1, false), (3, true)],
            ),
            ("ends alone", "-----END A-----\n-----END B-----", vec![]),
            ("an open marker", "-----BEGIN A\n", vec![]),
        ] {
            assert_eq!(lines(text), expected, "{what}");
        }
    }
}
