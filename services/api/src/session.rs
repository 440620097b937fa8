//! Sessions of browsers: a cookie that scripts cannot read, and a token that other sites do not have.

use std::time::Duration;

use aws_lc_rs::hmac;
use axum::http::{HeaderMap, HeaderName, header};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use certctl_contract::{endpoint::Role, problem::Kind, sessions::Party};
use certctl_model::{id::ApiKeyId, scope::Scope, secret::Secret, time::Time};
use certctl_store::Tx;
use sqlx::types::Json;

use crate::{
    app::App,
    auth::{random, same},
    config::{Auth, Entry, JwtSource},
    error::ApiError,
};

/// The cookie. Its prefix makes browsers refuse it from other hosts, for other paths and without TLS
/// (RFC 6265bis §4.1.3.2).
pub const COOKIE: &str = "__Host-certctl-session";

const X_CSRF_TOKEN: HeaderName = HeaderName::from_static("x-csrf-token");
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// How exactly it is known when a session was last used.
const SEEN_WITHIN: Duration = Duration::from_secs(60);

/// What sessions have in common.
pub struct Sessions {
    /// A session that is not used for so long ends.
    pub idle: Duration,
    lifetime: Duration,
    key: hmac::Key,
}

impl Sessions {
    /// The digests of sessions depend on the secret of the server: another secret ends them all.
    pub fn new(auth: &Auth) -> Self {
        let secret = match &auth.entry {
            Entry::Shared(secret) => format!("api-key {}", secret.expose()),
            Entry::Jwt(JwtSource::Secret(secret)) => format!("jwt {}", secret.expose()),
            Entry::Jwt(JwtSource::Published(_)) => "jwt".to_owned(),
            Entry::None => "none".to_owned(),
        };
        let secret = Secret::new(secret);
        Self {
            idle: auth.session_idle,
            lifetime: auth.session_lifetime,
            key: hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes()),
        }
    }

    fn hash(&self, cookie: &str) -> String {
        hex::encode(hmac::sign(&self.key, cookie.as_bytes()))
    }
}

/// A session in use.
#[derive(Clone, Debug)]
pub struct Session {
    hash: String,
    /// The key of the principal that began it.
    pub principal: String,
    /// The name to show.
    pub display_name: String,
    /// When it ends at the latest.
    pub expires_at: Time,
    /// What a request that changes something brings in `X-CSRF-Token`.
    pub csrf: Secret,
}

/// Derived from the cookie, so that nothing is kept: who has it could read the cookie, which no other site can.
fn csrf(cookie: &str) -> Secret {
    let key = hmac::Key::new(hmac::HMAC_SHA256, cookie.as_bytes());
    Secret::new(hex::encode(hmac::sign(&key, b"csrf")))
}

impl Session {
    /// Whether the request comes from our own pages.
    ///
    /// # Errors
    /// 403 when it brings no token or another, or not the mark of its origin that browsers add.
    pub fn admits(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let token = text(&X_CSRF_TOKEN).unwrap_or_default();
        if !same(token.as_bytes(), self.csrf.expose().as_bytes()) {
            return Err(ApiError::new(
                Kind::Forbidden,
                "with a session, X-CSRF-Token is the csrf_token of GET /api/v1/sessions/current",
            ));
        }
        match is_of_this_origin(headers) {
            Some(true) => Ok(()),
            _ => Err(ApiError::new(
                Kind::Forbidden,
                "with a session, Sec-Fetch-Site or Origin says that the request comes from this very origin",
            )),
        }
    }
}

/// Whether a browser says that the request comes from this very origin; nothing, when no browser says anything.
pub fn is_of_this_origin(headers: &HeaderMap) -> Option<bool> {
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    match (text(&SEC_FETCH_SITE), text(&header::ORIGIN)) {
        (Some(site), _) => Some(site == "same-origin"),
        (None, Some(origin)) => {
            let authority = origin.split_once("://").map(|(_, authority)| authority);
            Some(authority.is_some() && text(&header::HOST) == authority)
        }
        (None, None) => None,
    }
}

