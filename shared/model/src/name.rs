//! Names a certificate can be issued for (RFC 5280 §4.2.1.6).

use std::{borrow::Cow, collections::HashSet, fmt, net::IpAddr, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize, Serializer};

/// A DNS name in lower case, at most 253 octets; `*` may stand only as the whole of the first label (RFC 6125 §6.4.3).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DnsName(String);

/// What is wrong with a name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("\"{name}\" is not a name that can be certified: {why}")]
pub struct BadName {
    /// The text, with control characters escaped and cut to 80 characters.
    pub name: String,
    /// What would be right.
    pub why: &'static str,
}

fn bad(name: &str, why: &'static str) -> BadName {
    BadName {
        name: name.chars().take(80).flat_map(char::escape_debug).collect(),
        why,
    }
}

impl DnsName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The domain that was registered with whoever gives out names below a public suffix: `example.co.uk` of
    /// `www.example.co.uk`. None of a public suffix itself, and of a name of one label.
    pub fn registered(&self) -> Option<&str> {
        psl::domain_str(self.0.strip_prefix("*.").unwrap_or(&self.0))
    }
}

/// Which octets a label may have.
const LABELS: [bool; 256] = crate::letters_digits_and(b"-_");

impl DnsName {
    /// In one go: lists have hundreds of names.
    fn read(text: &str) -> Result<Self, &'static str> {
        if text.is_empty() || text.len() > 253 {
            return Err("a DNS name has 1 to 253 characters");
        }
        let (octets, wildcard) = (text.as_bytes(), text.len() > 2 && text.starts_with("*."));
        let first = if wildcard { 2 } else { 0 };
        let mut start = first;
        for end in first..=octets.len() {
            match octets.get(end) {
                Some(b) if LABELS[usize::from(*b)] => continue,
                None | Some(b'.') => {}
                Some(_) => {
                    return Err(
                        "labels hold letters, digits, '-' and '_' (write other alphabets as A-labels, xn--…); \
                                '*' stands only as the whole first label",
                    );
                }
            }
            let label = &octets[start..end];
            if label.is_empty() || label.len() > 63 {
                return Err("each label between the dots has 1 to 63 characters");
            }
            if label[0] == b'-' || label[label.len() - 1] == b'-' {
                return Err("no label begins or ends with '-'");
            }
            start = end + 1;
        }
        let mut lower = text.to_owned();
        lower.make_ascii_lowercase();
        Ok(Self(lower))
    }
}

impl FromStr for DnsName {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        Self::read(text).map_err(|why| bad(text, why))
    }
}

impl TryFrom<String> for DnsName {
    type Error = BadName;

    fn try_from(text: String) -> Result<Self, BadName> {
        text.parse()
    }
}

impl From<DnsName> for String {
    fn from(name: DnsName) -> String {
        name.0
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A subject alternative name. As text it is the bare name; its kind is read off it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub enum San {
    /// `dNSName`
    Dns(DnsName),
    /// `iPAddress`
    Ip(IpAddr),
    /// `rfc822Name`: ASCII, one `@`, a DNS name behind it.
    Email(String),
    /// `uniformResourceIdentifier`: ASCII, with a scheme in lower case (RFC 3986 §3.1); SPIFFE ids among them.
    Uri(String),
    /// A name of a certificate from elsewhere that cannot be certified here: kept and shown, never requested. No text
    /// that a client sends is read as one.
    Foreign(String),
}

impl San {
    /// Whether the name is a SPIFFE id.
    pub fn is_spiffe(&self) -> bool {
        matches!(self, San::Uri(uri) if uri.starts_with("spiffe://"))
    }

    /// Whether the name can be certified here.
    pub fn is_certifiable(&self) -> bool {
        !matches!(self, San::Foreign(_))
    }

    /// A name as it stands in a certificate from elsewhere, or as it was stored: [`San::Foreign`] when it cannot be
    /// certified. Control characters are escaped.
    pub fn recorded(text: &str) -> Self {
        text.parse()
            .unwrap_or_else(|_| San::Foreign(text.chars().take(2048).flat_map(escaped).collect()))
    }

    /// Like [`San::recorded`] for a name whose type in the certificate is `kind`: the kind is in front of the text when
    /// the text alone would be read as a name of another type.
    pub fn foreign(kind: &str, text: &str) -> Self {
        match San::recorded(text) {
            name @ San::Foreign(_) if !text.is_empty() => name,
            _ => San::recorded(&format!("{kind} {text}")),
        }
    }
}

/// Escapes what has no place in a line of text.
fn escaped(c: char) -> impl Iterator<Item = char> {
    let (plain, escape) = match c.is_control() {
        true => (None, Some(c.escape_debug())),
        false => (Some(c), None),
    };
    plain.into_iter().chain(escape.into_iter().flatten())
}

impl FromStr for San {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        // Most are DNS names. An address has a colon, which no DNS name has, or ends in a digit.
        if !text.ends_with(|c: char| c.is_ascii_digit())
            && let Ok(name) = DnsName::read(text)
        {
            return Ok(San::Dns(name));
        }
        if text.is_empty() || text.len() > 2048 || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(bad(
                text,
                "a name is 1 to 2048 printable ASCII characters without spaces",
            ));
        }
        // Every address has a colon or ends in a digit; most names have neither.
        if (text.contains(':') || text.ends_with(|c: char| c.is_ascii_digit()))
            && let Ok(ip) = text.parse()
        {
            return Ok(San::Ip(ip));
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            let scheme_is_right = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
            return match scheme_is_right && !rest.is_empty() {
                true => Ok(San::Uri(format!("{}://{rest}", scheme.to_ascii_lowercase()))),
                false => Err(bad(text, "a URI has a scheme and something behind it")),
            };
        }
        match text.split_once('@') {
            Some((local, domain)) if !local.is_empty() && !domain.starts_with('*') => {
                Ok(San::Email(format!("{local}@{}", domain.parse::<DnsName>()?)))
            }
            Some(_) => Err(bad(text, "an e-mail address has a local part, '@' and a domain")),
            None => text.parse().map(San::Dns),
        }
    }
}

