//! What a certificate must and must not say, asked of the encoded octets before they are signed: what is checked is
//! what is signed, whatever built it. [`crl`] and [`ocsp`] are the same for lists and for responses.

pub(crate) mod crl;
pub(crate) mod ocsp;

use std::time::Duration;

use certctl_model::{
    key::{KeyAlgorithm, KeyFacts},
    name::San,
    profile::ExtendedKeyUsage,
};
use std::net::IpAddr;
use x509_parser::{
    certificate::TbsCertificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
    x509::X509Version,
};

use crate::{
    authority::Authority,
    der::{self, date, oid},
};

/// What this certificate in particular must say.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    /// The certified key.
    pub(crate) spki_der: &'a [u8],
    /// Its kind.
    pub(crate) key: KeyFacts,
    /// The names; none for a certificate that has none.
    pub(crate) names: &'a [San],
    /// The purposes, as dotted object identifiers.
    pub(crate) purposes: Vec<String>,
    /// The longest lifetime that is allowed.
    pub(crate) longest: Option<Duration>,
    /// Whether it says where to learn of its revocation.
    pub(crate) publishes: bool,
    /// Whether it says that there is nothing to learn (RFC 9608).
    pub(crate) no_rev_avail: bool,
}

/// Checks a to-be-signed end-entity certificate.
///
/// # Errors
/// The first rule it breaks, with its section of RFC 5280.
pub(crate) fn certificate(tbs_der: &[u8], authority: &Authority, wanted: &Wanted<'_>) -> Result<(), String> {
    let (rest, tbs) = TbsCertificate::from_der(tbs_der).map_err(|_| "it is no TBSCertificate (4.1)".to_owned())?;
    must(rest.is_empty(), "octets follow it (4.1)")?;
    fields(&tbs, authority, wanted)?;
    extensions(&tbs, authority, wanted)
}

fn fields(tbs: &TbsCertificate<'_>, authority: &Authority, wanted: &Wanted<'_>) -> Result<(), String> {
    let own = &authority.certificate;
    let serial = tbs.raw_serial();
    must(tbs.version == X509Version::V3, "the version is not 3 (4.1.2.1)")?;
    must(
        (9..=20).contains(&serial.len()),
        "the serial number has not 9 to 20 octets (4.1.2.2)",
    )?;
    must(serial[0] & 0x80 == 0, "the serial number is not positive (4.1.2.2)")?;
    let algorithm = authority.algorithm().algorithm.to_string();
    must(
        tbs.signature.algorithm.to_id_string() == algorithm,
        "the signature is of another kind (4.1.2.3)",
    )?;
    must(
        tbs.issuer.as_raw() == own.subject_der,
        "the issuer is not the authority's subject (4.1.2.4)",
    )?;
    must(
        tbs.subject_pki.raw == wanted.spki_der,
        "the key is not the requested one (4.1.2.7)",
    )?;
    let (first, last) = (tbs.validity.not_before, tbs.validity.not_after);
    for at in [first, last] {
        let utc = matches!(date(unix(at)), rasn_pkix::Time::Utc(_));
        must(
            at.is_utctime() == utc,
            "a date until 2049 is a UTCTime, a later one a GeneralizedTime (4.1.2.5)",
        )?;
    }
    must(first < last, "it ends before it begins (4.1.2.5)")?;
    must(unix(first) >= own.not_before, "it begins before its issuer (6.1.3)")?;
    must(
        unix(last) <= authority.not_after(),
        "it ends after its issuer, or one above it (6.1.3)",
    )?;
    authority.path.admits_names(wanted.names)?;
    authority.path.admits_subject(tbs.subject.as_raw(), wanted.names)?;
    let life = unix(last).since(unix(first));
    must(
        wanted.longest.is_none_or(|longest| life <= longest),
        "it lives longer than its profile allows",
    )?;
    let mut common_names = tbs.subject.iter_common_name().map(|name| name.as_str().unwrap_or(""));
    if let Some(name) = common_names.next() {
        must(name.len() <= 64, "the common name has more than 64 characters (A.1)")?;
        let known = wanted.names.is_empty() || wanted.names.iter().any(|one| one.to_string() == name);
        must(known, "the common name is not among the names (RFC 9525)")?;
    }
    must(common_names.next().is_none(), "it has several common names (4.1.2.6)")
}

