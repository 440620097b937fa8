//! One authority: its key, its certificate and those above it.

use std::sync::Arc;

use certctl_model::{id::IssuerId, profile::ProfileRules, time::Time};
use certctl_x509::{
    facts::CertificateFacts,
    name::{common_name_to_name, common_name_to_rdn},
    ocsp,
    path::Path,
};
use rasn::types::{Any, ObjectIdentifier, SetOf};
use rasn_pkix::{AttributeTypeAndValue, Name, RelativeDistinguishedName};
use tokio::sync::Mutex;

use crate::{
    der::{self, Contents, Usage, oid},
    error::{Error, Result},
    key::{self, Message, SigningKey},
    ocsp::Responder,
};

/// Signs in the name of one issuer.
pub(crate) struct Authority {
    /// The issuer.
    pub(crate) issuer: IssuerId,
    /// Its certificate.
    pub(crate) certificate: CertificateFacts,
    /// The certificate and those above it, in PEM.
    pub(crate) chain_pem: String,
    /// What the chain allows certificates below it to be.
    pub(crate) path: Path,
    /// The subject of the certificate, which everything issued names as its issuer.
    pub(crate) name: Name,
    /// The identifier of its key.
    pub(crate) key_id: Vec<u8>,
    /// How OCSP requests name it.
    pub(crate) ocsp_id: ocsp::IssuerId,
    /// Who signs OCSP answers for it; made at first use. Held while a new one is made.
    pub(crate) responder: Mutex<Option<Arc<Responder>>>,
    key: Box<dyn SigningKey>,
}

/// How long a root made here lives.
const ROOT_DAYS: u64 = 3650;

impl Authority {
    /// Brings key and chain together: the authority's certificate first, then each one's issuer.
    ///
    /// # Errors
    /// What is wrong with them, for a person.
    pub(crate) fn new(
        issuer: IssuerId,
        key: Box<dyn SigningKey>,
        chain: Vec<CertificateFacts>,
        now: Time,
    ) -> Result<Self, String> {
        let [certificate, above @ ..] = chain.as_slice() else {
            return Err("there is no certificate".to_owned());
        };
        check(certificate, &*key, now)?;
        for (lower, upper) in chain.iter().zip(above) {
            lower.verify_issued_by(upper).map_err(|why| {
                format!(
                    "the chain is out of order: each certificate is followed by its issuer's, but of \"{}\" {why}",
                    lower.subject
                )
            })?;
            if now < upper.not_before || now > upper.not_after {
                return Err(format!(
                    "the certificate of \"{}\" above it is valid from {} to {}, so nothing below it is accepted now",
                    upper.subject, upper.not_before, upper.not_after
                ));
            }
        }
        let path = Path::of(&chain)?;
        let unreadable = || "its subject or key cannot be read".to_owned();
        let key_id = match &certificate.subject_key_id {
            Some(id) => id.clone(),
            None => der::key_id(&certificate.spki_der).ok_or_else(unreadable)?,
        };
        let authority = Self {
            issuer,
            path,
            chain_pem: chain.iter().map(CertificateFacts::to_pem).collect(),
            name: rasn::der::decode(&certificate.subject_der).map_err(|_| unreadable())?,
            key_id,
            ocsp_id: ocsp::IssuerId::of_certificate(&certificate.der).map_err(|error| error.to_string())?,
            certificate: certificate.clone(),
            responder: Mutex::new(None),
            key,
        };
        authority
            .try_key()
            .map_err(|error| format!("the key does not sign: {error}"))?;
        Ok(authority)
    }

    /// How it signs.
    pub(crate) fn algorithm(&self) -> rasn_pkix::AlgorithmIdentifier {
        self.key.scheme().identifier()
    }

    /// Signs octets and puts the signature beside them, after verifying it: a fault in the computation must not leave.
    pub(crate) fn sign(&self, tbs: &[u8]) -> Result<Vec<u8>> {
        sign_with(&*self.key, tbs)
    }

    /// A message that [`sign_message`](Self::sign_message) will sign, to be written piece by piece.
    pub(crate) fn message(&self) -> Message {
        Message::new(self.key.scheme())
    }

    /// The signature of a message, verified: the content of the BIT STRING that follows it.
    pub(crate) fn sign_message(&self, message: Message) -> Result<Vec<u8>> {
        Ok(message.sign(&*self.key)?)
    }

