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
    /// In one go: lists have hundreds of names. U-labels become A-labels (RFC 5890 §2.3.2.1).
    fn read(text: &str) -> Result<Self, &'static str> {
        if !text.is_ascii() {
            return Self::read_international(text);
        }
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
                    return Err("labels hold letters, digits, '-' and '_'; '*' stands only as the whole first label");
                }
            }
            let label = &octets[start..end];
            if label.is_empty() || label.len() > 63 {
                return Err("each label between the dots has 1 to 63 characters");
            }
            if label[0] == b'-' || label[label.len() - 1] == b'-' {
                return Err("no label begins or ends with '-'");
            }
            if label.len() > 3 && label[..4].eq_ignore_ascii_case(b"xn--") && !is_a_label(&text[start..end]) {
                return Err(
                    "a label that begins with 'xn--' is the A-label of an internationalised one (RFC 5891 §4.4)",
                );
            }
            if end == octets.len() && is_number(label) {
                return Err(
                    "the last label of a DNS name is not a number (RFC 1123 §2.1); an IPv4 address has four numbers of 0 to 255",
                );
            }
            start = end + 1;
        }
        let mut lower = text.to_owned();
        lower.make_ascii_lowercase();
        Ok(Self(lower))
    }

    fn read_international(text: &str) -> Result<Self, &'static str> {
        let (wildcard, domain) = match text.strip_prefix("*.") {
            Some(domain) => ("*.", domain),
            None => ("", text),
        };
        // Its tables are linear in the text, which is bounded first.
        if domain.len() > 1024 {
            return Err("a DNS name has 1 to 253 characters");
        }
        match idna::domain_to_ascii_strict(domain) {
            Ok(ascii) if ascii.is_ascii() => Self::read(&format!("{wildcard}{ascii}")),
            _ => Err("an internationalised domain name follows IDNA (RFC 5891, UTS #46)"),
        }
    }
}

/// Whether the label is Punycode of what IDNA allows.
fn is_a_label(label: &str) -> bool {
    idna::domain_to_ascii_strict(label).is_ok_and(|ascii| ascii.eq_ignore_ascii_case(label))
}

/// What URL parsers take for a part of an IPv4 address, decimal or hexadecimal.
fn is_number(label: &[u8]) -> bool {
    match label {
        [b'0', b'x' | b'X', digits @ ..] => digits.iter().all(u8::is_ascii_hexdigit),
        digits => digits.iter().all(u8::is_ascii_digit),
    }
}

/// An e-mail address with its domain in A-labels: a dot-atom of at most 64 characters, `@` and a domain, together at most 254
/// characters (RFC 5321 §4.1.2, §4.5.3.1; RFC 5322 §3.2.3).
///
/// # Errors
/// What would be right.
pub fn mailbox(text: &str) -> Result<String, BadName> {
    const ATOM: [bool; 256] = crate::letters_digits_and(b"!#$%&'*+-/=?^_`{|}~");
    let Some((local, domain)) = text.rsplit_once('@') else {
        return Err(bad(text, "an e-mail address has a local part, '@' and a domain"));
    };
    let is_atom = |atom: &str| !atom.is_empty() && atom.bytes().all(|b| ATOM[usize::from(b)]);
    if local.len() > 64 || !local.split('.').all(is_atom) {
        return Err(bad(
            text,
            "the local part of an e-mail address is a dot-atom (RFC 5322 §3.2.3): ASCII letters, digits and \
             !#$%&'*+-/=?^_`{|}~ with single dots between them, at most 64 characters",
        ));
    }
    let domain = DnsName::read(domain).map_err(|why| bad(text, why))?;
    if domain.0.contains(['*', '_']) {
        return Err(bad(
            text,
            "labels of the domain of an e-mail address hold letters, digits and '-' (RFC 5321 §4.1.2)",
        ));
    }
    let whole = format!("{local}@{domain}");
    match whole.len() <= 254 {
        true => Ok(whole),
        false => Err(bad(
            text,
            "an e-mail address has at most 254 characters (RFC 5321 §4.5.3.1.3)",
        )),
    }
}

