//! The variables of the API.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, ensure};
use certctl_contract::endpoint::Role;
use certctl_model::{
    scope::{Domain, Scope},
    secret::Secret,
};
use certctl_runtime::{
    client_addr::{ForwardedHeader, Proxies},
    config::{Settings, boolean, duration, secret_from},
    hardening::{self, HardeningSetting, Needs},
    serve::{Front, Limits},
    tls::{Tls, TlsMin},
};
use clap::{ArgAction, Args, Parser, ValueEnum};
use ipnet::IpNet;
use url::Url;

use crate::{
    calls::Which,
    headers::{Headers, Origins},
    jwt::Place,
};

/// The REST API of certctl.
#[derive(Debug, Parser)]
#[command(name = "certctl-api", version)]
pub struct Config {
    /// Apply the migrations that are missing and exit. Needs the database owner's URL.
    #[arg(long)]
    pub migrate: bool,

    /// Where the database is.
    #[command(flatten)]
    pub database: Database,

    /// Address to listen on.
    #[arg(long, env = "CERTCTL_SERVER_HOST", default_value = "127.0.0.1")]
    pub server_host: IpAddr,

    /// Port to listen on.
    #[arg(long, env = "CERTCTL_SERVER_PORT", default_value_t = 8080)]
    pub server_port: u16,

    /// Address of health, readiness and Prometheus metrics.
    #[arg(long, env = "CERTCTL_OPS_LISTEN", default_value = "127.0.0.1:9080")]
    pub ops_listen: SocketAddr,

    /// What the process gives up.
    #[command(flatten)]
    pub hardening: HardeningSetting,

    /// Who may come in.
    #[command(flatten)]
    pub access: AccessSettings,

    /// What of the calls is recorded, and how.
    #[command(flatten)]
    pub audit: AuditSettings,

    /// Directory where revocations are kept outside the database, in files on the disk before a call is answered: what a
    /// restored backup forgot is brought back from there. Several processes may share it. Without one, none are kept.
    #[arg(long, env = "CERTCTL_REVOCATION_JOURNAL_DIR")]
    pub revocation_journal_dir: Option<PathBuf>,

    /// Who makes the keys of certificates: agents and those who send a certification request, or, for those without targets
    /// and without a request, also the server, which shows the key once in its answer to the renewal. For demonstrations:
    /// whoever reads that answer has the key.
    #[arg(long, env = "CERTCTL_KEYGEN_MODE", value_enum, default_value_t = KeygenMode::Agent)]
    pub keygen_mode: KeygenMode,

    /// Give constant bodies at `/api/v1/bench/constant`, to hold the cost of other answers against.
    #[arg(long, env = "CERTCTL_BENCH_ROUTE", default_value = "false", hide = true,
          value_parser = certctl_runtime::config::boolean, action = clap::ArgAction::Set)]
    pub bench_route: bool,

    /// Unix socket of the signer.
    #[arg(long, env = "CERTCTL_SIGNER_SOCKET", default_value = "/run/certctl/signer.sock")]
    pub signer_socket: PathBuf,

    /// How the public address faces the network.
    #[command(flatten)]
    pub edge: Edge,

    /// How much a party may ask.
    #[command(flatten)]
    pub limiting: Limiting,

    /// Logs.
    #[command(flatten)]
    pub settings: Settings,
}

impl Config {
    /// Gives up what the service does not need. It reads its files, writes its spool and its journal, connects to the
    /// database, Redis and identity providers wherever they are, and listens on two ports.
    ///
    /// # Errors
    /// A measure that is required and cannot be taken, or a directory that cannot be made.
    pub fn harden(&self) -> anyhow::Result<()> {
        let mut needs = Needs::of_every_service();
        let (_, certificates) = certctl_store::reaches(self.database.url.expose())?;
        let told = [
            &self.edge.tls_cert_path,
            &self.edge.tls_key_path,
            &self.limiting.redis_url_file,
            &self.access.auth_secret_file,
            &self.access.bootstrap_token_file,
            &self.access.oidc_client_secret_file,
        ];
        needs.read_files(told.into_iter().flatten().cloned().chain(certificates));
        for directory in [&self.audit.spool_dir, &self.revocation_journal_dir]
            .into_iter()
            .flatten()
        {
            needs.write_below(directory)?;
        }
        needs.writes.extend(self.settings.failpoints.clone());
        needs.listens = vec![self.server_port, self.ops_listen.port()];
        hardening::harden("CERTCTL_HARDENING", self.hardening.hardening, &needs)
    }
}

