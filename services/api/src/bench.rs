//! Constant bodies, which go the way of every answer: what an answer costs beyond that is its own.

use std::sync::Arc;

use axum::Router;
use certctl_contract::bench::{Blank, Constant};

use crate::{
    app::{App, Cx, Request, Routes},
    error::ApiError,
};

/// Adds the route, when it is wanted.
pub fn mount(router: Router<Arc<App>>, wanted: bool) -> Router<Arc<App>> {
    match wanted {
        true => router.merge(Routes::default().on(constant).beside()),
        false => router,
    }
}

async fn constant(_: Cx, rq: Request<Constant>) -> Result<Blank, ApiError> {
    Ok(Blank::new(rq.query.octets.unwrap_or_default()))
}
