//! The contract's table as commands: a noun for each group of operations, a verb for each operation, and one name that
//! joins both.

use certctl_contract::{catalogue, endpoint::Operation};

/// A noun: its name, other spellings, and what it is about.
pub(crate) struct Noun {
    /// The group in the contract.
    tag: &'static str,
    pub(crate) name: &'static str,
    pub(crate) aliases: &'static [&'static str],
    pub(crate) about: &'static str,
}

const fn noun(tag: &'static str, name: &'static str, aliases: &'static [&'static str], about: &'static str) -> Noun {
    Noun {
        tag,
        name,
        aliases,
        about,
    }
}

/// In the order of `--help`. Groups that share a noun have its first entry's text.
pub(crate) const NOUNS: &[Noun] = &[
    noun(
        "certificates",
        "certs",
        &["certificates", "cert"],
        "Certificates: list, request, renew, deploy, revoke, export",
    ),
    noun("transfer", "certs", &[], ""),
    noun(
        "bulk",
        "bulk",
        &[],
        "Many certificates at once: renew, revoke, reassign",
    ),
    noun(
        "jobs",
        "jobs",
        &["job"],
        "Jobs: list, watch, cancel, retry, what waits for approval, approve, reject",
    ),
    noun(
        "agents",
        "agents",
        &["agent"],
        "Agents: list, register, and what they report",
    ),
    noun(
        "agent_groups",
        "groups",
        &["agent-groups"],
        "Groups of agents and their members",
    ),
    noun("targets", "targets", &["target"], "Targets: where certificates are put"),
    noun(
        "discovery",
        "discovery",
        &["discovered"],
        "Certificates found on hosts: list, claim, dismiss",
    ),
    noun("issuers", "issuers", &["issuer"], "Issuers: who signs"),
    noun("profiles", "profiles", &["profile"], "Profiles: what may be issued"),
    noun(
        "renewal_policies",
        "renewal-policies",
        &[],
        "Renewal policies: when certificates are renewed",
    ),
    noun("renewals", "renewals", &[], "Renewals to come: forecast"),
    noun(
        "policies",
        "policies",
        &["policy"],
        "Policy rules: preview one, violations",
    ),
    noun("teams", "teams", &["team"], "Teams"),
    noun("owners", "owners", &["owner"], "Owners: who is told"),
    noun(
        "notifications",
        "notifications",
        &[],
        "Notifications sent and to be sent",
    ),
    noun("audit", "audit", &[], "The trail: list, show, export"),
    noun("api_keys", "keys", &["api-keys"], "API keys: create, rotate, revoke"),
    noun("sessions", "sessions", &[], "Sessions of browsers"),
    noun("stats", "stats", &[], "Figures"),
    noun("metrics", "stats", &[], ""),
    noun("revocation", "revocation", &["crl"], "CRLs and OCSP"),
    noun("freezes", "freezes", &[], "Times in which nothing is renewed by itself"),
    noun("endpoints", "endpoints", &[], "What is served where clients connect to"),
    noun(
        "blocked_keys",
        "blocked-keys",
        &[],
        "Keys for which nothing is issued: list, block, unblock",
    ),
    noun(
        "key_compromise",
        "key-compromise",
        &[],
        "Revocation by whoever holds the key",
    ),
    noun("recovery", "recovery", &[], "After a restore of the database"),
    noun(
        "explain",
        "explain",
        &["why"],
        "Why a certificate or a job stands where it stands",
    ),
    noun(
        "scheduler",
        "scheduler",
        &[],
        "What runs by itself: who leads, and how the loops went",
    ),
    noun("health", "server", &[], "The server itself"),
];

/// Verbs that the rule of [`Row::verb`] would not find.
const VERBS: &[(&str, &str)] = &[
    ("trigger_renewal", "renew"),
    ("trigger_deployment", "deploy"),
    ("trigger_validation", "validate"),
    ("list_certificate_versions", "versions"),
    ("list_certificate_deployments", "deployments"),
    ("export_certificate", "export"),
    ("list_audit_events", "list"),
    ("get_audit_event", "get"),
    ("export_audit_events", "export"),
    ("list_discovered_certificates", "list"),
    ("get_discovered_certificate", "get"),
    ("claim_discovered_certificate", "claim"),
    ("dismiss_discovered_certificate", "dismiss"),
    ("list_discovery_scans", "scans"),
    ("get_discovery_summary", "summary"),
    ("dashboard_summary", "summary"),
    ("list_policy_violations", "violations"),
    ("list_agent_group_members", "members"),
    ("list_agent_group_overrides", "overrides"),
    ("mark_notification_read", "read"),
    ("resend_notification", "resend"),
    ("list_bulk_operations", "list"),
    ("get_bulk_operation", "get"),
    ("list_bulk_items", "items"),
    ("cancel_bulk_operation", "cancel"),
    ("list_blocked_keys", "list"),
    ("list_endpoints", "list"),
    ("get_blocked_key", "get"),
    ("block_key", "block"),
    ("unblock_key", "unblock"),
    ("get_key_challenge", "challenge"),
    ("report_key_compromise", "report"),
    ("explain_certificate", "certificate"),
    ("explain_job", "job"),
    ("forecast_renewals", "forecast"),
    ("get_job_approval", "approval"),
    ("preview_policy", "preview"),
    ("get_scheduler", "status"),
    ("get_recovery", "get"),
    ("finish_recovery", "finish"),
    ("restore_revocation_records", "restore"),
    // `certs import` reads files and asks this many times.
    ("import_certificates", "import-pem"),
];

