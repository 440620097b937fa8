//! The four routes.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, State},
    routing::{get, post},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use certctl_contract::{
    endpoint::Endpoint,
    signer::{
        AnswerOcsp, Chain, CrlPublished, CrlRequest, Issue, IssueRequest, Issued, IssuerChain, OcspAnswer,
        OcspQuestion, PublishCrl,
    },
};
use certctl_model::id::IssuerId;
use serde::de::DeserializeOwned;

use crate::{
    Shared, crl,
    error::{Error, Result},
    issue, ocsp,
};

/// An OCSP request of the largest size in base64, with room to spare.
const MAX_BODY: usize = 128 * 1024;

pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route(&Issue::path(), post(issue_certificate))
        .route(&PublishCrl::path(), post(publish_crl))
        .route(&AnswerOcsp::path(), post(answer_ocsp))
        .route(&IssuerChain::path(), get(chain))
        .fallback(async || Error::NotFound("there is nothing at this path".to_owned()))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(shared)
}

async fn issue_certificate(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Json<Issued>> {
    let request: IssueRequest = read(&body)?;
    issue::issue(&shared, &request.job_id).await.map(Json)
}

async fn publish_crl(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Json<CrlPublished>> {
    let request: CrlRequest = read(&body)?;
    crl::publish(&shared, &request.issuer_id).await.map(Json)
}

async fn answer_ocsp(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Json<OcspAnswer>> {
    let question: OcspQuestion = read(&body)?;
    let request = STANDARD
        .decode(&question.request)
        .map_err(|_| Error::Malformed("request is DER in base64".to_owned()))?;
    ocsp::answer(&shared, &question.issuer_id, &request).await.map(Json)
}

async fn chain(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Result<Json<Chain>> {
    let id: IssuerId = id.parse().map_err(|error| Error::Malformed(format!("{error}")))?;
    let authority = shared.authorities.get(&id).await?;
    Ok(Json(Chain {
        chain_pem: authority.chain_pem.clone(),
    }))
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    serde_json::from_slice(body).map_err(|error| Error::Malformed(format!("the body cannot be read: {error}")))
}
