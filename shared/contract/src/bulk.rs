//! Many certificates at once: asked for once, done one by one, with a progress that can be read.

use std::{borrow::Cow, collections::BTreeMap};

use certctl_model::{
    bulk::{BulkAction, BulkOutcome, BulkStatus},
    id::{BulkId, CertificateId, OwnerId, TeamId},
    revocation::RevocationReason,
    time::Time,
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::{
    certificates::CertificateFilter,
    health::Outcome,
    list::{List, Page, blank},
    query::{Id, Query},
};

crate::resource! {
    bulk "/api/v1/bulk";

    /// Renew many certificates.
    ///
    /// Certificates are named by `ids` or chosen by `filter`. The answer is an operation that goes on by itself: its
    /// progress and what became of each certificate can be read. With `dry_run` everything is tried and undone.
    POST "/renew" BulkRenew(body: BulkRenewal,) [Needs(Operate), Change] -> 202 BulkOperation;
    /// Revoke many certificates.
    POST "/revoke" BulkRevoke(body: BulkRevocation,) [Needs(Revoke), Change] -> 202 BulkOperation;
    /// Give many certificates to another owner or team.
    POST "/reassign" BulkReassign(body: BulkReassignment,) [Needs(Operate)] -> 202 BulkOperation;
    /// List bulk operations, newest first unless sorted.
    GET "/operations" ListBulkOperations(query: List<BulkFilter, BulkSort>,) [Needs(View), Rows] -> 200 Page<BulkOperation>;
    /// Fetch one bulk operation and its progress.
    GET "/operations/{id}" GetBulkOperation(path: Id<BulkId>,) [Needs(View), Rows] -> 200 BulkOperation;
    /// List what became of the certificates of a bulk operation.
    GET "/operations/{id}/items" ListBulkItems(path: Id<BulkId>, query: List<BulkItemFilter, BulkItemSort>,)
        [Needs(View), Rows] -> 200 Page<BulkItem>;
    /// Call off a bulk operation: certificates that have not had their turn are left alone.
    POST "/operations/{id}/cancel" CancelBulkOperation(path: Id<BulkId>,) [Needs(Operate)] -> 200 Outcome;
}

crate::query! {
    /// Which operations.
    pub struct BulkFilter {
        /// Only operations in this state.
        status: BulkStatus,
        /// Only operations that do this.
        action: BulkAction,
        /// Only operations created after this time.
        created_after: Time,
    }
}

crate::sort_keys! {
    /// How operations are sorted.
    pub enum BulkSort { CreatedAt = "createdAt" }
}

crate::query! {
    /// Which certificates of an operation.
    pub struct BulkItemFilter {
        /// Only certificates of which this became.
        outcome: BulkOutcome,
    }
}

crate::sort_keys! {
    /// How the certificates of an operation are sorted.
    pub enum BulkItemSort { CertificateId = "certificateId" }
}

/// Conditions on certificates: the filter parameters of their list, as an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CertificateConditions(pub BTreeMap<String, String>);

impl JsonSchema for CertificateConditions {
    fn schema_name() -> Cow<'static, str> {
        "CertificateConditions".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let of = |param: &crate::query::Param| (param.name.to_owned(), (param.schema)(generator).to_value());
        let properties: serde_json::Map<_, _> = CertificateFilter::params().iter().map(of).collect();
        json_schema!({
            "type": "object",
            "description": "The filter parameters of the list of certificates; at least one.",
            "minProperties": 1,
            "properties": properties,
            "additionalProperties": false,
        })
    }
}

/// Which certificates: either `ids` or `filter`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Selection {
    /// These certificates, at most 10,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 10_000))]
    pub ids: Option<Vec<CertificateId>>,
    /// The certificates that match all of this when the operation is created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<CertificateConditions>,
    /// Try everything and undo it, to see what would become of each certificate.
    #[serde(default)]
    pub dry_run: bool,
}

/// What to renew.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct BulkRenewal {
    /// Which certificates.
    #[serde(flatten)]
    pub selection: Selection,
}

/// What to revoke, and why.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct BulkRevocation {
    /// Which certificates.
    #[serde(flatten)]
    pub selection: Selection,
    /// Why; `unspecified` when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub reason: Option<RevocationReason>,
}

/// What to give to whom: an owner, a team, or both.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct BulkReassignment {
    /// Which certificates.
    #[serde(flatten)]
    pub selection: Selection,
    /// Who answers for them from now on.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub owner_id: Option<OwnerId>,
    /// The team; the new owner's when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub team_id: Option<TeamId>,
}

/// A bulk operation and its progress.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "sqlx", derive(sqlx::FromRow))]
pub struct BulkOperation {
    /// Its id.
    pub id: BulkId,
    /// What it does.
    pub action: BulkAction,
    /// Whether everything is undone.
    pub dry_run: bool,
    /// Where it stands.
    pub status: BulkStatus,
    /// How many certificates it is about.
    pub total: i64,
    /// How many were done.
    pub done: i64,
    /// How many were refused.
    pub refused: i64,
    /// How many have not had their turn; those of a cancelled operation never will.
    pub remaining: i64,
    /// Why, of revocations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<RevocationReason>,
    /// The new owner, of reassignments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner_id: Option<OwnerId>,
    /// The new team, of reassignments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team_id: Option<TeamId>,
    /// Who asked for it.
    pub created_by: String,
    /// When it was asked for.
    pub created_at: Time,
    /// When it was finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
}

/// What became of one certificate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "sqlx", derive(sqlx::FromRow))]
pub struct BulkItem {
    /// Which certificate, as it was named.
    pub certificate_id: CertificateId,
    /// What became of it.
    pub outcome: BulkOutcome,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When it had its turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
}
