//! Who calls, and whether the row of the table lets them.
//!
//! Nothing about a key is remembered between requests: each is looked up by its digest, so that what is revoked is
//! refused by every replica from the next request on.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use aws_lc_rs::{constant_time, digest, rand};
use axum::http::{HeaderMap, Method, header};
use certctl_contract::{
    endpoint::{Access, Permission, Role},
    problem::Kind,
};
use certctl_model::{
    audit::Actor,
    id::{AgentId, ApiKeyId},
    time::Time,
};

use crate::{
    app::App,
    config::{Auth, Entry},
    error::ApiError,
    jwt::{self, Verifier},
    oidc::Login,
    session::{self, Session, Sessions},
};

/// Names that stand for parties of our own in the trail; no key may have one.
pub const RESERVED: [&str; 4] = [SHARED, "anonymous", "bootstrap", "system"];
const SHARED: &str = "api-key-user";

/// Who calls.
#[derive(Clone, Debug)]
pub struct Principal {
    /// The name in the trail.
    pub name: String,
    /// What it is; none for what has no role: nobody, the bootstrap token, a token without a role that is known.
    pub role: Option<Role>,
    /// How it came.
    pub way: Way,
}

/// How a party came.
#[derive(Clone, Debug)]
pub enum Way {
    /// Without being asked who it is: the operation is open.
    Nobody,
    /// Authentication is off.
    Off,
    /// With the shared key.
    Shared,
    /// With a named key.
    Key {
        /// Which.
        id: ApiKeyId,
        /// Digest of the secret.
        secret: String,
    },
    /// With a token of an identity provider.
    Jwt {
        /// The name to show.
        display_name: String,
        /// When the token ends.
        until: Time,
    },
    /// With the cookie of a session.
    Session(Session),
    /// With a key of this agent.
    Agent(AgentId),
    /// With the bootstrap token.
    Bootstrap,
}

impl Principal {
    pub(crate) fn new(name: impl Into<String>, role: Option<Role>, way: Way) -> Self {
        let name = name.into();
        Self { name, role, way }
    }

    /// The same, for the trail.
    pub fn actor(&self) -> Actor {
        match &self.way {
            Way::Agent(id) => Actor::agent(id),
            _ => Actor::user(&self.name),
        }
    }

    /// Tells this party from every other, whichever replica it asks: what it may use up and may repeat is its own.
    pub fn key(&self) -> String {
        match &self.way {
            Way::Nobody | Way::Off => "anonymous".to_owned(),
            Way::Shared => "shared".to_owned(),
            Way::Bootstrap => "bootstrap".to_owned(),
            Way::Key { id, .. } => format!("key:{id}"),
            Way::Agent(id) => format!("agent:{id}"),
            Way::Jwt { .. } => format!("jwt:{}", self.name),
            Way::Session(_) => format!("session:{}", self.name),
        }
    }

    /// Whether its role includes the permission.
    pub fn may(&self, permission: Permission) -> bool {
        self.role.is_some_and(|role| role.may(permission))
    }
}

type Digest = [u8; 32];

/// SHA-256 of a key.
pub fn sha256(text: &str) -> Digest {
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    digest.as_ref().try_into().expect("SHA-256 has 32 octets")
}

/// 256 random bits.
///
/// # Errors
/// When the generator fails.
pub fn random() -> Result<[u8; 32], ApiError> {
    let mut octets = [0u8; 32];
    rand::fill(&mut octets).map_err(|_| ApiError::internal("the random generator failed"))?;
    Ok(octets)
}

/// Compares without telling by the time where the difference is.
pub fn same(a: &[u8], b: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(a, b).is_ok()
}

/// Who comes in without the database being asked.
enum Door {
    /// Holders of the shared key.
    Shared(Digest),
    /// Holders of tokens of an identity provider.
    Jwt(Verifier),
    /// Everyone.
    Open,
}

/// Who may come in.
pub struct Gate {
    door: Door,
    bootstrap: Option<Digest>,
    /// Sessions of browsers.
    pub sessions: Sessions,
    /// Login with an identity provider.
    pub login: Option<Login>,
    /// When named keys were used, until it is written down.
    uses: Mutex<BTreeMap<ApiKeyId, Time>>,
}

