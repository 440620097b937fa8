//! Bearer tokens of other issuers: JSON Web Tokens (RFC 7519), as RFC 8725 wants them verified.
//!
//! Configuration says where keys come from, and the type of the key says which algorithm it verifies; the header of a
//! token is only asked which of the keys it means. Keys inside tokens are not looked at.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use certctl_contract::{endpoint::Role, problem::Kind};
use certctl_model::{scope::Scope, text, time::Time};
use jsonwebtoken::{
    Algorithm, DecodingKey, Header, Validation,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse},
};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;
use url::Url;

use crate::{
    auth::{is_reserved, name_of_subject},
    config::{JwtSource, TokenRules},
    error::ApiError,
    outbound,
};

/// How far clocks may be apart.
const LEEWAY: Duration = Duration::from_secs(60);
/// After how long published keys are fetched anew.
const FRESH_FOR: Duration = Duration::from_secs(300);
/// How often an issuer is asked at most, whatever tokens say.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// The longest name that is taken from a token, in characters.
const LONGEST_NAME: usize = 255;

/// Whether a bearer token has the form of one: three parts with dots between. No key of ours has dots.
pub fn looks_like_one(token: &str) -> bool {
    token.bytes().filter(|b| *b == b'.').count() == 2
}

/// What a verified token says.
#[derive(Clone, Debug)]
pub struct Claims {
    /// The principal: issuer and `sub`.
    pub principal: String,
    /// The name to show.
    pub display_name: String,
    /// What its holder may do; none when it says nothing that is known.
    pub role: Option<Role>,
    /// To which certificates it is limited.
    pub scopes: Vec<Scope>,
    /// `exp`.
    pub until: Time,
    /// `nonce`, in answers to a login.
    pub nonce: Option<String>,
    /// `azp`: for whom it was issued.
    pub party: Option<String>,
    /// How many audiences it is for.
    pub audiences: usize,
}

/// JSON in which no object has a key twice: readers differ in which of the two they take (RFC 8725 §2.4, RFC 7519 §4).
struct Unique;

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Walk;
        impl<'de> Visitor<'de> for Walk {
            type Value = Unique;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("JSON")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique, A::Error> {
                let mut keys = std::collections::HashSet::new();
                while let Some(key) = map.next_key::<String>()? {
                    if !keys.insert(key) {
                        return Err(A::Error::custom("a key is there twice"));
                    }
                    map.next_value::<Unique>()?;
                }
                Ok(Unique)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Unique, A::Error> {
                while seq.next_element::<Unique>()?.is_some() {}
                Ok(Unique)
            }

            fn visit_bool<E>(self, _: bool) -> Result<Unique, E> {
                Ok(Unique)
            }

            fn visit_i64<E>(self, _: i64) -> Result<Unique, E> {
                Ok(Unique)
            }

            fn visit_u64<E>(self, _: u64) -> Result<Unique, E> {
                Ok(Unique)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Unique, E> {
                Ok(Unique)
            }

            fn visit_str<E>(self, _: &str) -> Result<Unique, E> {
                Ok(Unique)
            }

            fn visit_unit<E>(self) -> Result<Unique, E> {
                Ok(Unique)
            }
        }
        deserializer.deserialize_any(Walk)
    }
}

/// Whether header and claims of a token are JSON without repeated keys.
fn is_unambiguous(token: &str) -> bool {
    token.split('.').take(2).all(|part| {
        let octets = URL_SAFE_NO_PAD.decode(part.trim_end_matches('=')).ok();
        octets.is_some_and(|octets| serde_json::from_slice::<Unique>(&octets).is_ok())
    })
}

/// Whether the header says that it is a token of a kind that is meant for us: no `typ`, `JWT` (RFC 7519 §5.1), and for
/// bearer tokens `at+jwt` (RFC 9068 §2.1). Others, such as logout tokens, are signed with the same keys.
fn is_of_kind(typ: Option<&str>, of_login: bool) -> bool {
    let Some(typ) = typ else { return true };
    let typ = typ.to_ascii_lowercase();
    match typ.strip_prefix("application/").unwrap_or(&typ) {
        "jwt" => true,
        "at+jwt" => !of_login,
        _ => false,
    }
}

