//! Renewal policies: when certificates are renewed and how often it is tried.

use certctl_model::{
    approval::Approval,
    id::{ProfileId, RenewalPolicyId},
    time::Time,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    endpoint::NoContent,
    list::{Clearable, List, Page, blank},
    query::Id,
};

crate::resource! {
    renewal_policies "/api/v1/renewal-policies";

    /// List renewal policies.
    GET "" ListRenewalPolicies(query: List<RenewalPolicyFilter, RenewalPolicySort>,) [Needs(View)]
        -> 200 Page<RenewalPolicy>;
    /// Create a renewal policy.
    POST "" CreateRenewalPolicy(body: NewRenewalPolicy,) [Needs(Configure)] -> 201 RenewalPolicy;
    /// Fetch one renewal policy.
    GET "/{id}" GetRenewalPolicy(path: Id<RenewalPolicyId>,) [Needs(View)] -> 200 RenewalPolicy;
    /// Change a renewal policy. Keys that are absent keep their value; certificates under it are planned anew.
    PUT "/{id}" UpdateRenewalPolicy(path: Id<RenewalPolicyId>, body: RenewalPolicyChanges,) [Needs(Configure)]
        -> 200 RenewalPolicy;
    /// Delete a renewal policy. Refused while certificates refer to it.
    DELETE "/{id}" DeleteRenewalPolicy(path: Id<RenewalPolicyId>,) [Needs(Configure)] -> 204 NoContent;
}

crate::query! {
    /// Which renewal policies.
    pub struct RenewalPolicyFilter {
        /// Only policies that do, or do not, renew by themselves.
        auto_renew: bool,
    }
}

crate::sort_keys! {
    /// How renewal policies are sorted.
    pub enum RenewalPolicySort { CreatedAt = "createdAt", Name = "name" }
}

/// A renewal policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "sqlx", derive(sqlx::FromRow))]
pub struct RenewalPolicy {
    /// Its id.
    pub id: RenewalPolicyId,
    /// Its name, unique.
    pub name: String,
    /// Whether certificates are renewed without anyone asking.
    pub auto_renew: bool,
    /// Share of the lifetime after which a certificate is due, in thousandths: 667 is two thirds.
    pub renew_at_permille: i32,
    /// Not earlier than so many days before the end; matters for certificates of many months only. 0: no such limit.
    pub renewal_window_days: i32,
    /// How much earlier certificates may be renewed, in hundredths of the time until then, so that what was issued at once
    /// is not renewed at once. With 100 and no `renewal_window_days` the load is even after one cycle.
    pub spread_percent: i32,
    /// Times of the week, UTC, in which certificates are renewed by themselves, as `Sat 22:00-04:00` or `daily 01:30-05:00`;
    /// any time when there is none. A certificate that would end earlier than a day after the next one opens is renewed all
    /// the same.
    pub maintenance_windows: Vec<String>,
    /// How often a failing job is tried before it is given up.
    pub max_retries: i32,
    /// How long after a job was given up renewal is planned again.
    pub retry_interval_seconds: i32,
    /// Days before the end at which the owner is warned.
    pub alert_thresholds_days: Vec<i32>,
    /// Profile given to certificates that are created under this policy without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_profile_id: Option<ProfileId>,
    /// When people have to agree before a request is signed.
    pub approval: Approval,
    /// How many.
    pub approvers: i32,
    /// Whether those who took part in an issuance can approve it. For installations with one administrator.
    #[serde(default)]
    pub self_approval: bool,
    /// When it was created.
    pub created_at: Time,
    /// When it was last changed.
    pub updated_at: Time,
}

/// A renewal policy to be.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NewRenewalPolicy {
    /// An id of your choice; one is made when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub id: Option<RenewalPolicyId>,
    /// Its name, unique, 1 to 255 characters.
    #[schemars(length(min = 1, max = 255))]
    pub name: String,
    /// Whether certificates are renewed without anyone asking.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_renew: Option<bool>,
    /// Share of the lifetime after which a certificate is due, in thousandths; 667 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 999))]
    pub renew_at_permille: Option<i32>,
    /// Not earlier than so many days before the end; 30 when absent, 0 for no such limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 3650))]
    pub renewal_window_days: Option<i32>,
    /// How much earlier certificates may be renewed, in hundredths of the time until then; 0 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub spread_percent: Option<i32>,
    /// Times of the week, UTC, in which certificates are renewed by themselves: `Sat 22:00-04:00`, `daily 01:30-05:00`; any
    /// time when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance_windows: Option<Vec<String>>,
    /// How often a failing job is tried; 3 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub max_retries: Option<i32>,
    /// How long after a job was given up renewal is planned again; 3600 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_592_000))]
    pub retry_interval_seconds: Option<i32>,
    /// Days before the end at which the owner is warned; 30, 14, 7, 0 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alert_thresholds_days: Option<Vec<i32>>,
    /// Profile for certificates created under this policy without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_profile_id: Option<Clearable<ProfileId>>,
    /// When people have to agree before a request is signed: `none`, `manual` or `always`; `none` when absent. Where the profile asks for more, that counts.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub approval: Option<String>,
    /// How many; 1 when absent. Whoever asked for the certificate is none of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3))]
    pub approvers: Option<i32>,
    /// Whether those who took part in an issuance can approve it, so that one administrator alone can; false when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub self_approval: Option<bool>,
}

/// What to change of a renewal policy.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct RenewalPolicyChanges {
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub name: Option<String>,
    /// Whether certificates are renewed without anyone asking.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_renew: Option<bool>,
    /// Share of the lifetime after which a certificate is due, in thousandths; 667 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 999))]
    pub renew_at_permille: Option<i32>,
    /// Not earlier than so many days before the end; 30 when absent, 0 for no such limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 3650))]
    pub renewal_window_days: Option<i32>,
    /// How much earlier certificates may be renewed, in hundredths of the time until then; 0 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub spread_percent: Option<i32>,
    /// Times of the week, UTC, in which certificates are renewed by themselves: `Sat 22:00-04:00`, `daily 01:30-05:00`; any
    /// time when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance_windows: Option<Vec<String>>,
    /// How often a failing job is tried; 3 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub max_retries: Option<i32>,
    /// How long after a job was given up renewal is planned again; 3600 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_592_000))]
    pub retry_interval_seconds: Option<i32>,
    /// Days before the end at which the owner is warned; 30, 14, 7, 0 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alert_thresholds_days: Option<Vec<i32>>,
    /// Profile for certificates created under this policy without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_profile_id: Option<Clearable<ProfileId>>,
    /// When people have to agree before a request is signed: `none`, `manual` or `always`; `none` when absent. Where the profile asks for more, that counts.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub approval: Option<String>,
    /// How many; 1 when absent. Whoever asked for the certificate is none of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3))]
    pub approvers: Option<i32>,
    /// Whether those who took part in an issuance can approve it, so that one administrator alone can; false when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub self_approval: Option<bool>,
}