impl Gate {
    /// Keeps the digests; warns when none is needed.
    ///
    /// # Errors
    /// When a client for outbound HTTP cannot be made.
    pub fn new(auth: Auth) -> anyhow::Result<Self> {
        let sessions = Sessions::new(&auth);
        let login = auth.login.map(|login| Login::new(login, &auth.tokens)).transpose()?;
        let door = match auth.entry {
            Entry::Shared(secret) => Door::Shared(sha256(secret.expose())),
            Entry::Jwt(source) => Door::Jwt(Verifier::new(source, &auth.tokens)?),
            Entry::None => {
                tracing::warn!(
                    "CERTCTL_AUTH_TYPE=none: EVERYONE WHO REACHES THIS SERVER MAY DO EVERYTHING, issuing and revoking included"
                );
                Door::Open
            }
        };
        Ok(Self {
            door,
            bootstrap: auth.bootstrap.map(|token| sha256(token.expose())),
            sessions,
            login,
            uses: Mutex::default(),
        })
    }

    /// The word of `CERTCTL_AUTH_TYPE`.
    pub fn kind(&self) -> &'static str {
        match self.door {
            Door::Shared(_) => "api-key",
            Door::Jwt(_) => "jwt",
            Door::Open => "none",
        }
    }

    /// Whether everyone may do everything.
    pub fn is_open(&self) -> bool {
        matches!(self.door, Door::Open)
    }
}