/// How the public address faces the network.
#[derive(Clone, Debug, Args)]
pub struct Edge {
    /// PEM file of the certificate chain, leaf first; with it TLS is spoken. Read again when it changes, and on SIGHUP.
    #[arg(long, env = "CERTCTL_TLS_CERT_PATH", requires = "tls_key_path")]
    tls_cert_path: Option<PathBuf>,

    /// PEM file of its private key.
    #[arg(long, env = "CERTCTL_TLS_KEY_PATH", requires = "tls_cert_path")]
    tls_key_path: Option<PathBuf>,

    /// Oldest version of TLS that is spoken.
    #[arg(long, env = "CERTCTL_TLS_MIN", value_enum, default_value = "1.3")]
    tls_min: TlsMin,

    /// Addresses or networks of proxies in front, separated by commas. Only they are believed about whom they speak for.
    #[arg(long, env = "CERTCTL_TRUSTED_PROXIES", value_delimiter = ',', value_parser = network)]
    trusted_proxies: Vec<IpNet>,

    /// Header in which these proxies name the client. They must write it themselves, not pass it on.
    #[arg(
        long,
        env = "CERTCTL_FORWARDED_HEADER",
        value_enum,
        default_value = "x-forwarded-for"
    )]
    forwarded_header: ForwardedHeader,

    /// Whether these proxies begin each connection with the PROXY protocol, version 1 or 2.
    #[arg(long, env = "CERTCTL_PROXY_PROTOCOL", value_parser = boolean, action = ArgAction::Set, default_value = "false")]
    proxy_protocol: bool,

    /// Connections open at once. When all are, the longest idle one is closed for a new one; while none is idle, new
    /// ones wait.
    #[arg(long, env = "CERTCTL_MAX_CONNECTIONS", default_value_t = 10_000, value_parser = at_least_one)]
    max_connections: usize,

    /// How many of them one address may hold, or one IPv6 network of 64 bits: a quarter unless told. When it does, its own
    /// longest idle one is closed for a new one, or the new one is if none is idle. Trusted proxies may hold all.
    #[arg(long, env = "CERTCTL_MAX_CONNECTIONS_PER_ADDRESS", value_parser = at_least_one)]
    max_connections_per_address: Option<usize>,

    /// How long a TLS handshake, a PROXY header and the head of a request may each take.
    #[arg(long, env = "CERTCTL_HEADER_TIMEOUT", value_parser = duration, default_value = "10s")]
    header_timeout: Duration,

    /// How long a connection is kept on which nothing is asked, or whose client does not take its answer.
    #[arg(long, env = "CERTCTL_IDLE_TIMEOUT", value_parser = duration, default_value = "75s")]
    idle_timeout: Duration,

    /// MiB of memory for OCSP answers that are given again; an answer takes about 2 KiB.
    #[arg(long, env = "CERTCTL_OCSP_MEMORY", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    ocsp_memory: u32,

    /// Origins whose pages may read answers, separated by commas, or `*` for all. None unless set.
    #[arg(long, env = "CERTCTL_CORS_ORIGINS", default_value = "")]
    cors_origins: Origins,
}

