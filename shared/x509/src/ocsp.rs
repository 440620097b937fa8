//! OCSP (RFC 6960) without keys: requests made and read, unsigned error answers, and a reader of signed ones.

use aws_lc_rs::digest;
use certctl_model::revocation::RevocationReason;
use certctl_model::serial::Serial;
use certctl_model::time::Time;
use rasn::types::{Any, Integer, ObjectIdentifier, OctetString};
use rasn_ocsp::{BasicOcspResponse, OcspResponse, OcspResponseStatus, Request, TbsRequest};
use rasn_pkix::{AlgorithmIdentifier, Extension, Extensions};

use crate::Der;
use crate::facts::{self, FactsError};
use crate::name::{integer_to_serial, serial_to_integer};

/// id-pkix-ocsp-nonce (RFC 9654).
const NONCE: &[u32] = &[1, 3, 6, 1, 5, 5, 7, 48, 1, 2];

/// RFC 9654 §2.1: a nonce has 1 to 128 octets.
const MAX_NONCE: usize = 128;

const MAX_REQUEST: usize = 64 * 1024;

/// A digest that CertIDs are made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hash {
    /// SHA-1: what nearly all clients use. Nothing secret depends on it here.
    Sha1,
    /// SHA-256
    Sha256,
    /// SHA-384
    Sha384,
    /// SHA-512
    Sha512,
}

impl Hash {
    const ALL: [Hash; 4] = [Hash::Sha1, Hash::Sha256, Hash::Sha384, Hash::Sha512];

    fn arcs(self) -> &'static [u32] {
        match self {
            Hash::Sha1 => &[1, 3, 14, 3, 2, 26],
            Hash::Sha256 => &[2, 16, 840, 1, 101, 3, 4, 2, 1],
            Hash::Sha384 => &[2, 16, 840, 1, 101, 3, 4, 2, 2],
            Hash::Sha512 => &[2, 16, 840, 1, 101, 3, 4, 2, 3],
        }
    }

    fn of(self, bytes: &[u8]) -> Vec<u8> {
        let algorithm = match self {
            Hash::Sha1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
            Hash::Sha256 => &digest::SHA256,
            Hash::Sha384 => &digest::SHA384,
            Hash::Sha512 => &digest::SHA512,
        };
        digest::digest(algorithm, bytes).as_ref().to_vec()
    }
}

/// An issuer as CertIDs name it: hashes of its name and of its key, by every digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerId(Vec<(Hash, Vec<u8>, Vec<u8>)>);

impl IssuerId {
    /// From DER of the issuer's name and the bits of its public key (the content of the BIT STRING in its SubjectPublicKeyInfo).
    pub fn new(name_der: &[u8], key_bits: &[u8]) -> Self {
        Self(
            Hash::ALL
                .into_iter()
                .map(|hash| (hash, hash.of(name_der), hash.of(key_bits)))
                .collect(),
        )
    }

    /// From DER of the issuer's certificate.
    pub fn of_certificate(der: &[u8]) -> Result<Self, FactsError> {
        let certificate = facts::parsed(der)?;
        Ok(Self::new(
            certificate.subject().as_raw(),
            &certificate.public_key().subject_public_key.data,
        ))
    }

    /// Whether the CertID speaks of a certificate of this issuer. `false` for digests we do not know.
    pub fn matches(&self, id: &CertId) -> bool {
        self.0
            .iter()
            .any(|(hash, name, key)| id.hash == Some(*hash) && id.name_hash == *name && id.key_hash == *key)
    }

    /// The CertID of one certificate of this issuer.
    pub fn cert_id(&self, hash: Hash, serial: &Serial) -> rasn_ocsp::CertId {
        let (_, name, key) = self
            .0
            .iter()
            .find(|(known, ..)| *known == hash)
            .expect("every digest is computed");
        rasn_ocsp::CertId {
            hash_algorithm: AlgorithmIdentifier {
                algorithm: ObjectIdentifier::new_unchecked(hash.arcs().into()),
                // NULL and not absent: what OpenSSL and others send, and compare.
                parameters: Some(Any::new(vec![5, 0])),
            },
            issuer_name_hash: OctetString::from(name.as_slice()),
            issuer_key_hash: OctetString::from(key.as_slice()),
            serial_number: serial_to_integer(serial),
        }
    }
}

/// A request for the status of one or more certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OcspRequest {
    /// The certificates asked for, at least one, in the order of the request.
    pub cert_ids: Vec<CertId>,
    /// The nonce to repeat in the answer, 1 to 128 octets.
    pub nonce: Option<Vec<u8>>,
}

