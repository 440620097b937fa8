//! What is served where clients connect to.

use certctl_contract::{
    endpoints::*,
    list::{Page, Sort},
};
use certctl_model::validation::EndpointOutcome;
use sqlx::{FromRow, postgres::PgRow};

use crate::{
    app::{Cx, Request, Routes},
    error::ApiError,
    listing::{self, Belongs, Column, Listed, Where},
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on(list)
}

impl Listed for Endpoint {
    type Filter = EndpointFilter;
    type Sort = EndpointSort;

    const KIND: &'static str = "endpoint";
    const COLUMNS: &'static str = "e.id, e.certificate_id, e.target_id, e.endpoint, e.address,
        CASE WHEN e.outdated THEN 'Unchecked' ELSE e.outcome END AS outcome,
        CASE WHEN e.outdated THEN 'something was deployed since, and it was not checked again yet' ELSE e.detail END AS detail,
        e.fingerprint_sha256, e.since, e.checked_at";
    const FROM: &'static str = "endpoints e";
    const ID: &'static str = "e.id";
    const BELONGS: Belongs = Belongs::Certificate("e.certificate_id");
    const DEFAULT: Sort<EndpointSort> = Sort {
        key: EndpointSort::CheckedAt,
        descending: true,
    };

    fn column(key: EndpointSort) -> Column {
        match key {
            EndpointSort::CheckedAt => Column::time("e.checked_at"),
        }
    }

    fn restrict(f: &EndpointFilter, sql: &mut Where<'_>) {
        sql.eq("e.certificate_id", &f.certificate_id);
        sql.eq("e.target_id", &f.target_id);
        match f.outcome {
            Some(EndpointOutcome::Unchecked) => sql.and("e.outdated"),
            Some(_) => {
                sql.eq("e.outcome", &f.outcome);
                sql.and("NOT e.outdated");
            }
            None => {}
        }
    }

    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Self::from_row(row)
    }
}

async fn list(cx: Cx, rq: Request<ListEndpoints>) -> Result<Page<Endpoint>, ApiError> {
    listing::list(&cx, rq.query).await
}
