//! Certificates found on hosts, and what becomes of them.

use crate::app::Routes;

pub(super) fn routes(r: Routes) -> Routes {
    r
}
