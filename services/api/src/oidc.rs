//! Logging in with an identity provider: OpenID Connect Core 1.0, authorization code (§3.1) with PKCE (RFC 7636).
//!
//! A browser is sent away with a cookie of its own; `state` is the digest of it, and what belongs to the login waits in
//! the database until the browser is back, once. The ID token is verified as every other token is.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::{
    Router,
    extract::{RawQuery, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use certctl_contract::{endpoint::Access, problem::Kind, query::Invalid};
use certctl_model::{audit::Actor, secret::Secret};
use certctl_runtime::client_addr::ClientAddr;
use certctl_store::Tx;
use openidconnect::{
    AuthUrl, AuthenticationFlow, AuthorizationCode, ClientId, ClientSecret, CsrfToken, EndpointNotSet, EndpointSet,
    IssuerUrl, JsonWebKeySet, Nonce, PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, Scope, TokenResponse, TokenUrl,
    core::{CoreClient, CoreResponseType},
};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    access_log::RequestId,
    app::App,
    auth::{Principal, Way, random, same, sha256},
    config::{Oidc, TokenRules},
    error::ApiError,
    jwt::{Discovery, Issuer, Place, Verifier},
    limits::Turn,
    session::{self, Newcomer, set_cookie},
};

/// Where a browser begins.
pub const LOGIN: &str = "/auth/login";
/// Where the provider sends it back to.
pub const CALLBACK: &str = "/auth/callback";

const COOKIE: &str = "__Host-certctl-login";
/// How long a person may take to log in.
const PATIENCE: Duration = Duration::from_secs(600);

type Client = CoreClient<EndpointSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointSet, EndpointNotSet>;

/// Login with one identity provider.
pub struct Login {
    name: String,
    client: ClientId,
    secret: Option<Secret>,
    redirect: RedirectUrl,
    scopes: Vec<Scope>,
    issuer: Arc<Issuer>,
    verifier: Verifier,
}

impl Login {
    /// Prepares it; asks nobody yet.
    ///
    /// # Errors
    /// When an address will not do.
    pub fn new(oidc: Oidc, rules: &TokenRules) -> anyhow::Result<Self> {
        let issuer = Arc::new(Issuer::new(Place::Discovery(oidc.issuer.clone()))?);
        Ok(Self {
            verifier: Verifier::of_login(issuer.clone(), &oidc.issuer, &oidc.client_id, rules),
            name: oidc.issuer,
            client: ClientId::new(oidc.client_id),
            secret: oidc.client_secret,
            redirect: RedirectUrl::new(oidc.redirect_url.to_string()).context("CERTCTL_OIDC_REDIRECT_URL")?,
            scopes: oidc.scopes.into_iter().map(Scope::new).collect(),
            issuer,
        })
    }

    fn client(&self, discovery: &Discovery) -> anyhow::Result<Client> {
        let address = |url: &Option<url::Url>| url.clone().context("its discovery document lacks an endpoint");
        let client = CoreClient::new(
            self.client.clone(),
            IssuerUrl::new(self.name.clone())?,
            JsonWebKeySet::default(),
        )
        .set_auth_uri(AuthUrl::from_url(address(&discovery.authorization_endpoint)?))
        .set_token_uri(TokenUrl::from_url(address(&discovery.token_endpoint)?))
        .set_redirect_uri(self.redirect.clone());
        Ok(match &self.secret {
            Some(secret) => client.set_client_secret(ClientSecret::new(secret.expose().to_owned())),
            None => client,
        })
    }
}

/// Adds the two pages.
pub fn mount(router: Router<Arc<App>>) -> Router<Arc<App>> {
    router.route(LOGIN, get(login_page)).route(CALLBACK, get(callback_page))
}

fn configured(app: &App) -> Result<&Login, ApiError> {
    let login = app.gate.login.as_ref();
    login.ok_or_else(|| {
        ApiError::new(
            Kind::NotFound,
            "no identity provider is configured; log in with an API key",
        )
    })
}

fn read<T: DeserializeOwned>(query: Option<String>) -> Result<T, ApiError> {
    serde_urlencoded::from_str(query.as_deref().unwrap_or_default())
        .map_err(|_| ApiError::malformed("the query cannot be read", vec![]))
}