impl Edge {
    /// What the server is told.
    ///
    /// # Errors
    /// When the certificate and its key cannot be read, or do not fit each other.
    pub fn front(&self) -> anyhow::Result<Front> {
        let tls = match (&self.tls_cert_path, &self.tls_key_path) {
            (Some(cert), Some(key)) => Some(Arc::new(Tls::load(cert, key, self.tls_min)?)),
            _ => None,
        };
        Ok(Front {
            limits: Limits {
                connections: self.max_connections,
                share: self
                    .max_connections_per_address
                    .unwrap_or(self.max_connections.div_ceil(4)),
                header_timeout: self.header_timeout,
                idle_timeout: self.idle_timeout,
            },
            proxies: Proxies {
                trusted: self.trusted_proxies.clone(),
                header: self.forwarded_header,
                proxy_protocol: self.proxy_protocol,
                told: Arc::default(),
            },
            tls,
            shortcut: None,
        })
    }

    /// Memory for OCSP answers, in octets.
    pub fn ocsp_octets(&self) -> u64 {
        u64::from(self.ocsp_memory) << 20
    }

    /// What every answer says.
    pub fn headers(&self) -> Headers {
        Headers {
            origins: self.cors_origins.clone(),
            tls: self.tls_cert_path.is_some(),
        }
    }
}

/// How much a party may ask.
#[derive(Clone, Debug, Args)]
pub struct Limiting {
    /// Whether requests are limited.
    #[arg(long = "rate-limit-enabled", env = "CERTCTL_RATE_LIMIT_ENABLED", value_parser = boolean,
          action = ArgAction::Set, default_value = "true")]
    pub enabled: bool,

    /// Requests a second of each key, session or user.
    #[arg(long = "rate-limit-rps", env = "CERTCTL_RATE_LIMIT_RPS", value_parser = rate, default_value = "50")]
    pub rps: f64,

    /// Requests that each of them may have saved up.
    #[arg(long = "rate-limit-burst", env = "CERTCTL_RATE_LIMIT_BURST", value_parser = burst, default_value = "100")]
    pub burst: u32,

    /// Requests a second of each agent.
    #[arg(long = "rate-limit-agent-rps", env = "CERTCTL_RATE_LIMIT_AGENT_RPS", value_parser = rate, default_value = "10")]
    pub agent_rps: f64,

    /// Requests that each agent may have saved up.
    #[arg(long = "rate-limit-agent-burst", env = "CERTCTL_RATE_LIMIT_AGENT_BURST", value_parser = burst, default_value = "50")]
    pub agent_burst: u32,

    /// Of each address: failed authentications a second, and likewise requests to what is open to everyone.
    #[arg(long = "rate-limit-ip-rps", env = "CERTCTL_RATE_LIMIT_IP_RPS", value_parser = rate, default_value = "20")]
    pub ip_rps: f64,

    /// How many of these an address may have saved up.
    #[arg(long = "rate-limit-ip-burst", env = "CERTCTL_RATE_LIMIT_IP_BURST", value_parser = burst, default_value = "100")]
    pub ip_burst: u32,

    /// URL of the Redis in which replicas count together, such as redis://:password@host:6379/0. Without it, and while
    /// it is away, each process counts for itself.
    #[arg(long = "redis-url", env = "CERTCTL_REDIS_URL", hide_env_values = true)]
    redis_url: Option<Secret>,

    /// File that holds this URL.
    #[arg(long = "redis-url-file", env = "CERTCTL_REDIS_URL_FILE")]
    redis_url_file: Option<PathBuf>,
}

impl Limiting {
    /// The URL of Redis.
    ///
    /// # Errors
    /// When it is given twice, is empty or cannot be read.
    pub fn redis(&self) -> anyhow::Result<Option<Secret>> {
        secret(&self.redis_url, &self.redis_url_file)
    }
}

fn network(text: &str) -> Result<IpNet, String> {
    let text = text.trim();
    let one = text.parse::<IpAddr>().map(IpNet::from);
    one.or_else(|_| text.parse())
        .map_err(|_| format!("\"{text}\" is neither an address nor a network such as 10.0.0.0/8"))
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.001..=1e6).contains(rate));
    rate.ok_or_else(|| "write a number from 0.001 to 1000000".to_owned())
}

