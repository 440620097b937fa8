//! The authorities of the local issuers, each loaded at first use and then kept.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use certctl_model::{
    audit::Actor,
    connector::IssuerType,
    id::IssuerId,
    key::KeyFacts,
    secret::Secret,
    time::{Clock, Time},
};
use certctl_store::{Tx, wake::Channel};
use certctl_x509::{facts::CertificateFacts, scheme::RsaPadding};
use serde_json::Value;
use sqlx::PgPool;
use tokio::sync::OnceCell;
use tracing::info;

use crate::{
    authority::Authority,
    error::{Error, Result},
    keeping::{self, Brought, Home, Pair},
};

/// The issuer whose authority may be brought by an operator, and which is loaded at start.
pub(crate) const FIRST: &str = "iss-local";

/// Opening a sealed key is expensive, and those who cannot have it ask again at once.
const FAILURE_KEPT: Duration = Duration::from_secs(5);

/// Loads authorities and keeps them.
pub(crate) struct Authorities {
    pub(crate) pool: PgPool,
    pub(crate) clock: Clock,
    pub(crate) directory: PathBuf,
    pub(crate) passphrase: Option<Secret>,
    pub(crate) common_name: String,
    /// Of keys that are made.
    pub(crate) algorithm: KeyFacts,
    pub(crate) padding: RsaPadding,
    pub(crate) backdate: Duration,
    pub(crate) brought: Option<Brought>,
    /// One cell for each issuer: while it is filled, others that need the same issuer wait, and nobody else does.
    pub(crate) loaded: Mutex<HashMap<IssuerId, Arc<OnceCell<Arc<Authority>>>>>,
    /// When and why loading failed last. Holds only ids of issuers there are.
    pub(crate) failed: Mutex<HashMap<IssuerId, (Time, String)>>,
}

impl Authorities {
    /// The authority of an issuer. Makes a root for one that never had any.
    pub(crate) async fn get(&self, issuer: &IssuerId) -> Result<Arc<Authority>> {
        let cell = self.cell(issuer);
        let loaded = cell.get_or_try_init(|| self.load_or_repeat(issuer)).await;
        if loaded.is_err() {
            // Ids that name no issuer must not gather here.
            let mut all = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
            if all
                .get(issuer)
                .is_some_and(|cell| !cell.initialized() && Arc::strong_count(cell) <= 2)
            {
                all.remove(issuer);
            }
        }
        loaded.cloned()
    }

    /// The authority of an issuer, if it was published before. Makes none, so that anyone may ask.
    pub(crate) async fn existing(&self, issuer: &IssuerId) -> Result<Option<Arc<Authority>>> {
        if !self.has(issuer) {
            let published: Option<bool> = sqlx::query_scalar(
                "SELECT EXISTS (SELECT 1 FROM authorities a WHERE a.issuer_id = i.id) FROM issuers i WHERE i.id = $1",
            )
            .bind(issuer)
            .fetch_optional(&self.pool)
            .await?;
            if !published.ok_or_else(|| unknown(issuer))? {
                return Ok(None);
            }
        }
        self.get(issuer).await.map(Some)
    }

    /// Whether the issuer's authority is loaded.
    pub(crate) fn has(&self, issuer: &IssuerId) -> bool {
        let all = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(issuer).is_some_and(|cell| cell.initialized())
    }

    /// Reads what an operator brought, to say at once what is wrong with it.
    pub(crate) fn check_brought(&self) -> anyhow::Result<()> {
        let Some(brought) = &self.brought else { return Ok(()) };
        let (key, chain) = brought.load(self.passphrase.as_ref())?;
        let first: IssuerId = FIRST.parse()?;
        Authority::new(first, key, chain, self.clock.now())
            .map(|_| ())
            .map_err(|why| anyhow::anyhow!("{} cannot be used: {why}", brought.certificate.display()))
    }

    fn cell(&self, issuer: &IssuerId) -> Arc<OnceCell<Arc<Authority>>> {
        let mut all = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(issuer.clone()).or_default().clone()
    }

    /// Loads, or repeats why that failed a moment ago; to those as well who waited for it to fail.
    async fn load_or_repeat(&self, issuer: &IssuerId) -> Result<Arc<Authority>> {
        let now = self.clock.now();
        let failed = || self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let repeated = failed()
            .get(issuer)
            .filter(|(at, _)| (*at..*at + FAILURE_KEPT).contains(&now))
            .map(|(_, why)| why.clone());
        if let Some(why) = repeated {
            return Err(Error::NoAuthority(why));
        }
        let loaded = self.load(issuer).await;
        if let Err(Error::NoAuthority(why)) = &loaded {
            failed().insert(issuer.clone(), (self.clock.now(), why.clone()));
        }
        loaded
    }

