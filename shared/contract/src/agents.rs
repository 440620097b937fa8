//! Agents: registration, heartbeat, and the work they fetch and report.

use std::{fmt, str::FromStr, time::Duration};

use std::collections::BTreeMap;

use certctl_model::{
    connector::TargetType,
    id::{AgentId, CertificateId, JobId, TargetId, VersionId},
    job::{JobKind, JobStatus},
    key::KeyAlgorithm,
    name::San,
    time::Time,
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    endpoint::NoContent,
    health::Outcome,
    list::{List, Page, blank},
    query::Id,
};

crate::resource! {
    agents "/api/v1/agents";

    /// List agents.
    GET "" ListAgents(query: List<AgentFilter, AgentSort>,) [Needs(View)] -> 200 Page<Agent>;
    /// Register an agent. Its key is in the answer, this once.
    ///
    /// Repeating a registration with the same `id` and `api_key` is answered as the first time.
    POST "" RegisterAgent(body: NewAgent,) [Bootstrap] -> 201 RegisteredAgent;
    /// Fetch one agent.
    GET "/{id}" GetAgent(path: Id<AgentId>,) [Needs(View)] -> 200 Agent;
    /// Change an agent's name, labels and the facts an operator states of it. Keys that are absent keep their value.
    ///
    /// A fact that is set here is not replaced by the agent's own statements; the empty text leaves it to the agent again.
    PUT "/{id}" UpdateAgent(path: Id<AgentId>, body: AgentChanges,) [Needs(Configure)] -> 200 Agent;
    /// Delete an agent; its key opens nothing any more. Refused while targets or open jobs refer to it.
    DELETE "/{id}" DeleteAgent(path: Id<AgentId>,) [Needs(Configure)] -> 204 NoContent;
    /// Record that an agent is alive.
    POST "/{id}/heartbeat" AgentHeartbeat(path: Id<AgentId>, body: Heartbeat,) [AgentItself] -> 200 Heard;
    /// Fetch an agent's work: requests to make and versions to deploy. With `wait`, answers when there is some.
    GET "/{id}/work" AgentGetWork(path: Id<AgentId>, query: WorkQuery,) [Agent] -> 200 Work;
    /// Hand in a certification request (PKCS #10, PEM) for a job that awaits it. Signing follows.
    ///
    /// Where approval is required the agent needs a key of its own; the shared key is refused.
    POST "/{agent_id}/csr" AgentSubmitCsr(path: AgentPath, body: CsrSubmission,) [AgentItself] -> 202 Outcome;
    /// Fetch the newest certificate whose key the agent holds, followed by its chain, in PEM.
    GET "/{agent_id}/certificates/{cert_id}" AgentPickupCertificate(path: PickupPath, query: PickupQuery,) [Agent]
        -> 200 Pickup;
    /// Report how a job went: `Running`, `Completed` or `Failed`.
    POST "/{agent_id}/jobs/{job_id}/status" AgentReportJobStatus(path: JobPath, body: JobReport,) [AgentItself]
        -> 200 Outcome;
}

crate::query! {
    /// Which agents.
    pub struct AgentFilter {
        /// Only agents of this status.
        status: AgentStatus,
        /// Only the agent of this name.
        name: String,
        /// Only agents of this operating system, in any case.
        os: String,
        /// Only agents of this processor, in any case.
        architecture: String,
        /// Only agents of exactly this version.
        version: String,
    }
}

crate::sort_keys! {
    /// How agents are sorted.
    pub enum AgentSort { CreatedAt = "createdAt", Name = "name", LastHeartbeatAt = "lastHeartbeatAt", Version = "version" }
}

certctl_model::words! {
    /// Whether an agent is heard of.
    pub enum AgentStatus {
        /// Heard of lately.
        Online = "Online",
        /// Missed its heartbeats.
        Offline = "Offline",
        /// Heard of, but not well. No agent is, at present.
        Degraded = "Degraded",
    }
}

crate::path! {
    /// An agent.
    pub struct AgentPath {
        /// Which agent.
        agent_id: AgentId,
    }
}

crate::path! {
    /// A certificate an agent fetches.
    pub struct PickupPath {
        /// Which agent.
        agent_id: AgentId,
        /// Which certificate.
        cert_id: CertificateId,
    }
}

crate::path! {
    /// A job an agent reports on.
    pub struct JobPath {
        /// Which agent.
        agent_id: AgentId,
        /// Which job.
        job_id: JobId,
    }
}

crate::query! {
    /// How to ask for work.
    pub struct WorkQuery {
        /// Wait so long for work to appear before answering that there is none, as `30s`; at most 60 s.
        wait: Wait,
    }
}

/// How long to wait: a whole number and `ms`, `s` or `m`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    text: String,
    /// The same.
    pub duration: Duration,
}

impl Wait {
    /// So many seconds.
    pub fn seconds(seconds: u64) -> Self {
        Self {
            text: format!("{seconds}s"),
            duration: Duration::from_secs(seconds),
        }
    }
}

impl FromStr for Wait {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "is a whole number and a unit: 500ms, 30s or 1m";
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: u64 = match number.len() {
            1..=6 => number.parse().map_err(|_| WRONG)?,
            _ => return Err(WRONG),
        };
        let duration = match unit {
            "ms" => Duration::from_millis(number),
            "s" => Duration::from_secs(number),
            "m" => Duration::from_secs(60 * number),
            _ => return Err(WRONG),
        };
        Ok(Self {
            text: text.to_owned(),
            duration,
        })
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl JsonSchema for Wait {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Wait".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9]{1,6}(ms|s|m)$" })
    }
}

crate::query! {
    /// Which version to fetch.
    pub struct PickupQuery {
        /// The version of the work item; the agent's newest when absent.
        version_id: VersionId,
    }
}