/// Verifies the tokens of one issuer.
pub struct Verifier {
    keys: Keys,
    issuer: Option<String>,
    audience: Option<String>,
    rules: TokenRules,
    /// Whether it verifies ID tokens.
    of_login: bool,
}

enum Keys {
    Secret(DecodingKey),
    Published(Arc<Issuer>),
}

fn refused(why: &str) -> ApiError {
    ApiError::new(Kind::Unauthenticated, format!("the token is refused: {why}"))
}

impl Verifier {
    /// Prepares the verification of what comes in as bearer token; asks nobody yet.
    ///
    /// # Errors
    /// When a client for outbound HTTP cannot be made.
    pub fn new(source: JwtSource, rules: &TokenRules) -> anyhow::Result<Self> {
        let keys = match source {
            JwtSource::Secret(secret) => Keys::Secret(DecodingKey::from_secret(secret.expose().as_bytes())),
            JwtSource::Published(place) => Keys::Published(Arc::new(Issuer::new(place)?)),
        };
        Ok(Self {
            keys,
            issuer: rules.issuer.clone(),
            audience: rules.audience.clone(),
            rules: rules.clone(),
            of_login: false,
        })
    }

    /// The same for ID tokens, which are for one client.
    pub fn of_login(issuer: Arc<Issuer>, name: &str, client: &str, rules: &TokenRules) -> Self {
        Self {
            keys: Keys::Published(issuer),
            issuer: Some(name.to_owned()),
            audience: Some(client.to_owned()),
            rules: rules.clone(),
            of_login: true,
        }
    }

    /// Verifies signature, issuer, audience and time.
    ///
    /// # Errors
    /// 401 saying what is wrong; 503 when the issuer's keys were never to be had.
    pub async fn verify(&self, token: &str, now: Time) -> Result<Claims, ApiError> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| refused("its header cannot be read"))?;
        if header.crit.is_some() {
            return Err(refused("its header has critical parameters"));
        }
        if !is_of_kind(header.typ.as_deref(), self.of_login) {
            return Err(refused("its header (typ) says that it is a token of another kind"));
        }
        let (algorithm, key) = match &self.keys {
            Keys::Secret(key) => (Algorithm::HS256, key.clone()),
            Keys::Published(issuer) => {
                let key = issuer.key(&header, now).await?;
                (key.algorithm, key.key.clone())
            }
        };
        let mut validation = Validation::new(algorithm);
        // The time is ours to check: by the clock of the service.
        validation.validate_exp = false;
        let mut required = vec!["exp", "sub"];
        validation.validate_aud = self.audience.is_some();
        if let Some(audience) = &self.audience {
            required.push("aud");
            validation.set_audience(&[audience]);
        }
        if let Some(issuer) = &self.issuer {
            required.push("iss");
            validation.set_issuer(&[issuer]);
        }
        validation.set_required_spec_claims(&required);
        let claims: Value = jsonwebtoken::decode(token, &key, &validation)
            .map_err(|error| refused(word(error.kind())))?
            .claims;
        if !is_unambiguous(token) {
            return Err(refused("a claim or header parameter is there twice"));
        }
        self.read(&claims, now)
    }

    fn read(&self, claims: &Value, now: Time) -> Result<Claims, ApiError> {
        let at = |name: &str| match &claims[name] {
            Value::Null => Ok(None),
            value => match value.as_f64() {
                Some(seconds) => Ok(Some(Time::from_unix(seconds as i64))),
                None => Err(refused("its dates are not numbers")),
            },
        };
        let until = at("exp")?.ok_or_else(|| refused("it does not say when it ends"))?;
        if now >= until + LEEWAY {
            return Err(refused("it has expired"));
        }
        if at("nbf")?.is_some_and(|begins| now + LEEWAY < begins) {
            return Err(refused("it is not valid yet"));
        }
        let text = |name: &str| claims[name].as_str().map(str::to_owned);
        // An array would be taken by readers that look for one of several issuers.
        let issuer = match &claims["iss"] {
            Value::Null => None,
            Value::String(issuer) => Some(issuer),
            _ => return Err(refused("its issuer (iss) is not a text")),
        };
        if self.issuer.is_some() && self.issuer.as_ref() != issuer {
            return Err(refused("another issuer made it"));
        }
        let audiences = match &claims["aud"] {
            Value::Null => 0,
            Value::String(_) => 1,
            Value::Array(all) if all.iter().all(Value::is_string) => all.len(),
            _ => return Err(refused("its audience (aud) is neither a text nor a list of texts")),
        };
        if !matches!(&claims["azp"], Value::Null | Value::String(_)) {
            return Err(refused("its authorized party (azp) is not a text"));
        }
        let plain = |text: &String| {
            !text.trim().is_empty() && text.chars().count() <= LONGEST_NAME && !text.contains(text::is_hidden)
        };
        let subject = text("sub")
            .filter(|subject| plain(subject) && !is_reserved(subject))
            .ok_or_else(|| refused("it has no usable subject"))?;
        let shown = ["name", "preferred_username", "email"];
        let (role, scopes) = self.rules.grant(claims).unzip();
        Ok(Claims {
            display_name: shown
                .into_iter()
                .filter_map(text)
                .find(plain)
                .unwrap_or_else(|| subject.clone()),
            role,
            scopes: scopes.unwrap_or_default(),
            until,
            nonce: text("nonce"),
            party: text("azp"),
            audiences,
            principal: name_of_subject(self.issuer.as_deref(), &subject),
        })
    }
}

