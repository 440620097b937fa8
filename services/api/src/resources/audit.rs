//! The trail, for reading.

use certctl_contract::{
    audit::*,
    list::{Page, Sort},
};
use certctl_model::{id::AuditEventId, time::Time};
use futures_util::{StreamExt, stream};
use sqlx::{FromRow, PgPool, QueryBuilder, postgres::PgRow};

use crate::{
    app::{Cx, Download, Request, Routes},
    error::ApiError,
    listing::{self, Belongs, Column, Listed, Where},
    reach::Reached,
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on(list).on(get).on_download(export)
}

impl Listed for AuditEvent {
    type Filter = AuditFilter;
    type Sort = AuditSort;

    const KIND: &'static str = "audit event";
    const COLUMNS: &'static str = "e.id, e.actor, e.actor_type, e.action, e.resource_type, e.resource_id, e.details,
        e.at AS timestamp";
    const FROM: &'static str = "audit_events e";
    const ID: &'static str = "e.id";
    const BELONGS: Belongs = Belongs::Resource("e.resource_type", "e.resource_id");
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
        begins_with(sql, "e.actor", &f.actor);
        begins_with(sql, "e.action", &f.action);
        if let Some(resource) = &f.resource {
            sql.with("", resource.clone(), "IN (e.resource_type, e.resource_id)");
        }
        begins_with(sql, "e.resource_type", &f.resource_type);
        sql.eq("e.resource_id", &f.resource_id);
        sql.before("e.at", &f.before);
        sql.after("e.at", &f.after);
        sql.before("e.at", &f.to);
        sql.after("e.at", &f.from);
    }

    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Self::from_row(row)
    }
}

/// `expression` begins with the text, octet by octet, so that an index finds it whatever the collation.
fn begins_with(sql: &mut Where<'_>, expression: &str, text: &Option<String>) {
    if let Some(text) = text {
        sql.with(&format!("{expression} ~>=~"), text.clone(), "");
        sql.with(&format!("{expression} ~<~"), format!("{text}\u{10FFFF}"), "");
    }
}

async fn list(cx: Cx, rq: Request<ListAuditEvents>) -> Result<Page<AuditEvent>, ApiError> {
    listing::list(&cx, rq.query).await
}

async fn get(cx: Cx, rq: Request<GetAuditEvent>) -> Result<AuditEvent, ApiError> {
    listing::fetch(&cx, rq.path.id.as_str()).await
}

/// Rows that are read at a time: nothing is held open in the database while the client reads.
const BATCH: usize = 1000;

async fn export(cx: Cx, rq: Request<ExportAuditEvents>) -> Result<Download, ApiError> {
    let AuditExport { format, filter } = rq.query;
    let format = format.unwrap_or(AuditFormat::Csv);
    let (content_type, name) = match format {
        AuditFormat::Csv => ("text/csv; charset=utf-8", "audit.csv"),
        AuditFormat::Json => ("application/json", "audit.json"),
    };
    // Whether this caller may have any is known before the first line is sent.
    listing::matching::<AuditEvent>(&cx.reach, &mut QueryBuilder::new(""), &filter, cx.now())?;
    let walk = Walk {
        pool: cx.pool().clone(),
        reach: cx.reach.clone(),
        now: cx.now(),
        filter,
        format,
        last: None,
        first: true,
        done: false,
    };
    let chunks = stream::unfold(walk, async |mut walk| {
        let chunk = walk.next().await.transpose()?;
        walk.done |= chunk.is_err();
        Some((chunk.map(Into::into), walk))
    });
    Ok(Download {
        content_type: content_type.to_owned(),
        name: name.to_owned(),
        chunks: chunks.boxed(),
    })
}

/// From the newest event to the oldest.
struct Walk {
    pool: PgPool,
    reach: Reached,
    now: Time,
    filter: AuditFilter,
    format: AuditFormat,
    last: Option<(Time, AuditEventId)>,
    first: bool,
    done: bool,
}

