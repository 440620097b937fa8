//! The pieces that signed structures are built of (RFC 5280 §4.1–4.2), as DER.

use aws_lc_rs::{digest, rand};
use certctl_model::{
    key::KeyAlgorithm, key::KeyFacts, name::San, profile::ExtendedKeyUsage, revocation::RevocationReason,
    serial::Serial, time::Time,
};
use certctl_x509::name::{san_to_general_name, serial_to_integer};
use rasn::{
    AsnType, Encode,
    types::{Any, BitString, GeneralizedTime, Ia5String, Integer, ObjectIdentifier, OctetString, UtcTime},
};
use rasn_pkix::{
    AccessDescription, AlgorithmIdentifier, AuthorityKeyIdentifier, BasicConstraints, CrlReason, DistributionPoint,
    DistributionPointName, Extension, Extensions, GeneralName, IssuingDistributionPoint, Name, SubjectPublicKeyInfo,
    TbsCertificate, Validity, Version,
};

/// Object identifiers of extensions and access methods.
pub(crate) mod oid {
    pub(crate) const SUBJECT_KEY_ID: &[u32] = &[2, 5, 29, 14];
    pub(crate) const KEY_USAGE: &[u32] = &[2, 5, 29, 15];
    pub(crate) const SUBJECT_ALT_NAME: &[u32] = &[2, 5, 29, 17];
    pub(crate) const BASIC_CONSTRAINTS: &[u32] = &[2, 5, 29, 19];
    pub(crate) const CRL_NUMBER: &[u32] = &[2, 5, 29, 20];
    #[cfg(test)]
    pub(crate) const REASON_CODE: &[u32] = &[2, 5, 29, 21];
    #[cfg(test)]
    pub(crate) const INVALIDITY_DATE: &[u32] = &[2, 5, 29, 24];
    pub(crate) const DELTA_CRL_INDICATOR: &[u32] = &[2, 5, 29, 27];
    pub(crate) const ISSUING_DISTRIBUTION_POINT: &[u32] = &[2, 5, 29, 28];
    pub(crate) const CRL_DISTRIBUTION_POINTS: &[u32] = &[2, 5, 29, 31];
    pub(crate) const AUTHORITY_KEY_ID: &[u32] = &[2, 5, 29, 35];
    pub(crate) const FRESHEST_CRL: &[u32] = &[2, 5, 29, 46];
    pub(crate) const EXTENDED_KEY_USAGE: &[u32] = &[2, 5, 29, 37];
    /// RFC 9608 §2
    pub(crate) const NO_REV_AVAIL: &[u32] = &[2, 5, 29, 56];
    pub(crate) const AUTHORITY_INFO_ACCESS: &[u32] = &[1, 3, 6, 1, 5, 5, 7, 1, 1];
    pub(crate) const OCSP: &[u32] = &[1, 3, 6, 1, 5, 5, 7, 48, 1];
    pub(crate) const CA_ISSUERS: &[u32] = &[1, 3, 6, 1, 5, 5, 7, 48, 2];
    /// RFC 6960 §4.2.2.2
    pub(crate) const OCSP_SIGNING: &[u32] = &[1, 3, 6, 1, 5, 5, 7, 3, 9];
    /// RFC 6960 §4.2.2.2.1
    pub(crate) const OCSP_NO_CHECK: &[u32] = &[1, 3, 6, 1, 5, 5, 7, 48, 1, 5];
    /// RFC 6960 §4.2.1
    pub(crate) const OCSP_BASIC: &[u32] = &[1, 3, 6, 1, 5, 5, 7, 48, 1, 1];
    pub(crate) const ORGANIZATION: &[u32] = &[2, 5, 4, 10];
}

/// What a key may be used for (RFC 5280 §4.2.1.3), by bit number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Usage {
    DigitalSignature = 0,
    KeyEncipherment = 2,
    KeyCertSign = 5,
    CrlSign = 6,
}

