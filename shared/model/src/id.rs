//! Identifiers: opaque text behind a prefix that says what they name.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::time::Time;

/// What is wrong with an identifier.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("an id is 1 to 128 letters, digits, '-', '_', '.' or ':', beginning with a letter or digit")]
pub struct BadId;

/// Which octets an id may have: looked up, because every row of every list has several ids.
const ALLOWED: [bool; 256] = crate::letters_digits_and(b"-_.:");

fn check(text: &str) -> Result<(), BadId> {
    let allowed = |b: u8| ALLOWED[usize::from(b)];
    match text.as_bytes().first() {
        Some(first) if first.is_ascii_alphanumeric() && text.len() <= 128 && text.bytes().all(allowed) => Ok(()),
        _ => Err(BadId),
    }
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal),+ $(,)?) => { $(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(String);

        impl $name {
            /// The prefix of ids we make; ids that clients bring may have any.
            pub const PREFIX: &'static str = $prefix;

            /// Makes a new id: the prefix and a UUID version 7 (RFC 9562 §5.7), so that ids sort by age.
            pub fn generate(now: Time) -> Self {
                Self(format!("{}{}", $prefix, fresh(now)))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadId;

            fn from_str(text: &str) -> Result<Self, BadId> {
                check(text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadId;

            fn try_from(text: String) -> Result<Self, BadId> {
                check(&text)?;
                Ok(Self(text))
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "type": "string", "minLength": 1, "maxLength": 128,
                    "pattern": "^[A-Za-z0-9][A-Za-z0-9._:-]*$",
                    "examples": [concat!($prefix, "1")],
                })
            }
        }

        #[cfg(feature = "sqlx")]
        crate::as_text!($name);
    )+ };
}

ids! {
    /// Names a managed certificate.
    CertificateId = "mc-",
    /// Names one issued X.509 certificate of a managed certificate.
    VersionId = "cv-",
    /// Names a team.
    TeamId = "t-",
    /// Names an owner.
    OwnerId = "o-",
    /// Names an issuer.
    IssuerId = "iss-",
    /// Names a profile.
    ProfileId = "prof-",
    /// Names a renewal policy.
    RenewalPolicyId = "rp-",
    /// Names an agent.
    AgentId = "a-",
    /// Names a deployment target.
    TargetId = "tgt-",
    /// Names a job.
    JobId = "j-",
    /// Names an audit event.
    AuditEventId = "audit-",
    /// Names a notification.
    NotificationId = "ne-",
    /// Names a revocation.
    RevocationId = "rev-",
    /// Names a policy rule.
    PolicyId = "rule-",
    /// Names a violation of a policy rule.
    ViolationId = "pv-",
    /// Names an address at which a certificate should be served.
    EndpointId = "ep-",
    /// Names a freeze.
    FreezeId = "fr-",
    /// Names an agent group.
    AgentGroupId = "ag-",
    /// Names a certificate found on a host.
    DiscoveredCertificateId = "dcert-",
    /// Names a scan of a host.
    DiscoveryScanId = "dscan-",
    /// Names an API key; it is not the key.
    ApiKeyId = "key-",
    /// Names a bulk operation.
    BulkId = "bulk-",
}

/// 32 lower-case hexadecimal digits that sort by `now` and do not collide.
fn fresh(now: Time) -> String {
    let random = uuid::Uuid::new_v4();
    let tail: [u8; 10] = std::array::from_fn(|i| random.as_bytes()[if i < 6 { i } else { i + 6 }]);
    uuid::Builder::from_unix_timestamp_millis(now.unix_millis(), &tail)
        .into_uuid()
        .simple()
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_ids_carry_their_prefix_and_sort_by_age() {
        let early = JobId::generate(Time::from_unix(1_000));
        let late = JobId::generate(Time::from_unix(2_000));
        assert!(early.as_str().starts_with("j-") && early < late);
        assert_ne!(JobId::generate(Time::from_unix(5)), JobId::generate(Time::from_unix(5)));
    }

    #[test]
    fn an_id_that_could_not_be_written_in_a_path_is_refused() {
        for bad in ["", "a b", "a/b", "-a", "ä", "a\0", "a?b", &"x".repeat(129)] {
            assert_eq!(bad.parse::<TeamId>(), Err(BadId), "{bad:?}");
        }
        for good in ["t-1", "any.Text_is:fine-9"] {
            assert_eq!(good.parse::<TeamId>().unwrap().as_str(), good);
        }
    }
}
