//! Serial numbers of certificates (RFC 5280 §4.1.2.2): positive integers of at most 20 octets. Certificates from
//! elsewhere may break this rule; the inventory records their numbers as they are.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A serial number, kept as lower-case hexadecimal without leading zeros, so that equal numbers are equal texts; a
/// negative one has a minus in front.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Serial(String);

/// What is wrong with a serial number.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a serial number is 1 to 40 hexadecimal digits (upper or lower case, leading zeros and colons allowed)")]
pub struct BadSerial;

impl Serial {
    /// From the big-endian octets of a non-negative integer; leading zero octets do not matter.
    ///
    /// # Errors
    /// When it has more than 20 significant octets.
    pub fn from_octets(octets: &[u8]) -> Result<Self, BadSerial> {
        hex::encode(octets).parse()
    }

    /// From a text that was stored: also one that [`Serial::recorded`] made.
    ///
    /// # Errors
    /// When it is none.
    pub fn stored(text: &str) -> Result<Self, BadSerial> {
        let digits = text.strip_prefix('-').unwrap_or(text);
        let is_hex = digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match (1..=128).contains(&digits.len()) && is_hex {
            true => Ok(Self(text.to_owned())),
            false => Err(BadSerial),
        }
    }

    /// From the content octets of any INTEGER (X.690 §8.3) of at most 64 octets, as certificates from elsewhere have them.
    pub fn recorded(content: &[u8]) -> Result<Self, BadSerial> {
        match content.first() {
            Some(high) if high & 0x80 != 0 => {
                // Two's complement: the magnitude is the complement plus one.
                let mut magnitude: Vec<u8> = content.iter().map(|octet| !octet).collect();
                for octet in magnitude.iter_mut().rev() {
                    let (sum, carry) = octet.overflowing_add(1);
                    *octet = sum;
                    if !carry {
                        break;
                    }
                }
                Self::stored(&format!("-{}", significant(&hex::encode(magnitude))))
            }
            _ => Self::stored(significant(&hex::encode(content))),
        }
    }

    /// Whether it is one that RFC 5280 §4.1.2.2 allows: not negative, at most 20 octets.
    pub fn is_standard(&self) -> bool {
        !self.0.starts_with('-') && self.0.len() <= 40
    }

    /// The big-endian octets of the magnitude without leading zeros; one zero octet for zero.
    pub fn octets(&self) -> Vec<u8> {
        let digits = self.0.trim_start_matches('-');
        let even = match digits.len() % 2 {
            1 => Cow::Owned(format!("0{digits}")),
            _ => Cow::Borrowed(digits),
        };
        hex::decode(even.as_bytes()).expect("a serial holds hexadecimal digits only")
    }

    /// Lower-case hexadecimal without leading zeros.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Hexadecimal digits without leading zeros; one digit of zero.
fn significant(digits: &str) -> &str {
    match digits.trim_start_matches('0') {
        "" => "0",
        significant => significant,
    }
}

impl FromStr for Serial {
    type Err = BadSerial;

    fn from_str(text: &str) -> Result<Self, BadSerial> {
        if text.len() > 128 {
            return Err(BadSerial);
        }
        let plain = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        if (1..=40).contains(&text.len()) && !text.starts_with('0') && text.bytes().all(plain) {
            return Ok(Self(text.to_owned()));
        }
        let digits: String = text
            .chars()
            .filter(|c| *c != ':')
            .collect::<String>()
            .to_ascii_lowercase();
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(BadSerial);
        }
        let significant = digits.trim_start_matches('0');
        match significant.len() {
            0 => Ok(Self("0".to_owned())),
            1..=40 => Ok(Self(significant.to_owned())),
            _ => Err(BadSerial),
        }
    }
}

impl TryFrom<String> for Serial {
    type Error = BadSerial;

    fn try_from(text: String) -> Result<Self, BadSerial> {
        text.parse().or_else(|_| Self::stored(&text))
    }
}

impl From<Serial> for String {
    fn from(serial: Serial) -> String {
        serial.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl JsonSchema for Serial {
    fn schema_name() -> Cow<'static, str> {
        "Serial".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9A-Fa-f][0-9A-Fa-f:]{0,39}$", "examples": ["5f3a"] })
    }
}

#[cfg(feature = "sqlx")]
crate::as_text!(Serial, |text| Ok(Serial::stored(text)?));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_number_is_the_same_serial() {
        for text in ["5f3a", "5F3A", "00005f3a", "5f:3a", "5F:3A"] {
            assert_eq!(text.parse::<Serial>().unwrap().as_str(), "5f3a", "{text}");
        }
        assert_eq!("0f".parse::<Serial>().unwrap().octets(), [15]);
        assert_eq!(Serial::from_octets(&[0, 0x80]).unwrap().as_str(), "80");
        assert_eq!("000".parse::<Serial>().unwrap().octets(), [0]);
    }

    #[test]
    fn serial_numbers_that_break_the_rule_are_recorded_as_they_are() {
        for (content, text) in [
            (&[0xfb][..], "-5"),
            (&[0x80], "-80"),
            (&[0xff, 0x00], "-100"),
            (&[5], "5"),
            (&[0x7f; 21], &"7f".repeat(21)),
        ] {
            let serial = Serial::recorded(content).unwrap();
            assert_eq!(serial.as_str(), text);
            assert_eq!(serial.is_standard(), text == "5");
            assert_eq!(Serial::stored(text), Ok(serial));
        }
        assert_eq!(Serial::from_octets(&[0x7f; 21]), Err(BadSerial));
        assert_eq!(Serial::recorded(&[0x7f; 65]), Err(BadSerial));
    }

    #[test]
    fn what_is_not_a_serial_is_refused() {
        for text in ["", ":", "xyz", "5f 3a", "-1", "0x5f", &"f".repeat(41), &"0".repeat(200)] {
            assert_eq!(text.parse::<Serial>(), Err(BadSerial), "{text}");
        }
    }
}
