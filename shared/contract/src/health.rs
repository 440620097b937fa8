//! Liveness, readiness, and what a client needs to know before it has a key.

use certctl_model::time::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

crate::resource! {
    health "";

    /// Tell that the server is alive.
    GET "/health" Health() [Open] -> 200 Outcome;
    /// Tell that the server can serve: its database answers. 503 otherwise.
    GET "/ready" Ready() [Open] -> 200 Outcome;
    /// Tell that the server is alive, and what time it has.
    GET "/api/v1/health" ApiHealth() [Open] -> 200 HealthReport;
    /// Tell how clients authenticate.
    GET "/api/v1/auth/info" AuthInfo() [Open] -> 200 AuthMode;
    /// Check a key.
    GET "/api/v1/auth/check" AuthCheck() [Anyone, Caller] -> 200 Outcome;
}

/// What became of a request, as one word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Outcome {
    /// The word.
    pub status: String,
}

impl Outcome {
    /// Says it.
    pub fn of(status: &str) -> Self {
        Self {
            status: status.to_owned(),
        }
    }
}

/// Alive, and when.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct HealthReport {
    /// `healthy`.
    pub status: String,
    /// The server's time.
    pub timestamp: Time,
}

/// How clients authenticate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuthMode {
    /// `api-key`, `jwt` or `none`.
    pub auth_type: String,
    /// Whether a key or token is needed.
    pub required: bool,
    /// Where a browser logs in with an identity provider; absent when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<String>,
}
