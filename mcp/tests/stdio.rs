//! The real binary, spoken to as an MCP client speaks: one JSON message a line.

use std::{collections::HashSet, process::Stdio};

use axum::{Json, Router, extract::Request, http::StatusCode, response::IntoResponse, routing::get};
use certctl_contract::catalogue;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

const KEY: &str = "s3cr3t-key";

/// Tool names that existing MCP clients know.
const KNOWN_NAMES: &str = "
    list_certificates get_certificate archive_certificate create_certificate update_certificate
    list_certificate_versions trigger_renewal trigger_deployment revoke_certificate get_crl get_der_crl ocsp_check
    list_issuers get_issuer delete_issuer test_issuer create_issuer update_issuer
    list_targets get_target delete_target create_target update_target
    list_agents get_agent register_agent agent_heartbeat agent_submit_csr agent_pickup_certificate agent_get_work
    agent_report_job_status list_jobs get_job cancel_job approve_job reject_job
    list_policies get_policy delete_policy create_policy update_policy list_policy_violations
    list_profiles get_profile delete_profile create_profile update_profile
    list_teams get_team delete_team create_team update_team list_owners get_owner delete_owner create_owner update_owner
    list_agent_groups get_agent_group delete_agent_group create_agent_group update_agent_group list_agent_group_members
    list_audit_events get_audit_event list_notifications get_notification mark_notification_read
    dashboard_summary certificates_by_status expiration_timeline job_trends issuance_rate
    metrics health ready auth_info auth_check";

struct Session {
    _child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    last_id: u64,
}

impl Session {
    async fn open(server: &str, flags: &[&str]) -> (Self, Value) {
        Self::with(server, flags, &[]).await
    }

    async fn with(server: &str, flags: &[&str], variables: &[(&str, &str)]) -> (Self, Value) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_certctl-mcp"))
            .args(flags)
            .envs(variables.iter().copied())
            .env("CERTCTL_SERVER_URL", server)
            .env("CERTCTL_API_KEY", KEY)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut session = Self {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()).lines(),
            _child: child,
            last_id: 0,
        };
        let hello = json!({
            "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": { "name": "test", "version": "0" },
        });
        let welcome = session.ask("initialize", hello).await;
        session
            .say(json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }))
            .await;
        (session, welcome["result"].clone())
    }

    async fn say(&mut self, message: Value) {
        self.input.write_all(format!("{message}\n").as_bytes()).await.unwrap();
    }

    async fn ask(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        self.say(json!({ "jsonrpc": "2.0", "id": self.last_id, "method": method, "params": params }))
            .await;
        loop {
            let line = self.output.next_line().await.unwrap().expect("an answer, not the end");
            let message: Value = serde_json::from_str(&line).unwrap();
            if message["id"] == self.last_id {
                return message;
            }
        }
    }

    async fn call(&mut self, tool: &str, arguments: Value) -> Value {
        self.ask("tools/call", json!({ "name": tool, "arguments": arguments }))
            .await
    }

    async fn tools(&mut self) -> Vec<Value> {
        let answer = self.ask("tools/list", json!({})).await;
        answer["result"]["tools"].as_array().unwrap().clone()
    }
}

async fn against<T>(app: Router, story: impl AsyncFnOnce(String) -> T) -> T {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    tokio::select! {
        ended = axum::serve(listener, app).into_future() => panic!("the server ended: {ended:?}"),
        result = story(base) => result,
    }
}

