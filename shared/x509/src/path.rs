//! What a chain of authorities allows a leaf to be: certification path validation (RFC 5280 §6.1) for certificates that
//! are about to be signed.
//!
//! All certificates of the chain count, the root among them. RFC 5280 leaves the contents of a trust anchor's certificate
//! to the relying party; OpenSSL, Go, Java and browsers apply the end, the name constraints and the purposes of a root.
//!
//! Not here: signatures and the order of the chain ([`CertificateFacts::verify_issued_by`]), the present time, revocation.

use std::{collections::BTreeSet, net::IpAddr};

use certctl_model::{name::San, time::Time};
use x509_parser::{
    asn1_rs::{Any, Class},
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
    x509::X509Name,
};

use crate::facts::{CertificateFacts, parsed};

/// The requirements that a chain of authorities puts on the leaves below it.
#[derive(Clone, Debug)]
pub struct Path {
    not_after: Time,
    authorities: Vec<Constraints>,
}

/// The requirements of one authority.
#[derive(Clone, Debug)]
struct Constraints {
    /// Its subject, for messages.
    subject: String,
    /// The purposes it may certify, as dotted object identifiers; none for any.
    purposes: Option<BTreeSet<String>>,
    permitted: Vec<Name>,
    excluded: Vec<Name>,
}

/// A name, or the base of a subtree of names (RFC 5280 §4.2.1.10).
#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    Dns(String),
    Email(String),
    Uri(String),
    /// The octets of an address; in a base, followed by as many octets of a mask.
    Ip(Vec<u8>),
    Directory(Vec<Rdn>),
    /// A form that is not issued here, by its tag.
    Other(u32),
}

/// Attribute types and values of one RDN, in an order of their own.
type Rdn = BTreeSet<(String, String)>;

/// anyExtendedKeyUsage
const ANY_PURPOSE: &str = "2.5.29.37.0";

/// Extensions that are processed here or by whoever reads the chain: keyUsage, subjectAltName, basicConstraints,
/// nameConstraints, cRLDistributionPoints, certificatePolicies, policyMappings, authorityKeyIdentifier,
/// policyConstraints, extKeyUsage, inhibitAnyPolicy.
const PROCESSED: [&str; 11] = [
    "2.5.29.15",
    "2.5.29.17",
    "2.5.29.19",
    "2.5.29.30",
    "2.5.29.31",
    "2.5.29.32",
    "2.5.29.33",
    "2.5.29.35",
    "2.5.29.36",
    "2.5.29.37",
    "2.5.29.54",
];

impl Path {
    /// Reads the requirements of a chain: the issuing authority first, each followed by its issuer.
    ///
    /// # Errors
    /// What makes every leaf below the chain invalid.
    pub fn of(chain: &[CertificateFacts]) -> Result<Self, String> {
        let certificates = chain
            .iter()
            .map(|facts| parsed(&facts.der).map_err(|error| error.to_string()))
            .collect::<Result<Vec<_>, _>>()?;
        let Some(not_after) = chain.iter().map(|facts| facts.not_after).min() else {
            return Err("there is no certificate".to_owned());
        };
        let path = Self {
            not_after,
            authorities: certificates.iter().map(Constraints::of).collect::<Result<_, _>>()?,
        };
        path_lengths(&certificates)?;
        explicit_policy(&certificates)?;
        for (index, certificate) in certificates.iter().enumerate() {
            // A self-issued certificate that is not the last of a path is exempt (RFC 5280 §6.1.3 (b), (c)).
            if is_self_issued(certificate) {
                continue;
            }
            let above = &path.authorities[index + 1..];
            for name in names_of(certificate)? {
                let admits = above.iter().try_for_each(|authority| authority.admits(&name));
                admits.map_err(|why| format!("the certificate of \"{}\" is invalid: {why}", certificate.subject()))?;
            }
        }
        let any = path.purposes().is_none_or(|purposes| !purposes.is_empty());
        match any {
            true => Ok(path),
            false => Err("the extended key usages of the chain have no purpose in common".to_owned()),
        }
    }

    /// The end of the certificate of the chain that ends first. A leaf that outlives it is not accepted.
    pub fn not_after(&self) -> Time {
        self.not_after
    }

