//! The signer's surface: five operations over a local socket. It is told *which*, never *what*: subject, names,
//! validity and extensions come from rows it reads itself.

use certctl_model::id::{IssuerId, JobId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::query::Id;

crate::resource! {
    signer "/v1";

    /// Issue the certificate of a running issuance or renewal job. A repeated call returns the first answer.
    POST "/issue" Issue(body: IssueRequest,) [Open] -> 200 Issued;
    /// Make and store the next CRL of an issuer.
    POST "/crl" PublishCrl(body: CrlRequest,) [Open] -> 200 CrlPublished;
    /// Answer an OCSP request about certificates of an issuer.
    POST "/ocsp" AnswerOcsp(body: OcspQuestion,) [Open] -> 200 OcspAnswer;
    /// The issuer's certificate and those above it. Makes the key and the root if the issuer has none yet.
    GET "/issuers/{id}/chain" IssuerChain(path: Id<IssuerId>,) [Open] -> 200 Chain;
}

/// Which job.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct IssueRequest {
    /// The job.
    pub job_id: JobId,
}

/// What was issued.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Issued {
    /// The certificate, in PEM.
    pub certificate_pem: String,
    /// The issuer's certificate and those above it, in PEM.
    pub chain_pem: String,
}

/// Which issuer.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CrlRequest {
    /// The issuer.
    pub issuer_id: IssuerId,
}

/// What was published.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CrlPublished {
    /// The CRL number (RFC 5280 §5.2.3).
    pub number: i64,
    /// How many entries it has.
    pub entries: i64,
}

/// An OCSP request.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct OcspQuestion {
    /// The issuer in whose name to answer.
    pub issuer_id: IssuerId,
    /// The request: DER (RFC 6960 §4.1) in base64.
    pub request: String,
}

/// An OCSP response.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct OcspAnswer {
    /// The response: DER (RFC 6960 §4.2) in base64.
    pub response: String,
    /// How long it may be kept, in seconds; 0 when it answers a nonce.
    pub max_age_seconds: i64,
}

/// Certificates from the issuer upwards.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Chain {
    /// In PEM.
    pub chain_pem: String,
}
