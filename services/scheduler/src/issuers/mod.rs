//! Who can be asked for a certificate.

mod local;

use std::time::Duration;

use certctl_client::Client;
use certctl_model::{connector::IssuerType, id::JobId};
use futures_util::future::BoxFuture;

pub use self::local::Local;

/// What is asked for. The job says the rest to whoever may read it.
#[derive(Clone, Debug)]
pub struct Order {
    /// The job.
    pub job: JobId,
}

/// A certificate, as PEM.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate alone.
    pub certificate_pem: String,
    /// The issuer's certificate and those above it.
    pub chain_pem: String,
}

/// Why there is none; decides what becomes of the job.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// Not now.
    #[error("{reason}")]
    Retry {
        /// When the issuer wants to be asked again, if it said so.
        after: Option<Duration>,
        /// Whether the try counts: the issuer was there and failed.
        counts: bool,
        /// What happened.
        reason: String,
    },
    /// Never: asking again would not help.
    #[error("{0}")]
    Refused(String),
}

/// Issues certificates. Asked twice for the same job it gives the same answer twice.
pub trait Issuer: Send + Sync {
    /// Asks for the certificates of several jobs, outside of any transaction. The answers are in the order of the jobs,
    /// and each is its job's own.
    fn issue<'a>(&'a self, orders: &'a [Order]) -> BoxFuture<'a, Vec<Result<Issued, IssueError>>>;
}

/// Every issuer there is, by type.
pub struct Issuers {
    local: Local,
}

impl Issuers {
    pub(crate) fn new(signer: Client) -> Self {
        Self {
            local: Local::new(signer),
        }
    }

    /// The one of this type.
    pub fn of(&self, kind: IssuerType) -> &dyn Issuer {
        match kind {
            IssuerType::Local => &self.local,
        }
    }
}