fn burst(text: &str) -> Result<u32, String> {
    let burst = text.parse().ok().filter(|burst| (1..=1_000_000).contains(burst));
    burst.ok_or_else(|| "write a whole number from 1 to 1000000".to_owned())
}

fn at_least_one(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| "write a whole number from 1".to_owned())
}

/// Where the database is.
#[derive(Clone, Debug, Args)]
pub struct Database {
    /// Postgres connection URL. The login must be the service's role, or a member of it.
    #[arg(
        long = "database-url",
        env = "CERTCTL_DATABASE_URL",
        default_value = "postgres://localhost/certctl",
        hide_env_values = true
    )]
    pub url: Secret,

    /// Connections at most; one of them listens for news.
    #[arg(long = "database-max-conns", env = "CERTCTL_DATABASE_MAX_CONNS", default_value_t = 25,
          value_parser = clap::value_parser!(u32).range(2..))]
    pub max_conns: u32,
}

/// What of the calls is recorded, and how.
#[derive(Clone, Debug, Args)]
pub struct AuditSettings {
    /// Which API calls are in the trail: all, all but the heartbeats and polls of machines, or only changes. Denied
    /// attempts always are.
    #[arg(long = "audit-calls", env = "CERTCTL_AUDIT_CALLS", value_enum, default_value_t = Which::People)]
    pub calls: Which,

    /// Directory where calls wait until they are in the trail; it survives a crash. Several servers may share it, if
    /// they share the database. Without one, /var/lib/certctl/audit, or else a temporary directory.
    #[arg(long = "audit-spool-dir", env = "CERTCTL_AUDIT_SPOOL_DIR")]
    pub spool_dir: Option<PathBuf>,

    /// Octets that may wait there; calls beyond are counted, not recorded.
    #[arg(long = "audit-spool-limit", env = "CERTCTL_AUDIT_SPOOL_LIMIT", default_value_t = 256 << 20)]
    pub spool_limit: u64,
}

/// Who may come in.
#[derive(Debug, Args)]
pub struct AccessSettings {
    /// How clients authenticate: with the API key, with tokens of an identity provider, or not at all. Named keys, agents'
    /// keys and the bootstrap token are taken with the first two. `none` lets everyone do everything.
    #[arg(long, env = "CERTCTL_AUTH_TYPE", value_enum, default_value_t = AuthType::ApiKey)]
    auth_type: AuthType,

