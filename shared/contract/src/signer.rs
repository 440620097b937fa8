//! The signer's surface: six operations over a local socket. It is told *which*, never *what*: subject, names,
//! validity and extensions come from rows it reads itself.

use certctl_model::{
    id::{IssuerId, JobId},
    serial::Serial,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{problem::Problem, query::Id};

crate::resource! {
    signer "/v1";

    /// Issue the certificate of a running issuance or renewal job. A repeated call returns the first answer.
    POST "/issue" Issue(body: IssueRequest,) [Open] -> 200 Issued;
    /// Issue the certificates of several such jobs, each as if it were asked for alone. A refusal is one job's own.
    POST "/issue-batch" IssueBatch(body: IssueBatchRequest,) [Open] -> 200 IssuedBatch;
    /// Make and publish the next CRL of an issuer: the full one, that of one shard, or a delta.
    POST "/crl" PublishCrl(body: CrlRequest,) [Open] -> 200 CrlPublished;
    /// Answer OCSP requests, each by itself.
    POST "/ocsp" AnswerOcsp(body: OcspQuestions,) [Open] -> 200 OcspAnswers;
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

/// How many jobs one call may name.
pub const MAX_BATCH: usize = 512;

/// Which jobs.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct IssueBatchRequest {
    /// The jobs, each once; at most 512.
    pub job_ids: Vec<JobId>,
}

/// What became of several jobs.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct IssuedBatch {
    /// One for each job, in their order.
    pub outcomes: Vec<IssueOutcome>,
}

/// What became of one job.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum IssueOutcome {
    /// It has its certificate.
    Issued(Issued),
    /// What a call for this job alone would have been answered.
    Refused(Problem),
}

/// Which CRL.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CrlRequest {
    /// The issuer.
    pub issuer_id: IssuerId,
    /// The shard, from 1 on; 0 for the full CRL.
    #[serde(default)]
    pub shard: i32,
    /// Whether it is the delta to the full CRL.
    #[serde(default)]
    pub delta: bool,
}

/// What was published.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CrlPublished {
    /// The CRL number (RFC 5280 §5.2.3).
    pub number: i64,
    /// How many entries it has.
    pub entries: i64,
}

/// OCSP requests that came in together.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct OcspQuestions {
    /// At most [`MOST`](OcspQuestions::MOST).
    pub questions: Vec<OcspQuestion>,
}

impl OcspQuestions {
    /// So many are answered at once.
    pub const MOST: usize = 256;
}

/// An OCSP request.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct OcspQuestion {
    /// The issuer in whose name to answer.
    pub issuer_id: IssuerId,
    /// The request: DER (RFC 6960 §4.1) in base64.
    pub request: String,
}

/// An answer for each question, in their order.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct OcspAnswers {
    /// As many as there were questions.
    pub answers: Vec<OcspAnswer>,
}

/// What comes of an OCSP request.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OcspAnswer {
    /// A signed response.
    Signed(OcspSigned),
    /// A response that needs no signature (RFC 6960 §2.3): DER in base64.
    Unsigned(String),
    /// There is no such issuer.
    NoIssuer,
}

/// A signed OCSP response.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct OcspSigned {
    /// The response: DER (RFC 6960 §4.2) in base64.
    pub response: String,
    /// What it speaks of: it says the truth until one of these is revoked, or released.
    pub serials: Vec<Serial>,
    /// Whether all of them were issued: of what was not, there is no end.
    pub issued: bool,
    /// Whether it repeats a nonce, so that nobody else can use it.
    pub nonce: bool,
    /// From when it speaks, in seconds since 1970.
    pub this_update: i64,
    /// Until when it may be used, in seconds since 1970.
    pub next_update: i64,
}

/// Certificates from the issuer upwards.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Chain {
    /// In PEM.
    pub chain_pem: String,
}