/// What is wrong, in words that tell the holder of a token enough.
fn word(kind: &jsonwebtoken::errors::ErrorKind) -> &'static str {
    use jsonwebtoken::errors::ErrorKind;
    match kind {
        ErrorKind::InvalidSignature => "its signature is not the issuer's",
        ErrorKind::InvalidIssuer => "another issuer made it",
        ErrorKind::InvalidAudience => "it is for another audience",
        ErrorKind::InvalidAlgorithm => "its algorithm is not the one of the key",
        ErrorKind::MissingRequiredClaim(_) => "it lacks a claim; needed are exp, sub, and iss and aud where configured",
        _ => "it cannot be read",
    }
}

/// Of several roles the first of these counts.
const GREATEST_FIRST: [Role; 6] = [
    Role::Admin,
    Role::Operator,
    Role::Approver,
    Role::Requester,
    Role::Auditor,
    Role::Viewer,
];

impl TokenRules {
    /// The greatest role the configured claim names, and the scopes of the words that stand for it: none when one of them
    /// has none. Roles of agents are not given by others.
    fn grant(&self, claims: &Value) -> Option<(Role, Vec<Scope>)> {
        let found = match claims.get(&self.role_claim) {
            Some(value) => Some(value),
            None => self
                .role_claim
                .split('.')
                .try_fold(claims, |claims, part| claims.get(part)),
        };
        let words: Vec<&str> = match found? {
            Value::String(word) => vec![word],
            Value::Array(words) => words.iter().filter_map(Value::as_str).collect(),
            _ => return None,
        };
        let named = |word: &str| match self.roles.is_empty() {
            true => {
                let role = Role::ALL.iter().copied().find(|role| role.as_str() == word);
                role.map(|role| (role, Scope::default()))
            }
            false => {
                let of = self.roles.iter().find(|of| of.group == word);
                of.map(|of| (of.role, of.scope.clone()))
            }
        };
        let held: Vec<(Role, Scope)> = words.into_iter().filter_map(named).collect();
        let greatest = GREATEST_FIRST
            .into_iter()
            .find(|role| held.iter().any(|(held, _)| held == role))?;
        let scopes = held.into_iter().filter(|(role, _)| *role == greatest);
        let scopes: Vec<Scope> = scopes.map(|(_, scope)| scope).collect();
        match scopes.iter().any(Scope::is_empty) {
            true => Some((greatest, vec![])),
            false => Some((greatest, scopes)),
        }
    }
}