/// Who begins a session.
pub struct Newcomer {
    /// The name in the trail.
    pub name: String,
    /// The name to show.
    pub display_name: String,
    /// The key of the principal.
    pub principal: String,
    /// What it may do.
    pub role: Role,
    /// The scopes it is limited to.
    pub scopes: Vec<Scope>,
    /// Digest of the secret of a named key, when it came with one.
    pub secret: Option<String>,
    /// When what it came with ends.
    pub until: Option<Time>,
}

/// Begins a session: what the page needs to know, and the cookie.
///
/// # Errors
/// When the database refuses.
pub async fn begin(app: &App, mut tx: Tx, who: Newcomer) -> Result<(Party, String), ApiError> {
    let sessions = &app.gate.sessions;
    let cookie = URL_SAFE_NO_PAD.encode(random()?);
    let hash = sessions.hash(&cookie);
    let now = tx.now();
    let expires_at = who
        .until
        .map_or(now + sessions.lifetime, |until| until.min(now + sessions.lifetime));
    sqlx::query(
        "INSERT INTO sessions (hash, name, display_name, role, secret_hash, created_at, last_seen_at, expires_at, principal,
                               scopes)
         VALUES ($1, $2, $3, $4, $5, $6, $6, $7, $8, $9)",
    )
    .bind(&hash)
    .bind(&who.name)
    .bind(&who.display_name)
    .bind(who.role)
    .bind(&who.secret)
    .bind(now)
    .bind(expires_at)
    .bind(&who.principal)
    .bind(Json(&who.scopes))
    .execute(&mut *tx)
    .await?;
    let event = tx
        .event("session_begun", "session", public_id(&hash))
        .with("role", who.role);
    tx.note(event);
    tx.commit().await?;
    let seconds = expires_at.since(now).as_secs();
    let party = Party {
        name: who.name,
        display_name: who.display_name,
        role: Some(who.role),
        scopes: who.scopes,
        via: "session".to_owned(),
        csrf_token: Some(csrf(&cookie).expose().to_owned()),
        expires_at: Some(expires_at),
    };
    Ok((party, set_cookie(COOKIE, &cookie, "Strict", seconds)))
}

/// Ends a session; the cookie that makes the browser forget it.
///
/// # Errors
/// When the database refuses.
pub async fn end(mut tx: Tx, session: &Session) -> Result<String, ApiError> {
    sqlx::query("DELETE FROM sessions WHERE hash = $1")
        .bind(&session.hash)
        .execute(&mut *tx)
        .await?;
    let event = tx.event("session_ended", "session", public_id(&session.hash));
    tx.note(event);
    tx.commit().await?;
    Ok(set_cookie(COOKIE, "", "Strict", 0))
}

/// What the trail calls a session.
fn public_id(hash: &str) -> &str {
    &hash[..16]
}

/// A session that was found, and what it may. Of one that was begun with a named key, the key decides that.
pub struct Found {
    /// The name of the principal, or of the key it was begun with.
    pub name: String,
    /// The named key it was begun with.
    pub key: Option<ApiKeyId>,
    /// What it may do.
    pub role: Role,
    /// The scopes it is limited to.
    pub scopes: Vec<Scope>,
    /// The rest.
    pub session: Session,
}

#[derive(sqlx::FromRow)]
struct Stored {
    name: String,
    display_name: String,
    key: Option<ApiKeyId>,
    role: Role,
    scopes: Json<Vec<Scope>>,
    principal: String,
    last_seen_at: Time,
    expires_at: Time,
}

/// The session of a cookie.
///
/// # Errors
/// When the database cannot be asked.
pub async fn find(app: &App, cookie: &str) -> Result<Option<Found>, ApiError> {
    let hash = app.gate.sessions.hash(cookie);
    let Some(found) = stored(app, &hash).await? else {
        return Ok(None);
    };
    let now = app.clock.now();
    if now.since(found.last_seen_at) >= SEEN_WITHIN {
        sqlx::query("UPDATE sessions SET last_seen_at = $2 WHERE hash = $1 AND last_seen_at < $2")
            .bind(&hash)
            .bind(now)
            .execute(&app.pool)
            .await?;
    }
    let session = Session {
        hash,
        principal: found.principal,
        display_name: found.display_name,
        expires_at: found.expires_at,
        csrf: csrf(cookie),
    };
    Ok(Some(Found {
        name: found.name,
        key: found.key,
        role: found.role,
        scopes: found.scopes.0,
        session,
    }))
}

