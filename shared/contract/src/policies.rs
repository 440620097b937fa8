//! Policy rules and their violations.

use certctl_model::{
    id::{AgentGroupId, CertificateId, PolicyId, RenewalPolicyId, ViolationId},
    policy::{PolicyType, Severity},
    time::Time,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    endpoint::NoContent,
    list::{List, Page, blank},
    query::Id,
};

crate::resource! {
    policies "/api/v1";

    /// List policy rules.
    GET "/policies" ListPolicies(query: List<PolicyFilter, PolicySort>,) [Needs(View)] -> 200 Page<PolicyRule>;
    /// Create a policy rule.
    POST "/policies" CreatePolicy(body: NewPolicyRule,) [Needs(Configure)] -> 201 PolicyRule;
    /// Show what a policy rule would do to the certificates there are, before it is kept.
    POST "/policies/preview" PreviewPolicy(body: ProposedRule,) [Needs(View)] -> 200 PolicyPreview;
    /// Fetch one policy rule.
    GET "/policies/{id}" GetPolicy(path: Id<PolicyId>,) [Needs(View)] -> 200 PolicyRule;
    /// Change a policy rule. Keys that are absent keep their value.
    PUT "/policies/{id}" UpdatePolicy(path: Id<PolicyId>, body: PolicyRuleChanges,) [Needs(Configure)] -> 200 PolicyRule;
    /// Delete a policy rule, and its violations with it.
    DELETE "/policies/{id}" DeletePolicy(path: Id<PolicyId>,) [Needs(Configure)] -> 204 NoContent;
    /// List where a policy rule is or was broken.
    GET "/policies/{id}/violations" ListPolicyViolations(path: Id<PolicyId>, query: List<ViolationFilter, ViolationSort>,)
        [Needs(View)] -> 200 Page<PolicyViolation>;
    /// List where any policy rule is or was broken.
    GET "/policy-violations" ListViolations(query: List<ViolationFilter, ViolationSort>,)
        [Needs(View)] -> 200 Page<PolicyViolation>;
}

crate::query! {
    /// Which policy rules.
    pub struct PolicyFilter {
        /// Only rules of this type.
        r#type: PolicyType,
        /// Only rules of this severity.
        severity: Severity,
        /// Only rules that are, or are not, enabled.
        enabled: bool,
        /// Only the rule of this name.
        name: String,
    }
}

crate::sort_keys! {
    /// How policy rules are sorted.
    pub enum PolicySort { CreatedAt = "createdAt", Name = "name" }
}

crate::query! {
    /// Which violations.
    pub struct ViolationFilter {
        /// Only violations of this rule.
        rule_id: PolicyId,
        /// Only violations by this certificate.
        certificate_id: CertificateId,
        /// Only violations of this severity.
        severity: Severity,
        /// Only violations that are, or are no longer, there.
        open: bool,
        /// Only violations found after this time.
        created_after: Time,
        /// Only violations found before this time.
        created_before: Time,
    }
}

crate::sort_keys! {
    /// How violations are sorted.
    pub enum ViolationSort { CreatedAt = "createdAt" }
}

/// A policy rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "sqlx", derive(sqlx::FromRow))]
pub struct PolicyRule {
    /// Its id.
    pub id: PolicyId,
    /// Its name, unique.
    pub name: String,
    /// What it is about.
    #[serde(rename = "type")]
    #[cfg_attr(feature = "sqlx", sqlx(rename = "type"))]
    pub kind: PolicyType,
    /// How bad it is to break it.
    pub severity: Severity,
    /// Settings of its type.
    pub config: Value,
    /// Whether it holds.
    pub enabled: bool,
    /// It holds only for certificates with an agent in one of these groups; everywhere when there is none.
    pub agent_group_ids: Vec<AgentGroupId>,
    /// It holds only for certificates under one of these; everywhere when there is none.
    pub renewal_policy_ids: Vec<RenewalPolicyId>,
    /// When it was created.
    pub created_at: Time,
    /// When it was last changed.
    pub updated_at: Time,
}