/// Where an issuer publishes its keys.
#[derive(Clone, Debug)]
pub enum Place {
    /// At this address (RFC 7517 §5).
    Keys(Url),
    /// Where the discovery document of this issuer says (OpenID Connect Discovery 1.0 §4).
    Discovery(String),
}

/// What a discovery document says that we need.
#[derive(Clone, Debug, Deserialize)]
pub struct Discovery {
    issuer: String,
    jwks_uri: Url,
    /// Where browsers are sent to log in.
    #[serde(default)]
    pub authorization_endpoint: Option<Url>,
    /// Where codes become tokens.
    #[serde(default)]
    pub token_endpoint: Option<Url>,
}

/// A key that verifies, and with which algorithm.
#[derive(Clone)]
struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

#[derive(Clone, Default)]
struct Published {
    keys: Arc<Vec<Key>>,
    discovery: Option<Arc<Discovery>>,
    fetched: Option<Time>,
    tried: Option<Time>,
}

impl Published {
    fn find(&self, header: &Header) -> Option<Key> {
        let mut fitting = self.keys.iter().filter(|key| key.algorithm == header.alg);
        match &header.kid {
            Some(id) => fitting.find(|key| key.id.as_ref() == Some(id)).cloned(),
            // Without a name it can only be meant when there is no other.
            None if self.keys.len() == 1 => fitting.next().cloned(),
            None => None,
        }
    }

    fn may_ask(&self, now: Time) -> bool {
        self.tried.is_none_or(|at| now.since(at) >= ASK_AGAIN)
    }

    fn is_fresh(&self, now: Time) -> bool {
        self.fetched.is_some_and(|at| now.since(at) < FRESH_FOR)
    }
}

/// An identity provider and the keys it publishes. The last good ones are kept while it is away.
pub struct Issuer {
    http: outbound::Http,
    place: Place,
    published: RwLock<Published>,
    asking: tokio::sync::Mutex<()>,
}

impl Issuer {
    /// Prepares the client; asks nobody yet.
    ///
    /// # Errors
    /// When an address is neither https nor on this machine, or TLS cannot be set up.
    pub fn new(place: Place) -> anyhow::Result<Self> {
        let address = match &place {
            Place::Keys(url) => url.clone(),
            Place::Discovery(issuer) => discovery_url(issuer)?,
        };
        Ok(Self {
            http: outbound::Http::new(&address)?,
            place,
            published: RwLock::default(),
            asking: tokio::sync::Mutex::default(),
        })
    }

    /// For requests to the same issuer.
    pub fn http(&self) -> &outbound::Http {
        &self.http
    }

