//! What is served where clients connect to.

use certctl_model::{
    id::{CertificateId, EndpointId, TargetId},
    time::Time,
    validation::EndpointOutcome,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::list::{List, Page};

crate::resource! {
    endpoints "/api/v1/endpoints";

    /// List addresses at which certificates should be served, and what was seen there last; newest look first unless
    /// sorted.
    ///
    /// One looks after every deployment, regularly, and when asked to: see `/api/v1/certificates/{id}/validate`.
    GET "" ListEndpoints(query: List<EndpointFilter, EndpointSort>,) [Needs(View), Rows] -> 200 Page<Endpoint>;
}

crate::query! {
    /// Which addresses.
    pub struct EndpointFilter {
        /// Only where this certificate should be served.
        certificate_id: CertificateId,
        /// Only those of this target.
        target_id: TargetId,
        /// Only where this was seen.
        outcome: EndpointOutcome,
    }
}

crate::sort_keys! {
    /// How addresses are sorted.
    pub enum EndpointSort { CheckedAt = "checkedAt" }
}

/// An address behind an endpoint of a target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "sqlx", derive(sqlx::FromRow))]
pub struct Endpoint {
    /// Its id.
    pub id: EndpointId,
    /// What should be served.
    pub certificate_id: CertificateId,
    /// Which target it belongs to.
    pub target_id: TargetId,
    /// The endpoint as the target has it: `host:port`.
    pub endpoint: String,
    /// An address it stands for, with the port; the endpoint itself where it stands for none.
    pub address: String,
    /// What was seen.
    pub outcome: EndpointOutcome,
    /// What is wrong; empty when nothing is.
    pub detail: String,
    /// SHA-256 of the certificate that is served, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint_sha256: Option<String>,
    /// Since when this is seen.
    pub since: Time,
    /// When it was seen last.
    pub checked_at: Time,
}