/// A to-be-signed certificate of version 3.
pub(crate) struct Contents<'a> {
    pub(crate) serial: &'a Serial,
    pub(crate) algorithm: AlgorithmIdentifier,
    pub(crate) issuer: Name,
    pub(crate) not_before: Time,
    pub(crate) not_after: Time,
    pub(crate) subject: Name,
    pub(crate) spki_der: &'a [u8],
    pub(crate) extensions: Vec<Extension>,
}

impl Contents<'_> {
    /// DER of the TBSCertificate; nothing when the public key is not DER of a SubjectPublicKeyInfo.
    pub(crate) fn encode(self) -> Option<Vec<u8>> {
        let tbs = TbsCertificate {
            version: Version::V3,
            serial_number: serial_to_integer(self.serial),
            signature: self.algorithm,
            issuer: self.issuer,
            validity: Validity {
                not_before: date(self.not_before),
                not_after: date(self.not_after),
            },
            subject: self.subject,
            subject_public_key_info: rasn::der::decode(self.spki_der).ok()?,
            issuer_unique_id: None,
            subject_unique_id: None,
            extensions: Some(Extensions::from(self.extensions)),
        };
        Some(encode(&tbs))
    }
}

/// `Certificate` and `CertificateList` alike (RFC 5280 §4.1, §5.1): octets, how they were signed, the signature.
#[derive(AsnType, Encode)]
struct Signed {
    tbs: Any,
    algorithm: AlgorithmIdentifier,
    signature: BitString,
}

/// Puts a signature beside what it signs.
pub(crate) fn signed(tbs: &[u8], algorithm: AlgorithmIdentifier, signature: &[u8]) -> Vec<u8> {
    encode(&Signed {
        tbs: Any::new(tbs.to_vec()),
        algorithm,
        signature: BitString::from_slice(signature),
    })
}

/// What follows a to-be-signed structure that is not encoded in one piece: how it was signed, and the signature.
pub(crate) fn after_tbs(algorithm: AlgorithmIdentifier, signature: &[u8]) -> Vec<u8> {
    [encode(&algorithm), encode(&BitString::from_slice(signature))].concat()
}

/// The tag and the length of a value (X.690 §8.1.3, §10.1).
pub(crate) fn header(tag: u8, length: u64) -> Vec<u8> {
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => vec![tag, short],
        _ => {
            let octets = length.to_be_bytes();
            let octets = &octets[octets.len() - (u64::BITS - length.leading_zeros()).div_ceil(8) as usize..];
            [&[tag, 0x80 | octets.len() as u8], octets].concat()
        }
    }
}

/// DER of a structure we built.
pub(crate) fn encode(value: &impl Encode) -> Vec<u8> {
    rasn::der::encode(value).expect("a structure of valid parts has an encoding")
}

/// A random serial number of 159 bits, so that its INTEGER has at most 20 octets (RFC 5280 §4.1.2.2).
pub(crate) fn random_serial() -> anyhow::Result<Serial> {
    let mut octets = [0; 20];
    rand::fill(&mut octets).map_err(|_| anyhow::anyhow!("the random generator failed"))?;
    octets[0] &= 0x7f;
    Ok(Serial::from_octets(&octets)?)
}

/// UTCTime until 2049, GeneralizedTime from then on (RFC 5280 §4.1.2.5).
pub(crate) fn date(at: Time) -> rasn_pkix::Time {
    const YEAR_2050: i64 = 2_524_608_000;
    match at.unix() < YEAR_2050 {
        true => rasn_pkix::Time::Utc(utc(at)),
        false => rasn_pkix::Time::General(generalized(at)),
    }
}

/// Whole seconds in UTC.
pub(crate) fn generalized(at: Time) -> GeneralizedTime {
    utc(at).fixed_offset()
}

fn utc(at: Time) -> UtcTime {
    UtcTime::from_timestamp(at.unix(), 0).expect("a Time lies within the years 0 to 9999")
}

