//! Logging in with a browser.

use crate::endpoint::Operation;

/// The rows of this resource.
pub fn operations() -> Vec<Operation> {
    vec![]
}