fn extensions(tbs: &TbsCertificate<'_>, authority: &Authority, wanted: &Wanted<'_>) -> Result<(), String> {
    tbs.extensions_map()
        .map_err(|_| "an extension stands twice (4.2)".to_owned())?;
    let (mut usage, mut purposes, mut names, mut key_id, mut authority_key_id) = (false, false, false, false, false);
    let (mut crl, mut ocsp, mut no_rev_avail) = (false, false, false);
    let subject_is_empty = tbs.subject.iter().next().is_none();
    for extension in tbs.extensions() {
        let critical = |wanted: bool, what: &str| {
            let word = if wanted { "" } else { "not " };
            must(
                extension.critical == wanted,
                &format!("{what} must {word}be critical here (4.2.1)"),
            )
        };
        match extension.parsed_extension() {
            ParsedExtension::KeyUsage(bits) => {
                usage = true;
                critical(true, "keyUsage")?;
                must(bits.digital_signature(), "the key may not sign (4.2.1.3)")?;
                must(
                    !bits.key_cert_sign() && !bits.crl_sign(),
                    "it says it is an authority (4.2.1.3)",
                )?;
                let rsa = wanted.key.algorithm == KeyAlgorithm::Rsa;
                must(
                    rsa || !bits.key_encipherment(),
                    "only RSA keys encipher keys (RFC 8813 §3, RFC 9295 §3)",
                )?;
            }
            ParsedExtension::ExtendedKeyUsage(_) => {
                purposes = true;
                let mut expected = wanted.purposes.clone();
                expected.sort();
                let time_stamping = expected.contains(&der::purpose(ExtendedKeyUsage::TimeStamping).to_string());
                critical(time_stamping, "extKeyUsage")?;
                must(
                    !time_stamping || expected.len() == 1,
                    "timeStamping stands beside other purposes (RFC 3161 2.3)",
                )?;
                must(
                    found_purposes(extension.value) == Some(expected),
                    "the purposes differ (4.2.1.12)",
                )?;
            }
            ParsedExtension::SubjectAlternativeName(found) => {
                names = true;
                critical(subject_is_empty, "subjectAltName")?;
                let equal = found.general_names.len() == wanted.names.len()
                    && found
                        .general_names
                        .iter()
                        .zip(wanted.names)
                        .all(|(found, name)| is(found, name));
                must(equal && !wanted.names.is_empty(), "the names differ (4.2.1.6)")?;
            }
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                authority_key_id = true;
                critical(false, "authorityKeyIdentifier")?;
                let same = id.key_identifier.as_ref().is_some_and(|id| id.0 == authority.key_id);
                must(same, "authorityKeyIdentifier is not the authority's (4.2.1.1)")?;
            }
            ParsedExtension::SubjectKeyIdentifier(_) => {
                key_id = true;
                critical(false, "subjectKeyIdentifier")?;
            }
            ParsedExtension::CRLDistributionPoints(_) => crl = true,
            ParsedExtension::AuthorityInfoAccess(access) => {
                critical(false, "authorityInfoAccess")?;
                let method = dotted(oid::OCSP);
                ocsp = access
                    .iter()
                    .any(|access| access.access_method.to_id_string() == method);
            }
            ParsedExtension::BasicConstraints(constraints) => must(!constraints.ca, "it says CA:TRUE (4.2.1.9)")?,
            ParsedExtension::ParseError { .. } => return Err(format!("{} cannot be read (4.2)", extension.oid)),
            _ => {
                no_rev_avail |= extension.oid.to_id_string() == dotted(oid::NO_REV_AVAIL);
                critical(false, "an extension few know")?;
            }
        }
    }
    must(usage, "keyUsage is missing (4.2.1.3)")?;
    must(purposes, "extKeyUsage is missing (4.2.1.12)")?;
    must(names != wanted.names.is_empty(), "subjectAltName is missing (4.2.1.6)")?;
    must(names || !subject_is_empty, "it names nobody (4.1.2.6)")?;
    must(
        key_id && authority_key_id,
        "a key identifier is missing (4.2.1.1, 4.2.1.2)",
    )?;
    must(
        no_rev_avail == wanted.no_rev_avail,
        "noRevAvail is missing or too much (RFC 9608)",
    )?;
    must(
        crl == wanted.publishes && ocsp == wanted.publishes,
        "CRL and OCSP URLs are missing or too much (4.2.1.13)",
    )
}

fn is(found: &GeneralName<'_>, name: &San) -> bool {
    match (found, name) {
        (GeneralName::DNSName(found), San::Dns(name)) => *found == name.as_str(),
        (GeneralName::RFC822Name(found), San::Email(name)) | (GeneralName::URI(found), San::Uri(name)) => {
            *found == name
        }
        (GeneralName::IPAddress(found), San::Ip(IpAddr::V4(ip))) => *found == ip.octets(),
        (GeneralName::IPAddress(found), San::Ip(IpAddr::V6(ip))) => *found == ip.octets(),
        _ => false,
    }
}

fn found_purposes(value: &[u8]) -> Option<Vec<String>> {
    let purposes: Vec<rasn::types::ObjectIdentifier> = rasn::der::decode(value).ok()?;
    let mut purposes: Vec<_> = purposes.iter().map(ToString::to_string).collect();
    purposes.sort();
    Some(purposes)
}

fn dotted(arcs: &[u32]) -> String {
    let arcs: Vec<_> = arcs.iter().map(u32::to_string).collect();
    arcs.join(".")
}

fn unix(at: x509_parser::time::ASN1Time) -> certctl_model::time::Time {
    certctl_model::time::Time::from_unix(at.timestamp())
}

fn must(holds: bool, otherwise: &str) -> Result<(), String> {
    match holds {
        true => Ok(()),
        false => Err(otherwise.to_owned()),
    }
}
