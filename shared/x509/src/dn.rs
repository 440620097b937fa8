//! Distinguished names as text (RFC 4514).

use std::fmt::Write;

use x509_parser::{
    asn1_rs::{Any, Tag},
    x509::{AttributeTypeAndValue, X509Name},
};

/// Short names of attribute types (RFC 4514 §3). Others are written as OIDs.
const SHORT: [(&str, &str); 9] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.6", "C"),
    ("2.5.4.9", "STREET"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("0.9.2342.19200300.100.1.1", "UID"),
];

/// A name as RFC 4514 §2 writes it: the last relative name first, special characters escaped.
///
/// Control and format characters are escaped as octets too, so that the text is harmless wherever it is shown.
pub(crate) fn to_text(name: &X509Name<'_>) -> String {
    let rdn = |rdn: &x509_parser::x509::RelativeDistinguishedName<'_>| {
        let attributes: Vec<String> = rdn.iter().map(attribute).collect();
        attributes.join("+")
    };
    let mut names: Vec<String> = name.iter_rdn().map(rdn).collect();
    names.reverse();
    names.join(",")
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let oid = attribute.attr_type().to_id_string();
    let short = SHORT.iter().find(|(known, _)| *known == oid);
    let value = attribute.attr_value();
    match (short, string(value)) {
        (Some((_, short)), Some(text)) => format!("{short}={}", escaped(&text)),
        (short, _) => format!("{}={}", short.map_or(oid.as_str(), |(_, short)| short), encoded(value)),
    }
}

/// The characters of a DirectoryString or another string type; nothing when they are not what the type says.
fn string(value: &Any<'_>) -> Option<String> {
    let wide = |octets: &[u8]| u32::from_be_bytes([octets[0], octets[1], octets[2], octets[3]]);
    match value.tag() {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String | Tag::NumericString | Tag::VisibleString => {
            std::str::from_utf8(value.data).ok().map(str::to_owned)
        }
        // In practice ISO 8859-1.
        Tag::T61String => Some(value.data.iter().copied().map(char::from).collect()),
        Tag::BmpString if value.data.len().is_multiple_of(2) => {
            let units = value
                .data
                .chunks_exact(2)
                .map(|two| u16::from_be_bytes([two[0], two[1]]));
            char::decode_utf16(units).collect::<Result<_, _>>().ok()
        }
        Tag::UniversalString if value.data.len().is_multiple_of(4) => {
            let units = value.data.chunks_exact(4).map(wide);
            units.map(char::from_u32).collect()
        }
        _ => None,
    }
}

/// RFC 4514 §2.4.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let last = text.chars().count().saturating_sub(1);
    for (at, c) in text.chars().enumerate() {
        match c {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            ' ' if at == 0 || at == last => out.push_str("\\ "),
            '#' if at == 0 => out.push_str("\\#"),
            c if c.is_control() || is_format(c) => {
                for octet in c.encode_utf8(&mut [0; 4]).bytes() {
                    // Writing to a String does not fail.
                    let _ = write!(out, "\\{octet:02X}");
                }
            }
            c => out.push(c),
        }
    }
    out
}

