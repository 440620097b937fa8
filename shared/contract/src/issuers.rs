//! Issuers: who signs.

use certctl_model::{connector::IssuerType, id::IssuerId, time::Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    endpoint::NoContent,
    health::Outcome,
    list::{List, Page, blank},
    query::Id,
};

crate::resource! {
    issuers "/api/v1/issuers";

    /// List issuers.
    GET "" ListIssuers(query: List<IssuerFilter, IssuerSort>,) [Needs(View), Rows] -> 200 Page<Issuer>;
    /// Create an issuer.
    ///
    /// A `local` issuer gets a key and a self-signed root of its own, made by the signer when it is first used.
    POST "" CreateIssuer(body: NewIssuer,) [Needs(Configure)] -> 201 Issuer;
    /// Fetch one issuer.
    GET "/{id}" GetIssuer(path: Id<IssuerId>,) [Needs(View), Rows] -> 200 Issuer;
    /// Change an issuer. Keys that are absent keep their value; the type stays.
    PUT "/{id}" UpdateIssuer(path: Id<IssuerId>, body: IssuerChanges,) [Needs(Configure)] -> 200 Issuer;
    /// Delete an issuer. Refused while certificates refer to it.
    DELETE "/{id}" DeleteIssuer(path: Id<IssuerId>,) [Needs(Configure)] -> 204 NoContent;
    /// Test whether the issuer can sign now.
    POST "/{id}/test" TestIssuer(path: Id<IssuerId>,) [Needs(Operate)] -> 200 Outcome;
}

crate::query! {
    /// Which issuers.
    pub struct IssuerFilter {
        /// Only issuers that are, or are not, enabled.
        enabled: bool,
    }
}

crate::sort_keys! {
    /// How issuers are sorted.
    pub enum IssuerSort { CreatedAt = "createdAt", Name = "name" }
}

/// An issuer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "sqlx", derive(sqlx::FromRow))]
pub struct Issuer {
    /// Its id.
    pub id: IssuerId,
    /// Its name, unique.
    pub name: String,
    /// What kind of issuer it is.
    #[serde(rename = "type")]
    #[cfg_attr(feature = "sqlx", sqlx(rename = "type"))]
    pub kind: IssuerType,
    /// Settings of its type; secrets are never shown.
    pub config: Value,
    /// Whether it signs.
    pub enabled: bool,
    /// `active`, `disabled`, or `uninitialised` while it has no certificate.
    pub status: String,
    /// When it was created.
    pub created_at: Time,
    /// When it was last changed.
    pub updated_at: Time,
}

/// An issuer to be.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NewIssuer {
    /// An id of your choice; one is made when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub id: Option<IssuerId>,
    /// Its name, unique, 1 to 255 characters.
    #[schemars(length(min = 1, max = 255))]
    pub name: String,
    /// What kind of issuer it is.
    #[serde(rename = "type")]
    pub kind: String,
    /// Settings of its type: an object; for `local`, `ca_common_name`, `validity_days`, `crl_shards`, `crl_delta`, and as
    /// its budget `max_under_way` requests at a time, `max_per_hour`, and `max_per_domain` for names of one registered
    /// domain in `domain_days` (7).
    #[serde(default)]
    pub config: Value,
    /// Whether it signs; true when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

/// What to change of an issuer.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct IssuerChanges {
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub name: Option<String>,
    /// What kind of issuer it is; must be what it was.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Settings of its type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Value>,
    /// Whether it signs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}