    fn read(&self) -> Published {
        self.published.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The key a header means.
    async fn key(&self, header: &Header, now: Time) -> Result<Key, ApiError> {
        let before = self.read();
        let found = before.find(header);
        let ask = match &found {
            Some(_) => !before.is_fresh(now) && before.may_ask(now),
            None => true,
        };
        if ask {
            self.refresh(now, found.is_none()).await;
        }
        let after = self.read();
        match after.find(header) {
            Some(key) => Ok(key),
            None if after.fetched.is_none() => Err(ApiError::unavailable("the issuer's keys are not to be had")),
            None => Err(refused("it is not signed with a key of the issuer")),
        }
    }

    /// What the discovery document says, not older than the keys.
    ///
    /// # Errors
    /// 503 when it was never to be had.
    pub async fn discovery(&self, now: Time) -> Result<Arc<Discovery>, ApiError> {
        let before = self.read();
        if !before.is_fresh(now) {
            self.refresh(now, before.discovery.is_none()).await;
        }
        self.read()
            .discovery
            .ok_or_else(|| ApiError::unavailable("the identity provider's discovery document is not to be had"))
    }

    /// Asks the issuer, unless it was asked just now. One asks at a time; who can do without does not `wait`.
    async fn refresh(&self, now: Time, wait: bool) {
        let _one = match wait {
            true => self.asking.lock().await,
            false => match self.asking.try_lock() {
                Ok(one) => one,
                Err(_) => return,
            },
        };
        if !self.read().may_ask(now) {
            return;
        }
        // Before asking: a caller who hangs up meanwhile has asked all the same.
        self.published.write().unwrap_or_else(PoisonError::into_inner).tried = Some(now);
        let got = self.fetch().await;
        let mut published = self.published.write().unwrap_or_else(PoisonError::into_inner);
        match got {
            Ok((discovery, keys)) => {
                published.keys = Arc::new(keys);
                published.discovery = discovery.map(Arc::new);
                published.fetched = Some(now);
            }
            Err(error) => {
                metrics::counter!("identity_provider_failures_total").increment(1);
                tracing::warn!(
                    error = format!("{error:#}"),
                    "the identity provider's keys cannot be fetched"
                );
            }
        }
    }

    async fn fetch(&self) -> anyhow::Result<(Option<Discovery>, Vec<Key>)> {
        let (discovery, address) = match &self.place {
            Place::Keys(url) => (None, url.clone()),
            Place::Discovery(issuer) => {
                let document = self.http.get(discovery_url(issuer)?).await?;
                let document: Discovery = serde_json::from_slice(&document).context("its discovery document")?;
                ensure!(
                    document.issuer == *issuer,
                    "its discovery document is of another issuer, {}",
                    document.issuer.escape_debug()
                );
                let address = document.jwks_uri.clone();
                (Some(document), address)
            }
        };
        let keys = usable(&self.http.get(address).await?)?;
        Ok((discovery, keys))
    }
}

fn discovery_url(issuer: &str) -> anyhow::Result<Url> {
    let address = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
    Url::parse(&address).with_context(|| format!("the issuer {issuer} is not a URL"))
}

/// The keys of a set that verify signatures with an algorithm we take; what else is in it is passed over.
fn usable(octets: &[u8]) -> anyhow::Result<Vec<Key>> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<Value>,
    }
    let set: Set = serde_json::from_slice(octets).context("its keys")?;
    let keys: Vec<Key> = set
        .keys
        .into_iter()
        .filter_map(|key| serde_json::from_value::<Jwk>(key).ok())
        .filter_map(|jwk| {
            Some(Key {
                algorithm: algorithm(&jwk)?,
                key: DecodingKey::from_jwk(&jwk).ok()?,
                id: jwk.common.key_id,
            })
        })
        .collect();
    if keys.is_empty() {
        bail!("it publishes no key for RS256, ES256 or EdDSA");
    }
    Ok(keys)
}

