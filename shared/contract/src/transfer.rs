//! Certificates in and out: PEM, PKCS #12.

use crate::endpoint::Operation;

/// The rows of this resource.
pub fn operations() -> Vec<Operation> {
    vec![]
}
