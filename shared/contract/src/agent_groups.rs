//! Agent groups: agents that match, and those named.

use crate::endpoint::Operation;

/// The rows of this resource.
pub fn operations() -> Vec<Operation> {
    vec![]
}