    /// Checks the purposes of a leaf, as dotted object identifiers.
    ///
    /// # Errors
    /// The authority that may not certify one of them.
    pub fn admits_purposes(&self, purposes: &[String]) -> Result<(), String> {
        for authority in &self.authorities {
            let Some(allowed) = &authority.purposes else { continue };
            if let Some(other) = purposes.iter().find(|purpose| !allowed.contains(*purpose)) {
                let allowed: Vec<_> = allowed.iter().map(|oid| purpose_word(oid)).collect();
                return Err(format!(
                    "the extended key usage {} is outside those of the authority \"{}\", which are {}",
                    purpose_word(other),
                    authority.subject,
                    allowed.join(", ")
                ));
            }
        }
        Ok(())
    }

    /// Checks the subject alternative names of a leaf.
    ///
    /// # Errors
    /// The name, and the authority whose nameConstraints it violates.
    pub fn admits_names(&self, names: &[San]) -> Result<(), String> {
        for name in names.iter().map(Name::of) {
            self.authorities
                .iter()
                .try_for_each(|authority| authority.admits(&name))?;
        }
        Ok(())
    }

    /// Checks the subject of a leaf that has these subject alternative names.
    ///
    /// # Errors
    /// As [`admits_names`](Self::admits_names), or when the common name would be taken for a DNS name that is not there.
    pub fn admits_subject(&self, subject_der: &[u8], names: &[San]) -> Result<(), String> {
        let (_, subject) = X509Name::from_der(subject_der).map_err(|_| "the subject cannot be read".to_owned())?;
        let constrains_dns = |authority: &Constraints| {
            let mut bases = authority.permitted.iter().chain(&authority.excluded);
            bases.any(|base| matches!(base, Name::Dns(_)))
        };
        // When there is no dNSName, OpenSSL compares a common name that looks like one, an address among them, with
        // constraints on DNS names.
        let has_dns = names.iter().any(|name| matches!(name, San::Dns(_)));
        let looks_like_dns = |text: &str| {
            text.contains('.')
                && text
                    .bytes()
                    .all(|octet| octet.is_ascii_alphanumeric() || b"-_.".contains(&octet))
        };
        let mut common_names = subject.iter_common_name().filter_map(|name| name.as_str().ok());
        if !has_dns && common_names.any(looks_like_dns) && self.authorities.iter().any(constrains_dns) {
            return Err("the common name would be compared with constraints on DNS names".to_owned());
        }
        for name in names_of_subject(&subject) {
            self.authorities
                .iter()
                .try_for_each(|authority| authority.admits(&name))?;
        }
        Ok(())
    }

    /// Whether the chain restricts names or purposes at all.
    pub fn is_constrained(&self) -> bool {
        self.authorities.iter().any(|authority| {
            authority.purposes.is_some() || !authority.permitted.is_empty() || !authority.excluded.is_empty()
        })
    }

    /// The purposes that every authority of the chain may certify; none for any.
    fn purposes(&self) -> Option<BTreeSet<String>> {
        let mut sets = self
            .authorities
            .iter()
            .filter_map(|authority| authority.purposes.as_ref());
        let first = sets.next()?.clone();
        Some(sets.fold(first, |common, set| common.intersection(set).cloned().collect()))
    }
}

