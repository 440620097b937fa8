//! The tools of the Model Context Protocol, as the table offers them.

use certctl_contract::{catalogue, tools};

fn names() -> Vec<String> {
    catalogue()
        .iter()
        .map(|operation| tools::tool(operation).name)
        .collect()
}

#[test]
fn tools_keep_their_names() {
    insta::assert_snapshot!(names().join("\n"));
}

#[test]
fn tools_that_clients_know_are_there_and_take_what_they_send() {
    // What existing clients call, with inputs they send.
    let known = [
        (
            "list_certificates",
            "page per_page status environment owner_id team_id issuer_id",
        ),
        ("get_certificate", "id"),
        ("archive_certificate", "id"),
        (
            "create_certificate",
            "name common_name owner_id team_id issuer_id id sans environment target_ids renewal_policy_id certificate_profile_id tags",
        ),
        (
            "update_certificate",
            "id name environment owner_id team_id target_ids renewal_policy_id certificate_profile_id tags",
        ),
        ("list_certificate_versions", "id page per_page"),
        ("trigger_renewal", "id"),
        ("trigger_deployment", "id target_id"),
        ("revoke_certificate", "id reason"),
        ("get_crl", ""),
        ("get_der_crl", "issuer_id"),
        ("ocsp_check", "issuer_id serial"),
        ("list_issuers", "page per_page"),
        ("get_issuer", "id"),
        ("create_issuer", "name type config enabled"),
        ("update_issuer", "id name type config enabled"),
        ("delete_issuer", "id"),
        ("test_issuer", "id"),
        ("list_targets", "page per_page"),
        ("get_target", "id"),
        ("create_target", "name type agent_id config enabled"),
        ("update_target", "id name type agent_id config enabled"),
        ("delete_target", "id"),
        ("list_agents", "page per_page"),
        ("get_agent", "id"),
        ("register_agent", "name hostname id"),
        ("agent_heartbeat", "id version hostname os architecture ip_address"),
        ("agent_submit_csr", "agent_id csr_pem certificate_id"),
        ("agent_pickup_certificate", "agent_id cert_id"),
        ("agent_get_work", "id"),
        ("agent_report_job_status", "agent_id job_id status error"),
        ("list_jobs", "page per_page status type"),
        ("get_job", "id"),
        ("cancel_job", "id"),
        ("approve_job", "id"),
        ("reject_job", "id reason"),
        ("list_policies", "page per_page"),
        ("get_policy", "id"),
        ("create_policy", "name type config enabled"),
        ("update_policy", "id name type config enabled"),
        ("delete_policy", "id"),
        ("list_policy_violations", "id page per_page"),
        ("list_agent_groups", "page per_page"),
        ("get_agent_group", "id"),
        (
            "create_agent_group",
            "name description match_os match_architecture match_ip_cidr match_version enabled",
        ),
        (
            "update_agent_group",
            "id name description match_os match_architecture match_ip_cidr match_version enabled",
        ),
        ("delete_agent_group", "id"),
        ("list_agent_group_members", "id"),
        ("list_notifications", "page per_page"),
        ("get_notification", "id"),
        ("mark_notification_read", "id"),
        ("list_profiles", "page per_page"),
        ("get_profile", "id"),
        (
            "create_profile",
            "name description allowed_key_algorithms max_ttl_seconds allowed_ekus required_san_patterns allow_short_lived enabled",
        ),
        (
            "update_profile",
            "id name description allowed_key_algorithms max_ttl_seconds allowed_ekus required_san_patterns allow_short_lived enabled",
        ),
        ("delete_profile", "id"),
        ("list_teams", "page per_page"),
        ("get_team", "id"),
        ("create_team", "name description"),
        ("update_team", "id name description"),
        ("delete_team", "id"),
        ("list_owners", "page per_page"),
        ("get_owner", "id"),
        ("create_owner", "name email team_id"),
        ("update_owner", "id name email team_id"),
        ("delete_owner", "id"),
        ("certificates_by_status", ""),
        ("expiration_timeline", "days"),
        ("job_trends", "days"),
        ("issuance_rate", "days"),
        ("list_audit_events", "page per_page"),
        ("get_audit_event", "id"),
        ("dashboard_summary", ""),
        ("metrics", ""),
        ("health", ""),
        ("ready", ""),
        ("auth_info", ""),
        ("auth_check", ""),
    ];
    assert_eq!(known.len(), 78);
    let all: Vec<_> = catalogue().iter().map(tools::tool).collect();
    for (name, inputs) in known {
        let tool = all.iter().find(|tool| tool.name == format!("certctl_{name}"));
        let tool = tool.unwrap_or_else(|| panic!("there is no tool certctl_{name}"));
        for input in inputs.split_whitespace() {
            assert!(tool.input["properties"].get(input).is_some(), "{name} takes {input}");
        }
        assert_eq!(tool.input["additionalProperties"], false, "{name}");
    }
}