/// An agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Agent {
    /// Its id.
    pub id: AgentId,
    /// Its name, unique.
    pub name: String,
    /// The host it runs on.
    pub hostname: String,
    /// Whether it is heard of.
    pub status: AgentStatus,
    /// When it was last heard of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_heartbeat_at: Option<Time>,
    /// The same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_heartbeat: Option<Time>,
    /// When it registered.
    pub registered_at: Time,
    /// The same.
    pub created_at: Time,
    /// When its record last changed.
    pub updated_at: Time,
    /// Always empty: hashes of keys are not shown.
    pub api_key_hash: String,
    /// Operating system: `linux`, `darwin`, `windows`.
    pub os: String,
    /// Processor: `amd64`, `arm64`.
    pub architecture: String,
    /// Its address, as an operator set it or the agent states it.
    pub ip_address: String,
    /// The address its last heartbeat came from. Agent groups match it, or `ip_address` where an operator set that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_address: Option<String>,
    /// Its version.
    pub version: String,
    /// Target types it can deploy to.
    pub capabilities: Vec<String>,
    /// Which of these facts are only the agent's own statement. They take no certificate out of the scope of a policy rule.
    #[serde(default)]
    pub self_reported: Vec<String>,
    /// Free labels.
    pub tags: BTreeMap<String, String>,
}

/// An agent that wants in.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct NewAgent {
    /// An id the agent chose; one is made when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub id: Option<AgentId>,
    /// Its name, unique, 1 to 128 characters.
    #[schemars(length(min = 1, max = 128))]
    pub name: String,
    /// The host it runs on.
    pub hostname: String,
    /// Operating system.
    #[serde(default)]
    pub os: String,
    /// Processor.
    #[serde(default)]
    pub architecture: String,
    /// Its address.
    #[serde(default)]
    pub ip_address: String,
    /// Its version.
    #[serde(default)]
    pub version: String,
    /// Target types it can deploy to.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// A key the agent made itself (32 to 128 printable characters of a random source); one is made when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub api_key: Option<String>,
}

/// What to change of an agent.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct AgentChanges {
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub name: Option<String>,
    /// Free labels, all of them: at most 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeMap<String, String>>,
    /// Operating system; empty for what the agent states.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    /// Processor; empty for what the agent states.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// Its address; empty for the one it connects from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_address: Option<String>,
    /// Its version; empty for what the agent states.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// An agent that was let in.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RegisteredAgent {
    /// The agent.
    #[serde(flatten)]
    pub agent: Agent,
    /// Its key: send it as bearer token. It is not shown again.
    pub api_key: String,
}

/// A sign of life.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Heartbeat {
    /// Its version.
    #[serde(default)]
    pub version: String,
    /// The host it runs on.
    #[serde(default)]
    pub hostname: String,
    /// Operating system.
    #[serde(default)]
    pub os: String,
    /// Processor.
    #[serde(default)]
    pub architecture: String,
    /// Its address.
    #[serde(default)]
    pub ip_address: String,
    /// Target types it can deploy to.
    #[serde(default)]
    pub capabilities: Vec<String>,
}

/// A heartbeat was heard.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Heard {
    /// `heartbeat_recorded`.
    pub status: String,
    /// The agent's targets that want a placeholder and were never deployed to; absent when there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub placeholders: Vec<PlaceholderTarget>,
}

/// A target that wants a self-signed pair where no files are yet.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "sqlx", derive(sqlx::FromRow))]
pub struct PlaceholderTarget {
    /// Its id.
    pub id: TargetId,
    /// What is served there.
    #[serde(rename = "type")]
    #[cfg_attr(feature = "sqlx", sqlx(rename = "type"))]
    pub kind: TargetType,
    /// Settings of its type.
    pub config: Value,
}

/// What an agent has to do.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Work {
    /// The items, requests before deployments.
    pub jobs: Vec<WorkItem>,
    /// How many.
    pub count: i64,
}

/// One thing to do: send a request when `status` is `AwaitingCSR`, deploy when `type` is `Deployment`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkItem {
    /// The job.
    pub id: JobId,
    /// What the job does.
    #[serde(rename = "type")]
    pub kind: JobKind,
    /// For which certificate.
    pub certificate_id: CertificateId,
    /// Where the job stands.
    pub status: JobStatus,
    /// Common name to ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub common_name: Option<San>,
    /// Other names to ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sans: Option<Vec<San>>,
    /// Algorithm of the key to make.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_algorithm: Option<KeyAlgorithm>,
    /// Size of the key to make, in bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_size: Option<u32>,
    /// Where to deploy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_id: Option<TargetId>,
    /// What is served there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_type: Option<TargetType>,
    /// Settings of the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_config: Option<Value>,
    /// Which version to deploy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_id: Option<VersionId>,
}

/// A certification request for a job.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CsrSubmission {
    /// The request: PKCS #10 (RFC 2986) in PEM.
    pub csr_pem: String,
    /// For which certificate.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub certificate_id: Option<CertificateId>,
    /// For which job; the agent's oldest waiting one of the certificate when absent.
    #[serde(default, deserialize_with = "blank", skip_serializing_if = "Option::is_none")]
    pub job_id: Option<JobId>,
}

/// A certificate with its chain.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Pickup {
    /// Leaf, then the issuer's chain, in PEM.
    pub certificate_pem: String,
}

/// How a job went.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct JobReport {
    /// `Running`, `Completed` or `Failed`.
    pub status: String,
    /// What went wrong, or why a running deployment is not finished yet, in the agent's own words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The end of what the failing command wrote, which is shown to those who may `operate`. When the key is absent, all
    /// of `error` is kept from others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
}
