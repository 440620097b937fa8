//! Where a walk through a list stands. A cursor carries the order and the filter that it was made for, and is refused by
//! any other.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use certctl_contract::query::Invalid;
use serde::{Deserialize, Serialize};

use crate::error::ApiError;

/// The place behind the last row of a page.
#[derive(Serialize, Deserialize)]
pub struct Cursor {
    /// The order, as on the wire.
    pub(crate) s: String,
    /// The filter, as on the wire.
    pub(crate) f: String,
    /// The sort column of the last row.
    pub(crate) k: String,
    /// What orders rows that are equal under the sort, before their ids do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) t: Option<String>,
    /// Its id.
    pub(crate) i: String,
}

impl Cursor {
    /// Reads one that was made for this order and this filter.
    ///
    /// # Errors
    /// When it is not one of ours, or belongs to another list.
    pub fn read(text: &str, order: &str, filter: &str) -> Result<Self, ApiError> {
        let octets = URL_SAFE_NO_PAD.decode(text).map_err(|_| not_ours())?;
        let cursor: Cursor = serde_json::from_slice(&octets).map_err(|_| not_ours())?;
        if cursor.s != order || cursor.f != filter {
            return Err(refused(
                "belongs to a list with another sort or filter; begin again without it",
            ));
        }
        Ok(cursor)
    }

    /// As it is given out: base64url (RFC 4648 §5) of JSON.
    pub fn write(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).expect("texts are plain data"))
    }
}

/// The answer to a cursor that we did not make.
pub(crate) fn not_ours() -> ApiError {
    refused("is not one of ours")
}

fn refused(why: &str) -> ApiError {
    ApiError::malformed("the query cannot be read", vec![Invalid::new("cursor", why)])
}