fn unusable(error: anyhow::Error) -> ApiError {
    ApiError::unavailable(format!("identity provider: {error:#}"))
}

#[derive(Deserialize)]
struct Departure {
    #[serde(default)]
    return_to: Option<String>,
}

async fn login_page(
    State(app): State<Arc<App>>,
    id: axum::Extension<RequestId>,
    client: Option<axum::Extension<ClientAddr>>,
    RawQuery(query): RawQuery,
) -> Response {
    let page = async || {
        admit(&app, client.map(|client| client.0), LOGIN).await?;
        login(&app, query).await
    };
    match page().await {
        Ok(response) => response,
        Err(error) => error.into_problem(&id.0).into_response(),
    }
}

/// Each visit costs a row or a question to the provider: an address has so many.
async fn admit(app: &App, client: Option<ClientAddr>, page: &str) -> Result<(), ApiError> {
    let nobody = Principal::new("anonymous", None, Way::Nobody);
    let mut turn = Turn::new(client, Access::Open, page);
    turn.take(&app.limits, Access::Open, &nobody).await
}

async fn login(app: &App, query: Option<String>) -> Result<Response, ApiError> {
    let login = configured(app)?;
    let departure: Departure = read(query)?;
    let return_to = departure.return_to.unwrap_or_else(|| "/".to_owned());
    if !is_local(&return_to) {
        let invalid = Invalid::new("return_to", "is a path of this server, like /certificates");
        return Err(ApiError::malformed("the query cannot be read", vec![invalid]));
    }
    let now = app.clock.now();
    let discovery = login.issuer.discovery(now).await?;
    let cookie = URL_SAFE_NO_PAD.encode(random()?);
    let state = hex::encode(sha256(&cookie));
    let nonce = Nonce::new(hex::encode(random()?));
    let verifier = PkceCodeVerifier::new(hex::encode(random()?));
    let client = login.client(&discovery).map_err(unusable)?;
    let (with_state, with_nonce) = (CsrfToken::new(state.clone()), nonce.clone());
    let (address, ..) = client
        .authorize_url(
            AuthenticationFlow::<CoreResponseType>::AuthorizationCode,
            move || with_state,
            move || with_nonce,
        )
        .add_scopes(login.scopes.iter().cloned())
        .set_pkce_challenge(PkceCodeChallenge::from_code_verifier_sha256(&verifier))
        .url();
    sqlx::query("INSERT INTO logins (state, nonce, verifier, return_to, expires_at) VALUES ($1, $2, $3, $4, $5)")
        .bind(&state)
        .bind(nonce.secret())
        .bind(verifier.secret())
        .bind(&return_to)
        .bind(now + PATIENCE)
        .execute(&app.pool)
        .await?;
    // The way back is a navigation from another site: a strict cookie would stay behind.
    let cookie = set_cookie(COOKIE, &cookie, "Lax", PATIENCE.as_secs());
    Ok(redirect(address.as_str(), &[cookie]))
}

#[derive(Deserialize)]
struct Return {
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    state: Option<String>,
    #[serde(default)]
    error: Option<String>,
    /// RFC 9207.
    #[serde(default)]
    iss: Option<String>,
}

#[derive(sqlx::FromRow)]
struct Begun {
    nonce: String,
    verifier: String,
    return_to: String,
}

