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
    if text.len() > max_bytes {
        return Err(PemError::TooLarge {
            found: text.len(),
            limit: max_bytes,
        });
    }
    let mut blocks = Vec::new();
    let mut lines = text.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if let Some(label) = boundary(line, "-----BEGIN ") {
            let der = body(label, &mut lines)?;
            blocks.push(Block {
                label: label.to_owned(),
                der,
            });
        }
    }
    Ok(blocks)
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

fn body<'a>(label: &str, lines: &mut impl Iterator<Item = &'a str>) -> Result<Vec<u8>, PemError> {
    // Room for a private key of the usual kinds, for the same reason as in `encode`.
    let mut base64 = Zeroizing::new(String::with_capacity(4096));
    for line in lines {
        if let Some(end) = boundary(line, "-----END ") {
            if end != label {
                break;
            }
            return BASE64
                .decode(base64.as_bytes())
                .map_err(|_| PemError::NotBase64(label.to_owned()));
        }
        if line.starts_with("-----") {
            break;
        }
        if line.contains(':') {
            return Err(PemError::Headers(label.to_owned()));
        }
        base64.extend(line.split_ascii_whitespace());
    }
    Err(PemError::Unterminated(label.to_owned()))
}

fn boundary<'a>(line: &'a str, start: &str) -> Option<&'a str> {
    line.strip_prefix(start)?.strip_suffix("-----")
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
}
