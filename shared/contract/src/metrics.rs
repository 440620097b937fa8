//! Figures as JSON. Prometheus reads `/metrics` of each service instead.

use std::collections::BTreeMap;

use certctl_model::time::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

crate::resource! {
    metrics "/api/v1";

    /// Tell how many certificates, agents and jobs there are.
    GET "/metrics" Metrics() [Needs(View)] -> 200 MetricsReport;
    /// Summarise the inventory.
    GET "/stats/summary" DashboardSummary() [Needs(View)] -> 200 Summary;
}

/// Figures.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct MetricsReport {
    /// How many there are now.
    pub gauge: Gauges,
    /// How many there were.
    pub counter: Counters,
    /// Since when.
    pub uptime: Uptime,
}

/// How many there are now.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Gauges {
    /// All certificates.
    pub certificate_total: i64,
    /// Ending in more than 30 days, not revoked, not archived.
    pub certificate_active: i64,
    /// Ending within 30 days, not revoked, not archived.
    pub certificate_expiring_soon: i64,
    /// Past their end, not revoked, not archived.
    pub certificate_expired: i64,
    /// Revoked.
    pub certificate_revoked: i64,
    /// Of each of the eight statuses.
    #[serde(default)]
    pub certificate_by_status: BTreeMap<String, i64>,
    /// Of each of the five deployment statuses; certificates without enabled targets have none.
    #[serde(default)]
    pub certificate_by_deployment_status: BTreeMap<String, i64>,
    /// All agents.
    pub agent_total: i64,
    /// Agents heard of within five minutes.
    pub agent_online: i64,
    /// The others.
    #[serde(default)]
    pub agent_offline: i64,
    /// Jobs that are not finished.
    pub job_pending: i64,
}

/// How many there were.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "sqlx", derive(sqlx::FromRow))]
pub struct Counters {
    /// Jobs completed.
    pub job_completed_total: i64,
    /// Jobs failed.
    pub job_failed_total: i64,
    /// Certificates issued.
    pub issuance_total: i64,
    /// Renewals completed.
    pub renewal_total: i64,
}

/// Since when.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Uptime {
    /// Whole seconds since the server started.
    pub uptime_seconds: i64,
    /// When it started.
    pub server_started: Time,
    /// When this was measured.
    pub measured_at: Time,
}

/// The inventory in a few numbers.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Summary {
    /// All certificates.
    pub total_certificates: i64,
    /// Not revoked, ending within 30 days.
    pub expiring_certificates: i64,
    /// Not revoked, past their end.
    pub expired_certificates: i64,
    /// Revoked.
    pub revoked_certificates: i64,
    /// Agents heard of within five minutes.
    pub active_agents: i64,
    /// The others.
    pub offline_agents: i64,
    /// All agents.
    pub total_agents: i64,
    /// Jobs that are not finished.
    pub pending_jobs: i64,
    /// Jobs that failed.
    pub failed_jobs: i64,
    /// Jobs completed.
    pub complete_jobs: i64,
    /// Certificates that are being renewed.
    #[serde(default)]
    pub renewals_in_progress: i64,
    /// Certificates of each of the eight statuses.
    #[serde(default)]
    pub by_status: BTreeMap<String, i64>,
    /// Certificates of each of the five deployment statuses; those without enabled targets have none.
    #[serde(default)]
    pub by_deployment_status: BTreeMap<String, i64>,
    /// When this was computed.
    pub completed_at: Time,
}
