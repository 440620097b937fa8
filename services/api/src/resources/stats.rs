//! Figures for charts.

use crate::app::Routes;

pub(super) fn routes(r: Routes) -> Routes {
    r
}
