//! The trail: who did what.

use certctl_model::{audit::ActorType, id::AuditEventId, time::Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    endpoint::{File, Media},
    list::{List, Page},
    query::{Id, Invalid, Param, Query, take_one},
};

crate::resource! {
    audit "/api/v1/audit";

    /// List audit events, newest first unless sorted.
    GET "" ListAuditEvents(query: List<AuditFilter, AuditSort>,) [Needs(Audit), Rows] -> 200 Page<AuditEvent>;
    /// Download audit events as CSV or JSON, newest first, however many there are. In CSV a cell that a spreadsheet
    /// would take for a formula begins with an apostrophe.
    GET "/export" ExportAuditEvents(query: AuditExport,) [Needs(Audit), Rows; Export] -> 200 File<AuditFile>;
    /// Fetch one audit event.
    GET "/{id}" GetAuditEvent(path: Id<AuditEventId>,) [Needs(Audit), Rows] -> 200 AuditEvent;
}

crate::query! {
    /// Which events.
    pub struct AuditFilter {
        /// Only what parties did whose names begin with this.
        actor: String,
        /// Only actions that begin with this.
        action: String,
        /// Only what was done to this kind of thing, or to the thing with this id.
        resource: String,
        /// Only what was done to kinds of things that begin with this.
        resource_type: String,
        /// Only what was done to this thing.
        resource_id: String,
        /// Only before this time.
        before: Time,
        /// Only after this time.
        after: Time,
        /// The same as `after`.
        from: Time,
        /// The same as `before`.
        to: Time,
    }
}

certctl_model::words! {
    /// How events are written into a file.
    pub enum AuditFormat {
        /// A line for each event, after a line of names.
        Csv = "csv",
        /// An array of events.
        Json = "json",
    }
}

/// Which events go into the file, and how.
#[derive(Clone, Debug, Default)]
pub struct AuditExport {
    /// How; CSV when not said.
    pub format: Option<AuditFormat>,
    /// Which.
    pub filter: AuditFilter,
}

impl Query for AuditExport {
    fn params() -> Vec<Param> {
        let mut all = vec![Param {
            name: "format",
            doc: "How events are written; `csv` when not said.",
            schema: |g| g.subschema_for::<AuditFormat>(),
        }];
        all.extend(AuditFilter::params());
        all
    }

    fn take(pairs: &mut Vec<(String, String)>, invalid: &mut Vec<Invalid>) -> Self {
        let format = take_one("format", pairs, invalid);
        let filter = AuditFilter::take(pairs, invalid);
        Self { format, filter }
    }

    fn pairs(&self, out: &mut Vec<(&'static str, String)>) {
        out.extend(self.format.map(|format| ("format", format.to_string())));
        self.filter.pairs(out);
    }
}

/// The media types of an exported trail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditFile;

impl Media for AuditFile {
    const TYPES: &'static [&'static str] = &["text/csv", "application/json"];
}

crate::sort_keys! {
    /// How events are sorted.
    pub enum AuditSort { Timestamp = "timestamp" }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "sqlx", derive(sqlx::FromRow))]
pub struct AuditEvent {
    /// Its id.
    pub id: AuditEventId,
    /// Who did it.
    pub actor: String,
    /// What kind of party that is.
    pub actor_type: ActorType,
    /// What was done.
    pub action: String,
    /// To what kind of thing.
    pub resource_type: String,
    /// To which.
    pub resource_id: String,
    /// What else there is to know.
    pub details: Value,
    /// When.
    pub timestamp: Time,
}
