//! Notifications sent and to be sent.

use crate::app::Routes;

pub(super) fn routes(r: Routes) -> Routes {
    r
}