/// A URI with an authority (RFC 3986; RFC 5280 §4.2.1.6), its scheme in lower case and its host in A-labels.
fn uri(scheme: &str, rest: &str) -> Result<String, &'static str> {
    const SCHEME: [bool; 256] = crate::letters_digits_and(b"+-.");
    const USER: [bool; 256] = crate::letters_digits_and(b"-._~!$&'()*+,;=:");
    const PATH: [bool; 256] = crate::letters_digits_and(b"-._~!$&'()*+,;=:@/");
    const QUERY: [bool; 256] = crate::letters_digits_and(b"-._~!$&'()*+,;=:@/?");
    if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || !scheme.bytes().all(|b| SCHEME[usize::from(b)]) {
        return Err("the scheme of a URI is a letter, then letters, digits, '+', '-' and '.' (RFC 3986 §3.1)");
    }
    let scheme = scheme.to_ascii_lowercase();
    if scheme == "spiffe" {
        spiffe(rest)?;
        return Ok(format!("{scheme}://{rest}"));
    }
    let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (before_fragment, fragment) = tail.split_once('#').unwrap_or((tail, ""));
    let (path, query) = before_fragment.split_once('?').unwrap_or((before_fragment, ""));
    let (user, host_and_port) = match authority.rsplit_once('@') {
        Some((user, rest)) => (user, rest),
        None => ("", authority),
    };
    let parts = [(user, &USER), (path, &PATH), (query, &QUERY), (fragment, &QUERY)];
    if !parts.iter().all(|(part, allowed)| is_encoded(part, allowed)) {
        return Err(
            "a URI holds ASCII letters, digits and -._~!$&'()*+,;=:@/?; everything else is written as '%' and two \
             hexadecimal digits (RFC 3986 §2)",
        );
    }
    let literal = host_and_port.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let (host, port) = match literal {
        Some((address, port)) => {
            let is_address = address.parse::<std::net::Ipv6Addr>().is_ok();
            (
                is_address.then(|| format!("[{address}]")),
                port.strip_prefix(':').or((!port.is_empty()).then_some("")),
            )
        }
        None => {
            let (host, port) = match host_and_port.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (host_and_port, None),
            };
            (host_of(host), port)
        }
    };
    let Some(host) = host else {
        return Err("the host of a URI is a DNS name or an IP address (RFC 5280 §4.2.1.6)");
    };
    if port.is_some_and(|port| {
        port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) || port.parse::<u16>().is_err()
    }) {
        return Err("the port of a URI is a number up to 65535");
    }
    let at = if authority.contains('@') { "@" } else { "" };
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    Ok(format!("{scheme}://{user}{at}{host}{port}{tail}"))
}

/// What stands behind `urn:` (RFC 8141 §2): a URI without a host, which no constraint on URIs permits (RFC 5280 §4.2.1.10).
fn urn(rest: &str) -> Result<String, &'static str> {
    const SPECIFIC: [bool; 256] = crate::letters_digits_and(b"-._~!$&'()*+,;=:@/");
    const BEHIND: [bool; 256] = crate::letters_digits_and(b"-._~!$&'()*+,;=:@/?");
    let is_namespace = |text: &str| {
        let is_right = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        (2..=32).contains(&text.len()) && is_right && !text.starts_with('-') && !text.ends_with('-')
    };
    let (before_fragment, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (name, components) = match before_fragment.split_once('?') {
        Some((name, components)) => (name, Some(components)),
        None => (before_fragment, None),
    };
    let is_right = name.split_once(':').is_some_and(|(namespace, specific)| {
        is_namespace(namespace) && !specific.is_empty() && !specific.starts_with('/') && is_encoded(specific, &SPECIFIC)
    }) && components
        .is_none_or(|text| text.len() > 1 && text.starts_with(['+', '=']) && is_encoded(text, &BEHIND))
        && is_encoded(fragment, &BEHIND);
    match is_right {
        true => Ok(format!("urn:{rest}")),
        false => Err(
            "a URN is urn:, a namespace of 2 to 32 letters, digits and '-', ':' and a name of RFC 3986 characters with \
             percent-encoding (RFC 8141 §2)",
        ),
    }
}