async fn callback_page(
    State(app): State<Arc<App>>,
    id: axum::Extension<RequestId>,
    client: Option<axum::Extension<ClientAddr>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Response {
    let page = async || {
        admit(&app, client.map(|client| client.0), CALLBACK).await?;
        callback(&app, &headers, query).await
    };
    match page().await {
        Ok(response) => response,
        Err(error) => error.into_problem(&id.0).into_response(),
    }
}

async fn callback(app: &App, headers: &HeaderMap, query: Option<String>) -> Result<Response, ApiError> {
    let login = configured(app)?;
    let back: Return = read(query)?;
    let refused = |detail: &str| ApiError::new(Kind::Forbidden, format!("the login is refused: {detail}"));
    let cookie = session::cookie(headers, COOKIE).ok_or_else(|| refused("this browser did not begin it"))?;
    let state = hex::encode(sha256(cookie));
    if !same(state.as_bytes(), back.state.as_deref().unwrap_or_default().as_bytes()) {
        return Err(refused("it belongs to another browser"));
    }
    let now = app.clock.now();
    let begun: Option<Begun> =
        sqlx::query_as("DELETE FROM logins WHERE state = $1 AND expires_at > $2 RETURNING nonce, verifier, return_to")
            .bind(&state)
            .bind(now)
            .fetch_optional(&app.pool)
            .await?;
    let begun = begun.ok_or_else(|| refused("it took too long, or was completed before; begin again"))?;
    if back.iss.is_some_and(|iss| iss != login.name) {
        return Err(refused("another identity provider answered"));
    }
    if let Some(error) = back.error {
        let word: String = error
            .chars()
            .filter(|c| c.is_ascii_lowercase() || *c == '_')
            .take(64)
            .collect();
        return Err(refused(&format!("the identity provider says {word}")));
    }
    let code = back.code.ok_or_else(|| refused("the identity provider sent no code"))?;
    let discovery = login.issuer.discovery(now).await?;
    let http = |request| {
        let http = login.issuer.http().clone();
        async move { http.send(request).await }
    };
    let answer = login
        .client(&discovery)
        .map_err(unusable)?
        .exchange_code(AuthorizationCode::new(code))
        .set_pkce_verifier(PkceCodeVerifier::new(begun.verifier))
        .request_async(&http)
        .await
        .map_err(|error| match error {
            openidconnect::RequestTokenError::ServerResponse(_) => refused("the identity provider takes the code back"),
            other => ApiError::unavailable(format!("identity provider: {other}")),
        })?;
    let token = answer
        .id_token()
        .ok_or_else(|| refused("the identity provider sent no ID token"))?;
    let claims = login.verifier.verify(&token.to_string(), now).await?;
    if !same(claims.nonce.unwrap_or_default().as_bytes(), begun.nonce.as_bytes()) {
        return Err(refused("the ID token answers another login"));
    }
    // OpenID Connect Core 1.0 §3.1.3.7, 3 to 5.
    match &claims.party {
        Some(party) if party != login.client.as_str() => return Err(refused("the ID token is for another client")),
        None if claims.audiences > 1 => {
            return Err(refused(
                "the ID token is for several clients and does not say (azp) for which it was issued",
            ));
        }
        _ => {}
    }
    let role = claims
        .role
        .ok_or_else(|| refused("the identity provider gives you no role here; ask your administrator"))?;
    let tx = Tx::begin(&app.pool, &Actor::user(&claims.principal), now).await?;
    let newcomer = Newcomer {
        name: claims.principal.clone(),
        display_name: claims.display_name,
        principal: claims.principal,
        role,
        scopes: claims.scopes,
        secret: None,
        until: None,
    };
    let (_, cookie) = session::begin(app, tx, newcomer).await?;
    Ok(redirect(&begun.return_to, &[cookie, set_cookie(COOKIE, "", "Lax", 0)]))
}

fn redirect(address: &str, cookies: &[String]) -> Response {
    let mut response = StatusCode::FOUND.into_response();
    let headers = response.headers_mut();
    let value = |text: &str| HeaderValue::try_from(text).expect("addresses and cookies are visible ASCII");
    headers.insert(header::LOCATION, value(address));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    for cookie in cookies {
        headers.append(header::SET_COOKIE, value(cookie));
    }
    response
}

/// Whether browsers read it as a path of this server: one slash at the beginning, and nothing that they drop or turn.
fn is_local(path: &str) -> bool {
    path.len() <= 2048
        && path.starts_with('/')
        && !path.starts_with("//")
        && path.bytes().all(|b| b.is_ascii_graphic() && b != b'\\')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_of_this_server_are_returned_to() {
        for (path, local) in [
            ("/", true),
            ("/certificates?status=Active#top", true),
            ("/a//b", true),
            ("", false),
            ("certificates", false),
            ("//evil.test", false),
            ("/\\evil.test", false),
            ("\\\\evil.test", false),
            ("https://evil.test", false),
            ("/\t/evil.test", false),
            ("/\r\nSet-Cookie: a=b", false),
            ("javascript:alert(1)", false),
            (&format!("/{}", "x".repeat(3000)), false),
        ] {
            assert_eq!(is_local(path), local, "{path:?}");
        }
    }
}