    /// Whether `none` is accepted on an address that other machines reach.
    #[arg(long, env = "CERTCTL_AUTH_NONE_FORCE", default_value = "false",
          value_parser = certctl_runtime::config::boolean, action = clap::ArgAction::Set)]
    auth_none_force: bool,

    /// Names by which the server is asked while CERTCTL_AUTH_TYPE is none, separated by commas, besides addresses,
    /// `localhost` and names without a dot. Others are refused: a page of another site may have pointed its own name here.
    #[arg(long, env = "CERTCTL_ALLOWED_HOSTS", value_delimiter = ',')]
    allowed_hosts: Vec<String>,

    /// The API key, with every permission, at least 16 characters; with `jwt`, the key of HS256, at least 32 octets.
    #[arg(long, env = "CERTCTL_AUTH_SECRET", hide_env_values = true)]
    auth_secret: Option<Secret>,

    /// File that holds the API key.
    #[arg(long, env = "CERTCTL_AUTH_SECRET_FILE")]
    auth_secret_file: Option<PathBuf>,

    /// Token with which agents may register themselves, and nothing else; at least 16 characters.
    #[arg(long, env = "CERTCTL_BOOTSTRAP_TOKEN", hide_env_values = true)]
    bootstrap_token: Option<Secret>,

    /// File that holds the bootstrap token.
    #[arg(long, env = "CERTCTL_BOOTSTRAP_TOKEN_FILE")]
    bootstrap_token_file: Option<PathBuf>,

    /// Where the keys of tokens are published, for RS256, ES256 and EdDSA; unless told, the issuer's discovery document
    /// says it.
    #[arg(long, env = "CERTCTL_JWT_JWKS_URL")]
    jwt_jwks_url: Option<Url>,

    /// Issuer of tokens (`iss`); needed unless tokens are signed with CERTCTL_AUTH_SECRET. CERTCTL_OIDC_ISSUER unless told.
    #[arg(long, env = "CERTCTL_JWT_ISSUER")]
    jwt_issuer: Option<String>,

    /// Whom tokens must be for (`aud`); needed unless tokens are signed with CERTCTL_AUTH_SECRET.
    #[arg(long, env = "CERTCTL_JWT_AUDIENCE")]
    jwt_audience: Option<String>,

    /// Claim that holds the role, or several; dots lead into objects, as in `realm_access.roles`.
    #[arg(long, env = "CERTCTL_JWT_ROLE_CLAIM", default_value = "role")]
    jwt_role_claim: String,

    /// What the claim's values stand for, as `group=role,group=role`; unless told, they are roles themselves. A role may be
    /// limited to some certificates: `ci=requester;teams=t-1|t-2;domains=ci.example.com`, with `teams`, `environments`,
    /// `issuers`, `profiles` and `domains`.
    #[arg(long, env = "CERTCTL_JWT_ROLES", value_delimiter = ',')]
    jwt_roles: Vec<RoleOf>,

    /// Identity provider that people log in with. Login is off when unset.
    #[arg(long, env = "CERTCTL_OIDC_ISSUER")]
    oidc_issuer: Option<String>,

    /// Our name at the identity provider.
    #[arg(long, env = "CERTCTL_OIDC_CLIENT_ID")]
    oidc_client_id: Option<String>,

    /// Our secret at the identity provider, if it gave one.
    #[arg(long, env = "CERTCTL_OIDC_CLIENT_SECRET", hide_env_values = true)]
    oidc_client_secret: Option<Secret>,

    /// File that holds our secret at the identity provider.
    #[arg(long, env = "CERTCTL_OIDC_CLIENT_SECRET_FILE")]
    oidc_client_secret_file: Option<PathBuf>,

    /// Address of `/auth/callback` as browsers reach it.
    #[arg(long, env = "CERTCTL_OIDC_REDIRECT_URL")]
    oidc_redirect_url: Option<Url>,

    /// What to ask the identity provider for, besides `openid`.
    #[arg(long, env = "CERTCTL_OIDC_SCOPES", value_delimiter = ',', default_value = "profile")]
    oidc_scopes: Vec<String>,

    /// How long a session of a browser lasts without being used.
    #[arg(long, env = "CERTCTL_SESSION_IDLE", default_value = "8h", value_parser = certctl_runtime::config::duration)]
    session_idle: Duration,

    /// How long a session of a browser lasts at most.
    #[arg(long, env = "CERTCTL_SESSION_LIFETIME", default_value = "24h",
          value_parser = certctl_runtime::config::duration)]
    session_lifetime: Duration,
}

/// Who makes the keys of certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KeygenMode {
    /// Agents, and those who send a certification request.
    Agent,
    /// Also the server.
    Server,
}

/// How clients authenticate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AuthType {
    /// With the API key as bearer token.
    ApiKey,
    /// With a JSON Web Token as bearer token.
    Jwt,
    /// Not at all.
    None,
}

/// A word of an identity provider and the role it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleOf {
    /// The word.
    pub group: String,
    /// The role.
    pub role: Role,
    /// To which certificates it is limited.
    pub scope: Scope,
}