    /// Signs in both ways and verifies it.
    fn try_key(&self) -> Result<()> {
        const TRIAL: &[u8] = b"certctl";
        self.sign(TRIAL)?;
        let mut message = self.message();
        message.update(TRIAL);
        self.sign_message(message)?;
        Ok(())
    }

    /// A subject with this common name that the chain allows: of the common name alone, or below its own subject.
    ///
    /// # Errors
    /// The constraint on directory names that neither satisfies.
    pub(crate) fn subject_below(&self, common_name: &str) -> Result<Name, String> {
        let Name::RdnSequence(mut below) = self.name.clone();
        below.push(common_name_to_rdn(common_name));
        let alone = common_name_to_name(common_name);
        match self.path.admits_subject(&der::encode(&alone), &[]) {
            Ok(()) => Ok(alone),
            Err(_) => {
                let below = Name::RdnSequence(below);
                self.path.admits_subject(&der::encode(&below), &[])?;
                Ok(below)
            }
        }
    }

    /// The last instant at which the certificate and all above it are valid.
    pub(crate) fn not_after(&self) -> Time {
        self.path.not_after()
    }

    /// Nothing is signed by an authority that has ended, or stands below one that has.
    pub(crate) fn must_be_valid(&self, now: Time) -> Result<()> {
        match now <= self.not_after() {
            true => Ok(()),
            false => Err(Error::WrongState(format!(
                "the certificate of issuer {}, or one above it, ended at {}",
                self.issuer,
                self.not_after()
            ))),
        }
    }
}

/// Makes the certificate of a new root.
pub(crate) fn root(key: &dyn SigningKey, common_name: &str, not_before: Time) -> anyhow::Result<Vec<u8>> {
    let name = Name::RdnSequence(vec![organization("certctl"), common_name_to_rdn(common_name)]);
    let key_id = der::key_id(key.spki_der()).expect("a key pair writes its own public key");
    let tbs = Contents {
        serial: &der::random_serial()?,
        algorithm: key.scheme().identifier(),
        issuer: name.clone(),
        not_before,
        not_after: not_before + std::time::Duration::from_secs(ROOT_DAYS * 86_400),
        subject: name,
        spki_der: key.spki_der(),
        extensions: vec![
            der::certificate_authority(0),
            der::key_usage(&[Usage::DigitalSignature, Usage::KeyCertSign, Usage::CrlSign]),
            der::subject_key_id(&key_id),
        ],
    };
    let tbs = tbs.encode().expect("a key pair writes its own public key");
    Ok(sign_with(key, &tbs)?)
}

/// Signs octets with a key of ours and puts the verified signature beside them.
pub(crate) fn sign_with(key: &dyn SigningKey, tbs: &[u8]) -> Result<Vec<u8>> {
    Ok(der::signed(tbs, key.scheme().identifier(), &key::sign(key, tbs)?))
}

fn check(certificate: &CertificateFacts, key: &dyn SigningKey, now: Time) -> Result<(), String> {
    let usage = certificate.key_usage;
    if certificate.spki_der != key.spki_der() {
        return Err("the certificate is not of this key; give the key it was made for".to_owned());
    }
    ProfileRules::default().admits_key(key.facts())?;
    if !certificate.is_ca {
        return Err("the certificate lacks basicConstraints CA:TRUE, so nothing it signs would be trusted".to_owned());
    }
    if !usage.is_some_and(|usage| usage.key_cert_sign) {
        return Err("the certificate lacks keyUsage keyCertSign; without it it may not sign certificates".to_owned());
    }
    if !usage.is_some_and(|usage| usage.crl_sign) {
        return Err("the certificate lacks keyUsage cRLSign; without it it may not sign CRLs".to_owned());
    }
    if now < certificate.not_before {
        return Err(format!(
            "the certificate is not valid before {}",
            certificate.not_before
        ));
    }
    if now > certificate.not_after {
        return Err(format!("the certificate expired at {}", certificate.not_after));
    }
    Ok(())
}

fn organization(text: &str) -> RelativeDistinguishedName {
    let attribute = AttributeTypeAndValue {
        r#type: ObjectIdentifier::new_unchecked(oid::ORGANIZATION.into()),
        value: Any::new(der::encode(&text.to_owned())),
    };
    RelativeDistinguishedName::from(SetOf::from_vec(vec![attribute]))
}
