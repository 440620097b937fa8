//! Liveness, readiness, and how clients authenticate.

use std::time::Duration;

use certctl_contract::health::*;

use crate::{
    app::{Cx, Request, Routes},
    error::ApiError,
    oidc,
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on(health).on(ready).on(api_health).on(auth_info).on(auth_check)
}

/// A database that takes longer to answer would not serve requests either.
const DATABASE_WITHIN: Duration = Duration::from_secs(2);

async fn health(_: Cx, _: Request<Health>) -> Result<Outcome, ApiError> {
    Ok(Outcome::of("healthy"))
}

async fn ready(cx: Cx, _: Request<Ready>) -> Result<Outcome, ApiError> {
    match tokio::time::timeout(DATABASE_WITHIN, certctl_store::ready(cx.pool())).await {
        Ok(Ok(())) => Ok(Outcome::of("ready")),
        Ok(Err(error)) => Err(ApiError::unavailable(error.to_string())),
        Err(_) => Err(ApiError::unavailable("the database does not answer in time")),
    }
}

async fn api_health(cx: Cx, _: Request<ApiHealth>) -> Result<HealthReport, ApiError> {
    Ok(HealthReport {
        status: "healthy".to_owned(),
        timestamp: cx.now(),
    })
}

async fn auth_info(cx: Cx, _: Request<AuthInfo>) -> Result<AuthMode, ApiError> {
    let gate = &cx.app.gate;
    Ok(AuthMode {
        auth_type: gate.kind().to_owned(),
        required: !gate.is_open(),
        login: gate.login.as_ref().map(|_| oidc::LOGIN.to_owned()),
    })
}

async fn auth_check(_: Cx, _: Request<AuthCheck>) -> Result<Outcome, ApiError> {
    Ok(Outcome::of("authenticated"))
}