impl Constraints {
    fn of(certificate: &X509Certificate<'_>) -> Result<Self, String> {
        let subject = certificate.subject().to_string();
        let wrong = |why: &str| format!("the certificate of \"{subject}\" {why}");
        certificate
            .extensions_map()
            .map_err(|_| wrong("has an extension twice (RFC 5280 §4.2)"))?;
        let mut constraints = Self {
            subject: subject.clone(),
            purposes: None,
            permitted: vec![],
            excluded: vec![],
        };
        let mut is_authority = false;
        for extension in certificate.extensions() {
            let oid = extension.oid.to_id_string();
            if extension.critical && !PROCESSED.contains(&oid.as_str()) {
                return Err(wrong(&format!(
                    "has the critical extension {oid}, which relying parties may not know (RFC 5280 §4.2)"
                )));
            }
            match extension.parsed_extension() {
                ParsedExtension::BasicConstraints(basic) => is_authority = basic.ca,
                ParsedExtension::KeyUsage(usage) if !usage.key_cert_sign() => {
                    return Err(wrong(
                        "lacks keyUsage keyCertSign; without it it may not sign certificates",
                    ));
                }
                // Read below, with what the library leaves out.
                _ if oid == "2.5.29.30" => {
                    (constraints.permitted, constraints.excluded) =
                        name_constraints(extension.value).map_err(|why| wrong(&why))?;
                }
                _ if oid == "2.5.29.37" => {
                    let purposes: Vec<rasn::types::ObjectIdentifier> = rasn::der::decode(extension.value)
                        .map_err(|_| wrong("has an extKeyUsage that cannot be read"))?;
                    let purposes: BTreeSet<String> = purposes.iter().map(ToString::to_string).collect();
                    constraints.purposes = (!purposes.contains(ANY_PURPOSE)).then_some(purposes);
                }
                ParsedExtension::ParseError { .. } if extension.critical => {
                    return Err(wrong(&format!("has an extension {oid} that cannot be read")));
                }
                _ => {}
            }
        }
        match is_authority {
            true => Ok(constraints),
            false => Err(wrong(
                "lacks basicConstraints CA:TRUE, so nothing it signs would be trusted",
            )),
        }
    }

    fn admits(&self, name: &Name) -> Result<(), String> {
        let is_permitted = self.permitted.iter().any(|base| base.permits(name));
        if !is_permitted && self.permitted.iter().any(|base| base.is_of_the_form_of(name)) {
            let bases: Vec<_> = self
                .permitted
                .iter()
                .filter(|base| base.is_of_the_form_of(name))
                .collect();
            return Err(format!(
                "{name} is outside the name constraints of the authority \"{}\", which permits {}",
                self.subject,
                listed(&bases)
            ));
        }
        match self.excluded.iter().find(|base| base.excludes(name)) {
            None => Ok(()),
            Some(base) => Err(format!(
                "{name} is excluded by the name constraints of the authority \"{}\" ({base})",
                self.subject
            )),
        }
    }
}

impl Name {
    fn of(san: &San) -> Self {
        match san {
            San::Dns(name) => Self::Dns(name.as_str().to_ascii_lowercase()),
            San::Email(text) => Self::Email(text.clone()),
            San::Uri(text) => Self::Uri(text.clone()),
            San::Ip(IpAddr::V4(ip)) => Self::Ip(ip.octets().to_vec()),
            San::Ip(IpAddr::V6(ip)) => Self::Ip(ip.octets().to_vec()),
            // Never certified.
            San::Foreign(_) => Self::Other(u32::MAX),
        }
    }

