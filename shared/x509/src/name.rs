//! Names and numbers of the model as the ASN.1 types of RFC 5280, and back.

use std::net::IpAddr;

use certctl_model::name::San;
use certctl_model::serial::Serial;
use rasn::types::{Any, Ia5String, Integer, ObjectIdentifier, OctetString, SetOf};
use rasn_pkix::{GeneralName, Name, RelativeDistinguishedName};
use x509_parser::asn1_rs::Tag;
use x509_parser::extensions::GeneralName as ParsedName;
use x509_parser::x509::AttributeTypeAndValue;

/// id-at-commonName (RFC 5280 §4.1.2.4).
const COMMON_NAME: &[u32] = &[2, 5, 4, 3];

/// The name as a GeneralName (RFC 5280 §4.2.1.6), or nothing when it cannot be certified.
pub fn san_to_general_name(san: &San) -> Option<GeneralName> {
    let ia5 = |text: &str| Ia5String::from_iso646_bytes(text.as_bytes()).ok();
    Some(match san {
        San::Dns(name) => GeneralName::DnsName(ia5(name.as_str())?),
        San::Email(text) => GeneralName::Rfc822Name(ia5(text)?),
        San::Uri(text) => GeneralName::Uri(ia5(text)?),
        San::Ip(IpAddr::V4(ip)) => GeneralName::IpAddress(OctetString::from(ip.octets())),
        San::Ip(IpAddr::V6(ip)) => GeneralName::IpAddress(OctetString::from(ip.octets())),
        San::Foreign(_) => return None,
    })
}

/// One RDN holding the common name as UTF8String, which RFC 5280 §4.1.2.4 asks of new names.
pub fn common_name_to_rdn(common_name: &str) -> RelativeDistinguishedName {
    let value = rasn::der::encode(&common_name.to_owned()).expect("a string always has an encoding");
    let attribute = rasn_pkix::AttributeTypeAndValue {
        r#type: ObjectIdentifier::new_unchecked(COMMON_NAME.into()),
        value: Any::new(value),
    };
    RelativeDistinguishedName::from(SetOf::from_vec(vec![attribute]))
}

/// A distinguished name of the common name alone; the empty name when it is empty.
pub fn common_name_to_name(common_name: &str) -> Name {
    match common_name.is_empty() {
        true => Name::RdnSequence(Vec::new()),
        false => Name::RdnSequence(vec![common_name_to_rdn(common_name)]),
    }
}

/// The serial as an INTEGER.
pub fn serial_to_integer(serial: &Serial) -> Integer {
    let mut octets = serial.octets();
    if octets[0] & 0x80 != 0 {
        octets.insert(0, 0);
    }
    let length = u8::try_from(octets.len()).expect("a serial has at most 20 octets");
    rasn::der::decode(&[&[2, length], octets.as_slice()].concat()).expect("a minimal INTEGER")
}

/// The INTEGER as a serial, or nothing when it is negative or longer than 20 octets.
pub fn integer_to_serial(integer: &Integer) -> Option<Serial> {
    let der = rasn::der::encode(integer).ok()?;
    match der.as_slice() {
        [2, length, octets @ ..] if usize::from(*length) == octets.len() => serial_of(octets),
        _ => None,
    }
}

/// The content octets of an INTEGER as a serial.
pub(crate) fn serial_of(octets: &[u8]) -> Option<Serial> {
    match octets.first() {
        Some(high) if high & 0x80 == 0 => Serial::from_octets(octets).ok(),
        _ => None,
    }
}

/// Reads a name as the type it claims to be; says what is wrong with one that is not.
pub(crate) fn san_from_general_name(name: &ParsedName<'_>) -> Result<San, String> {
    let san = match name {
        // An IA5String (RFC 5280 §4.2.1.6); U-labels are converted only where people write them.
        ParsedName::DNSName(text) | ParsedName::RFC822Name(text) | ParsedName::URI(text) if !text.is_ascii() => {
            return Err(format!("\"{}\" is not ASCII", text.escape_debug()));
        }
        ParsedName::DNSName(text) | ParsedName::RFC822Name(text) | ParsedName::URI(text) => {
            text.parse::<San>().map_err(|error| error.to_string())?
        }
        ParsedName::IPAddress(octets) => San::Ip(address(octets)?),
        _ => return Err("only DNS names, IP addresses, e-mail addresses and URIs are certified".to_owned()),
    };
    match (name, &san) {
        (ParsedName::DNSName(_), San::Dns(_))
        | (ParsedName::RFC822Name(_), San::Email(_))
        | (ParsedName::URI(_), San::Uri(_))
        | (ParsedName::IPAddress(_), San::Ip(_)) => Ok(san),
        _ => Err(format!("\"{san}\" is not of the type it stands under")),
    }
}