impl Walk {
    async fn next(&mut self) -> Result<Option<Vec<u8>>, ApiError> {
        if self.done {
            return Ok(None);
        }
        let events = self.read().await?;
        self.done = events.len() < BATCH;
        self.last = events.last().map(|e| (e.timestamp, e.id.clone())).or(self.last.take());
        let first = std::mem::take(&mut self.first);
        let written = match self.format {
            AuditFormat::Csv => csv(&events, first),
            AuditFormat::Json => json(&events, first, self.done),
        };
        written
            .map(Some)
            .map_err(|error| ApiError::internal(format!("events cannot be written: {error}")))
    }

    async fn read(&self) -> Result<Vec<AuditEvent>, ApiError> {
        let mut sql = QueryBuilder::new(format!("SELECT {} FROM ", AuditEvent::COLUMNS));
        listing::matching::<AuditEvent>(&self.reach, &mut sql, &self.filter, self.now)?;
        if let Some((at, id)) = &self.last {
            sql.push(" AND (e.at, e.id) < (").push_bind(*at);
            sql.push(", ").push_bind(id.clone()).push(")");
        }
        sql.push(" ORDER BY e.at DESC, e.id DESC LIMIT ")
            .push_bind(BATCH as i64);
        let rows = sql.build().fetch_all(&self.pool).await?;
        Ok(rows.iter().map(AuditEvent::read).collect::<Result<_, _>>()?)
    }
}

fn csv(events: &[AuditEvent], first: bool) -> anyhow::Result<Vec<u8>> {
    let mut writer = csv::WriterBuilder::new()
        .terminator(csv::Terminator::CRLF)
        .from_writer(vec![]);
    if first {
        let names = [
            "id",
            "timestamp",
            "actor",
            "actor_type",
            "action",
            "resource_type",
            "resource_id",
            "details",
        ];
        writer.write_record(names)?;
    }
    for e in events {
        let (id, at, kind) = (e.id.to_string(), e.timestamp.to_string(), e.actor_type.to_string());
        let details = e.details.to_string();
        let cells = [
            &id,
            &at,
            &e.actor,
            &kind,
            &e.action,
            &e.resource_type,
            &e.resource_id,
            &details,
        ];
        writer.write_record(cells.map(|cell| harmless(cell)))?;
    }
    Ok(writer.into_inner()?)
}

/// What a spreadsheet would take for a formula begins with an apostrophe: also behind blanks, and in the full-width forms
/// that spreadsheets take for the others.
fn harmless(cell: &str) -> String {
    const BEGINS: [char; 8] = ['=', '+', '-', '@', '＝', '＋', '－', '＠'];
    let begins = cell.trim_start_matches(|c: char| c.is_whitespace() || c.is_control() || c == '\u{feff}');
    match cell.starts_with(['\t', '\r', '\n']) || begins.starts_with(BEGINS) {
        true => format!("'{cell}"),
        false => cell.to_owned(),
    }
}

fn json(events: &[AuditEvent], first: bool, last: bool) -> anyhow::Result<Vec<u8>> {
    let mut octets = if first { b"[".to_vec() } else { vec![] };
    for (n, event) in events.iter().enumerate() {
        if n > 0 || !first {
            octets.push(b',');
        }
        octets.push(b'\n');
        serde_json::to_writer(&mut octets, event)?;
    }
    if last {
        octets.extend_from_slice(b"\n]\n");
    }
    Ok(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cell_is_a_formula_to_a_spreadsheet() {
        for cell in [
            "=1+1",
            "+1",
            "-1",
            "@SUM(1)",
            "\t=1",
            "\r=1",
            "\n=1",
            " =1",
            "＝1+1",
            "＋1",
            "－1",
            "＠SUM(1)",
            "\u{3000}＝1",
            "\u{feff}=1",
        ] {
            assert_eq!(harmless(cell), format!("'{cell}"));
        }
        for cell in ["", "a=1", "2027-01-15", "'=1", "web ＝ shop"] {
            assert_eq!(harmless(cell), cell);
        }
    }
}
