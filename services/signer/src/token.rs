//! Keys that live in a PKCS #11 token: this process asks it to sign and never has the key.
//!
//! Which key it is says the certificate: the token signs, and the certificate's public key verifies, at start and every
//! time after.

use std::{
    collections::HashMap,
    fmt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use aws_lc_rs::digest::{self, Digest};
use certctl_model::{
    key::{KeyAlgorithm, KeyFacts},
    secret::Secret,
};
use certctl_x509::{
    facts::CertificateFacts,
    scheme::{RsaPadding, Scheme},
};
use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::{Error as Pkcs11Error, RvError},
    mechanism::{
        Mechanism, MechanismType,
        eddsa::{EddsaParams, EddsaSignatureScheme},
        rsa::{PkcsMgfType, PkcsPssParams},
    },
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::{Session, UserType},
    slot::Slot,
    types::AuthPin,
};
use rasn::{AsnType, Encode, types::Integer};
use tracing::warn;

use crate::{der, key::SigningKey};

/// Which key of which token, and how to get at it.
#[derive(Clone)]
pub(crate) struct Place {
    /// The vendor's library.
    pub(crate) module: PathBuf,
    /// The label of the token.
    pub(crate) token: String,
    /// The label of the key, if it is told.
    pub(crate) label: Option<String>,
    /// Its id, if it is told.
    pub(crate) id: Option<Vec<u8>>,
    /// What the token wants to hear.
    pub(crate) pin: Secret,
}

/// A key in a token.
pub(crate) struct TokenKey {
    place: Place,
    pkcs11: Pkcs11,
    slot: Slot,
    facts: KeyFacts,
    scheme: Scheme,
    spki_der: Vec<u8>,
    /// Sessions that nobody uses just now; each is used by one thread at a time (PKCS #11 §5.6).
    idle: Mutex<Vec<(Session, ObjectHandle)>>,
}

/// Sessions that are kept; a token has few, and more are opened and closed as they are needed.
const MOST_IDLE: usize = 8;

impl TokenKey {
    /// Finds the key of a certificate. Whether it is that key is for a signature to show.
    pub(crate) fn open(place: &Place, certificate: &CertificateFacts, padding: RsaPadding) -> Result<Self> {
        let pkcs11 = module(&place.module)?;
        let slot = slot_of(&pkcs11, &place.token)?;
        let key = Self {
            place: place.clone(),
            pkcs11,
            slot,
            facts: certificate.key,
            scheme: Scheme::of(certificate.key, padding).ok_or_else(|| {
                anyhow::anyhow!(
                    "the certificate has a {} key; nothing is signed with one",
                    certificate.key
                )
            })?,
            spki_der: certificate.spki_der.clone(),
            idle: Mutex::default(),
        };
        let (session, handle) = key.session()?;
        key.judge(&session, handle)?;
        key.put_back((session, handle));
        Ok(key)
    }

    /// A session that may use the key.
    fn session(&self) -> Result<(Session, ObjectHandle)> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(one) = idle.pop() {
            return Ok(one);
        }
        drop(idle);
        let session = self
            .pkcs11
            .open_ro_session(self.slot)
            .with_context(|| format!("token \"{}\" opens no session", self.place.token))?;
        let pin = AuthPin::from(self.place.pin.expose().to_owned());
        match session.login(UserType::User, Some(&pin)) {
            Ok(()) | Err(Pkcs11Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
            Err(error) => return Err(error).context(format!("token \"{}\" refuses the PIN", self.place.token)),
        }
        let handle = self.find(&session)?;
        Ok((session, handle))
    }

    fn put_back(&self, one: (Session, ObjectHandle)) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MOST_IDLE {
            idle.push(one);
        }
    }

    fn find(&self, session: &Session) -> Result<ObjectHandle> {
        let mut wanted = vec![Attribute::Class(ObjectClass::PRIVATE_KEY)];
        wanted.extend(
            self.place
                .label
                .as_ref()
                .map(|label| Attribute::Label(label.clone().into_bytes())),
        );
        wanted.extend(self.place.id.clone().map(Attribute::Id));
        let found = session.find_objects(&wanted).context("the token cannot be searched")?;
        match found.as_slice() {
            [handle] => Ok(*handle),
            [] => bail!("there is no private key {} in it", self.place),
            several => bail!(
                "there are {} private keys {} in it; name one by its label and its id",
                several.len(),
                self.place
            ),
        }
    }

    /// A key of another kind cannot be meant, and one that can be taken out of the token is not what a token is for.
    fn judge(&self, session: &Session, handle: ObjectHandle) -> Result<()> {
        let asked = [
            AttributeType::KeyType,
            AttributeType::Sensitive,
            AttributeType::Extractable,
        ];
        let told = session
            .get_attributes(handle, &asked)
            .context("the key says nothing of itself")?;
        let wanted = match self.facts.algorithm {
            KeyAlgorithm::Rsa => KeyType::RSA,
            KeyAlgorithm::Ecdsa => KeyType::EC,
            KeyAlgorithm::Ed25519 => KeyType::EC_EDWARDS,
            other => bail!("nothing is signed with a {other} key"),
        };
        for attribute in told {
            match attribute {
                Attribute::KeyType(kind) => ensure!(
                    kind == wanted,
                    "the key {} is a {kind}, but the certificate is for a key of kind {}",
                    self.place,
                    self.facts
                ),
                Attribute::Sensitive(false) => warn!("the key {} can be read out of its token", self.place),
                Attribute::Extractable(true) => warn!("the key {} can be wrapped and taken away", self.place),
                _ => {}
            }
        }
        Ok(())
    }

    /// Has the token sign. A session that has ended, because the token was away, is replaced once.
    fn ask(&self, mechanism: &Mechanism<'_>, octets: &[u8]) -> Result<Vec<u8>> {
        let (session, handle) = self.session()?;
        match session.sign(mechanism, handle, octets) {
            Ok(signature) => {
                self.put_back((session, handle));
                Ok(signature)
            }
            Err(error) => {
                warn!("the token does not sign, and is asked once more in a new session: {error}");
                drop(session);
                self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
                let (session, handle) = self.session()?;
                let signature = session.sign(mechanism, handle, octets);
                let signature = signature.with_context(|| format!("the key {} does not sign", self.place))?;
                self.put_back((session, handle));
                Ok(signature)
            }
        }
    }
}

