//! Who calls, and whether the row of the table lets them.

use aws_lc_rs::{constant_time, digest};
use axum::http::{HeaderMap, header};
use certctl_contract::{endpoint::Access, problem::Kind};
use certctl_model::{audit::Actor, id::AgentId};

use crate::{app::App, config::Auth, error::ApiError};

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// Nobody in particular: the operation is open, or authentication is off.
    Anonymous {
        /// Whether authentication is off, so that everyone may do everything.
        all_allowed: bool,
    },
    /// Holder of the API key.
    Operator,
    /// An agent with its own key.
    Agent(AgentId),
    /// Holder of the bootstrap token.
    Bootstrap,
}

impl Principal {
    /// The same, for the trail.
    pub fn actor(&self) -> Actor {
        match self {
            Principal::Anonymous { .. } => Actor::user("anonymous"),
            Principal::Operator => Actor::user("api-key-user"),
            Principal::Agent(id) => Actor::agent(id),
            Principal::Bootstrap => Actor::user("bootstrap"),
        }
    }
}

type Digest = [u8; 32];

/// SHA-256 of a key.
pub fn sha256(text: &str) -> Digest {
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    digest.as_ref().try_into().expect("SHA-256 has 32 octets")
}

/// What keys are compared with: their digests, in constant time.
pub enum Gate {
    /// Keys are needed.
    Keys {
        /// Of the API key.
        operator: Digest,
        /// Of the bootstrap token.
        bootstrap: Option<Digest>,
    },
    /// Everyone may do everything.
    Open,
}

impl Gate {
    /// Keeps the digests; warns when there are none.
    pub fn new(auth: Auth) -> Self {
        match auth {
            Auth::Keys { secret, bootstrap } => Gate::Keys {
                operator: sha256(secret.expose()),
                bootstrap: bootstrap.map(|token| sha256(token.expose())),
            },
            Auth::None => {
                tracing::warn!(
                    "CERTCTL_AUTH_TYPE=none: EVERYONE WHO REACHES THIS SERVER MAY DO EVERYTHING, issuing and revoking included"
                );
                Gate::Open
            }
        }
    }
}

/// Reads the bearer token and finds out whose it is.
///
/// # Errors
/// 401 when a token is needed and absent or unknown; 503 when an agent's key cannot be looked up.
pub async fn authenticate(app: &App, access: Access, headers: &HeaderMap) -> Result<Principal, ApiError> {
    if access == Access::Open {
        return Ok(Principal::Anonymous { all_allowed: false });
    }
    let (operator, bootstrap) = match &app.gate {
        Gate::Open => return Ok(Principal::Anonymous { all_allowed: true }),
        Gate::Keys { operator, bootstrap } => (operator, bootstrap),
    };
    let unauthenticated = |detail: &str| ApiError::new(Kind::Unauthenticated, detail);
    let header = headers
        .get(header::AUTHORIZATION)
        .ok_or_else(|| unauthenticated("a key is needed: send \"Authorization: Bearer <key>\""))?;
    let token = header
        .to_str()
        .ok()
        .and_then(|text| text.strip_prefix("Bearer "))
        .filter(|token| !token.is_empty());
    let token = token.ok_or_else(|| unauthenticated("the Authorization header is not \"Bearer <key>\""))?;
    let digest = sha256(token);
    let same = |known: &Digest| constant_time::verify_slices_are_equal(known, &digest).is_ok();
    if same(operator) {
        return Ok(Principal::Operator);
    }
    if bootstrap.as_ref().is_some_and(same) {
        return Ok(Principal::Bootstrap);
    }
    // The index finds the digest of a key with 256 random bits; how long that takes tells nothing about another key.
    let agent: Option<AgentId> = sqlx::query_scalar("SELECT id FROM agents WHERE api_key_hash = $1 LIMIT 1")
        .bind(hex::encode(digest))
        .fetch_optional(&app.pool)
        .await?;
    agent
        .map(Principal::Agent)
        .ok_or_else(|| unauthenticated("the key is not known"))
}

/// Whether the row lets this principal in. `agent` is the first parameter of the path, where rows for agents name one.
///
/// # Errors
/// 403 saying what is missing.
pub fn authorise(principal: &Principal, access: Access, agent: Option<&str>) -> Result<(), ApiError> {
    let allowed = match (principal, access) {
        (_, Access::Open) | (Principal::Operator | Principal::Anonymous { all_allowed: true }, _) => true,
        (Principal::Agent(_), Access::Anyone) | (Principal::Bootstrap, Access::Bootstrap) => true,
        (Principal::Agent(id), Access::Agent) => agent == Some(id.as_str()),
        (Principal::Agent(_), Access::Needs(_) | Access::Bootstrap) => false,
        (Principal::Bootstrap, Access::Anyone | Access::Agent | Access::Needs(_)) => false,
        (Principal::Anonymous { all_allowed: false }, _) => false,
    };
    match (allowed, access) {
        (true, _) => Ok(()),
        (false, Access::Agent) => Err(ApiError::new(
            Kind::Forbidden,
            "an agent's key opens this agent's own paths only",
        )),
        (false, Access::Needs(permission)) => Err(ApiError::new(
            Kind::Forbidden,
            format!("this key lacks the permission \"{permission}\""),
        )),
        (false, _) => Err(ApiError::new(Kind::Forbidden, "this key does not allow that")),
    }
}

#[cfg(test)]
mod tests {
    use certctl_contract::endpoint::Permission;

    use super::*;

    #[test]
    fn who_may_what() {
        let agent = Principal::Agent("a-1".parse().unwrap());
        let nobody = Principal::Anonymous { all_allowed: false };
        let needs = Access::Needs(Permission::View);
        for (who, access, path, allowed) in [
            (&Principal::Operator, needs, None, true),
            (&Principal::Operator, Access::Agent, Some("a-1"), true),
            (&agent, Access::Agent, Some("a-1"), true),
            (&agent, Access::Agent, Some("a-2"), false),
            (&agent, Access::Agent, None, false),
            (&agent, needs, None, false),
            (&agent, Access::Anyone, None, true),
            (&agent, Access::Bootstrap, None, false),
            (&Principal::Bootstrap, Access::Bootstrap, None, true),
            (&Principal::Bootstrap, Access::Agent, Some("a-1"), false),
            (&Principal::Bootstrap, needs, None, false),
            (&nobody, Access::Open, None, true),
            (&nobody, Access::Anyone, None, false),
            (&Principal::Anonymous { all_allowed: true }, needs, None, true),
        ] {
            assert_eq!(
                authorise(who, access, path).is_ok(),
                allowed,
                "{who:?} {access:?} {path:?}"
            );
        }
    }
}
