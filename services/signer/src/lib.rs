//! The only holder of the authorities' keys. It signs certificates, CRLs and OCSP answers, and does nothing else.
//!
//! What holds here, whatever is added:
//!
//! * It is told *which*, never *what*: no field of a request is copied into a signed structure, except the CertIDs and
//!   the nonce of an OCSP request (RFC 6960 §4.1.1, §4.4.1). Names, dates and extensions come from rows read here.
//! * Every certificate has a ledger row older than its signature. A repeated call for a job returns the first answer,
//!   until that has ended.
//! * What is checked is what is signed: certificates are linted as encoded octets, after the last change to them.
//! * What cannot be asked is refused: no profile, no signature; no database, no OCSP status.
//! * Keys are read from files once, or stay in a token; they are never printed, serialised or copied. Behind a published certificate no other
//!   root is ever made.
//! * It makes no connection but to Postgres, under a role that may read what it judges by and write its own tables.
//!
//! | module | holds |
//! |---|---|
//! | `config` | the settings |
//! | `hardening` | the files and ports that the process keeps before it holds a key |
//! | `http` | the five routes over a Unix socket |
//! | `issue` | job id → `Csr` → `Prepared` → `Recorded` → `Signed` |
//! | `lint` | what a certificate must and must not say, asked of its octets |
//! | `crl`, `ocsp` | the status of what was issued |
//! | `authorities`, `authority`, `keeping` | which keys there are, one of them, and where they are kept |
//! | `key`, `token` | what an authority's key can do, and one that is in a PKCS #11 token |
//! | `der` | the pieces that signed structures are built of |
//! | `fence` | nothing is signed over a database that was restored from a backup, until it is brought up to date |
//! | `error` | what can go wrong, and how the caller hears of it |
//!
//! Not here: issuers that talk to the outside (they need egress and retries, the scheduler's trade), the public routes
//! for relying parties (the API's), changes of jobs and certificates.

mod authorities;
mod authority;
pub mod config;
mod crl;
mod der;
mod error;
mod fence;
pub mod hardening;
mod http;
mod issue;
mod keeping;
mod key;
mod lint;
mod ocsp;
#[cfg(test)]
mod tests;
mod token;

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use axum::Router;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use certctl_model::{id::IssuerId, time::Clock};
use certctl_runtime::{
    serve::{self, Peers, Ready},
    tasks::Tasks,
};
use sqlx::PgPool;
use tracing::warn;

use crate::{
    authorities::{Authorities, FIRST},
    config::Config,
    error::Error,
    fence::Fence,
    issue::Terms,
    keeping::Brought,
};

/// The role of the signer's sessions.
const ROLE: &str = "certctl_signer";

/// The service, built and not yet serving.
pub struct Signer {
    shared: Arc<Shared>,
    config: Config,
}

/// What every operation needs.
pub(crate) struct Shared {
    pub(crate) pool: PgPool,
    pub(crate) clock: Clock,
    pub(crate) authorities: Authorities,
    pub(crate) fence: Fence,
    pub(crate) terms: Terms,
    pub(crate) crl_lifetime: Duration,
    pub(crate) ocsp_lifetime: Duration,
}

impl Signer {
    /// Builds the service. No connection is made yet.
    ///
    /// # Errors
    /// Settings that contradict each other, or an authority brought by an operator that cannot be used.
    pub fn build(config: Config, clock: Clock) -> Result<Self> {
        let pool = certctl_store::connect(config.database_url.expose(), ROLE, config.database_max_conns, &clock)?;
        Self::with_pool(config, pool, clock)
    }