    fn is_of_the_form_of(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Other(one), Self::Other(other)) => one == other,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }

    /// Whether the name is within the subtree of this base, read narrowly.
    fn permits(&self, name: &Self) -> bool {
        match (self, name) {
            (Self::Dns(base), Self::Dns(name)) => base.is_empty() || is_within_domain(base, name),
            (Self::Email(base), Self::Email(name)) => !base.is_empty() && is_mailbox_of(base, name),
            (Self::Uri(base), Self::Uri(name)) => {
                !base.is_empty() && uri_host(name).is_some_and(|host| is_host_of(base, host))
            }
            (Self::Ip(base), Self::Ip(address)) => is_in_network(base, address),
            (Self::Directory(base), Self::Directory(name)) => name.starts_with(base),
            _ => false,
        }
    }

    /// Whether the name is within the subtree of this base, read widely: a wildcard that covers an excluded name, and a
    /// form that is not processed here, are excluded too.
    fn excludes(&self, name: &Self) -> bool {
        match (self, name) {
            (Self::Dns(base), Self::Dns(name)) => {
                let base = base.strip_prefix('.').unwrap_or(base);
                let covered = name
                    .strip_prefix("*.")
                    .is_some_and(|parent| base.split_once('.').is_some_and(|(_, above)| above == parent));
                base.is_empty() || covered || is_within_domain(base, name)
            }
            (Self::Email(base), Self::Email(name)) => base.is_empty() || is_mailbox_of(base, name),
            // Without a host name the constraint cannot be applied, and the name is refused (RFC 5280 §4.2.1.10).
            (Self::Uri(base), Self::Uri(name)) => {
                base.is_empty() || uri_host(name).is_none_or(|host| is_host_of(base, host))
            }
            (Self::Other(form), Self::Other(other)) => form == other,
            _ => self.permits(name),
        }
    }

    /// The base of a subtree, from its GeneralName.
    fn base(general_name: &Any<'_>) -> Result<Self, String> {
        let text = || -> Result<String, String> {
            let text = std::str::from_utf8(general_name.data)
                .ok()
                .filter(|text| text.is_ascii());
            text.map(str::to_owned)
                .ok_or_else(|| "has a nameConstraints base that is not ASCII".to_owned())
        };
        Ok(match general_name.tag().0 {
            1 => Self::Email(text()?),
            2 => Self::Dns(text()?.to_ascii_lowercase()),
            4 => {
                let (_, name) = X509Name::from_der(general_name.data)
                    .map_err(|_| "has a directoryName in nameConstraints that cannot be read".to_owned())?;
                Self::Directory(rdns(&name))
            }
            6 => Self::Uri(text()?.to_ascii_lowercase()),
            7 => match general_name.data.len() {
                8 | 32 => Self::Ip(general_name.data.to_vec()),
                length => {
                    return Err(format!(
                        "has an iPAddress of {length} octets in nameConstraints, not 8 or 32"
                    ));
                }
            },
            other => Self::Other(other),
        })
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dns(text) if text.is_empty() => f.write_str("every DNS name"),
            Self::Email(text) if text.is_empty() => f.write_str("every e-mail address"),
            Self::Dns(text) | Self::Email(text) | Self::Uri(text) => f.write_str(text),
            Self::Ip(octets) => match octets.split_at(octets.len() / 2) {
                (address, mask) if matches!(octets.len(), 8 | 32) => write!(f, "{}/{}", ip(address), ip(mask)),
                _ => f.write_str(&ip(octets)),
            },
            Self::Directory(rdns) => {
                let parts: Vec<_> = rdns
                    .iter()
                    .flatten()
                    .map(|(oid, value)| format!("{oid}={value}"))
                    .collect();
                write!(f, "the directory name \"{}\"", parts.join(", "))
            }
            Self::Other(tag) => write!(f, "a name of form [{tag}]"),
        }
    }
}