/// The bits of a public key: the content of the BIT STRING in its SubjectPublicKeyInfo.
pub(crate) fn key_bits(spki_der: &[u8]) -> Option<Vec<u8>> {
    let spki: SubjectPublicKeyInfo = rasn::der::decode(spki_der).ok()?;
    Some(spki.subject_public_key.into_vec())
}

/// SHA-1 of the bits of a public key: its identifier by RFC 5280 §4.2.1.2, method 1.
pub(crate) fn key_id(spki_der: &[u8]) -> Option<Vec<u8>> {
    let bits = key_bits(spki_der)?;
    Some(
        digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &bits)
            .as_ref()
            .to_vec(),
    )
}

/// An extension of any kind.
pub(crate) fn extension(oid: &'static [u32], critical: bool, value: Vec<u8>) -> Extension {
    Extension {
        extn_id: identifier(oid),
        critical,
        extn_value: OctetString::from(value),
    }
}

pub(crate) fn identifier(arcs: &'static [u32]) -> ObjectIdentifier {
    ObjectIdentifier::new_unchecked(arcs.into())
}

/// The key identifier of the key that signs.
pub(crate) fn authority_key_id(id: &[u8]) -> Extension {
    let value = AuthorityKeyIdentifier {
        key_identifier: Some(OctetString::from(id)),
        ..Default::default()
    };
    extension(oid::AUTHORITY_KEY_ID, false, encode(&value))
}

/// The key identifier of the certified key.
pub(crate) fn subject_key_id(id: &[u8]) -> Extension {
    extension(oid::SUBJECT_KEY_ID, false, encode(&OctetString::from(id)))
}

/// The uses of the certified key; critical.
pub(crate) fn key_usage(usages: &[Usage]) -> Extension {
    // A named bit list ends with its last set bit (X.690 §11.2.2).
    let last = usages.iter().map(|usage| *usage as usize).max().unwrap_or(0);
    let mut bits = BitString::repeat(false, last + 1);
    for usage in usages {
        bits.set(*usage as usize, true);
    }
    extension(oid::KEY_USAGE, true, encode(&bits))
}

/// What a TLS key does: it signs, and an RSA key may be given an encrypted secret as well (RFC 5246 §7.4.2). A key for time
/// stamps signs them and does nothing else.
pub(crate) fn leaf_usages(key: KeyFacts, purposes: &[ExtendedKeyUsage]) -> &'static [Usage] {
    match key.algorithm {
        _ if purposes.contains(&ExtendedKeyUsage::TimeStamping) => &[Usage::DigitalSignature],
        KeyAlgorithm::Rsa => &[Usage::DigitalSignature, Usage::KeyEncipherment],
        _ => &[Usage::DigitalSignature],
    }
}

/// The purposes of the certified key; critical for time stamps (RFC 3161 §2.3).
pub(crate) fn extended_key_usage(purposes: Vec<ObjectIdentifier>) -> Extension {
    let critical = purposes.contains(&purpose(ExtendedKeyUsage::TimeStamping));
    extension(oid::EXTENDED_KEY_USAGE, critical, encode(&purposes))
}

/// A purpose by its word.
pub(crate) fn purpose(usage: ExtendedKeyUsage) -> ObjectIdentifier {
    ObjectIdentifier::new_unchecked(usage.arcs().to_vec().into())
}

/// CA:TRUE, and how many authorities may stand below; critical.
pub(crate) fn certificate_authority(path_length: u32) -> Extension {
    let value = BasicConstraints {
        ca: true,
        path_len_constraint: Some(Integer::from(path_length)),
    };
    extension(oid::BASIC_CONSTRAINTS, true, encode(&value))
}