impl TryFrom<String> for San {
    type Error = BadName;

    fn try_from(text: String) -> Result<Self, BadName> {
        text.parse()
    }
}

impl Serialize for San {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            San::Dns(name) => s.serialize_str(name.as_str()),
            San::Ip(ip) => s.collect_str(ip),
            San::Email(text) | San::Uri(text) | San::Foreign(text) => s.serialize_str(text),
        }
    }
}

impl fmt::Display for San {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            San::Dns(name) => name.fmt(f),
            San::Ip(ip) => ip.fmt(f),
            San::Email(text) | San::Uri(text) | San::Foreign(text) => f.pad(text),
        }
    }
}

impl JsonSchema for San {
    fn schema_name() -> Cow<'static, str> {
        "Name".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "minLength": 1, "maxLength": 2048, "examples": ["api.example.com"] })
    }
}

#[cfg(feature = "sqlx")]
crate::as_text!(San, |text| Ok(San::recorded(text)));

/// The names of a certificate: the common name first when it can stand as one, then the others, each once.
pub fn all_names(common_name: &San, sans: &[San]) -> Vec<San> {
    let mut seen = HashSet::new();
    let names = std::iter::once(common_name).chain(sans);
    names.filter(|name| seen.insert(*name)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_of_a_name_is_read_off_it() {
        let kinds = [
            ("API.Example.com", San::Dns(DnsName("api.example.com".into()))),
            ("*.example.com", San::Dns(DnsName("*.example.com".into()))),
            ("10.0.0.1", San::Ip("10.0.0.1".parse().unwrap())),
            ("2001:db8::1", San::Ip("2001:db8::1".parse().unwrap())),
            ("ops@example.com", San::Email("ops@example.com".into())),
            (
                "spiffe://example.org/ns/prod",
                San::Uri("spiffe://example.org/ns/prod".into()),
            ),
            ("SPIFFE://x/Prod", San::Uri("spiffe://x/Prod".into())),
        ];
        for (text, san) in kinds {
            assert_eq!(text.parse(), Ok(san), "{text}");
        }
        assert!("SPIFFE://x".parse::<San>().unwrap().is_spiffe());
    }

    #[test]
    fn a_recorded_name_that_cannot_be_certified_is_kept_as_it_is() {
        for text in [
            "alias.example.com.",
            "f*.example.com",
            "dirName CN=a",
            "",
            "a b",
            "ü.de",
        ] {
            let name = San::recorded(text);
            assert!(!name.is_certifiable() && name.to_string() == text, "{text:?}");
            assert_eq!(San::recorded(&name.to_string()), name, "{text:?}");
        }
        assert_eq!(San::recorded("a\n\u{1b}b").to_string(), "a\\n\\u{1b}b");
        assert!(San::recorded("a.example.com").is_certifiable());
        // A dNSName that holds an address is not an iPAddress.
        assert_eq!(San::foreign("dNSName", "10.0.0.1").to_string(), "dNSName 10.0.0.1");
        assert_eq!(San::foreign("dNSName", "a.example.com.").to_string(), "a.example.com.");
    }

    #[test]
    fn names_that_cannot_be_certified_are_refused() {
        let long = format!("{}.com", "a".repeat(64));
        for text in [
            "", "a b", "a\0b.com", "ü.de", "-a.com", "a-.com", "a..b", ".a", "a.*.b", "*", "*.", "@b.com", "a@*.b",
            &long, "1://x",
        ] {
            assert!(text.parse::<San>().is_err(), "{text:?}");
        }
    }
}
