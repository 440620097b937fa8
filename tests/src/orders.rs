//! A stand-in for what issuers outside are to a scheduler: it passes orders on to the signer, and counts them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use certctl_contract::problem::{Kind, Problem};
use certctl_contract::signer::{IssueBatchRequest, IssueOutcome, IssuedBatch};
use http::StatusCode;
use tokio::net::UnixListener;
use tokio::task::JoinSet;

/// What was ordered for one job.
#[derive(Clone, Debug, Default)]
pub struct Orders {
    /// How often it was asked for.
    pub asked: usize,
    /// The certificates that were given, each once.
    pub given: BTreeSet<String>,
}

/// Counts by job.
#[derive(Clone)]
pub struct Counting {
    seen: Arc<Mutex<BTreeMap<String, Orders>>>,
    signer: reqwest::Client,
    _serving: Arc<JoinSet<()>>,
}

impl Counting {
    /// Listens on one socket for what is meant for another.
    ///
    /// # Panics
    /// The socket cannot be made.
    pub fn between(socket: &Path, signer: &Path) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let builder = reqwest::Client::builder().no_proxy().unix_socket(signer);
        let signer = builder.timeout(Duration::from_secs(60)).build().unwrap();
        let seen = Arc::default();
        let mut serving = JoinSet::new();
        let here = Self {
            seen: Arc::clone(&seen),
            signer: signer.clone(),
            _serving: Arc::default(),
        };
        let router = Router::new().fallback(pass_on).with_state(here);
        serving.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            seen,
            signer,
            _serving: Arc::new(serving),
        }
    }

    /// What was ordered so far.
    ///
    /// # Panics
    /// Somebody panicked while counting.
    pub fn orders(&self) -> BTreeMap<String, Orders> {
        self.seen.lock().unwrap().clone()
    }

    fn note(&self, asked: &IssueBatchRequest, answer: Option<&IssuedBatch>) {
        let mut seen = self.seen.lock().unwrap();
        for (n, job) in asked.job_ids.iter().enumerate() {
            let orders = seen.entry(job.to_string()).or_default();
            match answer.map(|answer| &answer.outcomes[n]) {
                None => orders.asked += 1,
                Some(IssueOutcome::Issued(issued)) => drop(orders.given.insert(issued.certificate_pem.clone())),
                Some(IssueOutcome::Refused(_)) => {}
            }
        }
    }
}

async fn pass_on(State(counting): State<Counting>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let asked: Option<IssueBatchRequest> = match head.uri.path() {
        path if path.ends_with("/issue-batch") => Some(serde_json::from_slice(&body).unwrap()),
        _ => None,
    };
    if let Some(asked) = &asked {
        counting.note(asked, None);
    }
    let url = format!("http://localhost{}", head.uri);
    let passed = counting
        .signer
        .request(head.method, url)
        .headers(head.headers)
        .body(body);
    let answered = async {
        let answer = passed.send().await?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        Ok::<_, reqwest::Error>((status, headers, answer.bytes().await?))
    };
    let Ok((status, headers, body)) = answered.await else {
        // As if nobody were there.
        let away = Problem::new(Kind::Unavailable, "the signer is away");
        return (StatusCode::SERVICE_UNAVAILABLE, axum::Json(away)).into_response();
    };
    if let (Some(asked), StatusCode::OK) = (&asked, status) {
        counting.note(asked, Some(&serde_json::from_slice(&body).unwrap()));
    }
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