    async fn load(&self, issuer: &IssuerId) -> Result<Arc<Authority>> {
        let row: Option<(String, Value, Option<String>, Option<Time>)> = sqlx::query_as(
            "SELECT i.type, i.config, a.chain_pem, a.not_after
               FROM issuers i
               LEFT JOIN authorities a ON a.issuer_id = i.id
              WHERE i.id = $1",
        )
        .bind(issuer)
        .fetch_optional(&self.pool)
        .await?;
        let (kind, config, published, published_end) = row.ok_or_else(|| unknown(issuer))?;
        if kind.parse() != Ok(IssuerType::Local) {
            return Err(Error::WrongState(format!(
                "issuer {issuer} is of type {kind}; only local issuers sign here"
            )));
        }
        let published_chain = published;
        let published = published_chain.as_deref().map(keeping::published).transpose()?;
        let named = config.get("ca_common_name").and_then(Value::as_str).map(str::trim);
        let common_name = named.filter(|name| !name.is_empty() && name.chars().count() <= 64);
        let unusable = |why: String| Error::NoAuthority(format!("the authority of issuer {issuer}: {why}"));
        let (key, chain) = self
            .pair(issuer, common_name, published.clone())
            .await
            .map_err(|error| unusable(format!("{error:#}")))?;
        let authority = Authority::new(issuer.clone(), key, chain, self.clock.now()).map_err(unusable)?;
        let is_published =
            published_chain.as_ref() == Some(&authority.chain_pem) && published_end == Some(authority.not_after());
        if !is_published {
            self.publish(&authority, published.as_ref()).await?;
        }
        info!(issuer.id = %issuer, "the authority of issuer {issuer} is loaded: {}", authority.certificate.subject);
        Ok(Arc::new(authority))
    }

    async fn pair(
        &self,
        issuer: &IssuerId,
        common_name: Option<&str>,
        published: Option<CertificateFacts>,
    ) -> anyhow::Result<Pair> {
        let passphrase = self.passphrase.clone();
        let brought = self.brought.clone().filter(|_| issuer.as_str() == FIRST);
        let directory = self.directory.join(issuer.as_str());
        let common_name = common_name.unwrap_or(&self.common_name).to_owned();
        let (algorithm, padding) = (self.algorithm, self.padding);
        let not_before = (self.clock.now() - self.backdate).whole_seconds();
        let load = move || match brought {
            Some(brought) => {
                let pair = brought.load(passphrase.as_ref())?;
                let same = |published: &CertificateFacts| {
                    let own = pair.1.first();
                    own.is_some_and(|own| {
                        own.spki_der == published.spki_der && own.subject_der == published.subject_der
                    })
                };
                anyhow::ensure!(
                    published.as_ref().is_none_or(same),
                    "{} has another subject or key than the authority this issuer has signed with before; \
                     what that one signed would be left without CRL and OCSP. Add another issuer instead",
                    brought.certificate.display()
                );
                Ok(pair)
            }
            None => Home {
                directory,
                passphrase: passphrase.as_ref(),
                common_name: &common_name,
                algorithm,
                padding,
                not_before,
            }
            .load_or_make(published.as_ref()),
        };
        // scrypt and disks take their time.
        tokio::task::spawn_blocking(load)
            .await
            .context("loading was cut short")?
    }

    /// Tells everyone of the certificate. Of two signers with directories of their own the first stays.
    async fn publish(&self, authority: &Authority, published: Option<&CertificateFacts>) -> Result<()> {
        let certificate = &authority.certificate;
        let mut tx = Tx::begin(&self.pool, &Actor::system(), self.clock.now()).await?;
        let done = sqlx::query(
            "INSERT INTO authorities AS a (issuer_id, certificate_der, chain_pem, not_after, published_at)
             VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (issuer_id) DO UPDATE
                SET certificate_der = $2, chain_pem = $3, not_after = $4, published_at = $5
              WHERE a.certificate_der IN ($2, $6)",
        )
        .bind(&authority.issuer)
        .bind(&certificate.der)
        .bind(&authority.chain_pem)
        .bind(authority.not_after())
        .bind(tx.now())
        .bind(published.map(|published| published.der.as_slice()))
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            return Err(Error::NoAuthority(format!(
                "another signer has published another certificate for issuer {}; signers share one CERTCTL_CA_DIR",
                authority.issuer
            )));
        }
        let event = tx
            .event("authority_published", "issuer", &authority.issuer)
            .with("subject", &certificate.subject)
            .with("fingerprint", &certificate.fingerprint);
        tx.note(event);
        // An authority needs a first CRL, and whoever sees to that waits for revocations.
        tx.wake(Channel::Revocations);
        Ok(tx.commit().await?)
    }
}

fn unknown(issuer: &IssuerId) -> Error {
    Error::NotFound(format!("there is no issuer {issuer}"))
}
