//! Logging in with a browser.

use crate::app::Routes;

pub(super) fn routes(r: Routes) -> Routes {
    r
}
