//! CRLs (RFC 5280 §5), looked into without a list of their entries being made: there may be millions.

use certctl_model::serial::Serial;
use x509_parser::der_parser::asn1_rs::{Any, FromDer, Tag};

/// CRL number (§5.2.3), id-ce-cRLNumber.
const CRL_NUMBER: &[u8] = &[0x55, 0x1d, 0x14];

/// A CRL, as far as is asked for. Its signature is not verified.
pub struct Crl<'a> {
    entries: &'a [u8],
    /// Its number, of a CRL that has one.
    pub number: Option<u64>,
}

/// The octets are not DER of a CRL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not DER of a certificate revocation list")]
pub struct NoCrl;

impl<'a> Crl<'a> {
    /// Finds the entries and the number.
    ///
    /// # Errors
    /// [`NoCrl`].
    pub fn look_into(der: &'a [u8]) -> Result<Self, NoCrl> {
        let list = take(&mut { der }, Tag::Sequence)?;
        let mut tbs = take(&mut { list }, Tag::Sequence)?;
        let mut found = Self {
            entries: &[],
            number: None,
        };
        // Version, algorithm and issuer are passed over; then come one or two times.
        for tag in [Tag::Integer, Tag::Sequence, Tag::Sequence] {
            take(&mut tbs, tag)?;
        }
        while let Ok((rest, Any { header, data, .. })) = Any::from_der(tbs) {
            tbs = rest;
            match (header.tag(), header.is_contextspecific()) {
                (Tag::Sequence, false) => found.entries = data,
                (Tag(0), true) => found.number = number(data),
                _ => {}
            }
        }
        Ok(found)
    }

    /// The serial numbers it lists, in its order.
    pub fn serials(&self) -> impl Iterator<Item = Serial> + use<'a> {
        let mut rest = self.entries;
        std::iter::from_fn(move || {
            let mut entry = take(&mut rest, Tag::Sequence).ok()?;
            Serial::from_octets(take(&mut entry, Tag::Integer).ok()?).ok()
        })
    }
}

/// Takes the contents of the next element, which has this tag.
fn take<'a>(octets: &mut &'a [u8], tag: Tag) -> Result<&'a [u8], NoCrl> {
    let (rest, any) = Any::from_der(octets).map_err(|_| NoCrl)?;
    if any.header.tag() != tag {
        return Err(NoCrl);
    }
    *octets = rest;
    Ok(any.data)
}

fn number(extensions: &[u8]) -> Option<u64> {
    let mut extensions = take(&mut { extensions }, Tag::Sequence).ok()?;
    while let Ok(mut extension) = take(&mut extensions, Tag::Sequence) {
        if take(&mut extension, Tag::Oid).ok()? != CRL_NUMBER {
            continue;
        }
        let mut value = extension;
        // A critical one says so first.
        let _ = take(&mut value, Tag::Boolean);
        let octets = take(&mut { take(&mut value, Tag::OctetString).ok()? }, Tag::Integer).ok()?;
        return octets.iter().try_fold(0u64, |number, octet| {
            number.checked_mul(256)?.checked_add(u64::from(*octet))
        });
    }
    None
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer, KeyIdMethod, KeyPair,
        RevokedCertParams, SerialNumber,
    };

    use super::*;

    #[test]
    fn the_number_and_the_serials_are_those_it_was_made_with() {
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![rcgen::KeyUsagePurpose::CrlSign];
        let issuer = Issuer::new(ca, KeyPair::generate().unwrap());
        let at = rcgen::date_time_ymd(2027, 1, 15);
        for serials in [&[][..], &[&[0x5f, 0x3a][..], &[0x80][..]][..]] {
            let entry = |serial: &&[u8]| RevokedCertParams {
                serial_number: SerialNumber::from_slice(serial),
                revocation_time: at,
                reason_code: None,
                invalidity_date: None,
            };
            let list = CertificateRevocationListParams {
                this_update: at,
                next_update: rcgen::date_time_ymd(2027, 1, 16),
                crl_number: SerialNumber::from(300),
                issuing_distribution_point: None,
                revoked_certs: serials.iter().map(entry).collect(),
                key_identifier_method: KeyIdMethod::Sha256,
            };
            let der = list.signed_by(&issuer).unwrap();
            let crl = Crl::look_into(der.der()).unwrap();
            assert_eq!(crl.number, Some(300));
            let found: Vec<Vec<u8>> = crl.serials().map(|serial| serial.octets()).collect();
            assert_eq!(found, serials);
        }
        for broken in [&b""[..], b"\x30\x03\x0a\x01\x03", b"not DER"] {
            assert!(Crl::look_into(broken).is_err());
        }
    }
}