/// The one algorithm a key is for: its type decides, and what it says of its use must not contradict.
fn algorithm(jwk: &Jwk) -> Option<Algorithm> {
    let (algorithm, name) = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
            (Algorithm::ES256, KeyAlgorithm::ES256)
        }
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
        }
        _ => return None,
    };
    let common = &jwk.common;
    let fits = common.key_algorithm.is_none_or(|of| of == name)
        && common
            .public_key_use
            .as_ref()
            .is_none_or(|of| *of == PublicKeyUse::Signature)
        && common
            .key_operations
            .as_ref()
            .is_none_or(|all| all.contains(&KeyOperations::Verify));
    fits.then_some(algorithm)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rules(claim: &str, roles: &[&str]) -> TokenRules {
        TokenRules {
            issuer: None,
            audience: None,
            role_claim: claim.to_owned(),
            roles: roles.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn the_role_is_what_the_claim_names_or_its_groups_stand_for() {
        let claims = json!({
            "role": "viewer", "roles": ["nothing", "auditor", "operator"], "realm": { "roles": ["admin"] },
            "groups": ["tls-admins", "admin"], "https://certctl.test/role": "auditor", "number": 1, "agent": "agent",
            "loud": "ADMIN", "nested.name": "operator", "nested": { "name": "admin" }
        });
        for (claim, roles, role) in [
            ("role", &[][..], Some(Role::Viewer)),
            ("roles", &[], Some(Role::Operator)),
            ("realm.roles", &[], Some(Role::Admin)),
            ("https://certctl.test/role", &[], Some(Role::Auditor)),
            ("nested.name", &[], Some(Role::Operator)),
            ("groups", &["tls-admins=operator"], Some(Role::Operator)),
            ("groups", &["others=admin"], None),
            ("role", &["viewers=viewer"], None),
            ("loud", &[], None),
            ("number", &[], None),
            ("agent", &[], None),
            ("realm", &[], None),
            ("none", &[], None),
            ("none.at.all", &[], None),
        ] {
            let granted = rules(claim, roles).grant(&claims).map(|(role, _)| role);
            assert_eq!(granted, role, "{claim} {roles:?}");
        }
    }

    #[test]
    fn scopes_of_several_groups_are_joined_unless_one_has_none() {
        let claims = json!({ "groups": ["a", "b", "readers"] });
        let scopes = |roles: &[&str]| {
            let (role, scopes) = rules("groups", roles).grant(&claims).unwrap();
            (role, scopes.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let (a, b) = ("a=operator;teams=t-a", "b=operator;teams=t-b;domains=b.test|c.test");
        assert_eq!(scopes(&[a]), (Role::Operator, vec!["teams t-a".to_owned()]));
        let both = vec!["teams t-a".to_owned(), "teams t-b; domains b.test, c.test".to_owned()];
        assert_eq!(scopes(&[a, b, "readers=viewer"]), (Role::Operator, both));
        assert_eq!(scopes(&[a, "b=operator"]), (Role::Operator, vec![]));
    }

    #[test]
    fn a_token_with_a_claim_twice_or_of_another_kind_is_not_read() {
        let token = |header: &str, claims: &str| {
            let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
            format!("{}.{}.", part(header), part(claims))
        };
        assert!(is_unambiguous(&token(
            "{\"alg\":\"ES256\"}",
            "{\"sub\":\"a\",\"x\":[{\"sub\":1}]}"
        )));
        for claims in [
            "{\"sub\":\"a\",\"sub\":\"b\"}",
            "{\"r\":{\"a\":1,\"a\":2}}",
            "[{\"a\":1,\"a\":1}]",
        ] {
            assert!(!is_unambiguous(&token("{}", claims)), "{claims}");
        }
        for (typ, bearer, login) in [
            (None, true, true),
            (Some("JWT"), true, true),
            (Some("application/jwt"), true, true),
            (Some("at+jwt"), true, false),
            (Some("application/AT+JWT"), true, false),
            (Some("logout+jwt"), false, false),
            (Some("dpop+jwt"), false, false),
            (Some("secevent+jwt"), false, false),
            (Some(""), false, false),
        ] {
            assert_eq!(
                (is_of_kind(typ, false), is_of_kind(typ, true)),
                (bearer, login),
                "{typ:?}"
            );
        }
    }

    #[test]
    fn keys_for_other_uses_and_algorithms_are_passed_over() {
        let key = |more: Value| {
            let mut key = json!({ "kty": "OKP", "crv": "Ed25519", "kid": "k", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" });
            key.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            key
        };
        for (more, kept) in [
            (json!({}), true),
            (json!({ "use": "sig", "alg": "EdDSA", "key_ops": ["verify"] }), true),
            (json!({ "use": "enc" }), false),
            (json!({ "alg": "RS256" }), false),
            (json!({ "alg": "ECDH-ES" }), false),
            (json!({ "key_ops": ["sign"] }), false),
            (json!({ "crv": "X25519" }), false),
            (json!({ "kty": "oct", "k": "AAAA", "alg": "HS256" }), false),
            (json!({ "kty": "unheard-of" }), false),
        ] {
            let set = json!({ "keys": [key(more.clone())] }).to_string();
            assert_eq!(usable(set.as_bytes()).is_ok(), kept, "{more}");
        }
    }
}