/// Finds out who calls.
///
/// # Errors
/// 401 when a key, token or session is needed and absent or not known; 403 when a session's request may have been made
/// by another site; 503 when it cannot be looked up.
pub async fn authenticate(
    app: &App,
    access: Access,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Principal, ApiError> {
    if access == Access::Open {
        return Ok(Principal::new("anonymous", None, Way::Nobody));
    }
    if app.gate.is_open() {
        // Whoever needs no key must at least not be a page of somebody else in the operator's browser.
        if !method.is_safe() && session::is_of_this_origin(headers) == Some(false) {
            let detail = "without authentication, pages of other origins change nothing here";
            return Err(ApiError::new(Kind::Forbidden, detail));
        }
        return Ok(Principal::new("anonymous", Some(Role::Admin), Way::Off));
    }
    if let Some(header) = headers.get(header::AUTHORIZATION) {
        let token = header.to_str().ok().and_then(bearer_token);
        let token = token.ok_or_else(|| unauthenticated("the Authorization header is not \"Bearer <key>\""))?;
        return bearer(app, token).await;
    }
    match session::cookie(headers, session::COOKIE) {
        Some(cookie) => {
            let found = session::find(app, cookie).await?;
            let (name, role, session) = found.ok_or_else(|| unauthenticated("the session has ended; log in again"))?;
            if !method.is_safe() {
                session.admits(headers)?;
            }
            Ok(Principal::new(name, Some(role), Way::Session(session)))
        }
        None => Err(unauthenticated("a key is needed: send \"Authorization: Bearer <key>\"")),
    }
}

/// The credentials of `Bearer` (RFC 9110 §11.4): the scheme in any case, then one or more spaces.
fn bearer_token(text: &str) -> Option<&str> {
    let (scheme, token) = text.split_once(' ')?;
    let token = token.trim_matches(' ');
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

fn unauthenticated(detail: impl Into<String>) -> ApiError {
    ApiError::new(Kind::Unauthenticated, detail)
}

async fn bearer(app: &App, token: &str) -> Result<Principal, ApiError> {
    let digest = sha256(token);
    if app.gate.bootstrap.as_ref().is_some_and(|known| same(known, &digest)) {
        return Ok(Principal::new("bootstrap", None, Way::Bootstrap));
    }
    match &app.gate.door {
        Door::Shared(known) if same(known, &digest) => {
            return Ok(Principal::new(SHARED, Some(Role::Admin), Way::Shared));
        }
        Door::Jwt(verifier) if jwt::looks_like_one(token) => {
            let claims = verifier.verify(token, app.clock.now()).await?;
            let way = Way::Jwt {
                display_name: claims.display_name,
                until: claims.until,
            };
            return Ok(Principal::new(claims.subject, claims.role, way));
        }
        _ => {}
    }
    known(app, &digest)
        .await?
        .ok_or_else(|| unauthenticated("the key is not known, or has ended"))
}

#[derive(sqlx::FromRow)]
struct Known {
    hash: String,
    id: Option<ApiKeyId>,
    name: String,
    role: Role,
    agent_id: Option<AgentId>,
}

/// Whose key it is. An index finds the digest of a secret with 256 random bits; how long that takes tells nothing of another.
async fn known(app: &App, digest: &Digest) -> Result<Option<Principal>, ApiError> {
    let (hash, now) = (hex::encode(digest), app.clock.now());
    let known: Option<Known> = sqlx::query_as(
        "SELECT s.hash, k.id, k.name, k.role, k.agent_id
           FROM api_key_secrets s
           JOIN api_keys k ON k.id = s.key_id
          WHERE s.hash = $1 AND (s.ends_at IS NULL OR s.ends_at > $2) AND (k.expires_at IS NULL OR k.expires_at > $2)
          UNION ALL
         SELECT a.api_key_hash, NULL, a.id, 'agent', a.id FROM agents a WHERE a.api_key_hash = $1
          LIMIT 1",
    )
    .bind(&hash)
    .bind(now)
    .fetch_optional(&app.pool)
    .await?;
    let Some(known) = known.filter(|known| same(known.hash.as_bytes(), hash.as_bytes())) else {
        return Ok(None);
    };
    if let Some(id) = &known.id {
        let mut uses = app.gate.uses.lock().unwrap_or_else(PoisonError::into_inner);
        uses.insert(id.clone(), now);
    }
    let way = match (known.agent_id, known.id) {
        (Some(agent), _) => Way::Agent(agent),
        (None, Some(id)) => Way::Key { id, secret: known.hash },
        (None, None) => return Err(ApiError::internal("a key without an owner")),
    };
    Ok(Some(Principal::new(known.name, Some(known.role), way)))
}

/// Writes down when named keys were used, and removes what has ended. Run every minute or so, by any replica.
///
/// # Errors
/// When the database cannot be asked; what was to be written is kept for the next time.
pub async fn keep_house(app: &App) -> Result<(), ApiError> {
    let uses = std::mem::take(&mut *app.gate.uses.lock().unwrap_or_else(PoisonError::into_inner));
    if !uses.is_empty() {
        let written = sqlx::query(
            "UPDATE api_keys k SET last_used_at = u.at
               FROM unnest($1::text[], $2::timestamptz[]) AS u (id, at)
              WHERE k.id = u.id AND (k.last_used_at IS NULL OR k.last_used_at < u.at)",
        )
        .bind(uses.keys().map(ToString::to_string).collect::<Vec<_>>())
        .bind(uses.values().copied().collect::<Vec<_>>())
        .execute(&app.pool)
        .await;
        if let Err(error) = written {
            let mut kept = app.gate.uses.lock().unwrap_or_else(PoisonError::into_inner);
            for (id, at) in uses {
                kept.entry(id).or_insert(at);
            }
            return Err(error.into());
        }
    }
    let now = app.clock.now();
    for (sql, before) in [
        ("DELETE FROM sessions WHERE expires_at <= $1", now),
        (
            "DELETE FROM sessions WHERE last_seen_at <= $1",
            now - app.gate.sessions.idle,
        ),
        ("DELETE FROM logins WHERE expires_at <= $1", now),
        ("DELETE FROM api_key_secrets WHERE ends_at <= $1", now),
    ] {
        sqlx::query(sql).bind(before).execute(&app.pool).await?;
    }
    Ok(())
}

/// Whether the row lets this principal in. `agent` is the first parameter of the path, where rows for agents name one.
///
/// # Errors
/// 403 saying what is missing.
pub fn authorise(principal: &Principal, access: Access, agent: Option<&str>) -> Result<(), ApiError> {
    let allowed = match (&principal.way, access) {
        (_, Access::Open) => true,
        (Way::Nobody | Way::Bootstrap, Access::Anyone) => false,
        (_, Access::Anyone) => true,
        (Way::Agent(id), Access::Agent) => agent == Some(id.as_str()),
        (_, Access::Agent) => principal.may(Permission::Operate),
        (Way::Agent(id), Access::AgentItself) => agent == Some(id.as_str()),
        // Earlier agents use the shared key; without authentication an agent has none.
        (Way::Shared | Way::Off, Access::AgentItself) => principal.may(Permission::Operate),
        (_, Access::AgentItself) => false,
        (Way::Bootstrap, Access::Bootstrap) => true,
        (_, Access::Bootstrap) => principal.may(Permission::Configure),
        (_, Access::Needs(permission)) => principal.may(permission),
    };
    match (allowed, access) {
        (true, _) => Ok(()),
        (false, Access::Agent) => Err(ApiError::new(
            Kind::Forbidden,
            "an agent's key opens this agent's own paths only",
        )),
        (false, Access::AgentItself) => Err(ApiError::new(
            Kind::Forbidden,
            "only the agent itself may do that, with its own key",
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
    use super::*;

    #[test]
    fn the_scheme_is_read_in_any_case_with_one_or_more_spaces() {
        for (text, token) in [
            ("Bearer k", Some("k")),
            ("bearer k", Some("k")),
            ("BEARER   k", Some("k")),
            ("Bearer", None),
            ("Bearer ", None),
            ("Bearerk", None),
            ("Basic k", None),
            ("Bearer\tk", None),
        ] {
            assert_eq!(bearer_token(text), token, "{text:?}");
        }
    }

    #[test]
    fn who_may_what() {
        let with = |role, way| Principal::new("x", role, way);
        let agent = with(Some(Role::Agent), Way::Agent("a-1".parse().unwrap()));
        let shared = with(Some(Role::Admin), Way::Shared);
        let operator = with(Some(Role::Operator), Way::Shared);
        let id = "ak-1".parse().unwrap();
        let named = with(
            Some(Role::Admin),
            Way::Key {
                id,
                secret: String::new(),
            },
        );
        let viewer = with(Some(Role::Viewer), Way::Shared);
        let roleless = with(None, Way::Shared);
        let bootstrap = with(None, Way::Bootstrap);
        let nobody = with(None, Way::Nobody);
        let needs = Access::Needs(Permission::View);
        for (who, access, path, allowed) in [
            (&shared, needs, None, true),
            (&shared, Access::Agent, Some("a-1"), true),
            (&shared, Access::Bootstrap, None, true),
            (&operator, Access::Agent, Some("a-1"), true),
            (&operator, Access::Bootstrap, None, false),
            (&viewer, needs, None, true),
            (&viewer, Access::Agent, Some("a-1"), false),
            (&roleless, needs, None, false),
            (&roleless, Access::Anyone, None, true),
            (&shared, Access::AgentItself, Some("a-1"), true),
            (&named, Access::Agent, Some("a-1"), true),
            (&named, Access::AgentItself, Some("a-1"), false),
            (&viewer, Access::AgentItself, Some("a-1"), false),
            (&bootstrap, Access::AgentItself, Some("a-1"), false),
            (&agent, Access::AgentItself, Some("a-1"), true),
            (&agent, Access::AgentItself, Some("a-2"), false),
            (&agent, Access::Agent, Some("a-1"), true),
            (&agent, Access::Agent, Some("a-2"), false),
            (&agent, Access::Agent, None, false),
            (&agent, needs, None, false),
            (&agent, Access::Anyone, None, true),
            (&agent, Access::Bootstrap, None, false),
            (&bootstrap, Access::Bootstrap, None, true),
            (&bootstrap, Access::Agent, Some("a-1"), false),
            (&bootstrap, Access::Anyone, None, false),
            (&bootstrap, needs, None, false),
            (&nobody, Access::Open, None, true),
            (&nobody, Access::Anyone, None, false),
        ] {
            assert_eq!(
                authorise(who, access, path).is_ok(),
                allowed,
                "{who:?} {access:?} {path:?}"
            );
        }
    }
}