/// The host as it stands; one that is internationalised in A-labels.
fn host_of(text: &str) -> Option<String> {
    if text.parse::<std::net::Ipv4Addr>().is_ok() {
        return Some(text.to_owned());
    }
    let name = DnsName::read(text).ok().filter(|name| !name.0.starts_with('*'))?;
    Some(if text.is_ascii() { text.to_owned() } else { name.0 })
}

/// Whether a part of a URI holds allowed octets and whole percent-encodings (RFC 3986 §2.1).
fn is_encoded(part: &str, allowed: &[bool; 256]) -> bool {
    let mut octets = part.bytes();
    while let Some(octet) = octets.next() {
        let is_right = match octet {
            b'%' => [octets.next(), octets.next()]
                .iter()
                .all(|digit| digit.is_some_and(|b| b.is_ascii_hexdigit())),
            octet => allowed[usize::from(octet)],
        };
        if !is_right {
            return false;
        }
    }
    true
}

/// What stands behind `spiffe://` (SPIFFE-ID §2): a trust domain in lower case, then path segments, of which the ID of a leaf
/// has one at least (X509-SVID §3.1).
fn spiffe(rest: &str) -> Result<(), &'static str> {
    let (domain, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let is_domain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b);
    if domain.is_empty() || domain.len() > 255 || !domain.bytes().all(is_domain) || host_of(domain).is_none() {
        return Err(
            "the trust domain of a SPIFFE ID holds lower-case letters, digits, '-', '.' and '_', without user, port, query \
             and fragment (SPIFFE-ID §2.1)",
        );
    }
    let is_segment = |segment: &str| {
        !matches!(segment, "" | "." | "..")
            && segment
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
    };
    match path
        .strip_prefix('/')
        .is_some_and(|path| path.split('/').all(is_segment))
    {
        true => Ok(()),
        false => Err(
            "the path of a SPIFFE ID has segments of letters, digits, '-', '.' and '_', none of them empty, '.' or '..'; \
             there is no query and no fragment (SPIFFE-ID §2.2, X509-SVID §3.1)",
        ),
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
    /// `rfc822Name`: a dot-atom, `@`, a DNS name (RFC 5321 §4.1.2).
    Email(String),
    /// `uniformResourceIdentifier`: with a scheme in lower case and a host (RFC 3986); SPIFFE ids among them.
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
        // U-labels are converted only where they are requested.
        let certifiable = text.is_ascii().then(|| text.parse().ok()).flatten();
        certifiable.unwrap_or_else(|| San::Foreign(text.chars().take(2048).flat_map(escaped).collect()))
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
        if text.is_empty() || text.len() > 2048 || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(bad(
                text,
                "a name is 1 to 2048 characters without spaces and control characters",
            ));
        }
        // Every address has a colon or ends in a digit; most names have neither.
        if (text.contains(':') || text.ends_with(|c: char| c.is_ascii_digit()))
            && let Ok(ip) = text.parse()
        {
            return Ok(San::Ip(ip));
        }
        if let Some((scheme, rest)) = text.split_once(':')
            && scheme.eq_ignore_ascii_case("urn")
        {
            return urn(rest).map(San::Uri).map_err(|why| bad(text, why));
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            return uri(scheme, rest).map(San::Uri).map_err(|why| bad(text, why));
        }
        match text.contains('@') {
            true => mailbox(text).map(San::Email),
            false => text.parse().map(San::Dns),
        }
    }
}

impl TryFrom<String> for San {
    type Error = BadName;