/// Reads `teams=t-1|t-2;domains=ci.example.com`.
fn scope(text: &str) -> Result<Scope, String> {
    fn list<T: TryFrom<String>>(words: &str) -> Result<Option<Vec<T>>, String>
    where
        T::Error: std::fmt::Display,
    {
        let words = words
            .split('|')
            .map(|word| T::try_from(word.trim().to_owned()).map_err(|e| e.to_string()));
        words.collect::<Result<Vec<T>, String>>().map(Some)
    }
    let mut scope = Scope::default();
    for part in text.split(';') {
        let (name, words) = part
            .split_once('=')
            .ok_or("write a scope as teams=t-1|t-2;domains=ci.example.com")?;
        if words.trim().is_empty() {
            return Err(format!("{} of a scope names nothing", name.trim()));
        }
        match name.trim() {
            "teams" if scope.teams.is_none() => scope.teams = list(words)?,
            "environments" if scope.environments.is_none() => {
                scope.environments = Some(words.split('|').map(|word| word.trim().to_owned()).collect());
            }
            "issuers" if scope.issuers.is_none() => scope.issuers = list(words)?,
            "profiles" if scope.profiles.is_none() => scope.profiles = list(words)?,
            "domains" if scope.domains.is_none() => scope.domains = list::<Domain>(words)?,
            other => {
                return Err(format!(
                    "\"{}\" is not one of teams, environments, issuers, profiles, domains, each at most once",
                    other.escape_debug()
                ));
            }
        }
    }
    Ok(scope)
}

impl FromStr for RoleOf {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (text, limits) = match text.split_once(';') {
            Some((text, limits)) => (text, scope(limits)?),
            None => (text, Scope::default()),
        };
        let (group, role) = text.rsplit_once('=').ok_or("write group=role,group=role")?;
        match role.trim().parse::<Role>()? {
            Role::Agent => Err("agents come with keys of their own".to_owned()),
            role if !limits.is_empty() && !role.may_be_scoped() => {
                Err(format!("the role {role} cannot be limited: it may change the limits"))
            }
            role => Ok(Self {
                group: group.trim().to_owned(),
                role,
                scope: limits,
            }),
        }
    }
}

/// How clients authenticate, with what that needs.
#[derive(Debug)]
pub struct Auth {
    /// What is asked of a client.
    pub entry: Entry,
    /// Names by which the server may be asked when nothing is asked of clients, in lower case.
    pub hosts: Vec<String>,
    /// The token of agents that want to register.
    pub bootstrap: Option<Secret>,
    /// How tokens are read.
    pub tokens: TokenRules,
    /// Login with an identity provider.
    pub login: Option<Oidc>,
    /// How long a session lasts without being used.
    pub session_idle: Duration,
    /// How long a session lasts at most.
    pub session_lifetime: Duration,
}

/// What is asked of a client.
#[derive(Clone, Debug)]
pub enum Entry {
    /// The shared key, or a named one.
    Shared(Secret),
    /// A token, or a named key.
    Jwt(JwtSource),
    /// Nothing.
    None,
}

/// What tokens are verified with; it decides the algorithm.
#[derive(Clone, Debug)]
pub enum JwtSource {
    /// HS256 with this secret.
    Secret(Secret),
    /// RS256, ES256 or EdDSA with published keys.
    Published(Place),
}

/// How tokens are read.
#[derive(Clone, Debug)]
pub struct TokenRules {
    /// Who must have made them.
    pub issuer: Option<String>,
    /// Whom they must be for.
    pub audience: Option<String>,
    /// Which claim holds the role.
    pub role_claim: String,
    /// What its values stand for; empty when they are roles themselves.
    pub roles: Vec<RoleOf>,
}

/// Login with an identity provider.
#[derive(Clone, Debug)]
pub struct Oidc {
    /// The provider.
    pub issuer: String,
    /// Our name there.
    pub client_id: String,
    /// Our secret there.
    pub client_secret: Option<Secret>,
    /// Where it sends browsers back to.
    pub redirect_url: Url,
    /// What to ask it for.
    pub scopes: Vec<String>,
}