/// RFC 5280 §6.1.4 (l), (m): how many authorities that are not self-issued may follow.
fn path_lengths(chain: &[X509Certificate<'_>]) -> Result<(), String> {
    let mut below = 0;
    for certificate in chain {
        let basic = certificate.basic_constraints().ok().flatten();
        let most = basic.and_then(|basic| basic.value.path_len_constraint);
        if let Some(most) = most.filter(|most| below > *most) {
            return Err(format!(
                "the certificate of \"{}\" has pathLenConstraint {most}, but {below} authorities stand below it",
                certificate.subject()
            ));
        }
        below += u32::from(!is_self_issued(certificate));
    }
    Ok(())
}

/// RFC 5280 §6.1.4 (h), (i), §6.1.5 (a), (b), (g): leaves have no certificate policies, so a chain that requires one
/// invalidates them.
fn explicit_policy(chain: &[X509Certificate<'_>]) -> Result<(), String> {
    let mut skip: Option<u32> = None;
    for certificate in chain.iter().rev() {
        if !is_self_issued(certificate) {
            skip = skip.map(|count| count.saturating_sub(1));
        }
        for extension in certificate.extensions() {
            if let ParsedExtension::PolicyConstraints(policy) = extension.parsed_extension()
                && let Some(required) = policy.require_explicit_policy
            {
                skip = Some(skip.map_or(required, |count| count.min(required)));
            }
        }
    }
    match skip {
        Some(0 | 1) => Err(
            "the policyConstraints of the chain require a certificate policy (requireExplicitPolicy), and certificates \
             that are issued here have none"
                .to_owned(),
        ),
        _ => Ok(()),
    }
}

fn is_self_issued(certificate: &X509Certificate<'_>) -> bool {
    certificate.subject().as_raw() == certificate.issuer().as_raw()
}

/// Every name that constraints of authorities above are applied to.
fn names_of(certificate: &X509Certificate<'_>) -> Result<Vec<Name>, String> {
    let mut names = names_of_subject(certificate.subject());
    for extension in certificate.extensions() {
        if let ParsedExtension::SubjectAlternativeName(found) = extension.parsed_extension() {
            names.extend(found.general_names.iter().map(|name| match name {
                GeneralName::DNSName(text) => Name::Dns(text.to_ascii_lowercase()),
                GeneralName::RFC822Name(text) => Name::Email((*text).to_owned()),
                GeneralName::URI(text) => Name::Uri((*text).to_owned()),
                GeneralName::IPAddress(octets) => Name::Ip(octets.to_vec()),
                GeneralName::DirectoryName(name) => Name::Directory(rdns(name)),
                GeneralName::OtherName(..) => Name::Other(0),
                GeneralName::X400Address(_) => Name::Other(3),
                GeneralName::EDIPartyName(_) => Name::Other(5),
                GeneralName::RegisteredID(_) => Name::Other(8),
                GeneralName::Invalid(tag, _) => Name::Other(tag.0),
            }));
        }
    }
    Ok(names)
}

/// The subject, unless it is empty, and its e-mail addresses (RFC 5280 §4.2.1.10).
fn names_of_subject(subject: &X509Name<'_>) -> Vec<Name> {
    let own = rdns(subject);
    let emails = subject.iter_email().filter_map(|email| email.as_str().ok());
    let emails = emails.map(|text| Name::Email(text.to_owned())).collect::<Vec<_>>();
    let own = (!own.is_empty()).then_some(Name::Directory(own));
    own.into_iter().chain(emails).collect()
}

fn rdns(name: &X509Name<'_>) -> Vec<Rdn> {
    let attributes = |rdn: &x509_parser::x509::RelativeDistinguishedName<'_>| {
        let attributes = rdn.iter().map(|attribute| {
            let value = attribute.attr_value();
            // Strings are compared without case and repeated spaces (RFC 5280 §7.1), other values octet by octet.
            let text = match value.tag().0 {
                12 | 18 | 19 | 22 => std::str::from_utf8(value.data).ok().map(str::to_owned),
                20 => Some(value.data.iter().map(|octet| char::from(*octet)).collect()),
                30 => Some(utf16(value.data)),
                _ => None,
            };
            let words = text.map(|text| text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase());
            let value = words.unwrap_or_else(|| format!("#{}:{}", value.tag().0, hex::encode(value.data)));
            (attribute.attr_type().to_id_string(), value)
        });
        attributes.collect::<Rdn>()
    };
    name.iter_rdn().map(attributes).collect()
}

fn utf16(octets: &[u8]) -> String {
    let units = octets
        .chunks_exact(2)
        .map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    char::decode_utf16(units)
        .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}

/// The permitted and the excluded bases of a nameConstraints extension.
fn name_constraints(value: &[u8]) -> Result<(Vec<Name>, Vec<Name>), String> {
    let broken = || "has nameConstraints that cannot be read (RFC 5280 §4.2.1.10)".to_owned();
    let (mut permitted, mut excluded) = (vec![], vec![]);
    for subtrees in elements(sequence(value).ok_or_else(broken)?).ok_or_else(broken)? {
        let bases = match (subtrees.class(), subtrees.tag().0) {
            (Class::ContextSpecific, 0) => &mut permitted,
            (Class::ContextSpecific, 1) => &mut excluded,
            _ => return Err(broken()),
        };
        for subtree in elements(subtrees.data).ok_or_else(broken)? {
            let mut parts = elements(subtree.data).ok_or_else(broken)?.into_iter();
            bases.push(Name::base(&parts.next().ok_or_else(broken)?)?);
            if parts.any(|part| part.tag().0 != 0 || part.data.iter().any(|octet| *octet != 0)) {
                return Err(
                    "has a minimum or maximum in nameConstraints, which must not be there (RFC 5280 §4.2.1.10)"
                        .to_owned(),
                );
            }
        }
    }
    Ok((permitted, excluded))
}

/// The content of a SEQUENCE that is all of the octets.
fn sequence(der: &[u8]) -> Option<&[u8]> {
    match Any::from_der(der) {
        Ok(([], any)) if any.tag().0 == 16 => Some(any.data),
        _ => None,
    }
}

fn elements(mut content: &[u8]) -> Option<Vec<Any<'_>>> {
    let mut elements = Vec::new();
    while !content.is_empty() {
        let (rest, element) = Any::from_der(content).ok()?;
        elements.push(element);
        content = rest;
    }
    Some(elements)
}

