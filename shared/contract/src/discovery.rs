//! Certificates found on hosts, and what becomes of them.

use crate::endpoint::Operation;

/// The rows of this resource.
pub fn operations() -> Vec<Operation> {
    vec![]
}
