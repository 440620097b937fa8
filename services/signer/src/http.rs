//! The five routes.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, State},
    middleware,
    routing::{get, post},
};
use bytes::Bytes;
use certctl_contract::{
    endpoint::Endpoint,
    signer::{
        AnswerOcsp, Chain, CrlPublished, CrlRequest, Issue, IssueBatch, IssueBatchRequest, IssueOutcome, IssueRequest,
        Issued, IssuedBatch, IssuerChain, MAX_BATCH, OcspAnswers, OcspQuestions, PublishCrl,
    },
};
use certctl_model::id::IssuerId;
use certctl_store::crls::{List, Scope};
use serde::de::DeserializeOwned;

use crate::{
    Shared, crl,
    error::{Error, Result},
    fence, issue, ocsp,
};

/// Many OCSP requests in base64, or one of the largest size, with room to spare.
const MAX_BODY: usize = 1024 * 1024;

pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route(&Issue::path(), post(issue_certificate))
        .route(&IssueBatch::path(), post(issue_certificates))
        .route(&PublishCrl::path(), post(publish_crl))
        .route(&AnswerOcsp::path(), post(answer_ocsp))
        .route(&IssuerChain::path(), get(chain))
        .fallback(async || Error::NotFound("there is nothing at this path".to_owned()))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(shared.clone(), fence::guard))
        .with_state(shared)
}

async fn issue_certificate(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Json<Issued>> {
    let request: IssueRequest = read(&body)?;
    issue::issue(&shared, request.job_id).await.map(Json)
}

async fn issue_certificates(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Json<IssuedBatch>> {
    let request: IssueBatchRequest = read(&body)?;
    if request.job_ids.len() > MAX_BATCH {
        return Err(Error::Malformed(format!("job_ids names more than {MAX_BATCH} jobs")));
    }
    let issued = issue::issue_all(&shared, &request.job_ids).await?;
    let outcome = |issued| match issued {
        Ok(issued) => IssueOutcome::Issued(issued),
        Err(error) => IssueOutcome::Refused(Error::into_problem(error)),
    };
    Ok(Json(IssuedBatch {
        outcomes: issued.into_iter().map(outcome).collect(),
    }))
}

async fn publish_crl(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Json<CrlPublished>> {
    let CrlRequest {
        issuer_id: issuer,
        shard,
        delta,
    } = read(&body)?;
    let scope = match (shard, delta) {
        (0, false) => Scope::Full,
        (0, true) => Scope::Delta,
        (shard, false) if shard > 0 => Scope::Shard(shard),
        _ => {
            let why = "shard is a number from 1 on, or 0 for the full CRL, which alone has deltas";
            return Err(Error::Malformed(why.to_owned()));
        }
    };
    crl::publish(&shared, List { issuer, scope }).await.map(Json)
}

async fn answer_ocsp(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Json<OcspAnswers>> {
    let OcspQuestions { questions } = read(&body)?;
    if questions.len() > OcspQuestions::MOST {
        return Err(Error::Malformed(format!(
            "{} requests at once; at most {} are answered",
            questions.len(),
            OcspQuestions::MOST
        )));
    }
    let answers = ocsp::answer(&shared, questions).await?;
    Ok(Json(OcspAnswers { answers }))
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
