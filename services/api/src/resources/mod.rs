//! One file per resource, with the same name as in the contract: its SQL and its handlers.

mod agents;
mod audit;
mod certificates;
mod health;
mod issuers;
mod jobs;
mod metrics;
mod owners;
mod profiles;
mod renewal_policies;
mod revocation;
mod targets;
mod teams;

use crate::app::Routes;

/// Mounts every operation of the catalogue.
pub fn mount(routes: Routes) -> Routes {
    [
        health::routes,
        certificates::routes,
        revocation::routes,
        issuers::routes,
        targets::routes,
        agents::routes,
        jobs::routes,
        profiles::routes,
        renewal_policies::routes,
        teams::routes,
        owners::routes,
        audit::routes,
        metrics::routes,
    ]
    .into_iter()
    .fold(routes, |routes, mount| mount(routes))
}
