//! One file per resource, with the same name as in the contract: its SQL and its handlers.

mod agent_groups;
mod agents;
mod api_keys;
mod audit;
mod blocked_keys;
mod bulk;
mod certificates;
mod discovery;
mod endpoints;
mod explain;
mod freezes;
mod health;
mod issuers;
mod jobs;
mod key_compromise;
mod metrics;
mod notifications;
mod owners;
mod policies;
mod profiles;
mod recovery;
mod renewal_policies;
mod renewals;
mod revocation;
mod scheduler;
mod sessions;
mod stats;
mod targets;
mod teams;
mod transfer;

use crate::app::Routes;

/// Mounts every operation of the catalogue.
pub fn mount(routes: Routes) -> Routes {
    [
        health::routes,
        sessions::routes,
        api_keys::routes,
        certificates::routes,
        transfer::routes,
        bulk::routes,
        revocation::routes,
        blocked_keys::routes,
        endpoints::routes,
        freezes::routes,
        key_compromise::routes,
        recovery::routes,
        issuers::routes,
        targets::routes,
        agents::routes,
        agent_groups::routes,
        discovery::routes,
        jobs::routes,
        explain::routes,
        policies::routes,
        profiles::routes,
        renewal_policies::routes,
        renewals::routes,
        teams::routes,
        owners::routes,
        audit::routes,
        notifications::routes,
        scheduler::routes,
        stats::routes,
        metrics::routes,
    ]
    .into_iter()
    .fold(routes, |routes, mount| mount(routes))
}