impl Config {
    /// Reads the secrets and finds contradictions.
    ///
    /// # Errors
    /// When one is given twice, is empty or cannot be read, or what is needed is missing.
    pub fn auth(&self) -> anyhow::Result<Auth> {
        let access = &self.access;
        Ok(Auth {
            entry: access.entry(self.server_host)?,
            hosts: access
                .allowed_hosts
                .iter()
                .map(|name| name.trim().to_ascii_lowercase())
                .collect(),
            bootstrap: secret(&access.bootstrap_token, &access.bootstrap_token_file)?
                .map(|token| long_enough("CERTCTL_BOOTSTRAP_TOKEN", token))
                .transpose()?,
            tokens: TokenRules {
                issuer: access.issuer().cloned(),
                audience: access.jwt_audience.clone(),
                role_claim: access.jwt_role_claim.clone(),
                roles: access.jwt_roles.clone(),
            },
            login: access.oidc()?,
            session_idle: access.session_idle,
            session_lifetime: access.session_lifetime,
        })
    }
}

/// RFC 7518 §3.2: the key of HS256 is at least as long as its digest.
const LEAST_HS256: usize = 32;
/// The fewest characters of a secret that opens by itself: fewer can be guessed through the network.
const LEAST_SHARED: usize = 16;

fn long_enough(name: &str, secret: Secret) -> anyhow::Result<Secret> {
    ensure!(
        secret.expose().chars().count() >= LEAST_SHARED,
        "{name} has fewer than {LEAST_SHARED} characters; choose a random one, as with `openssl rand -hex 32`"
    );
    Ok(secret)
}

impl AccessSettings {
    fn issuer(&self) -> Option<&String> {
        self.jwt_issuer.as_ref().or(self.oidc_issuer.as_ref())
    }

    fn entry(&self, host: IpAddr) -> anyhow::Result<Entry> {
        let secret = secret(&self.auth_secret, &self.auth_secret_file)?;
        match self.auth_type {
            AuthType::None => {
                ensure!(
                    host.is_loopback() || self.auth_none_force,
                    "CERTCTL_AUTH_TYPE=none lets everyone who reaches {host} do everything; listen on 127.0.0.1, choose \
                     another type, or say CERTCTL_AUTH_NONE_FORCE=true"
                );
                Ok(Entry::None)
            }
            AuthType::ApiKey => {
                let secret = secret.context(
                    "CERTCTL_AUTH_SECRET or CERTCTL_AUTH_SECRET_FILE is needed (or CERTCTL_AUTH_TYPE=jwt, or =none)",
                )?;
                Ok(Entry::Shared(long_enough("CERTCTL_AUTH_SECRET", secret)?))
            }
            AuthType::Jwt => Ok(Entry::Jwt(self.jwt(secret)?)),
        }
    }

    fn jwt(&self, secret: Option<Secret>) -> anyhow::Result<JwtSource> {
        if let Some(secret) = secret {
            ensure!(
                self.jwt_jwks_url.is_none(),
                "tokens are verified with CERTCTL_AUTH_SECRET or with the keys of CERTCTL_JWT_JWKS_URL, not with both"
            );
            ensure!(
                secret.expose().len() >= LEAST_HS256,
                "CERTCTL_AUTH_SECRET has at least {LEAST_HS256} octets when it verifies tokens"
            );
            return Ok(JwtSource::Secret(secret));
        }
        let issuer = self.issuer().context(
            "CERTCTL_AUTH_TYPE=jwt needs CERTCTL_AUTH_SECRET (HS256), or CERTCTL_JWT_ISSUER and CERTCTL_JWT_AUDIENCE",
        )?;
        ensure!(
            self.jwt_audience.is_some(),
            "CERTCTL_JWT_AUDIENCE is needed: tokens of {issuer} for others must not open this server"
        );
        Ok(JwtSource::Published(match &self.jwt_jwks_url {
            Some(url) => Place::Keys(url.clone()),
            None => Place::Discovery(issuer.clone()),
        }))
    }

