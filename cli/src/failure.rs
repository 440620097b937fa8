//! What went wrong, as messages and exit codes.

use std::{io, process::ExitCode};

use certctl_client::{ClientError, error::unsaid};

use crate::output;

/// Why a command did not do what was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server said no, or could not be asked.
    Client(ClientError),
    /// The command cannot be meant like this.
    Usage(String),
    /// Something else went wrong.
    Failed(String),
    /// Some of several things went wrong.
    Partly(String),
    /// Standard output was closed: the reader has enough.
    Closed,
}

impl Failure {
    /// Says on standard error what was wrong, and each field that was.
    pub(crate) fn report(&self) {
        match self {
            Self::Client(ClientError::Problem(problem)) => {
                output::note(&format!(
                    "error: {} {}: {}",
                    problem.status, problem.title, problem.detail
                ));
                for invalid in unsaid(problem) {
                    output::note(&format!("  {}: {}", invalid.field, invalid.detail));
                }
                if let Some(id) = &problem.request_id {
                    output::note(&format!("  request id: {id}"));
                }
            }
            Self::Client(error) => output::note(&format!("error: {error}")),
            Self::Usage(text) | Self::Failed(text) | Self::Partly(text) => output::note(&format!("error: {text}")),
            Self::Closed => {}
        }
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Closed => 0,
            Self::Failed(_) | Self::Client(ClientError::Problem(_) | ClientError::BadReply(_)) => 1,
            Self::Usage(_) | Self::Client(ClientError::BadInput(_)) => 2,
            Self::Client(ClientError::Unreachable(_)) => 3,
            Self::Partly(_) => 4,
        })
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

impl From<io::Error> for Failure {
    /// For errors of standard output.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Failed(format!("cannot write: {error}")),
        }
    }
}