/// A policy rule to be.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NewPolicyRule {
    /// An id of your choice; one is made when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub id: Option<PolicyId>,
    /// Its name, unique, 1 to 255 characters.
    #[schemars(length(min = 1, max = 255))]
    pub name: String,
    /// What it is about: `AllowedIssuers`, `AllowedDomains`, `RequiredMetadata`, `AllowedEnvironments`, `RenewalLeadTime`.
    #[serde(rename = "type")]
    pub kind: String,
    /// How bad it is to break it: `Warning` (when absent), `Error`, `Critical`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub severity: Option<String>,
    /// Settings of its type: `{"issuers": […]}`; `{"allow": […], "deny": […]}`; `{"fields": […], "tags": […]}`;
    /// `{"allowed": […]}`; `{"min_days": n, "max_lifetime_days": n}`. A list that is left out restricts nothing.
    #[serde(default)]
    pub config: Value,
    /// Whether it holds; true when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// It holds only for certificates with an agent in one of these groups; everywhere when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_group_ids: Option<Vec<AgentGroupId>>,
    /// It holds only for certificates under one of these; everywhere when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewal_policy_ids: Option<Vec<RenewalPolicyId>>,
}

/// What to change of a policy rule.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct PolicyRuleChanges {
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub name: Option<String>,
    /// What it is about.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// How bad it is to break it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub severity: Option<String>,
    /// Settings of its type, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Value>,
    /// Whether it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// It holds only for certificates with an agent in one of these groups; everywhere when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_group_ids: Option<Vec<AgentGroupId>>,
    /// It holds only for certificates under one of these; everywhere when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewal_policy_ids: Option<Vec<RenewalPolicyId>>,
}

/// A policy rule that is not kept yet.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ProposedRule {
    /// The rule that it would replace.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub rule_id: Option<PolicyId>,
    /// What it is about: `AllowedIssuers`, `AllowedDomains`, `RequiredMetadata`, `AllowedEnvironments`, `RenewalLeadTime`.
    #[serde(rename = "type")]
    pub kind: String,
    /// How bad it is to break it: `Warning` (when absent), `Error`, `Critical`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub severity: Option<String>,
    /// Settings of its type.
    #[serde(default)]
    pub config: Value,
    /// It holds only for certificates with an agent in one of these groups; everywhere when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_group_ids: Option<Vec<AgentGroupId>>,
    /// It holds only for certificates under one of these; everywhere when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewal_policy_ids: Option<Vec<RenewalPolicyId>>,
    /// How many certificates each list has at most, up to 1000; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub limit: Option<u16>,
}

/// What a rule would do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyPreview {
    /// Certificates that were looked at: all that are neither archived nor revoked.
    pub certificates: i64,
    /// Those that would break it.
    pub breaking: i64,
    /// Those that would break it, and do not break the rule it replaces.
    pub starts: FoundCertificates,
    /// Those that break the rule it replaces, and would not break it.
    pub stops: FoundCertificates,
    /// Those that would not be renewed any more.
    pub blocks_renewal: FoundCertificates,
}

/// Certificates, the first of them by id.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FoundCertificates {
    /// How many.
    pub count: i64,
    /// The first of them.
    pub first: Vec<FoundCertificate>,
}

/// A certificate, and what is to be said of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FoundCertificate {
    /// The certificate.
    pub certificate_id: CertificateId,
    /// How it would break the rule; empty where it would not.
    pub message: String,
}

/// A certificate that breaks a rule, or broke it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "sqlx", derive(sqlx::FromRow))]
pub struct PolicyViolation {
    /// Its id.
    pub id: ViolationId,
    /// Which rule.
    pub rule_id: PolicyId,
    /// Which certificate.
    pub certificate_id: CertificateId,
    /// How it breaks the rule.
    pub message: String,
    /// How bad it is.
    pub severity: Severity,
    /// When it was found.
    pub created_at: Time,
    /// When the rule held again; absent while it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_at: Option<Time>,
}
