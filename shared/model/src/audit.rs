//! Who did what to which.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

crate::words! {
    /// What kind of party acted.
    pub enum ActorType {
        /// A person or a program with an API key.
        User = "User",
        /// certctl itself.
        System = "System",
        /// An agent on a host.
        Agent = "Agent",
    }
}

/// Who acts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Actor {
    /// What kind of party.
    pub kind: ActorType,
    /// Its name: an agent id, a key's name, a service.
    pub name: String,
}

impl Actor {
    /// certctl itself.
    pub fn system() -> Self {
        Self {
            kind: ActorType::System,
            name: "system".into(),
        }
    }

    /// A person or program.
    pub fn user(name: impl Into<String>) -> Self {
        Self {
            kind: ActorType::User,
            name: name.into(),
        }
    }

    /// An agent.
    pub fn agent(id: &crate::id::AgentId) -> Self {
        Self {
            kind: ActorType::Agent,
            name: id.to_string(),
        }
    }
}

/// One thing that happened, written in the transaction that did it.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Who.
    pub actor: Actor,
    /// What, a verb phrase such as `certificate_revoked`.
    pub action: &'static str,
    /// To what kind of thing: `certificate`, `job`, `agent`, …
    pub resource_type: &'static str,
    /// To which.
    pub resource_id: String,
    /// What else a reader of the trail needs; an object.
    pub details: Value,
}

impl Event {
    /// An event without details.
    pub fn new(actor: &Actor, action: &'static str, resource_type: &'static str, id: impl ToString) -> Self {
        let details = Value::Object(serde_json::Map::new());
        Self {
            actor: actor.clone(),
            action,
            resource_type,
            resource_id: id.to_string(),
            details,
        }
    }

    /// Adds one detail.
    pub fn with(mut self, key: &str, value: impl Serialize) -> Self {
        let value = serde_json::to_value(value).expect("details are plain data");
        self.details
            .as_object_mut()
            .expect("details are an object")
            .insert(key.to_owned(), value);
        self
    }
}
