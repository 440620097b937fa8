//! Many certificates at once.

use crate::app::Routes;

pub(super) fn routes(r: Routes) -> Routes {
    r
}