    fn try_from(text: String) -> Result<Self, BadName> {
        // Representations show what was recorded; request bodies hold text, which is parsed.
        Ok(Self::recorded(&text))
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

/// Whether names may stand together in a certificate: a SPIFFE ID is its only URI (X509-SVID §2).
///
/// # Errors
/// What would be right.
pub fn together<'a>(names: impl IntoIterator<Item = &'a San>) -> Result<(), &'static str> {
    let uris: HashSet<&San> = names.into_iter().filter(|name| matches!(name, San::Uri(_))).collect();
    match uris.len() > 1 && uris.iter().any(|name| name.is_spiffe()) {
        true => Err("a certificate with a SPIFFE ID has no other URI and no other SPIFFE ID (X509-SVID §2)"),
        false => Ok(()),
    }
}

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
        assert!("SPIFFE://x/y".parse::<San>().unwrap().is_spiffe());
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
    fn internationalised_domains_become_a_labels() {
        for (text, ascii) in [
            ("bücher.example", "xn--bcher-kva.example"),
            ("*.BÜCHER.example", "*.xn--bcher-kva.example"),
            ("ops@bücher.example", "ops@xn--bcher-kva.example"),
            (
                "https://bücher.example:8443/a%20b",
                "https://xn--bcher-kva.example:8443/a%20b",
            ),
            ("例え。テスト", "xn--r8jz45g.xn--zckzah"),
            ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
        ] {
            assert_eq!(text.parse::<San>().unwrap().to_string(), ascii, "{text}");
        }
        for text in [
            "xn--a.example",
            "xn--.example",
            "a\u{200b}..b",
            "a b\u{fc}.example",
            "\u{fc}@b.example",
        ] {
            assert!(text.parse::<San>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn every_form_of_name_keeps_to_its_grammar() {
        let fine = [
            "a_b.example",
            "1.2.3.example",
            "3com",
            "*.example",
            "a!#$%&'*+-/=?^_`{|}~@b.example",
            "a.b@c.example",
            "https://h.example/%7Ea?b=c/d?e#f",
            "https://u:p@h.example:1/",
            "https://[2001:db8::1]:443/x",
            "ldap://10.0.0.1/dc=x",
            "h2+x.y-z://h/",
            "spiffe://td_1.example/ns/Prod/sa/a.b-c_d",
            "urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6",
            "urn:host-1:vendor:app/x?+y?=z#f",
        ];
        for text in fine {
            assert_eq!(text.parse::<San>().unwrap().to_string(), text);
        }
        for text in [
            "192.0.2.300",
            "1.2.3",
            "10",
            "a.0x7f",
            "user@example..com",
            "user@192.0.2.1",
            "user@[192.0.2.1]",
            "a..b@c.example",
            ".a@c.example",
            "a.@c.example",
            "<a@c.example",
            "a@b@c.example",
            "\"a\"@c.example",
            "a@*.example",
            "a@b_c.example",
            "https://h.example/%zz",
            "https://h.example/%2",
            "https://h.example/a|b",
            "https://h.example/{x}",
            "https:///x",
            "https://h..example/",
            "https://h.example:/",
            "https://h.example:x/",
            "https://h.example:65536/",
            "https://*.example/",
            "https://u@v@h.example/",
            "https://h.example/#a#b",
            "https://[::1/",
            "https://[::1]x/",
            "https://192.0.2.300/",
            "a|b.example",
            "spiffe://TD.example/x",
            "spiffe://td.example/x?y",
            "spiffe://td.example/x#y",
            "spiffe://td.example//x",
            "spiffe://td.example/x/",
            "spiffe://td.example:8/x",
            "spiffe://u@td.example/x",
            "spiffe://td.example/%41",
            "spiffe://td.example/../x",
            "spiffe:///x",
            "spiffe://td.example",
            "spiffe://td.example/",
            "urn:x",
            "urn:x:y",
            "urn:-x:y",
            "urn:example:",
            "urn:example:/y",
            "urn:example:%zz",
            "urn:example:a b",
            "urn:example:y?z",
            "urn:example:y#a#b",
        ] {
            assert!(text.parse::<San>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_spiffe_id_is_the_only_uri_of_its_certificate() {
        let names = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<San>>();
        for (texts, right) in [
            (&["a.example", "spiffe://x/y", "a@b.example"][..], true),
            (&["https://a.example/", "https://b.example/"], true),
            (&["spiffe://x/y", "https://a.example/"], false),
            (&["spiffe://x/y", "spiffe://x/z"], false),
        ] {
            assert_eq!(together(&names(texts)).is_ok(), right, "{texts:?}");
        }
    }

    #[test]
    fn names_that_cannot_be_certified_are_refused() {
        let long = format!("{}.com", "a".repeat(64));
        for text in [
            "", "a b", "a\0b.com", "-a.com", "a-.com", "a..b", ".a", "a.*.b", "*", "*.", "@b.com", "a@*.b", &long,
            "1://x",
        ] {
            assert!(text.parse::<San>().is_err(), "{text:?}");
        }
    }
}