    /// Builds the service over a pool whose sessions have the signer's role.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub fn with_pool(config: Config, pool: PgPool, clock: Clock) -> Result<Self> {
        config.check()?;
        let brought = match &config.ca_cert_path {
            Some(certificate) => Some(Brought {
                certificate: certificate.clone(),
                key: config.brought_key()?,
                padding: config.ca_rsa_padding.into(),
            }),
            None => None,
        };
        let authorities = Authorities {
            pool: pool.clone(),
            clock: clock.clone(),
            directory: config.ca_dir.clone(),
            passphrase: config.passphrase()?,
            common_name: config.ca_common_name.clone(),
            algorithm: config.ca_key_algorithm.into(),
            padding: config.ca_rsa_padding.into(),
            backdate: config.backdate,
            brought,
            loaded: Default::default(),
            failed: Default::default(),
        };
        authorities.check_brought()?;
        let public_url = config.public_url.as_ref();
        let shared = Shared {
            fence: Fence::new(pool.clone(), clock.clone(), &config.ca_dir),
            pool,
            clock,
            authorities,
            terms: Terms {
                leaf_validity: config.leaf_validity,
                backdate: config.backdate,
                public_url: public_url.map(|url| url.as_str().trim_end_matches('/').to_owned()),
            },
            crl_lifetime: config.crl_lifetime,
            ocsp_lifetime: config.ocsp_lifetime,
        };
        Ok(Self {
            shared: Arc::new(shared),
            config,
        })
    }

    /// The five operations.
    pub fn router(&self) -> Router {
        http::router(self.shared.clone())
    }

    /// What the service cannot do without.
    pub fn ready(&self) -> Ready {
        let (database, authority, recovery) = (self.shared.clone(), self.shared.clone(), self.shared.clone());
        Ready::new()
            .check("database", move || {
                let shared = database.clone();
                async move { Ok(certctl_store::ready(&shared.pool).await?) }
            })
            .check("authority", move || {
                let shared = authority.clone();
                async move {
                    match shared.authorities.has(&FIRST.parse()?) {
                        true => Ok(()),
                        false => bail!("the authority of {FIRST} is not loaded yet"),
                    }
                }
            })
            .check("recovery", move || {
                let shared = recovery.clone();
                async move { Ok(shared.fence.check().await?) }
            })
    }

    /// Starts serving, and returns once the authority of `iss-local` is loaded. While the database is away it is tried
    /// again and again.
    ///
    /// # Errors
    /// An address or a socket that cannot be bound, or an authority that cannot be used.
    pub async fn run(&self, tasks: &Tasks) -> Result<()> {
        if self.config.public_url.is_none() {
            warn!("CERTCTL_PUBLIC_URL is not set: certificates will not say where to learn of their revocation");
        }
        certctl_store::admit(&self.shared.pool).await?;
        let ops = serve::listen(self.config.ops_listen).await?;
        serve::serve(ops, serve::ops_router(self.ready()), tasks).await;
        let peers = Peers {
            group: self.config.signer_socket_group,
            users: self.config.signer_clients.clone(),
        };
        serve::serve_unix_to(&self.config.signer_socket, peers, self.router(), tasks).await?;
        let stop = tasks.token();
        tokio::select! {
            loaded = self.load() => loaded,
            () = stop.cancelled() => Ok(()),
        }
    }

    async fn load(&self) -> Result<()> {
        const AGAIN: Duration = Duration::from_secs(1);
        let first: IssuerId = FIRST.parse()?;
        loop {
            match self.shared.authorities.get(&first).await {
                Ok(_) => break,
                Err(Error::NoAuthority(why)) => return Err(anyhow::anyhow!(why)).context("refusing to start"),
                Err(error) => warn!("the authority of {FIRST} cannot be loaded yet: {error}"),
            }
            tokio::time::sleep(AGAIN).await;
        }
        // A database that was restored is found out now, and not with the next signature.
        match self.shared.fence.check().await {
            Ok(()) | Err(Error::Fenced) => {}
            Err(error) => warn!("whether the database was restored is not known yet: {error}"),
        }
        Ok(())
    }
}

pub(crate) fn base64_text(der: &[u8]) -> String {
    STANDARD.encode(der)
}
