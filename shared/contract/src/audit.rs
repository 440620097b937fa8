//! The trail: who did what.

use certctl_model::{audit::ActorType, id::AuditEventId, time::Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    list::{List, Page},
    query::Id,
};

crate::resource! {
    audit "/api/v1/audit";

    /// List audit events, newest first unless sorted.
    GET "" ListAuditEvents(query: List<AuditFilter, AuditSort>,) [Needs(Audit)] -> 200 Page<AuditEvent>;
    /// Fetch one audit event.
    GET "/{id}" GetAuditEvent(path: Id<AuditEventId>,) [Needs(Audit)] -> 200 AuditEvent;
}

crate::query! {
    /// Which events.
    pub struct AuditFilter {
        /// Only what this party did.
        actor: String,
        /// Only this action.
        action: String,
        /// Only what was done to this kind of thing.
        resource_type: String,
        /// Only what was done to this thing.
        resource_id: String,
        /// Only before this time.
        before: Time,
        /// Only after this time.
        after: Time,
    }
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