/// Which certificate is asked for (RFC 6960 §4.1.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertId {
    /// The digest of the two hashes; absent when we do not know it.
    pub hash: Option<Hash>,
    /// Hash of the issuer's name.
    pub name_hash: Vec<u8>,
    /// Hash of the issuer's key.
    pub key_hash: Vec<u8>,
    /// The serial number; absent when it is negative or longer than 20 octets, so that nobody can have issued it.
    pub serial: Option<Serial>,
    /// The CertID as it was sent, to be repeated in the answer.
    pub raw: rasn_ocsp::CertId,
}

/// Why bytes are not a request that can be answered: the answer is `malformedRequest`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OcspRequestError {
    /// It is longer than any request we serve.
    #[error("the OCSP request has {0} bytes; at most {MAX_REQUEST} are accepted")]
    TooLarge(usize),
    /// The bytes are no request of version 1.
    #[error("the OCSP request is not DER of an OCSPRequest")]
    NotDer,
    /// It asks for nothing.
    #[error("the OCSP request names no certificate")]
    Empty,
    /// The nonce is not one OCTET STRING of 1 to 128 octets (RFC 9654 §2.1).
    #[error("the nonce of the OCSP request is not one OCTET STRING of 1 to {MAX_NONCE} octets")]
    BadNonce,
    /// A critical extension is not understood (RFC 6960 §4.4).
    #[error("the OCSP request has a critical extension that is not understood")]
    Critical,
}

/// Answers that need no signature (RFC 6960 §2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorStatus {
    /// The request cannot be read.
    MalformedRequest = 1,
    /// We failed.
    InternalError = 2,
    /// The truth cannot be read just now.
    TryLater = 3,
    /// We do not speak for that issuer.
    Unauthorized = 6,
}

/// What a signed answer says of one certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertStatus {
    /// Issued and not revoked.
    Good,
    /// Revoked.
    Revoked {
        /// When.
        at: Time,
        /// Why; absent when the answer gives none.
        reason: Option<RevocationReason>,
    },
    /// Never issued.
    Unknown,
}

/// Why an answer says nothing of a certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OcspAnswerError {
    /// It is not DER of an OCSPResponse with a basic response.
    #[error("the OCSP response is not DER of a basic OCSPResponse")]
    NotDer,
    /// It is an error status, such as tryLater.
    #[error("the OCSP responder answered with error status {0}")]
    Status(u8),
    /// It speaks of other certificates.
    #[error("the OCSP response does not speak of the certificate asked for")]
    NotAnswered,
}

/// Builds the DER of a request for one certificate, its CertID made with SHA-1.
pub fn request_for(issuer: &IssuerId, serial: &Serial, nonce: Option<&[u8]>) -> Der {
    let request = Request {
        req_cert: issuer.cert_id(Hash::Sha1, serial),
        single_request_extensions: None,
    };
    let tbs_request = TbsRequest {
        version: Integer::from(0),
        requestor_name: None,
        request_list: vec![request],
        request_extensions: nonce.map(|nonce| Extensions::from(vec![nonce_extension(nonce)])),
    };
    rasn::der::encode(&rasn_ocsp::OcspRequest {
        tbs_request,
        optional_signature: None,
    })
    .expect("a request has an encoding")
}

/// The nonce as an extension of requests and answers (RFC 9654 §2.1).
pub fn nonce_extension(nonce: &[u8]) -> Extension {
    let value = rasn::der::encode(&OctetString::from(nonce)).expect("octets have an encoding");
    Extension {
        extn_id: ObjectIdentifier::new_unchecked(NONCE.into()),
        critical: false,
        extn_value: OctetString::from(value),
    }
}