    fn oidc(&self) -> anyhow::Result<Option<Oidc>> {
        let Some(issuer) = self.oidc_issuer.clone() else {
            return Ok(None);
        };
        // An issuer alone may be meant for bearer tokens.
        let Some(client_id) = self.oidc_client_id.clone() else {
            return Ok(None);
        };
        Ok(Some(Oidc {
            issuer,
            client_id,
            client_secret: secret(&self.oidc_client_secret, &self.oidc_client_secret_file)?,
            redirect_url: self
                .oidc_redirect_url
                .clone()
                .context("CERTCTL_OIDC_REDIRECT_URL is needed with CERTCTL_OIDC_CLIENT_ID")?,
            scopes: self.oidc_scopes.clone(),
        }))
    }
}

fn secret(value: &Option<Secret>, file: &Option<PathBuf>) -> anyhow::Result<Option<Secret>> {
    let exposed = value.as_ref().map(|secret| secret.expose().to_owned());
    Ok(secret_from(exposed, file.clone())?.map(Secret::new))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(args: &str) -> Result<Entry, String> {
        let config = Config::parse_from(["certctl-api"].into_iter().chain(args.split_whitespace()));
        config
            .auth()
            .map(|auth| auth.entry)
            .map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn contradictions_are_found_before_anything_starts() {
        let long = "x".repeat(32);
        for (args, refusal) in [
            ("--auth-secret fewer-than-16-c", "16 characters"),
            ("--auth-secret sixteen-or-more-c", ""),
            (
                "--auth-secret sixteen-or-more-c --bootstrap-token short",
                "CERTCTL_BOOTSTRAP_TOKEN",
            ),
            ("", "CERTCTL_AUTH_SECRET"),
            ("--auth-type none", ""),
            ("--auth-type none --server-host ::1", ""),
            ("--auth-type none --server-host 0.0.0.0", "CERTCTL_AUTH_NONE_FORCE"),
            ("--auth-type none --server-host 0.0.0.0 --auth-none-force true", ""),
            ("--auth-type jwt", "CERTCTL_JWT_ISSUER"),
            ("--auth-type jwt --auth-secret short", "32 octets"),
            (&format!("--auth-type jwt --auth-secret {long}"), ""),
            (
                &format!("--auth-type jwt --auth-secret {long} --jwt-jwks-url https://i.test/k"),
                "not with both",
            ),
            ("--auth-type jwt --jwt-issuer https://i.test", "CERTCTL_JWT_AUDIENCE"),
            ("--auth-type jwt --jwt-jwks-url https://i.test/k", "CERTCTL_JWT_ISSUER"),
            ("--auth-type jwt --jwt-issuer https://i.test --jwt-audience a", ""),
            ("--auth-type jwt --oidc-issuer https://i.test --jwt-audience a", ""),
            (
                "--auth-secret sixteen-or-more-c --oidc-issuer https://i.test --oidc-client-id c",
                "CERTCTL_OIDC_REDIRECT_URL",
            ),
        ] {
            match entry(args) {
                Ok(_) => assert!(refusal.is_empty(), "{args}"),
                Err(error) => assert!(!refusal.is_empty() && error.contains(refusal), "{args}: {error}"),
            }
        }
    }

    #[test]
    fn groups_stand_for_roles_but_not_for_agents() {
        let read = |text: &str| text.parse::<RoleOf>().map(|of| (of.group, of.role));
        assert_eq!(read("tls-admins=admin"), Ok(("tls-admins".to_owned(), Role::Admin)));
        assert_eq!(read("cn=tls = viewer"), Ok(("cn=tls".to_owned(), Role::Viewer)));
        assert!(read("admins").is_err() && read("admins=root").is_err() && read("hosts=agent").is_err());
        assert_eq!(read("ci=requester;teams=t-1"), Ok(("ci".to_owned(), Role::Requester)));
        for wrong in [
            "ci=requester;",
            "ci=requester;team=t-1",
            "ci=requester;teams=",
            "ci=requester;domains=*.example.com",
            "ci=requester;teams=t-1;teams=t-2",
            "ci=admin;teams=t-1",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
