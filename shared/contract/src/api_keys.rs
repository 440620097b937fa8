//! Named API keys with roles.

use crate::endpoint::Operation;

/// The rows of this resource.
pub fn operations() -> Vec<Operation> {
    vec![]
}