/// Reads a request. A signature on it is not looked at: anyone may ask.
pub fn parse_request(der: &[u8]) -> Result<OcspRequest, OcspRequestError> {
    if der.len() > MAX_REQUEST {
        return Err(OcspRequestError::TooLarge(der.len()));
    }
    let request: rasn_ocsp::OcspRequest = rasn::der::decode(der).map_err(|_| OcspRequestError::NotDer)?;
    let tbs = request.tbs_request;
    if tbs.version != Integer::from(0) {
        return Err(OcspRequestError::NotDer);
    }
    if tbs.request_list.is_empty() {
        return Err(OcspRequestError::Empty);
    }
    let extensions: &[Extension] = tbs.request_extensions.as_ref().map_or(&[], |all| all);
    let single = tbs
        .request_list
        .iter()
        .filter_map(|one| one.single_request_extensions.as_ref());
    let is_nonce = |one: &&Extension| *one.extn_id == *NONCE;
    // RFC 6960 §4.4: what is critical and not understood cannot be passed over.
    if extensions.iter().any(|one| one.critical && !is_nonce(&one))
        || single.flat_map(|all| all.iter()).any(|one| one.critical)
    {
        return Err(OcspRequestError::Critical);
    }
    let mut nonces = extensions.iter().filter(is_nonce);
    let nonce = nonces.next();
    if nonces.next().is_some() {
        return Err(OcspRequestError::BadNonce);
    }
    Ok(OcspRequest {
        cert_ids: tbs
            .request_list
            .into_iter()
            .map(|request| CertId::from(request.req_cert))
            .collect(),
        nonce: nonce.map(read_nonce).transpose()?,
    })
}

/// The DER of an unsigned answer.
pub fn error_response(status: ErrorStatus) -> Der {
    // SEQUENCE of one ENUMERATED.
    vec![0x30, 3, 0x0a, 1, status as u8]
}

/// What an answer says of one certificate, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// Its status.
    pub status: CertStatus,
    /// Until when the answer counts, if it says so.
    pub next_update: Option<Time>,
}

/// Reads what an answer says of the certificate with this serial number. The signature is not verified.
pub fn status_of(response: &[u8], serial: &Serial) -> Result<CertStatus, OcspAnswerError> {
    Ok(answered(response, serial)?.status)
}

/// The same, with the time the answer counts for.
pub fn answered(response: &[u8], serial: &Serial) -> Result<Answered, OcspAnswerError> {
    let response: OcspResponse = rasn::der::decode(response).map_err(|_| OcspAnswerError::NotDer)?;
    if response.status != OcspResponseStatus::Successful {
        return Err(OcspAnswerError::Status(response.status as u8));
    }
    let bytes = response.bytes.ok_or(OcspAnswerError::NotDer)?;
    let basic: BasicOcspResponse = rasn::der::decode(&bytes.response).map_err(|_| OcspAnswerError::NotDer)?;
    let answers = basic.tbs_response_data.responses;
    let answer = answers
        .iter()
        .find(|answer| integer_to_serial(&answer.cert_id.serial_number).as_ref() == Some(serial))
        .ok_or(OcspAnswerError::NotAnswered)?;
    let status = match &answer.cert_status {
        rasn_ocsp::CertStatus::Good => CertStatus::Good,
        rasn_ocsp::CertStatus::Unknown(()) => CertStatus::Unknown,
        rasn_ocsp::CertStatus::Revoked(revoked) => {
            let code = revoked.revocation_reason.map(|reason| reason as u8);
            CertStatus::Revoked {
                at: Time::from_unix(revoked.revocation_time.timestamp()),
                reason: RevocationReason::ALL
                    .iter()
                    .copied()
                    .find(|reason| Some(reason.code()) == code),
            }
        }
    };
    Ok(Answered {
        status,
        next_update: answer.next_update.map(|at| Time::from_unix(at.timestamp())),
    })
}

impl From<rasn_ocsp::CertId> for CertId {
    fn from(raw: rasn_ocsp::CertId) -> Self {
        Self {
            hash: Hash::ALL
                .into_iter()
                .find(|hash| *raw.hash_algorithm.algorithm == *hash.arcs()),
            name_hash: raw.issuer_name_hash.to_vec(),
            key_hash: raw.issuer_key_hash.to_vec(),
            serial: integer_to_serial(&raw.serial_number),
            raw,
        }
    }
}