/// Zero or more labels may stand before the base; after a leading dot, one or more.
fn is_within_domain(base: &str, name: &str) -> bool {
    match name.strip_suffix(base) {
        Some("") => true,
        Some(before) => before.ends_with('.') || base.starts_with('.'),
        None => false,
    }
}

/// A host by its own name, or a host below a domain that begins with a dot (RFC 5280 §4.2.1.10 for URIs and mailboxes).
fn is_host_of(base: &str, host: &str) -> bool {
    let (base, host) = (base.to_ascii_lowercase(), host.to_ascii_lowercase());
    match base.starts_with('.') {
        true => host.len() > base.len() && host.ends_with(&base),
        false => host == base,
    }
}

fn is_mailbox_of(base: &str, mailbox: &str) -> bool {
    let Some((local, host)) = mailbox.rsplit_once('@') else {
        return false;
    };
    match base.rsplit_once('@') {
        Some((base_local, base_host)) => local == base_local && is_host_of(base_host, host),
        None => is_host_of(base, host),
    }
}

/// The host name in the authority of a URI; none for an address, or without an authority.
fn uri_host(uri: &str) -> Option<&str> {
    let (_, rest) = uri.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if host.starts_with('[') {
        return None;
    }
    let host = host.split_once(':').map_or(host, |(host, _)| host);
    (!host.is_empty() && host.parse::<IpAddr>().is_err()).then_some(host)
}

fn is_in_network(base: &[u8], address: &[u8]) -> bool {
    let (network, mask) = base.split_at(base.len() / 2);
    network.len() == address.len()
        && network
            .iter()
            .zip(mask)
            .zip(address)
            .all(|((network, mask), octet)| network & mask == octet & mask)
}

fn ip(octets: &[u8]) -> String {
    let four = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    let any = four.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from));
    any.map_or_else(|_| hex::encode(octets), |ip| ip.to_string())
}

fn listed(bases: &[&Name]) -> String {
    const MOST: usize = 8;
    let mut texts: Vec<_> = bases.iter().take(MOST).map(ToString::to_string).collect();
    if bases.len() > MOST {
        texts.push(format!("and {} more", bases.len() - MOST));
    }
    texts.join(", ")
}

