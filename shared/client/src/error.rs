//! What can go wrong with a call.

use std::{error::Error, fmt::Write as _};

use certctl_contract::{problem::Problem, query::Invalid};
use http::StatusCode;

/// How much of an answer that is no problem document is kept.
const MAX_DETAIL_BYTES: usize = 2 * 1024;

/// Why a call gave no result. Its text never contains the token.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server refused: its status was 400 or above.
    #[error("{}", describe(.0))]
    Problem(Box<Problem>),
    /// The server could not be asked: no connection, or no answer in time.
    #[error("cannot reach {0}")]
    Unreachable(String),
    /// The answer is not one the contract allows.
    #[error("{0}")]
    BadReply(String),
    /// The call cannot be made like this; nothing was sent.
    #[error("{0}")]
    BadInput(String),
}

impl ClientError {
    /// Whether the same call may succeed later: the server was unreachable or busy.
    ///
    /// Says nothing about whether repeating it does harm.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unreachable(_)) || matches!(self.status(), Some(429 | 502..=504))
    }

    /// The HTTP status, if the server refused.
    pub fn status(&self) -> Option<u16> {
        self.problem().map(|p| p.status)
    }

    /// The problem, if the server refused.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Problem(problem) => Some(problem),
            _ => None,
        }
    }
}

/// The fields that are wrong, but for those that the detail of the problem speaks of.
pub fn unsaid(problem: &Problem) -> impl Iterator<Item = &Invalid> {
    let is_said = |invalid: &&Invalid| problem.detail.contains(invalid.detail.as_str());
    problem.errors.iter().filter(move |invalid| !is_said(invalid))
}

fn describe(problem: &Problem) -> String {
    let mut text = format!("{} {}: {}", problem.status, problem.title, problem.detail);
    for invalid in unsaid(problem) {
        let _ = write!(text, "; {}: {}", invalid.field, invalid.detail);
    }
    text
}

/// Reads a problem document, or makes one of whatever the server said instead.
pub(crate) fn problem(status: StatusCode, text: &str) -> Problem {
    let mut problem: Problem = serde_json::from_str(text).unwrap_or_else(|_| Problem {
        kind: "about:blank".into(),
        title: String::new(),
        status: 0,
        detail: String::new(),
        error: String::new(),
        message: String::new(),
        request_id: None,
        errors: vec![],
    });
    problem.status = status.as_u16();
    if problem.title.is_empty() {
        problem.title = status.canonical_reason().unwrap_or("refused").to_owned();
    }
    if problem.detail.is_empty() {
        let said = [&problem.message, &problem.error].into_iter().find(|t| !t.is_empty());
        problem.detail = said.cloned().unwrap_or_else(|| shortened(text.trim()).to_owned());
    }
    problem
}

fn shortened(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_DETAIL_BYTES)]
}

/// An error and its causes, outermost first.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}