fn names(tools: &[Value]) -> HashSet<String> {
    tools.iter().map(|t| t["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn every_operation_is_a_tool_with_a_strict_schema_and_known_names_are_kept() {
    let (mut session, welcome) = Session::open("http://127.0.0.1:1", &[]).await;
    assert_eq!(welcome["serverInfo"]["name"], "certctl");
    assert!(welcome["capabilities"]["tools"].is_object());

    let tools = session.tools().await;
    assert_eq!(tools.len(), catalogue().len());
    for tool in &tools {
        assert_eq!(tool["inputSchema"]["additionalProperties"], false, "{}", tool["name"]);
    }
    let names = names(&tools);
    assert_eq!(KNOWN_NAMES.split_whitespace().count(), 78);
    let missing: Vec<_> = KNOWN_NAMES
        .split_whitespace()
        .filter(|name| !names.contains(&format!("certctl_{name}")))
        .collect();
    assert_eq!(missing, Vec::<&str>::new());
    let hints = |name: &str| {
        let tool = tools.iter().find(|t| t["name"] == name).unwrap();
        let hints = &tool["annotations"];
        (
            hints["readOnlyHint"] == true,
            hints["destructiveHint"] == true,
            hints["idempotentHint"] == true,
        )
    };
    assert_eq!(hints("certctl_list_jobs"), (true, false, true));
    assert_eq!(hints("certctl_trigger_renewal"), (false, false, false));
    assert_eq!(hints("certctl_revoke_certificate"), (false, true, true));
    assert_eq!(hints("certctl_update_team"), (false, false, true));
    assert_eq!(hints("certctl_cancel_job"), (false, true, false));
    assert_eq!(hints("certctl_delete_team"), (false, true, true));
}

#[tokio::test]
async fn reading_only_hides_and_refuses_what_writes() {
    let (mut session, _) = Session::open("http://127.0.0.1:1", &["--read-only"]).await;
    let names = names(&session.tools().await);
    assert!(names.contains("certctl_get_certificate") && !names.contains("certctl_revoke_certificate"));
    let refused = session
        .call("certctl_revoke_certificate", json!({ "id": "mc-1" }))
        .await;
    assert!(
        refused["error"]["message"]
            .as_str()
            .unwrap()
            .contains("there is no tool"),
        "{refused}"
    );
}

#[tokio::test]
async fn answers_are_one_text_with_the_body_and_refusals_are_tool_errors() {
    async fn refuse(request: Request) -> impl IntoResponse {
        let key = request.headers()["authorization"].to_str().unwrap().to_owned();
        (StatusCode::CONFLICT, format!("not now, {key}"))
    }
    let app = Router::new()
        .route(
            "/api/v1/teams/t-1",
            get(async || Json(json!({ "id": "t-1", "name": "web" }))).delete(async || StatusCode::NO_CONTENT),
        )
        .route(
            "/api/v1/crl/iss-local",
            get(async || ([("content-type", "application/pkix-crl")], vec![0x30u8, 0x00])),
        )
        .fallback(refuse);
    against(app, async |base| {
        let (mut session, _) = Session::open(&base, &[]).await;
        for (tool, arguments, is_error, text) in [
            (
                "certctl_get_team",
                json!({ "id": "t-1" }),
                false,
                r#"{"id":"t-1","name":"web"}"#,
            ),
            (
                "certctl_delete_team",
                json!({ "id": "t-1" }),
                false,
                r#"{"status":"deleted"}"#,
            ),
            (
                "certctl_get_der_crl",
                json!({ "issuer_id": "iss-local" }),
                false,
                r#"{"content_type":"application/pkix-crl","bytes":2,"base64":"MAA="}"#,
            ),
            ("certctl_get_team", json!({ "id": "t-2" }), true, "HTTP 409 Conflict: {"),
            (
                "certctl_get_team",
                json!({ "id": "t-1", "x": 1 }),
                true,
                "get_team has no input x",
            ),
            ("certctl_get_team", json!({}), true, "id is missing"),
        ] {
            let answer = session.call(tool, arguments).await;
            let result = &answer["result"];
            assert_eq!(result["isError"], is_error, "{answer}");
            assert_eq!(result["content"].as_array().unwrap().len(), 1, "{answer}");
            let said = result["content"][0]["text"].as_str().unwrap();
            assert!(said.starts_with(text) && !said.contains(KEY), "{said}");
        }
    })
    .await;
}

#[tokio::test]
async fn an_argument_does_not_override_read_only_mode_of_the_environment() {
    for (flags, variable, read_only) in [
        (&["--read-only=false"][..], "true", true),
        (&[], "1", true),
        (&["--read-only"], "false", true),
        (&["--read-only=false"], "false", false),
    ] {
        let (mut session, _) = Session::with("http://127.0.0.1:1", flags, &[("CERTCTL_MCP_READ_ONLY", variable)]).await;
        let tools = session.tools().await;
        let only_reads = tools.iter().all(|tool| tool["annotations"]["readOnlyHint"] == true);
        assert_eq!(only_reads, read_only, "{flags:?} {variable}");
    }
}