/// An operation as a command.
pub(crate) struct Row {
    pub(crate) operation: Operation,
    pub(crate) noun: &'static str,
    pub(crate) verb: String,
}

impl Row {
    fn of(operation: Operation) -> Self {
        let noun = NOUNS.iter().find(|noun| noun.tag == operation.tag);
        let noun = noun.map_or(operation.tag, |noun| noun.name);
        let verb = Self::verb(&operation);
        Self { operation, noun, verb }
    }

    /// What the id says without the words of its group: `list` of `list_renewal_policies`.
    fn verb(operation: &Operation) -> String {
        let id = operation.id();
        if let Some((_, verb)) = VERBS.iter().find(|(known, _)| *known == id) {
            return (*verb).to_owned();
        }
        let of_group = |word: &&str| {
            operation
                .tag
                .split('_')
                .any(|tag| tag == *word || singular(tag) == *word)
        };
        let words: Vec<&str> = id.split('_').filter(|word| !of_group(word)).collect();
        match words.as_slice() {
            [] => id.replace('_', "-"),
            words => words.join("-"),
        }
    }

    /// The joined names, the one that is shown first: `list-certs`, `list-certificates`; `renew-cert`, `trigger-renewal`.
    pub(crate) fn joined(&self) -> Vec<String> {
        let id = self.operation.id().replace('_', "-");
        let short = id.replace("certificate", "cert");
        let said = format!("{}-cert", self.verb);
        let mut names = match self.operation.tag == "certificates" && self.operation.method.as_str() != "GET" {
            true => vec![said, short, id],
            false => vec![short, id],
        };
        let mut seen = std::collections::HashSet::new();
        names.retain(|name| seen.insert(name.clone()));
        names
    }

    /// Whether it lists page by page.
    pub(crate) fn is_list(&self) -> bool {
        is_list(&self.operation)
    }

    /// Whether what it shows comes to an end that can be waited for.
    pub(crate) fn is_watchable(&self) -> bool {
        self.operation.method.as_str() == "GET" && matches!(self.operation.tag, "jobs" | "bulk")
    }
}

/// Whether an operation lists page by page.
pub(crate) fn is_list(operation: &Operation) -> bool {
    (operation.query_params)().iter().any(|param| param.name == "cursor")
}

fn singular(word: &str) -> String {
    match (word.strip_suffix("ies"), word.strip_suffix('s')) {
        (Some(stem), _) => format!("{stem}y"),
        (None, Some(stem)) => stem.to_owned(),
        (None, None) => word.to_owned(),
    }
}

/// Every operation as a command.
pub(crate) fn rows() -> Vec<Row> {
    catalogue().into_iter().map(Row::of).collect()
}

/// The operation of a verb under a noun.
pub(crate) fn by_verb(noun: &str, verb: &str) -> Option<Row> {
    rows().into_iter().find(|row| row.noun == noun && row.verb == verb)
}

/// The operation of a joined name.
pub(crate) fn by_name(name: &str) -> Option<Row> {
    rows()
        .into_iter()
        .find(|row| row.joined().iter().any(|known| known == name))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_operation_has_a_noun_and_a_verb_of_its_own() {
        let rows = rows();
        let unknown = rows
            .iter()
            .map(|row| row.operation.tag)
            .filter(|tag| !NOUNS.iter().any(|n| n.tag == *tag));
        assert_eq!(unknown.collect::<Vec<_>>(), Vec::<&str>::new());
        let mut seen = HashSet::new();
        for row in &rows {
            assert!(
                seen.insert((row.noun, row.verb.clone())),
                "{} {} twice",
                row.noun,
                row.verb
            );
        }
    }

    #[test]
    fn verbs_are_what_people_say() {
        for (noun, verb, id) in [
            ("certs", "list", "list_certificates"),
            ("certs", "get", "get_certificate"),
            ("certs", "renew", "trigger_renewal"),
            ("certs", "revoke", "revoke_certificate"),
            ("certs", "archive", "archive_certificate"),
            ("renewal-policies", "delete", "delete_renewal_policy"),
            ("jobs", "cancel", "cancel_job"),
            ("agents", "register", "register_agent"),
            ("audit", "list", "list_audit_events"),
            ("issuers", "test", "test_issuer"),
        ] {
            let row = by_verb(noun, verb).unwrap_or_else(|| panic!("{noun} {verb}"));
            assert_eq!(row.operation.id(), id);
        }
        for (name, id) in [
            ("list-certs", "list_certificates"),
            ("list-certificates", "list_certificates"),
            ("get-cert", "get_certificate"),
            ("renew-cert", "trigger_renewal"),
            ("revoke-cert", "revoke_certificate"),
            ("list-agents", "list_agents"),
            ("list-jobs", "list_jobs"),
            ("metrics", "metrics"),
        ] {
            let row = by_name(name).unwrap_or_else(|| panic!("{name}"));
            assert_eq!(row.operation.id(), id);
        }
    }
}
