//! Who calls, and whether the row of the table lets them.
//!
//! Nothing about a key is remembered between requests: each is looked up by its digest, so that what is revoked is
//! refused by every replica from the next request on.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use aws_lc_rs::{constant_time, digest, rand};
use axum::http::{HeaderMap, Method, header, uri::Authority};
use certctl_contract::{
    endpoint::{Access, Permission, Role, Scoping},
    problem::Kind,
};
use certctl_model::{
    audit::Actor,
    id::{AgentId, ApiKeyId},
    scope::{Reach, Scope},
    text,
    time::Time,
};
use sqlx::types::Json;

use crate::{
    app::App,
    config::{Auth, Entry},
    error::ApiError,
    jwt::{self, Verifier},
    oidc::Login,
    session::{self, Session, Sessions},
};

const SHARED: &str = "api-key-user";
/// Names of principals that are no named keys.
const RESERVED: [&str; 5] = [SHARED, "anonymous", "bootstrap", "key-holder", "system"];
/// What the names of principals with a token of an identity provider begin with.
const OF_TOKENS: &str = "jwt:";
/// What the names of principals with a named key begin with, when the name of the key itself is reserved.
const OF_KEYS: &str = "key:";

/// Whether a name is one of another principal, or is taken for one. No named key may have it.
pub fn is_reserved(name: &str) -> bool {
    let begins_like = |prefix: &str| {
        let head: String = name
            .trim()
            .chars()
            .filter(|c| !text::is_hidden(*c))
            .take(prefix.len())
            .collect();
        text::look_alike(&head, prefix)
    };
    RESERVED.iter().any(|taken| text::look_alike(name, taken)) || begins_like(OF_TOKENS) || begins_like(OF_KEYS)
}

/// The name of the principal with a named key. A key that was made when its name was not reserved goes by its id.
fn name_of_key(name: String, id: &ApiKeyId) -> String {
    match is_reserved(&name) {
        true => format!("{OF_KEYS}{id}"),
        false => name,
    }
}

/// The name of the principal with a token: subjects are unique for each issuer only.
pub fn name_of_subject(issuer: Option<&str>, subject: &str) -> String {
    match issuer {
        // No issuer has a fragment, so both parts can be told from each other.
        Some(issuer) => format!("{OF_TOKENS}{}#{subject}", issuer.replace('#', "%23")),
        None => format!("{OF_TOKENS}{subject}"),
    }
}