/// Whether a session has not ended since it was found.
///
/// # Errors
/// When the database cannot be asked.
pub async fn is_open(app: &App, session: &Session) -> Result<bool, ApiError> {
    Ok(stored(app, &session.hash).await?.is_some())
}

async fn stored(app: &App, hash: &str) -> Result<Option<Stored>, ApiError> {
    let now = app.clock.now();
    let found = sqlx::query_as(
        "SELECT coalesce(k.name, s.name) AS name, coalesce(k.name, s.display_name) AS display_name, k.id AS key,
                coalesce(k.role, s.role) AS role,
                CASE WHEN k.id IS NULL THEN s.scopes ELSE jsonb_build_array(k.scope) END AS scopes,
                s.principal, s.last_seen_at, s.expires_at
           FROM sessions s
           LEFT JOIN api_key_secrets x ON x.hash = s.secret_hash
           LEFT JOIN api_keys k ON k.id = x.key_id
          WHERE s.hash = $1 AND s.expires_at > $2 AND s.last_seen_at > $3
            AND (x.ends_at IS NULL OR x.ends_at > $2) AND (k.expires_at IS NULL OR k.expires_at > $2)",
    )
    .bind(hash)
    .bind(now)
    .bind(now - app.gate.sessions.idle)
    .fetch_optional(&app.pool)
    .await?;
    Ok(found)
}

/// The value of a cookie, when it has one.
pub fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let lines = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok());
    lines
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(known, value)| *known == name && !value.is_empty())
        .map(|(_, value)| value)
}

/// A `Set-Cookie` that only this host gets back, over TLS or on the machine itself, and no script reads.
pub fn set_cookie(name: &str, value: &str, same_site: &str, seconds: u64) -> String {
    format!("{name}={value}; Path=/; Secure; HttpOnly; SameSite={same_site}; Max-Age={seconds}")
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn a_cookie_is_found_among_others() {
        for (line, found) in [
            ("__Host-certctl-session=abc", Some("abc")),
            ("a=b; __Host-certctl-session=abc; c=d", Some("abc")),
            ("certctl-session=abc", None),
            ("x__Host-certctl-session=abc", None),
            ("__Host-certctl-session=", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_static(line))]);
            assert_eq!(cookie(&headers, COOKIE), found, "{line}");
        }
    }

    #[test]
    fn a_request_with_a_session_says_where_it_comes_from() {
        let session = Session {
            hash: String::new(),
            principal: String::new(),
            display_name: String::new(),
            expires_at: Time::from_unix(0),
            csrf: csrf("cookie"),
        };
        let token = csrf("cookie").expose().to_owned();
        let other = csrf("other").expose().to_owned();
        for (token, site, origin, admitted) in [
            (&token, Some("same-origin"), None, true),
            (&token, Some("same-origin"), Some("https://elsewhere.test"), true),
            (&token, Some("same-site"), Some("https://certctl.test"), false),
            (&token, Some("cross-site"), None, false),
            (&token, Some("none"), None, false),
            (&token, None, Some("https://certctl.test"), true),
            (&token, None, Some("https://certctl.test.evil"), false),
            (&token, None, Some("null"), false),
            (&token, None, None, false),
            (&other, Some("same-origin"), None, false),
            (&String::new(), Some("same-origin"), None, false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static("certctl.test"));
            headers.insert(X_CSRF_TOKEN, HeaderValue::from_str(token).unwrap());
            site.map(|site| headers.insert(SEC_FETCH_SITE, HeaderValue::from_static(site)));
            origin.map(|origin| headers.insert(header::ORIGIN, HeaderValue::from_static(origin)));
            assert_eq!(session.admits(&headers).is_ok(), admitted, "{headers:?}");
        }
    }
}