/// The names; critical when the subject is empty (RFC 5280 §4.2.1.6). Nothing when one is beyond ASCII.
pub(crate) fn subject_alt_name(names: &[San], critical: bool) -> Option<Extension> {
    let names = names.iter().map(san_to_general_name).collect::<Option<Vec<_>>>()?;
    Some(extension(oid::SUBJECT_ALT_NAME, critical, encode(&names)))
}

/// Where the CRL is.
pub(crate) fn crl_distribution_point(url: &str) -> Option<Extension> {
    distribution_points(oid::CRL_DISTRIBUTION_POINTS, url)
}

/// Where the delta CRL is (RFC 5280 §5.2.6).
pub(crate) fn freshest_crl(url: &str) -> Option<Extension> {
    distribution_points(oid::FRESHEST_CRL, url)
}

fn distribution_points(oid: &'static [u32], url: &str) -> Option<Extension> {
    let point = DistributionPoint {
        distribution_point: Some(DistributionPointName::FullName(vec![uri(url)?])),
        ..Default::default()
    };
    Some(extension(oid, false, encode(&vec![point])))
}

/// Which certificates a CRL covers: those that name this URL as their distribution point (RFC 5280 §5.2.5); critical.
pub(crate) fn issuing_distribution_point(url: &str) -> Option<Extension> {
    let value = IssuingDistributionPoint {
        distribution_point: Some(DistributionPointName::FullName(vec![uri(url)?])),
        only_contains_user_certs: false,
        only_contains_ca_certs: false,
        only_some_reasons: None,
        indirect_crl: false,
        only_contains_attribute_certs: false,
    };
    Some(extension(oid::ISSUING_DISTRIBUTION_POINT, true, encode(&value)))
}

/// Where the issuer's certificate is and, unless revocations are not published, where its responder answers.
pub(crate) fn authority_info_access(ocsp: Option<&str>, issuer: &str) -> Option<Extension> {
    let access = |method, url: &str| {
        Some(AccessDescription {
            access_method: identifier(method),
            access_location: uri(url)?,
        })
    };
    let mut all = Vec::new();
    if let Some(url) = ocsp {
        all.push(access(oid::OCSP, url)?);
    }
    all.push(access(oid::CA_ISSUERS, issuer)?);
    Some(extension(oid::AUTHORITY_INFO_ACCESS, false, encode(&all)))
}

/// An extension whose value is NULL.
pub(crate) fn marker(oid: &'static [u32]) -> Extension {
    extension(oid, false, vec![5, 0])
}

/// The reason as CRLs and answers give it; `unspecified` is left out (RFC 5280 §5.3.1).
pub(crate) fn crl_reason(reason: RevocationReason) -> Option<CrlReason> {
    Some(match reason {
        RevocationReason::Unspecified => return None,
        RevocationReason::KeyCompromise => CrlReason::KeyCompromise,
        RevocationReason::CaCompromise => CrlReason::CaCompromise,
        RevocationReason::AffiliationChanged => CrlReason::AffiliationChanged,
        RevocationReason::Superseded => CrlReason::Superseded,
        RevocationReason::CessationOfOperation => CrlReason::CessationOfOperation,
        RevocationReason::CertificateHold => CrlReason::CertificateHold,
        RevocationReason::PrivilegeWithdrawn => CrlReason::PrivilegeWithdrawn,
    })
}

fn uri(text: &str) -> Option<GeneralName> {
    Ia5String::from_iso646_bytes(text.as_bytes()).ok().map(GeneralName::Uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_have_the_shortest_length() {
        for (length, expected) in [
            (0, &[0x30, 0][..]),
            (127, &[0x30, 127]),
            (128, &[0x30, 0x81, 128]),
            (255, &[0x30, 0x81, 255]),
            (256, &[0x30, 0x82, 1, 0]),
            (65_536, &[0x30, 0x83, 1, 0, 0]),
            (1 << 32, &[0x30, 0x85, 1, 0, 0, 0, 0]),
        ] {
            assert_eq!(header(0x30, length), expected, "{length}");
        }
    }
}