/// Who calls.
#[derive(Clone, Debug)]
pub struct Principal {
    /// The name in the trail. No two principals have the same one.
    pub name: String,
    /// What it is; none for what has no role: nobody, the bootstrap token, a token without a role that is known.
    pub role: Option<Role>,
    /// How it came.
    pub way: Way,
    /// To which certificates it is limited.
    scopes: Vec<Scope>,
    /// Digest of the key it came with, where the database has that.
    secret: Option<String>,
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
        Self {
            name,
            role,
            way,
            scopes: vec![],
            secret: None,
        }
    }

    /// The same, limited to what is within one of these scopes.
    pub(crate) fn within(mut self, scopes: Vec<Scope>) -> Self {
        self.scopes = scopes.into_iter().filter(|scope| !scope.is_empty()).collect();
        self
    }

    /// The same, for the trail.
    pub fn actor(&self) -> Actor {
        match &self.way {
            Way::Agent(id) => Actor::agent(id),
            _ => Actor::user(&self.name),
        }
    }

    /// Tells this principal from every other, whichever replica it asks and however it came: what it may use up, may
    /// repeat and has created is its own. It stays the same when a key gets another name or secret. A session is of the
    /// principal that began it.
    pub fn key(&self) -> String {
        match &self.way {
            Way::Nobody | Way::Off => "anonymous".to_owned(),
            Way::Shared => "shared".to_owned(),
            Way::Bootstrap => "bootstrap".to_owned(),
            Way::Key { id, .. } => format!("{OF_KEYS}{id}"),
            Way::Agent(id) => format!("agent:{id}"),
            Way::Jwt { .. } => self.name.clone(),
            Way::Session(session) => session.principal.clone(),
        }
    }

    /// The scopes it is limited to; none for no limit.
    pub fn scopes(&self) -> &[Scope] {
        &self.scopes
    }

    /// The certificates it reaches.
    pub fn reach(&self) -> Reach {
        Reach {
            created_by: (self.role == Some(Role::Requester)).then(|| self.key()),
            scopes: self.scopes.clone(),
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
    /// Names by which this server may be asked without authentication, in lower case.
    hosts: Vec<String>,
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
            hosts: auth.hosts,
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

    /// Whether a secret that an agent chose is one with which others come in.
    pub fn is_shared(&self, digest: &Digest) -> bool {
        let shared = match &self.door {
            Door::Shared(known) => same(known, digest),
            Door::Jwt(_) | Door::Open => false,
        };
        shared || self.bootstrap.as_ref().is_some_and(|known| same(known, digest))
    }

    /// Whether a request was sent to a name that a foreign page cannot have pointed here (DNS rebinding): an address, a
    /// name of one label or below `localhost`, or a name that is configured.
    fn is_own_host(&self, host: Option<&str>) -> bool {
        let Some(authority) = host.and_then(|host| host.parse::<Authority>().ok()) else {
            return false;
        };
        let name = authority.host().trim_end_matches('.').to_ascii_lowercase();
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        bare.parse::<std::net::IpAddr>().is_ok()
            || (!name.is_empty() && !name.contains('.'))
            || name.ends_with(".localhost")
            || self.hosts.contains(&name)
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
///
/// `host` is the name that the request was sent to.
pub async fn authenticate(
    app: &App,
    access: Access,
    method: &Method,
    host: Option<&str>,
    headers: &HeaderMap,
) -> Result<Principal, ApiError> {
    if access == Access::Open {
        return Ok(Principal::new("anonymous", None, Way::Nobody));
    }
    if app.gate.is_open() {
        if !app.gate.is_own_host(host) {
            let detail = "without authentication, requests are sent to an address, to localhost, or to a name in CERTCTL_ALLOWED_HOSTS";
            return Err(ApiError::new(Kind::Forbidden, detail));
        }
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
            let found = found.ok_or_else(|| unauthenticated("the session has ended; log in again"))?;
            if !method.is_safe() {
                found.session.admits(headers)?;
            }
            let name = match &found.key {
                Some(id) => name_of_key(found.name, id),
                None => found.name,
            };
            Ok(Principal::new(name, Some(found.role), Way::Session(found.session)).within(found.scopes))
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
            return Ok(Principal::new(claims.principal, claims.role, way).within(claims.scopes));
        }
        _ => {}
    }
    known(app, &hex::encode(digest))
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
    scope: Json<Scope>,
}

/// Whose key it is, by its digest. An index finds the digest of a secret with 256 random bits; how long that takes tells
/// nothing of another.
async fn known(app: &App, hash: &str) -> Result<Option<Principal>, ApiError> {
    let now = app.clock.now();
    let mut known: Vec<Known> = sqlx::query_as(
        "SELECT s.hash, k.id, k.name, k.role, k.agent_id, k.scope
           FROM api_key_secrets s
           JOIN api_keys k ON k.id = s.key_id
          WHERE s.hash = $1 AND (s.ends_at IS NULL OR s.ends_at > $2) AND (k.expires_at IS NULL OR k.expires_at > $2)
          UNION ALL
         SELECT a.api_key_hash, NULL, a.id, 'agent', a.id, '{}' FROM agents a WHERE a.api_key_hash = $1
          LIMIT 2",
    )
    .bind(hash)
    .bind(now)
    .fetch_all(&app.pool)
    .await?;
    known.retain(|known| same(known.hash.as_bytes(), hash.as_bytes()));
    if known.len() > 1 {
        return Err(unauthenticated(
            "the key is that of several agents or keys; register each agent with a key of its own",
        ));
    }
    let Some(known) = known.pop() else { return Ok(None) };
    if let Some(id) = &known.id {
        let mut uses = app.gate.uses.lock().unwrap_or_else(PoisonError::into_inner);
        uses.insert(id.clone(), now);
    }
    let (name, way) = match (known.agent_id, known.id) {
        (Some(agent), _) => (known.name, Way::Agent(agent)),
        (None, Some(id)) => {
            let secret = known.hash.clone();
            (name_of_key(known.name, &id), Way::Key { id, secret })
        }
        (None, None) => return Err(ApiError::internal("a key without an owner")),
    };
    let principal = Principal::new(name, Some(known.role), way).within(vec![known.scope.0]);
    Ok(Some(Principal {
        secret: Some(known.hash),
        ..principal
    }))
}

/// Whether the key, token or session of a request that has been waiting still opens.
///
/// # Errors
/// 401 when it was revoked or has ended since; 503 when it cannot be looked up.
pub async fn still_admits(app: &App, principal: &Principal) -> Result<(), ApiError> {
    let ended = || unauthenticated("the key was revoked, or has ended, while the request waited");
    let holds = match (&principal.secret, &principal.way) {
        (Some(hash), _) => known(app, hash)
            .await?
            .is_some_and(|now| now.key() == principal.key() && now.role == principal.role),
        (None, Way::Session(session)) => session::is_open(app, session).await?,
        (None, Way::Jwt { until, .. }) => app.clock.now() < *until,
        (None, _) => true,
    };
    if holds { Ok(()) } else { Err(ended()) }
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

/// Whether the row lets this principal in, whatever certificate it asks for.
///
/// # Errors
/// 403 when the row is refused to principals that reach only some certificates, and this is one.
pub fn admits_reach(principal: &Principal, access: Access, scoping: Scoping) -> Result<(), ApiError> {
    if access == Access::Open || scoping != Scoping::Refused || !principal.reach().is_limited() {
        return Ok(());
    }
    let detail = "this key is limited to some certificates, and this operation concerns more than those";
    Err(ApiError::new(Kind::Forbidden, detail))
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
    fn names_of_other_principals_are_reserved_in_any_disguise() {
        for name in [
            "api-key-user",
            "API-Key-User",
            " anonymous ",
            "syst\u{200b}em",
            "ѕystem",
            "ＳＹＳＴＥＭ",
            "bootstrap",
            "jwt:https://idp.test#ada",
            "JWT:ada",
            "jｗt:ada",
            "key:ak-1",
        ] {
            assert!(is_reserved(name), "{name:?}");
        }
        for name in ["ci", "jwt", "keys", "systems", "api", "jwt-ada"] {
            assert!(!is_reserved(name), "{name:?}");
        }
    }

    #[test]
    fn subjects_of_two_issuers_are_two_principals() {
        let names = [
            name_of_subject(None, "ada"),
            name_of_subject(Some("https://a.test"), "ada"),
            name_of_subject(Some("https://b.test"), "ada"),
            name_of_subject(Some("https://a.test#x"), "ada"),
            name_of_subject(Some("https://a.test"), "x#ada"),
        ];
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len());
        assert!(names.iter().all(|name| is_reserved(name)));
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
