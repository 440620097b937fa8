//! An identity provider: it publishes keys, sends browsers back with a code, and turns codes into ID tokens.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use aws_lc_rs::{
    digest, hmac,
    rand::SystemRandom,
    rsa::KeySize,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair},
};
use axum::{
    Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use certctl_runtime::{serve, tasks::Tasks};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use url::Url;

use crate::world::KEY;

/// Our name at the provider.
pub const CLIENT: &str = "certctl";
/// Our secret there.
pub const CLIENT_SECRET: &str = "the-secret-of-certctl-at-the-provider";

/// A key that signs.
pub enum Key {
    /// RS256.
    Rsa(RsaKeyPair),
    /// ES256.
    Ec(EcdsaKeyPair),
    /// EdDSA.
    Ed(Ed25519KeyPair),
    /// HS256.
    Hmac(Vec<u8>),
    /// `none`.
    None,
}

impl Key {
    /// A new RSA key of 2048 bits.
    pub fn rsa() -> Self {
        Key::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap())
    }

    /// A new key on P-256.
    pub fn ec() -> Self {
        Key::Ec(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    /// A new Ed25519 key.
    pub fn ed() -> Self {
        Key::Ed(Ed25519KeyPair::generate().unwrap())
    }

    /// Its algorithm.
    pub fn algorithm(&self) -> &'static str {
        match self {
            Key::Rsa(_) => "RS256",
            Key::Ec(_) => "ES256",
            Key::Ed(_) => "EdDSA",
            Key::Hmac(_) => "HS256",
            Key::None => "none",
        }
    }

    /// The octets of its public half: PKCS #1, an uncompressed point, or those of Ed25519.
    pub fn public(&self) -> &[u8] {
        match self {
            Key::Rsa(key) => key.public_key().as_ref(),
            Key::Ec(key) => key.public_key().as_ref(),
            Key::Ed(key) => key.public_key().as_ref(),
            Key::Hmac(_) | Key::None => &[],
        }
    }

    /// Its public half as a JWK.
    pub fn jwk(&self, id: &str) -> Value {
        let b64 = |octets: &[u8]| URL_SAFE_NO_PAD.encode(octets);
        let public = self.public();
        match self {
            // SEQUENCE and INTEGER headers, a leading zero, 256 octets of modulus, then 65537.
            Key::Rsa(_) => json!({ "kty": "RSA", "kid": id, "n": b64(&public[9..265]), "e": "AQAB" }),
            Key::Ec(_) => {
                json!({ "kty": "EC", "crv": "P-256", "kid": id, "x": b64(&public[1..33]), "y": b64(&public[33..65]) })
            }
            Key::Ed(_) => json!({ "kty": "OKP", "crv": "Ed25519", "kid": id, "x": b64(public) }),
            Key::Hmac(_) | Key::None => panic!("only public keys are published"),
        }
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Key::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).unwrap();
                signature
            }
            Key::Ec(key) => key.sign(&random, message).unwrap().as_ref().to_vec(),
            Key::Ed(key) => key.sign(message).as_ref().to_vec(),
            Key::Hmac(secret) => hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message)
                .as_ref()
                .to_vec(),
            Key::None => vec![],
        }
    }

    /// A token with these claims, whose header names this key and holds `more`.
    pub fn token(&self, id: &str, more: Value, claims: &Value) -> String {
        self.token_of(id, more, &claims.to_string())
    }

    /// The same with claims as they are written.
    pub fn token_of(&self, id: &str, more: Value, claims: &str) -> String {
        let mut header = json!({ "alg": self.algorithm(), "typ": "JWT", "kid": id });
        let more = more.as_object().cloned().unwrap_or_default();
        header.as_object_mut().unwrap().extend(more);
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let message = format!("{}.{}", part(&header.to_string()), part(claims));
        let signature = URL_SAFE_NO_PAD.encode(self.sign(message.as_bytes()));
        format!("{message}.{signature}")
    }
}

/// A code that waits to be turned into a token.
struct Code {
    challenge: String,
    id_token: String,
}

#[derive(Default)]
struct Shared {
    url: String,
    keys: Mutex<Vec<Value>>,
    codes: Mutex<HashMap<String, Code>>,
    asked: AtomicUsize,
    away: AtomicBool,
}

/// A running identity provider.
pub struct Idp {
    shared: Arc<Shared>,
    /// The key it signs with; published as `k1`.
    pub key: Key,
}