impl SigningKey for TokenKey {
    fn facts(&self) -> KeyFacts {
        self.facts
    }

    fn scheme(&self) -> Scheme {
        self.scheme
    }

    fn spki_der(&self) -> &[u8] {
        &self.spki_der
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        match self.scheme.digest() {
            Some(algorithm) => self.sign_digest(&digest::digest(algorithm, message)),
            None => self.ask(
                &Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Ed25519)),
                message,
            ),
        }
    }

    fn sign_digest(&self, digest: &Digest) -> Result<Vec<u8>> {
        ensure!(
            self.scheme.digest() == Some(digest.algorithm()),
            "the digest is not of the kind that the key signs"
        );
        let octets = digest.as_ref();
        match self.scheme {
            Scheme::EcdsaP256Sha256 | Scheme::EcdsaP384Sha384 | Scheme::EcdsaP521Sha512 => {
                ecdsa_der(&self.ask(&Mechanism::Ecdsa, octets)?)
            }
            Scheme::RsaPkcs1Sha256 => self.ask(&Mechanism::RsaPkcs, &[SHA256_INFO, octets].concat()),
            Scheme::RsaPssSha256 => {
                let params = PkcsPssParams {
                    hash_alg: MechanismType::SHA256,
                    mgf: PkcsMgfType::MGF1_SHA256,
                    s_len: 32.into(),
                };
                self.ask(&Mechanism::RsaPkcsPss(params), octets)
            }
            Scheme::Ed25519 => bail!("Ed25519 signs no digests"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.label, &self.id) {
            (Some(label), _) => write!(f, "\"{label}\"")?,
            (None, Some(id)) => {
                f.write_str("of id ")?;
                id.iter().try_for_each(|octet| write!(f, "{octet:02x}"))?;
            }
            (None, None) => f.write_str("of any name")?,
        }
        write!(f, " of token \"{}\"", self.token)
    }
}

/// DigestInfo of SHA-256 up to the digest itself (RFC 8017 §9.2).
const SHA256_INFO: &[u8] = &[
    0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20,
];

/// Ecdsa-Sig-Value (RFC 3279 §2.2.3) of the two numbers that a token writes side by side.
fn ecdsa_der(fixed: &[u8]) -> Result<Vec<u8>> {
    #[derive(AsnType, Encode)]
    struct Value {
        r: Integer,
        s: Integer,
    }
    ensure!(
        !fixed.is_empty() && fixed.len().is_multiple_of(2),
        "the token's ECDSA signature has {} octets",
        fixed.len()
    );
    let (r, s) = fixed.split_at(fixed.len() / 2);
    let number = |octets: &[u8]| -> Result<Integer> {
        let zeros = octets.iter().take_while(|octet| **octet == 0).count();
        let mut content = octets[zeros..].to_vec();
        if content.first().is_none_or(|high| high & 0x80 != 0) {
            content.insert(0, 0);
        }
        let header = [2, u8::try_from(content.len())?];
        rasn::der::decode(&[&header, content.as_slice()].concat()).map_err(|error| anyhow!("{error}"))
    };
    Ok(der::encode(&Value {
        r: number(r)?,
        s: number(s)?,
    }))
}

/// The library, loaded and started once in this process (PKCS #11 §5.4).
fn module(path: &Path) -> Result<Pkcs11> {
    static LOADED: Mutex<Option<HashMap<PathBuf, Pkcs11>>> = Mutex::new(None);
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let loaded = loaded.get_or_insert_default();
    if let Some(pkcs11) = loaded.get(path) {
        return Ok(pkcs11.clone());
    }
    let pkcs11 = Pkcs11::new(path).with_context(|| format!("cannot load the PKCS #11 module {}", path.display()))?;
    match pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) | Err(Pkcs11Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
        Err(error) => return Err(error).context(format!("the PKCS #11 module {} does not start", path.display())),
    }
    loaded.insert(path.to_owned(), pkcs11.clone());
    Ok(pkcs11)
}

fn slot_of(pkcs11: &Pkcs11, token: &str) -> Result<Slot> {
    let mut seen = Vec::new();
    for slot in pkcs11
        .get_slots_with_token()
        .context("the PKCS #11 module shows no tokens")?
    {
        let info = pkcs11.get_token_info(slot).context("a token says nothing of itself")?;
        if info.label() == token {
            return Ok(slot);
        }
        seen.push(format!("\"{}\"", info.label()));
    }
    bail!("there is no token \"{token}\"; there are: {}", seen.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_numbers_of_a_token_are_written_as_others_read_them() {
        for (fixed, der) in [
            (&[1, 2][..], &[0x30, 6, 2, 1, 1, 2, 1, 2][..]),
            (&[0, 1, 0x80, 0], &[0x30, 8, 2, 1, 1, 2, 3, 0, 0x80, 0]),
            (&[0, 0, 0, 0x7f], &[0x30, 6, 2, 1, 0, 2, 1, 0x7f]),
        ] {
            assert_eq!(ecdsa_der(fixed).unwrap(), der);
        }
        assert!(ecdsa_der(&[]).is_err() && ecdsa_der(&[1, 2, 3]).is_err());
    }
}
