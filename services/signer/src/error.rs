//! What can go wrong, and how the caller hears of it.

use axum::{
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use certctl_contract::problem::{self, Kind, Problem};

/// Why there is no signature. What is a 4xx is refused for good; what is a 5xx may succeed later.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The request cannot be read.
    #[error("{0}")]
    Malformed(String),
    /// There is no such job or issuer.
    #[error("{0}")]
    NotFound(String),
    /// Job, certificate, profile or issuer stand in a way that forbids it.
    #[error("{0}")]
    WrongState(String),
    /// The request breaks a rule.
    #[error("{0}")]
    Invalid(String),
    /// The issuer's key or certificate cannot be used as they are; a person has to act.
    #[error("{0}")]
    NoAuthority(String),
    /// The database is older than what was signed: it was restored from a backup.
    #[error(
        "the database was restored from a backup; nothing is signed until its revocations are restored and the recovery \
         is finished (certctl-cli restore-revocations)"
    )]
    Fenced,
    /// The database did not answer, or not as it should.
    #[error(transparent)]
    Store(#[from] certctl_store::Error),
    /// We are at fault.
    #[error("{0:#}")]
    Internal(#[from] anyhow::Error),
}

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl From<certctl_x509::keys::KeyError> for Error {
    fn from(error: certctl_x509::keys::KeyError) -> Self {
        Self::Internal(error.into())
    }
}

impl Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Malformed(_) => Kind::Malformed,
            Self::NotFound(_) => Kind::NotFound,
            Self::WrongState(_) => Kind::WrongState,
            Self::Invalid(_) => Kind::Invalid,
            Self::NoAuthority(_) | Self::Fenced => Kind::Unavailable,
            Self::Store(error) if error.is_transient() => Kind::Unavailable,
            Self::Store(_) | Self::Internal(_) => Kind::Internal,
        }
    }
}

impl Error {
    /// Whether the same call may succeed later.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_transient())
    }

    /// What the caller hears. The log hears of it here, once.
    pub(crate) fn into_problem(self) -> Problem {
        let kind = self.kind();
        metrics::counter!("signer_refusals_total", "kind" => kind.slug()).increment(1);
        let detail = if kind.status() < 500 || matches!(self, Self::Fenced) {
            tracing::info!("refused: {self}");
            self.to_string()
        } else {
            tracing::error!("no signature: {self:#}");
            match self {
                Self::NoAuthority(_) => "the issuer's authority cannot be used; the signer's log says why",
                _ if kind == Kind::Unavailable => "the signer's database is away; try again",
                _ => "the signer failed; its log says why",
            }
            .to_owned()
        };
        Problem::new(kind, detail)
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let problem = self.into_problem();
        let status = StatusCode::from_u16(problem.status).expect("statuses of problems are constants");
        let body = serde_json::to_vec(&problem).expect("a problem is plain data");
        (status, [(CONTENT_TYPE, problem::CONTENT_TYPE)], body).into_response()
    }
}
