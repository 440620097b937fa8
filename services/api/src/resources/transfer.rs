//! Certificates in and out: PEM, PKCS #12.

use crate::app::Routes;

pub(super) fn routes(r: Routes) -> Routes {
    r
}