impl Idp {
    /// Starts one.
    pub async fn start(tasks: &Tasks) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let key = Key::ec();
        let shared = Arc::new(Shared {
            url: format!("http://{}", listener.local_addr().unwrap()),
            keys: Mutex::new(vec![key.jwk("k1")]),
            ..Shared::default()
        });
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(discovery))
            .route("/keys", get(keys))
            .route("/token", post(token))
            .with_state(shared.clone());
        serve::serve(listener, router, tasks).await;
        Self { shared, key }
    }

    /// Its issuer identifier.
    pub fn url(&self) -> &str {
        &self.shared.url
    }

    /// Arguments of an API whose people log in here.
    pub fn args<'a>(&'a self, redirect: &'a str) -> [&'a str; 10] {
        [
            "--auth-secret",
            KEY,
            "--oidc-issuer",
            self.url(),
            "--oidc-client-id",
            CLIENT,
            "--oidc-client-secret",
            CLIENT_SECRET,
            "--oidc-redirect-url",
            redirect,
        ]
    }

    /// Publishes these keys and no others.
    pub fn publish(&self, keys: Vec<Value>) {
        *self.shared.keys.lock().unwrap() = keys;
    }

    /// Makes it fail every request, or answer again.
    pub fn set_away(&self, away: bool) {
        self.shared.away.store(away, Ordering::SeqCst);
    }

    /// How often its keys were asked for.
    pub fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::SeqCst)
    }

    /// What happens when a person logs in at the address a browser was sent to: the query of the way back.
    ///
    /// `claims` are those of the ID token; the nonce is the one of the address, unless they have one.
    pub fn log_in(&self, address: &str, claims: Value) -> String {
        let address = Url::parse(address).unwrap();
        assert_eq!(address.path(), "/authorize");
        let asked: HashMap<_, _> = address.query_pairs().into_owned().collect();
        assert_eq!(
            (
                &*asked["response_type"],
                &*asked["client_id"],
                &*asked["code_challenge_method"]
            ),
            ("code", CLIENT, "S256")
        );
        let mut all = json!({ "iss": self.url(), "aud": CLIENT, "nonce": asked["nonce"] });
        all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
        let code = format!("code-{}", self.shared.codes.lock().unwrap().len());
        let waiting = Code {
            challenge: asked["code_challenge"].clone(),
            id_token: self.key.token("k1", Value::Null, &all),
        };
        self.shared.codes.lock().unwrap().insert(code.clone(), waiting);
        format!("code={code}&state={}", asked["state"])
    }
}

async fn discovery(State(idp): State<Arc<Shared>>) -> Response {
    if idp.away.load(Ordering::SeqCst) {
        return StatusCode::BAD_GATEWAY.into_response();
    }
    let url = &idp.url;
    axum::Json(json!({
        "issuer": url, "jwks_uri": format!("{url}/keys"), "authorization_endpoint": format!("{url}/authorize"),
        "token_endpoint": format!("{url}/token"), "response_types_supported": ["code"],
        "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["ES256"],
    }))
    .into_response()
}

async fn keys(State(idp): State<Arc<Shared>>) -> Response {
    idp.asked.fetch_add(1, Ordering::SeqCst);
    match idp.away.load(Ordering::SeqCst) {
        true => StatusCode::BAD_GATEWAY.into_response(),
        false => axum::Json(json!({ "keys": *idp.keys.lock().unwrap() })).into_response(),
    }
}

/// RFC 6749 §4.1.3 and RFC 7636 §4.6.
async fn token(State(idp): State<Arc<Shared>>, headers: http::HeaderMap, body: String) -> Response {
    let form: HashMap<String, String> = url::form_urlencoded::parse(body.as_bytes()).into_owned().collect();
    let refused = |error: &str| (StatusCode::BAD_REQUEST, axum::Json(json!({ "error": error }))).into_response();
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("{CLIENT}:{CLIENT_SECRET}"));
    if headers.get("authorization").and_then(|v| v.to_str().ok()) != Some(&format!("Basic {basic}")) {
        return refused("invalid_client");
    }
    let Some(code) = form.get("code").and_then(|code| idp.codes.lock().unwrap().remove(code)) else {
        return refused("invalid_grant");
    };
    let verifier = form.get("code_verifier").map(String::as_str).unwrap_or_default();
    let digest = digest::digest(&digest::SHA256, verifier.as_bytes());
    if URL_SAFE_NO_PAD.encode(digest) != code.challenge {
        return refused("invalid_grant");
    }
    let answer = json!({ "access_token": "unused", "token_type": "Bearer", "id_token": code.id_token });
    axum::Json(answer).into_response()
}