fn read_nonce(extension: &Extension) -> Result<Vec<u8>, OcspRequestError> {
    let nonce: OctetString = rasn::der::decode(&extension.extn_value).map_err(|_| OcspRequestError::BadNonce)?;
    match nonce.len() {
        1..=MAX_NONCE => Ok(nonce.to_vec()),
        _ => Err(OcspRequestError::BadNonce),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    fn issuer() -> IssuerId {
        IssuerId::new(b"name", b"key")
    }

    /// A root in `ca.pem` with its key in `ca.key`, as DER.
    fn root(scratch: &Scratch) -> Der {
        scratch.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
            "-subj",
            "/CN=Root",
        ]);
        scratch.openssl(&["x509", "-in", "ca.pem", "-outform", "DER"])
    }

    #[test]
    fn a_request_is_what_openssl_would_have_sent() {
        let scratch = Scratch::new();
        let issuer = IssuerId::of_certificate(&root(&scratch)).unwrap();
        let serial: Serial = "80f0ba".parse().unwrap();
        for digest in ["-sha1", "-sha256", "-sha384", "-sha512"] {
            let file = scratch.path("request.der");
            scratch.openssl(&[
                "ocsp", digest, "-issuer", "ca.pem", "-serial", "0x80F0BA", "-reqout", &file,
            ]);
            let sent = std::fs::read(&file).unwrap();
            let request = parse_request(&sent).unwrap();
            assert!(issuer.matches(&request.cert_ids[0]), "{digest}");
            assert_eq!(request.cert_ids[0].serial.as_ref(), Some(&serial));
            let nonce = request.nonce.expect("openssl sends one");
            if digest == "-sha1" {
                assert_eq!(request_for(&issuer, &serial, Some(&nonce)), sent);
            }
        }
    }

    #[test]
    fn answers_of_openssl_are_read() {
        let scratch = Scratch::new();
        let issuer = IssuerId::of_certificate(&root(&scratch)).unwrap();
        scratch.write(
            "index.txt",
            b"V\t991231235959Z\t\t01\tunknown\t/CN=a\nR\t991231235959Z\t261123120000Z,keyCompromise\t02\tunknown\t/CN=b\n",
        );
        let at = "2026-11-23T12:00:00Z".parse().unwrap();
        for (serial, status) in [
            ("1", CertStatus::Good),
            (
                "2",
                CertStatus::Revoked {
                    at,
                    reason: Some(RevocationReason::KeyCompromise),
                },
            ),
            ("3", CertStatus::Unknown),
        ] {
            let serial: Serial = serial.parse().unwrap();
            let request = scratch.write("request.der", &request_for(&issuer, &serial, None));
            let answer = scratch.path("answer.der");
            scratch.openssl(&[
                "ocsp",
                "-index",
                "index.txt",
                "-CA",
                "ca.pem",
                "-rsigner",
                "ca.pem",
                "-rkey",
                "ca.key",
                "-reqin",
                &request,
                "-respout",
                &answer,
            ]);
            let answer = std::fs::read(answer).unwrap();
            assert_eq!(status_of(&answer, &serial), Ok(status));
            assert_eq!(
                status_of(&answer, &"ff".parse().unwrap()),
                Err(OcspAnswerError::NotAnswered)
            );
        }
    }

    #[test]
    fn an_issuer_answers_for_its_own_certificates_only() {
        let serial: Serial = "1".parse().unwrap();
        let own = parse_request(&request_for(&issuer(), &serial, None)).unwrap();
        assert!(issuer().matches(&own.cert_ids[0]) && own.nonce.is_none());
        assert!(!IssuerId::new(b"name", b"other key").matches(&own.cert_ids[0]));
        assert!(!IssuerId::new(b"other name", b"key").matches(&own.cert_ids[0]));
    }

    #[test]
    fn malformed_requests_are_told_apart() {
        let serial: Serial = "1".parse().unwrap();
        let good = request_for(&issuer(), &serial, Some(&[7; 128]));
        assert_eq!(parse_request(&good).unwrap().nonce, Some(vec![7; 128]));
        let cases = [
            (vec![], OcspRequestError::NotDer),
            (good[..40].to_vec(), OcspRequestError::NotDer),
            ([good.as_slice(), &[0]].concat(), OcspRequestError::NotDer),
            (vec![0x30, 4, 0x30, 2, 0x30, 0], OcspRequestError::Empty),
            (request_for(&issuer(), &serial, Some(&[])), OcspRequestError::BadNonce),
            (
                request_for(&issuer(), &serial, Some(&[7; 129])),
                OcspRequestError::BadNonce,
            ),
            (vec![0; MAX_REQUEST + 1], OcspRequestError::TooLarge(MAX_REQUEST + 1)),
        ];
        for (der, error) in cases {
            assert_eq!(parse_request(&der), Err(error));
        }
    }

    #[test]
    fn unsigned_answers_carry_their_status() {
        let serial: Serial = "1".parse().unwrap();
        for status in [
            ErrorStatus::MalformedRequest,
            ErrorStatus::InternalError,
            ErrorStatus::TryLater,
            ErrorStatus::Unauthorized,
        ] {
            assert_eq!(
                status_of(&error_response(status), &serial),
                Err(OcspAnswerError::Status(status as u8))
            );
        }
        assert_eq!(status_of(&[1, 2], &serial), Err(OcspAnswerError::NotDer));
    }
}
