//! Logging in with a browser.

use certctl_model::{scope::Scope, time::Time};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use crate::endpoint::{NoContent, Reply, Role};

crate::resource! {
    sessions "/api/v1/sessions";

    /// Begin a session with the bearer token of this request. The answer sets the session's cookie.
    POST "" BeginSession() [Needs(View), Caller] -> 201 Begun;
    /// Tell who asks, and of a session its CSRF token and its end.
    GET "/current" CurrentSession() [Anyone, Caller] -> 200 Party;
    /// End the session of this request.
    DELETE "/current" EndSession() [Anyone, Caller] -> 204 Ended;
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Party {
    /// The name in the trail.
    pub name: String,
    /// The name to show.
    pub display_name: String,
    /// What it may do; absent when the identity provider gave none that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// To which certificates it is limited: those within one of these scopes. Absent for no limit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<Scope>,
    /// How it came: `shared-key`, `api-key`, `jwt`, `session`, `agent` or `none`.
    pub via: String,
    /// Of a session: what to send as `X-CSRF-Token` with every request but GET and HEAD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub csrf_token: Option<String>,
    /// Of a session: when it ends at the latest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
}

/// A session that begins: who asks, and the cookie.
#[derive(Clone, Debug)]
pub struct Begun {
    /// Who asks.
    pub party: Party,
    /// `Set-Cookie`, on its way to the browser.
    pub cookie: Option<String>,
}

impl Reply for Begun {
    const CONTENT_TYPES: &'static [&'static str] = &["application/json"];

    fn schema(generator: &mut SchemaGenerator) -> Option<Schema> {
        Some(generator.subschema_for::<Party>())
    }

    fn encode(&self) -> Vec<u8> {
        self.party.encode()
    }

    fn decode(octets: &[u8]) -> Result<Self, serde_json::Error> {
        Ok(Self {
            party: serde_json::from_slice(octets)?,
            cookie: None,
        })
    }

    fn cache_control(&self) -> Option<&str> {
        Some("no-store")
    }

    fn set_cookie(&self) -> Option<&str> {
        self.cookie.as_deref()
    }
}

/// A session that ended: the browser forgets the cookie.
#[derive(Clone, Debug)]
pub struct Ended {
    /// `Set-Cookie`, on its way to the browser.
    pub cookie: Option<String>,
}

impl Reply for Ended {
    const CONTENT_TYPES: &'static [&'static str] = NoContent::CONTENT_TYPES;

    fn schema(generator: &mut SchemaGenerator) -> Option<Schema> {
        NoContent::schema(generator)
    }

    fn encode(&self) -> Vec<u8> {
        NoContent.encode()
    }

    fn decode(_: &[u8]) -> Result<Self, serde_json::Error> {
        Ok(Self { cookie: None })
    }

    fn set_cookie(&self) -> Option<&str> {
        self.cookie.as_deref()
    }
}
