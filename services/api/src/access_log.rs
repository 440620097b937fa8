//! Request ids, one span and one line per request; panics become problems.

use std::{any::Any, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderName, HeaderValue, Response, StatusCode},
    middleware::{self, Next},
    response::IntoResponse,
};
use certctl_contract::problem::Kind;
use certctl_runtime::client_addr::ClientAddr;
use tower_http::catch_panic::CatchPanicLayer;
use tracing::Instrument;

use crate::{
    app::App,
    calls::{Call, Open},
    edge,
    error::ApiError,
    headers,
};

/// The id of a request: a UUID of ours, whatever the client sent.
#[derive(Clone, Debug)]
pub struct RequestId(pub String);

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Puts the outermost layers round the routes.
pub fn wrap(router: Router, app: &Arc<App>) -> Router {
    router
        .fallback(|id: axum::Extension<RequestId>| async move {
            ApiError::new(Kind::NotFound, "there is nothing at this path").into_problem(&id.0)
        })
        .method_not_allowed_fallback(|id: axum::Extension<RequestId>| async move {
            ApiError::new(Kind::MethodNotAllowed, "this path does not know the method; see Allow").into_problem(&id.0)
        })
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn(headers::options))
        .layer(middleware::from_fn_with_state(app.clone(), observe))
        .layer(middleware::from_fn_with_state(app.clone(), headers::dress))
}

fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response<Body> {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or(panic.downcast_ref::<&str>().copied());
    metrics::counter!("request_panics_total").increment(1);
    ApiError::internal(format!("panic: {}", text.unwrap_or("without a text")))
        .into_problem(&RequestId("in X-Request-ID".to_owned()))
        .into_response()
}

async fn observe(State(app): State<Arc<App>>, mut request: Request, next: Next) -> impl IntoResponse {
    let began = app.clock.now();
    let id = RequestId(uuid::Uuid::new_v4().to_string());
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let call = Call::default();
    request.extensions_mut().insert(id.clone());
    request.extensions_mut().insert(call.clone());
    let span = tracing::info_span!("request", request_id = %id.0);
    let remote = request.extensions().get::<ClientAddr>().map(|client| client.0);
    let open = Open::new(&app, call, method.clone(), &path, &id.0, remote);
    let mut response = match str::from_utf8(&edge::ocsp::percent_decoded(&path)) {
        Ok(_) => next.run(request).instrument(span).await,
        Err(_) => ApiError::malformed("the path is not percent-encoded UTF-8", vec![])
            .into_problem(&id)
            .into_response(),
    };
    let status = response.status();
    open.answered(status);
    let elapsed_ms = app.clock.now().since(began).as_millis() as u64;
    // Probes come every few seconds and tell nothing; what relying parties fetch is counted, not logged.
    let quiet = matches!(path.as_str(), "/health" | "/ready") || path.starts_with("/ocsp") || path.starts_with("/crl");
    match quiet && status != StatusCode::INTERNAL_SERVER_ERROR {
        true => {
            tracing::debug!(request_id = %id.0, %method, path, status = status.as_u16(), elapsed_ms, "{method} {path} {status}")
        }
        false => {
            tracing::info!(request_id = %id.0, %method, path, status = status.as_u16(), elapsed_ms, "{method} {path} {status}")
        }
    }
    response
        .headers_mut()
        .insert(X_REQUEST_ID, HeaderValue::from_str(&id.0).expect("a UUID is ASCII"));
    response
}
