//! Named API keys with roles.

use crate::app::Routes;

pub(super) fn routes(r: Routes) -> Routes {
    r
}
