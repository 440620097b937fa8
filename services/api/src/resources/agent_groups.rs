//! Agent groups: agents that match, and those named.

use crate::app::Routes;

pub(super) fn routes(r: Routes) -> Routes {
    r
}