/// Characters that change how those around them are shown: zero-width and bidirectional ones.
fn is_format(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// RFC 4514 §2.4: `#` and the BER encoding, in hexadecimal.
fn encoded(value: &Any<'_>) -> String {
    let tag = value.header.raw_tag().unwrap_or_default();
    let mut out = "#".to_owned();
    for octet in tag.iter().chain(&length(value.data.len())).chain(value.data) {
        let _ = write!(out, "{octet:02x}");
    }
    out
}

/// The length octets of DER.
fn length(content: usize) -> Vec<u8> {
    let octets: Vec<u8> = content
        .to_be_bytes()
        .into_iter()
        .skip_while(|octet| *octet == 0)
        .collect();
    match u8::try_from(content) {
        Ok(short @ 0..=127) => vec![short],
        _ => [&[0x80 | u8::try_from(octets.len()).unwrap_or(8)], octets.as_slice()].concat(),
    }
}

#[cfg(test)]
mod tests {
    use x509_parser::prelude::FromDer;

    use super::*;

    fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = u8::try_from(content.len()).unwrap();
        assert!(length < 128);
        [&[tag, length], content].concat()
    }

    /// The type, the tag of the value, and the value.
    type Attribute<'a> = (&'a [u8], u8, &'a [u8]);

    fn text(rdns: &[&[Attribute]]) -> String {
        let attribute = |(oid, tag, value): &Attribute| tlv(0x30, &[tlv(6, oid), tlv(*tag, value)].concat());
        let rdn = |rdn: &&[Attribute]| tlv(0x31, &rdn.iter().map(attribute).collect::<Vec<_>>().concat());
        let der = tlv(0x30, &rdns.iter().map(rdn).collect::<Vec<_>>().concat());
        to_text(&X509Name::from_der(&der).unwrap().1)
    }

    #[test]
    fn a_distinguished_name_is_written_as_rfc_4514_says() {
        let (cn, o, c, ou): (&[u8], &[u8], &[u8], &[u8]) = (&[85, 4, 3], &[85, 4, 10], &[85, 4, 6], &[85, 4, 11]);
        let dc: &[u8] = &[9, 146, 38, 137, 147, 242, 44, 100, 1, 25];
        let serial: &[u8] = &[85, 4, 5];
        for (name, expected) in [
            (text(&[]), ""),
            // The examples of §4, which are written last relative name first.
            (
                text(&[
                    &[(dc, 22, b"net")],
                    &[(dc, 22, b"example")],
                    &[(cn, 12, b"Steve Kille")],
                ]),
                "CN=Steve Kille,DC=example,DC=net",
            ),
            (
                text(&[&[(dc, 22, b"net")], &[(ou, 12, b"Sales"), (cn, 12, b"J.  Smith")]]),
                "OU=Sales+CN=J.  Smith,DC=net",
            ),
            (
                text(&[&[(cn, 12, b"James \"Jim\" Smith, III")]]),
                r#"CN=James \"Jim\" Smith\, III"#,
            ),
            (text(&[&[(cn, 12, b"Before\rAfter")]]), r"CN=Before\0DAfter"),
            (text(&[&[(cn, 12, "Lučić".as_bytes())]]), "CN=Lučić"),
            (
                text(&[&[(&[43, 6, 1, 4, 1, 0x8b, 0x3a, 0], 4, b"Hi")]]),
                "1.3.6.1.4.1.1466.0=#04024869",
            ),
            // What would pass for another name.
            (
                text(&[&[(o, 12, b"a,CN=admin")], &[(cn, 12, b" #x+y<z>; ")]]),
                r"CN=\ #x\+y\<z\>\;\ ,O=a\,CN=admin",
            ),
            (text(&[&[(cn, 12, b"#1")]]), r"CN=\#1"),
            (text(&[&[(cn, 12, b"a\\b\0")]]), r"CN=a\\b\00"),
            (text(&[&[(cn, 12, "a\u{202e}b".as_bytes())]]), r"CN=a\E2\80\AEb"),
            // Other types of strings.
            (
                text(&[&[(c, 19, b"DE")], &[(cn, 30, &[0, 0x41, 0, 0xe4])]]),
                "CN=A\u{e4},C=DE",
            ),
            (text(&[&[(cn, 28, &[0, 0, 0, 0x41])]]), "CN=A"),
            (text(&[&[(cn, 20, &[0xe4])]]), "CN=\u{e4}"),
            // No characters of the type, and no short name.
            (text(&[&[(cn, 12, &[0xff])]]), "CN=#0c01ff"),
            (text(&[&[(cn, 30, &[0])]]), "CN=#1e0100"),
            (text(&[&[(serial, 19, b"7")]]), "2.5.4.5=#130137"),
        ] {
            assert_eq!(name, expected);
        }
    }
}