/// A name of a certificate from elsewhere: one that cannot be certified is kept as [`San::Foreign`].
pub(crate) fn recorded_san(name: &ParsedName<'_>) -> San {
    match name {
        ParsedName::DNSName(text) => san_from_general_name(name).unwrap_or_else(|_| San::foreign("dNSName", text)),
        ParsedName::RFC822Name(text) => {
            san_from_general_name(name).unwrap_or_else(|_| San::foreign("rfc822Name", text))
        }
        ParsedName::URI(text) => {
            san_from_general_name(name).unwrap_or_else(|_| San::foreign("uniformResourceIdentifier", text))
        }
        ParsedName::IPAddress(octets) => {
            san_from_general_name(name).unwrap_or_else(|_| San::recorded(&format!("iPAddress {}", hex::encode(octets))))
        }
        ParsedName::DirectoryName(name) => San::recorded(&format!("directoryName {name}")),
        ParsedName::RegisteredID(oid) => San::recorded(&format!("registeredID {oid}")),
        ParsedName::OtherName(oid, value) => San::recorded(&format!(
            "otherName {oid} {}",
            hex::encode(value.get(..256).unwrap_or(value))
        )),
        _ => San::recorded("a general name of an unknown type"),
    }
}

/// The text of an attribute of a distinguished name, of any type of DirectoryString (RFC 5280 §4.1.2.4) or IA5String.
/// TeletexString is read as ISO 8859-1, as other software writes and reads it.
pub(crate) fn directory_string(attribute: &AttributeTypeAndValue<'_>) -> Option<String> {
    let octets = attribute.as_slice();
    match attribute.attr_value().tag() {
        Tag::BmpString if octets.len().is_multiple_of(2) => {
            let units = octets
                .chunks_exact(2)
                .map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
            char::decode_utf16(units).collect::<Result<_, _>>().ok()
        }
        Tag::UniversalString if octets.len().is_multiple_of(4) => octets
            .chunks_exact(4)
            .map(|four| char::from_u32(u32::from_be_bytes([four[0], four[1], four[2], four[3]])))
            .collect(),
        Tag::T61String => Some(octets.iter().copied().map(char::from).collect()),
        _ => attribute.as_str().ok().map(str::to_owned),
    }
}

fn address(octets: &[u8]) -> Result<IpAddr, String> {
    let four = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    let sixteen = || <[u8; 16]>::try_from(octets).map(IpAddr::from);
    four.or_else(|_| sixteen())
        .map_err(|_| format!("an IP address has 4 or 16 octets, not {}", octets.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_name_is_a_utf8_string_in_der() {
        let expected = b"\x30\x0e\x31\x0c\x30\x0a\x06\x03\x55\x04\x03\x0c\x03a.b";
        assert_eq!(rasn::der::encode(&common_name_to_name("a.b")).unwrap(), expected);
        assert_eq!(rasn::der::encode(&common_name_to_name("")).unwrap(), b"\x30\x00");
    }

    #[test]
    fn general_names_are_der_with_their_implicit_tags() {
        let cases: [(&str, &[u8]); 5] = [
            ("a.b", b"\x82\x03a.b"),
            ("10.0.0.1", b"\x87\x04\x0a\x00\x00\x01"),
            ("::1", b"\x87\x10\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01"),
            ("a@b", b"\x81\x03a@b"),
            ("x://y", b"\x86\x05x://y"),
        ];
        for (text, der) in cases {
            let name = san_to_general_name(&text.parse().unwrap()).unwrap();
            assert_eq!(rasn::der::encode(&name).unwrap(), der, "{text}");
        }
    }

    #[test]
    fn serials_are_positive_integers_and_come_back() {
        for text in ["0", "1", "7f", "80", "ff00", &"f".repeat(40)] {
            let serial: Serial = text.parse().unwrap();
            let integer = serial_to_integer(&serial);
            assert_eq!(integer_to_serial(&integer), Some(serial), "{text}");
        }
        assert_eq!(
            rasn::der::encode(&serial_to_integer(&"80".parse().unwrap())).unwrap(),
            [2, 2, 0, 0x80]
        );
        assert_eq!(integer_to_serial(&Integer::from(-1)), None);
    }
}
