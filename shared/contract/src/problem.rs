//! The error document (RFC 9457), which also carries the keys that existing clients read.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::query::Invalid;

/// Its media type.
pub const CONTENT_TYPE: &str = "application/problem+json";

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $variant:ident = $slug:literal $status:literal $title:literal),+ $(,)?) => {
        /// What kind of problem it is; decides status and `type`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind { $($(#[doc = $doc])+ $variant),+ }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Kind] = &[$(Kind::$variant),+];

            /// The last part of `type`.
            pub const fn slug(self) -> &'static str {
                match self { $(Kind::$variant => $slug),+ }
            }

            /// The HTTP status.
            pub const fn status(self) -> u16 {
                match self { $(Kind::$variant => $status),+ }
            }

            /// What it means.
            pub const fn doc(self) -> &'static str {
                match self { $(Kind::$variant => concat!($($doc),+).trim_ascii()),+ }
            }

            /// The reason phrase of the status.
            pub const fn title(self) -> &'static str {
                match self { $(Kind::$variant => $title),+ }
            }
        }
    };
}

kinds! {
    /// The request cannot be read: JSON, query or path.
    Malformed = "malformed" 400 "Bad Request",
    /// No key, or not one we know.
    Unauthenticated = "unauthenticated" 401 "Unauthorized",
    /// The key does not allow it.
    Forbidden = "forbidden" 403 "Forbidden",
    /// No such thing.
    NotFound = "not-found" 404 "Not Found",
    /// The path does not know the method.
    MethodNotAllowed = "method-not-allowed" 405 "Method Not Allowed",
    /// The body comes too slowly.
    TooSlow = "too-slow" 408 "Request Timeout",
    /// The thing is in a state that does not allow it.
    WrongState = "wrong-state" 409 "Conflict",
    /// The name or id is in use.
    Taken = "taken" 409 "Conflict",
    /// Others still refer to the thing.
    Referenced = "referenced" 409 "Conflict",
    /// The body is too large.
    TooLarge = "too-large" 413 "Content Too Large",
    /// The request can be read, but its values cannot be accepted.
    Invalid = "invalid" 422 "Unprocessable Content",
    /// Too many requests.
    TooMany = "too-many-requests" 429 "Too Many Requests",
    /// Our fault; the log has the rest under the request id.
    Internal = "internal" 500 "Internal Server Error",
    /// The issuer cannot do this.
    Unsupported = "unsupported" 501 "Not Implemented",
    /// The signer or an issuer failed.
    BadUpstream = "bad-upstream" 502 "Bad Gateway",
    /// Not now; worth trying again.
    Unavailable = "unavailable" 503 "Service Unavailable",
}

/// What went wrong and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// A URI that names the kind, `urn:certctl:problem:not-found` for example; programs match on it.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// The reason phrase of the status.
    #[serde(default)]
    pub title: String,
    /// The status.
    #[serde(default)]
    pub status: u16,
    /// What was wrong and what would be right, for a person.
    #[serde(default)]
    pub detail: String,
    /// The same as `title`.
    #[serde(default)]
    pub error: String,
    /// The same as `detail`.
    #[serde(default)]
    pub message: String,
    /// The request's id, which the log carries too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Each field or parameter that is wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Invalid>,
}

impl Problem {
    /// A problem of this kind.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self {
            kind: format!("urn:certctl:problem:{}", kind.slug()),
            title: kind.title().to_owned(),
            status: kind.status(),
            error: kind.title().to_owned(),
            message: detail.clone(),
            detail,
            request_id: None,
            errors: vec![],
        }
    }

    /// Whether it is of this kind.
    pub fn is(&self, kind: Kind) -> bool {
        self.kind.strip_prefix("urn:certctl:problem:") == Some(kind.slug())
    }
}
