//! The trail, for reading.

use certctl_contract::{
    audit::*,
    list::{Page, Sort},
};
use sqlx::{FromRow, postgres::PgRow};

use crate::{
    app::{Cx, Request, Routes},
    error::ApiError,
    listing::{self, Column, Listed, Where},
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on(list).on(get)
}

impl Listed for AuditEvent {
    type Filter = AuditFilter;
    type Sort = AuditSort;

    const KIND: &'static str = "audit event";
    const COLUMNS: &'static str = "e.id, e.actor, e.actor_type, e.action, e.resource_type, e.resource_id, e.details,
        e.at AS timestamp";
    const FROM: &'static str = "audit_events e";
    const ID: &'static str = "e.id";
    const DEFAULT: Sort<AuditSort> = Sort {
        key: AuditSort::Timestamp,
        descending: true,
    };

    fn column(key: AuditSort) -> Column {
        match key {
            AuditSort::Timestamp => Column::time("e.at"),
        }
    }

    fn restrict(f: &AuditFilter, sql: &mut Where<'_>) {
        sql.eq("e.actor", &f.actor);
        sql.eq("e.action", &f.action);
        sql.eq("e.resource_type", &f.resource_type);
        sql.eq("e.resource_id", &f.resource_id);
        sql.before("e.at", &f.before);
        sql.after("e.at", &f.after);
    }

    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Self::from_row(row)
    }
}

async fn list(cx: Cx, rq: Request<ListAuditEvents>) -> Result<Page<AuditEvent>, ApiError> {
    listing::list(&cx, rq.query).await
}

async fn get(cx: Cx, rq: Request<GetAuditEvent>) -> Result<AuditEvent, ApiError> {
    listing::fetch(&cx, rq.path.id.as_str()).await
}
