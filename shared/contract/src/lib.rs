//! The surface of certctl as a table: every operation is one row of data, and what is served, documented, called and
//! tested is read from it.
//!
//! | module | holds |
//! |---|---|
//! | [`endpoint`] | what an operation is; the `resource!` table |
//! | [`mod@query`] | query and path parameters, strictly parsed |
//! | [`list`] | filter, sort, pages and sparse fields of every list |
//! | [`problem`] | the error document (RFC 9457) |
//! | [`openapi`], [`tools`] | the table read as OpenAPI 3.1 and as tool descriptions |
//! | [`example`] | examples, read off schemas |
//! | the others | one resource each: its rows, then its shapes |
//! | [`signer`] | the signer's own surface, not part of the public catalogue |
//!
//! Not here: behaviour, SQL, HTTP servers or clients. Doc comments on operations and fields are published text.
#![warn(missing_docs)]

pub mod agent_groups;
pub mod agents;
pub mod api_keys;
pub mod audit;
pub mod bench;
pub mod blocked_keys;
pub mod bulk;
pub mod certificates;
pub mod discovery;
pub mod endpoint;
pub mod endpoints;
pub mod example;
pub mod explain;
pub mod freezes;
pub mod health;
pub mod issuers;
pub mod jobs;
pub mod key_compromise;
pub mod list;
pub mod metrics;
pub mod notifications;
pub mod openapi;
pub mod owners;
pub mod policies;
pub mod problem;
pub mod profiles;
pub mod query;
pub mod recovery;
pub mod renewal_policies;
pub mod renewals;
pub mod revocation;
pub mod scheduler;
pub mod sessions;
pub mod signer;
pub mod stats;
pub mod targets;
pub mod teams;
pub mod tools;
pub mod transfer;

use endpoint::Operation;

/// Every public operation, in the order it is documented.
pub fn catalogue() -> Vec<Operation> {
    [
        health::operations(),
        sessions::operations(),
        api_keys::operations(),
        certificates::operations(),
        transfer::operations(),
        bulk::operations(),
        revocation::operations(),
        blocked_keys::operations(),
        endpoints::operations(),
        freezes::operations(),
        key_compromise::operations(),
        recovery::operations(),
        issuers::operations(),
        targets::operations(),
        agents::operations(),
        agent_groups::operations(),
        discovery::operations(),
        jobs::operations(),
        explain::operations(),
        policies::operations(),
        profiles::operations(),
        renewal_policies::operations(),
        renewals::operations(),
        teams::operations(),
        owners::operations(),
        audit::operations(),
        notifications::operations(),
        scheduler::operations(),
        stats::operations(),
        metrics::operations(),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    #[test]
    fn no_two_operations_share_an_id_or_a_route() {
        let all = super::catalogue();
        let ids: HashSet<_> = all.iter().map(|o| o.id()).collect();
        let routes: HashSet<_> = all.iter().map(|o| (o.method.clone(), o.path())).collect();
        assert_eq!((ids.len(), routes.len()), (all.len(), all.len()));
    }

    #[test]
    fn every_placeholder_of_a_path_is_a_parameter_of_its_operation() {
        for operation in super::catalogue() {
            let path = operation.path();
            let placeholders: Vec<&str> = path
                .split('/')
                .filter_map(|s| s.strip_prefix('{')?.strip_suffix('}'))
                .collect();
            let names: Vec<&str> = (operation.path_params)().iter().map(|p| p.name).collect();
            assert_eq!(placeholders, names, "{}", operation.id());
        }
    }
}
