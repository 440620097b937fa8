//! Servers that answer agents with more than they may.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, Uri};
use certctl_agent::Agent;
use certctl_model::time::Clock;
use certctl_runtime::tasks::Tasks;
use clap::Parser;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// A server that answers agents with prepared work, and what it was told.
#[derive(Clone)]
struct HostileServer {
    work: Arc<String>,
    pickup: Arc<String>,
    told: Arc<Mutex<Vec<(String, Value)>>>,
}

impl HostileServer {
    async fn answer(State(server): State<Self>, method: Method, uri: Uri, body: Bytes) -> String {
        let path = uri.path();
        if method == Method::POST {
            let body = serde_json::from_slice(&body).unwrap_or_default();
            server.told.lock().unwrap().push((path.to_owned(), body));
            return json!({ "status": "fine" }).to_string();
        }
        match path.ends_with("/work") {
            true => server.work.to_string(),
            false => server.pickup.to_string(),
        }
    }
}

/// What an agent reports to a server that answers like this: the errors of its jobs, and why it did nothing.
async fn reports(work: Value, pickup: Value) -> (Vec<String>, Option<String>) {
    let server = HostileServer {
        work: Arc::new(work.to_string()),
        pickup: Arc::new(pickup.to_string()),
        told: Arc::default(),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let tasks = Tasks::new();
    let router = Router::new().fallback(HostileServer::answer).with_state(server.clone());
    tasks.spawn("server", async move {
        let _ = axum::serve(listener, router).await;
    });
    let dir = tempfile::tempdir().unwrap();
    let [state, keys] = ["state", "keys"].map(|name| dir.path().join(name).to_str().unwrap().to_owned());
    let args = [
        "certctl-agent",
        "--server",
        &url,
        "--agent-id",
        "a-1",
        "--api-key",
        "k",
        "--long-poll",
        "0",
        "--state-dir",
        &state,
        "--key-dir",
        &keys,
    ];
    let agent = Agent::build(certctl_agent::config::Config::parse_from(args), Clock::system()).unwrap();
    let agent = agent.enrol(&tasks).await.unwrap().unwrap();
    let refused = agent.work_once().await.err().map(|error| format!("{error:#}"));
    let told = server.told.lock().unwrap();
    assert!(told.iter().any(|(path, _)| path.ends_with("/heartbeat")));
    let errors = told
        .iter()
        .filter_map(|(_, body)| body["error"].as_str().map(str::to_owned))
        .collect();
    (errors, refused)
}

fn request(id: usize, names: usize) -> Value {
    let sans: Vec<_> = (0..names).map(|n| format!("n{n}.example.com")).collect();
    json!({ "id": format!("j-{id}"), "type": "Issuance", "certificate_id": "mc-1", "status": "AwaitingCSR",
            "common_name": "a.example.com", "sans": sans })
}

#[tokio::test]
async fn an_agent_reads_no_more_of_a_server_than_its_limits_allow() {
    // 60,000 names: the job fails at once.
    let many = json!({ "jobs": [request(1, 60_000)], "count": 1 });
    let (errors, refused) = reports(many, json!({})).await;
    assert_eq!((errors.len(), refused), (1, None));
    assert!(
        errors[0].contains("the work item has 60001 names; a request has at most 2000"),
        "{errors:?}"
    );

    // An answer without end.
    let large = json!({ "jobs": [], "count": 0, "padding": "x".repeat(5 * 1024 * 1024) });
    let (_, refused) = reports(large, json!({})).await;
    assert!(refused.unwrap().contains("the answer is larger than 4 MiB"));

    // A chain that is too long or too large.
    let deployment = json!({ "jobs": [{
        "id": "j-2", "type": "Deployment", "certificate_id": "mc-1", "status": "Running", "target_type": "NGINX",
        "target_config": { "cert_path": "/nowhere/a.pem" },
    }], "count": 1 });
    for (pem, said) in [
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".repeat(5_000),
            "the chain has 5000 certificates",
        ),
        ("x".repeat(1_000_000), "larger than 524288 bytes"),
    ] {
        let (errors, _) = reports(deployment.clone(), json!({ "certificate_pem": pem })).await;
        assert!(errors[0].contains(said), "{errors:?}");
    }
}

#[tokio::test]
async fn an_agent_takes_a_bounded_number_of_jobs_from_one_answer() {
    let jobs: Vec<_> = (0..5_000).map(|id| request(id, 3_000)).take(40).collect();
    let unknown = json!({ "id": "j-x", "type": "Issuance", "certificate_id": "mc-1", "status": "Failed" });
    let mut all = vec![unknown; 1_000];
    all.extend(jobs);
    let (errors, refused) = reports(json!({ "jobs": all, "count": 1_040 }), json!({})).await;
    assert_eq!((errors.len(), refused), (0, None));
}
