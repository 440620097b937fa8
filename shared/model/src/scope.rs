//! To which certificates a key or a role is limited.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};

use crate::{
    id::{IssuerId, ProfileId, TeamId},
    name::San,
};

/// A domain: a DNS name with all names below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Domain(String);

impl Domain {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Domain {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("\"{}\" is not a domain such as ci.example.com", text.escape_debug());
        match text.parse::<San>() {
            Ok(San::Dns(name)) if !name.as_str().starts_with('*') => Ok(Self(name.into())),
            _ => Err(wrong()),
        }
    }
}

impl From<Domain> for String {
    fn from(domain: Domain) -> String {
        domain.0
    }
}

impl JsonSchema for Domain {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Domain".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string", "maxLength": 253, "examples": ["ci.example.com"],
            "pattern": "^([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\\.)*[A-Za-z]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?$",
        })
    }
}

/// Limits: a certificate is within them when each list that is present holds what the certificate has. An empty scope
/// limits nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scope {
    /// Teams that the certificate may belong to.
    #[serde(default, deserialize_with = "some", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 100))]
    pub teams: Option<Vec<TeamId>>,
    /// Environments that it may be in.
    #[serde(default, deserialize_with = "some", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 100))]
    pub environments: Option<Vec<String>>,
    /// Issuers that it may be issued by.
    #[serde(default, deserialize_with = "some", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 100))]
    pub issuers: Option<Vec<IssuerId>>,
    /// Profiles that it may have.
    #[serde(default, deserialize_with = "some", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 100))]
    pub profiles: Option<Vec<ProfileId>>,
    /// Domains that all its names are in. With it, a certificate has DNS names only.
    #[serde(default, deserialize_with = "some", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 100))]
    pub domains: Option<Vec<Domain>>,
}

/// The most entries of one list.
const MOST: usize = 100;

/// Reads a list that has entries: an empty one would be read as no limit by one reader and as no access by another.
fn some<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<Vec<T>>, D::Error> {
    let list = Option::<Vec<T>>::deserialize(deserializer)?;
    match list.as_ref().map(Vec::len) {
        None | Some(1..=MOST) => Ok(list),
        Some(_) => Err(serde::de::Error::custom(format!(
            "a list of a scope has 1 to {MOST} entries; leave it out to limit nothing by it"
        ))),
    }
}

impl Scope {
    /// Whether it limits nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        fn texts<T: ToString>(list: &Option<Vec<T>>) -> Option<String> {
            let texts = list.as_ref()?.iter().map(ToString::to_string);
            Some(texts.collect::<Vec<_>>().join(", "))
        }
        let domains = self
            .domains
            .as_ref()
            .map(|list| list.iter().map(Domain::as_str).collect::<Vec<_>>());
        let parts = [
            ("teams", texts(&self.teams)),
            ("environments", texts(&self.environments)),
            ("issuers", texts(&self.issuers)),
            ("profiles", texts(&self.profiles)),
            ("domains", domains.map(|list| list.join(", "))),
        ];
        let parts = parts
            .into_iter()
            .filter_map(|(name, list)| Some(format!("{name} {}", list?)));
        f.write_str(&parts.collect::<Vec<_>>().join("; "))
    }
}

/// The certificates that a party reaches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reach {
    /// Only those that this principal created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// Only those within at least one of these scopes; with none of them, all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<Scope>,
}

impl Reach {
    /// Whether there are certificates that it does not include.
    pub fn is_limited(&self) -> bool {
        self.created_by.is_some() || !self.scopes.is_empty()
    }

    /// The one entry that a list of the only scope has.
    fn only<T: Clone>(&self, list: fn(&Scope) -> &Option<Vec<T>>) -> Option<T> {
        match &*self.scopes {
            [scope] => match list(scope).as_deref() {
                Some([one]) => Some(one.clone()),
                _ => None,
            },
            _ => None,
        }
    }

    /// The only team of its certificates, if there is one.
    pub fn team(&self) -> Option<TeamId> {
        self.only(|scope| &scope.teams)
    }

    /// The only environment.
    pub fn environment(&self) -> Option<String> {
        self.only(|scope| &scope.environments)
    }

    /// The only issuer.
    pub fn issuer(&self) -> Option<IssuerId> {
        self.only(|scope| &scope.issuers)
    }

    /// The only profile.
    pub fn profile(&self) -> Option<ProfileId> {
        self.only(|scope| &scope.profiles)
    }
}

/// Shows the limits, for messages.
impl std::fmt::Display for Reach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let own = self
            .created_by
            .iter()
            .map(|_| "certificates that it created".to_owned());
        let scopes = self
            .scopes
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" or ");
        let scopes = Some(scopes).filter(|text| !text.is_empty());
        f.write_str(&own.chain(scopes).collect::<Vec<_>>().join(" within "))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    #[test]
    fn a_scope_with_a_typing_error_or_an_empty_list_is_refused() {
        let read = |value| from_value::<Scope>(value).is_ok();
        assert!(read(json!({})));
        assert!(read(json!({ "teams": ["t-1"], "domains": ["CI.example.com"] })));
        assert!(read(json!({ "teams": null })));
        for value in [
            json!({ "team": ["t-1"] }),
            json!({ "teams": [] }),
            json!({ "teams": "t-1" }),
            json!({ "domains": ["*.example.com"] }),
            json!({ "domains": ["192.0.2.1"] }),
            json!({ "domains": ["https://example.com"] }),
        ] {
            assert!(!read(value.clone()), "{value}");
        }
    }
}