fn purpose_word(oid: &str) -> String {
    match oid.parse::<certctl_model::profile::ExtendedKeyUsage>() {
        Ok(word) => word.to_string(),
        Err(_) => oid.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    /// Makes a self-signed authority with extensions of OpenSSL's syntax, and reads its requirements.
    fn path(extensions: &[&str]) -> Result<Path, String> {
        let scratch = Scratch::new();
        let mut arguments = vec![
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            "ca.key",
            "-subj",
            "/O=Acme/CN=CA",
            "-days",
            "30",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
        ];
        arguments.extend(extensions.iter().flat_map(|extension| ["-addext", extension]));
        let pem = String::from_utf8(scratch.openssl(&arguments)).unwrap();
        Path::of(&CertificateFacts::parse_pem_chain(&pem).unwrap())
    }

    fn admits(path: &Path, name: &str) -> bool {
        path.admits_names(&[name.parse().unwrap()]).is_ok()
    }

    #[test]
    fn permitted_and_excluded_subtrees_are_applied_to_every_form_of_name() {
        let path = path(&[
            "nameConstraints=critical,permitted;DNS:corp.example,permitted;IP:10.0.0.0/255.0.0.0,permitted;email:mail.example,\
             permitted;email:.below.example,permitted;email:one@exact.example,permitted;URI:host.example,\
             permitted;URI:.uri.example,excluded;DNS:secret.corp.example,excluded;IP:10.9.0.0/255.255.0.0",
        ])
        .unwrap();
        for name in [
            "corp.example",
            "a.corp.example",
            "*.a.corp.example",
            "10.1.2.3",
            "a@mail.example",
            "a@x.below.example",
            "one@exact.example",
            "https://host.example:8443/x",
            "spiffe://a.uri.example/x",
        ] {
            assert!(admits(&path, name), "{name}");
        }
        for name in [
            "corp.example.org",
            "xcorp.example",
            "secret.corp.example",
            "a.secret.corp.example",
            // It would be accepted for secret.corp.example.
            "*.corp.example",
            "11.0.0.1",
            "10.9.0.1",
            "::ffff:10.1.2.3",
            "a@x.mail.example",
            "a@below.example",
            "two@exact.example",
            "ONE@exact.example",
            "https://a.host.example/",
            "https://10.0.0.1/",
            "https://uri.example/",
        ] {
            assert!(!admits(&path, name), "{name}");
        }
        let why = path.admits_names(&["a.other.example".parse().unwrap()]).unwrap_err();
        assert_eq!(
            why,
            "a.other.example is outside the name constraints of the authority \"O=Acme, CN=CA\", which permits corp.example"
        );
    }

    #[test]
    fn a_form_without_constraints_is_free_and_an_excluded_one_is_not() {
        let path = path(&[
            "nameConstraints=critical,permitted;DNS:corp.example,excluded;IP:0.0.0.0/0.0.0.0,excluded;IP:::/::",
        ])
        .unwrap();
        assert!(admits(&path, "a@anywhere.example") && admits(&path, "spiffe://x/y"));
        assert!(!admits(&path, "192.0.2.1") && !admits(&path, "2001:db8::1"));
    }

    #[test]
    fn subjects_are_compared_with_directory_names() {
        let scratch = Scratch::new();
        let config = "[req]\ndistinguished_name=dn\n[dn]\n[ext]\nbasicConstraints=critical,CA:TRUE\n\
                      keyUsage=critical,keyCertSign,cRLSign\nnameConstraints=critical,permitted;dirName:base\n[base]\nO=Acme  Corp\n";
        let config = scratch.write("ca.cnf", config.as_bytes());
        let pem = scratch.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            "ca.key",
            "-subj",
            "/CN=CA",
            "-config",
            &config,
            "-extensions",
            "ext",
        ]);
        let path = Path::of(&CertificateFacts::parse_pem_chain(&String::from_utf8(pem).unwrap()).unwrap()).unwrap();
        let subject = |text: &str| {
            let pem = scratch.openssl(&[
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-keyout",
                "x.key",
                "-subj",
                text,
            ]);
            let facts = CertificateFacts::parse_pem_chain(&String::from_utf8(pem).unwrap()).unwrap();
            path.admits_subject(&facts[0].subject_der, &["a.example".parse().unwrap()])
        };
        assert_eq!(subject("/O=ACME corp/CN=a.example"), Ok(()));
        assert!(subject("/CN=a.example").is_err() && subject("/O=Acme/CN=a.example").is_err());
        assert_eq!(
            path.admits_subject(&[0x30, 0], &["a.example".parse().unwrap()]),
            Ok(()),
            "an empty subject"
        );
    }

    #[test]
    fn purposes_are_those_of_every_authority() {
        let path = path(&["extendedKeyUsage=clientAuth,1.2.3.4"]).unwrap();
        let [server, client] = ["1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2"].map(str::to_owned);
        assert_eq!(path.admits_purposes(std::slice::from_ref(&client)), Ok(()));
        let why = path.admits_purposes(&[server, client]).unwrap_err();
        assert_eq!(
            why,
            "the extended key usage serverAuth is outside those of the authority \"O=Acme, CN=CA\", which are 1.2.3.4, clientAuth"
        );
        let any = super::tests::path(&["extendedKeyUsage=anyExtendedKeyUsage"]).unwrap();
        assert!(!any.is_constrained());
    }

    #[test]
    fn a_chain_that_invalidates_every_leaf_is_refused() {
        for (extension, reason) in [
            ("1.2.3.4=critical,DER:0500", "critical extension 1.2.3.4"),
            (
                "policyConstraints=critical,requireExplicitPolicy:0",
                "requireExplicitPolicy",
            ),
            // permittedSubtrees { dNSName "a", maximum 1 }
            (
                "nameConstraints=critical,DER:300aa0083006820161810101",
                "minimum or maximum",
            ),
            (
                "nameConstraints=critical,DER:3009a00730058703010203",
                "iPAddress of 3 octets",
            ),
        ] {
            let why = path(&[extension]).unwrap_err();
            assert!(why.contains(reason), "{extension}: {why}");
        }
        assert!(path(&["policyConstraints=critical,requireExplicitPolicy:2"]).is_ok());
    }
}
