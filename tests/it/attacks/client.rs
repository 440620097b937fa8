//! Servers and proxies that attack the programs which call them.

use std::sync::{Arc, Mutex};

use certctl_tests::{
    Ran, run_command, target_dir,
    world::{KEY, World},
};
use sqlx::PgPool;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    process::Command,
    task::JoinHandle,
};

/// A proxy that remembers what it was sent, and refuses all of it.
struct Proxy {
    url: String,
    heard: Arc<Mutex<String>>,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    #[expect(clippy::disallowed_methods, reason = "it is ended with its owner")]
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let heard = Arc::new(Mutex::new(String::new()));
        let hears = heard.clone();
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut octets = [0; 4096];
                let count = stream.read(&mut octets).await.unwrap_or(0);
                hears
                    .lock()
                    .unwrap()
                    .push_str(&String::from_utf8_lossy(&octets[..count]));
                // Whether the client hears it does not matter.
                let _ = stream
                    .write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")
                    .await;
            }
        });
        Self { url, heard, task }
    }

    fn heard(&self) -> String {
        std::mem::take(&mut *self.heard.lock().unwrap())
    }
}

async fn program(name: &str, server: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Ran {
    let mut command = Command::new(target_dir().join(name));
    command.args(arguments).env_clear();
    command.env("CERTCTL_SERVER_URL", server).env("CERTCTL_API_KEY", KEY);
    command.envs(variables.iter().copied());
    run_command(command).await
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn the_api_key_is_not_sent_through_a_proxy_in_plain_text(db: PgPool) {
    let w = World::new(db).await;
    let proxy = Proxy::start().await;
    let all = [
        "HTTP_PROXY",
        "http_proxy",
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
    ];
    let mut variables = all.map(|name| (name, proxy.url.as_str())).to_vec();
    let ran = program("certctl-cli", &w.url, &["teams", "list"], &variables).await;
    assert!(ran.success, "{}", ran.text);
    assert_eq!(proxy.heard(), "", "the server is on this machine");

    variables.push(("CERTCTL_ALLOW_PLAIN_HTTP", "true"));
    let plain = program(
        "certctl-cli",
        "http://certctl.invalid:8443",
        &["teams", "list"],
        &variables,
    )
    .await;
    assert_eq!(plain.code, Some(2), "{}", plain.text);
    assert!(plain.text.contains("NO_PROXY"), "{}", plain.text);
    assert_eq!(proxy.heard(), "");

    let tunnel = program(
        "certctl-cli",
        "https://certctl.invalid:8443",
        &["teams", "list"],
        &variables,
    )
    .await;
    assert_eq!(tunnel.code, Some(3), "{}", tunnel.text);
    let heard = proxy.heard();
    assert!(
        heard.starts_with("CONNECT certctl.invalid:8443") && !heard.contains(KEY),
        "{heard}"
    );

    variables.push(("NO_PROXY", "certctl.invalid"));
    for server in ["http://certctl.invalid:8443", "https://certctl.invalid:8443"] {
        let direct = program("certctl-cli", server, &["teams", "list"], &variables).await;
        assert_eq!(direct.code, Some(3), "{server}: {}", direct.text);
        assert_eq!(proxy.heard(), "", "{server}");
    }
}

#[tokio::test]
async fn plain_http_to_another_machine_is_refused_by_every_client() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    let agent = ["--state-dir", dir, "--key-dir", dir, "--name", "a"];
    for (name, arguments) in [
        ("certctl-cli", &["teams", "list"][..]),
        ("certctl-mcp", &[]),
        ("certctl-agent", &agent),
    ] {
        let ran = program(name, "http://certctl.invalid:8443", arguments, &[]).await;
        assert!(!ran.success, "{name}: {}", ran.text);
        assert!(ran.text.contains("CERTCTL_ALLOW_PLAIN_HTTP"), "{name}: {}", ran.text);
    }
    let variables = [("CERTCTL_ALLOW_PLAIN_HTTP", "true")];
    let ran = program(
        "certctl-cli",
        "http://certctl.invalid:8443",
        &["teams", "list"],
        &variables,
    )
    .await;
    assert_eq!(ran.code, Some(3), "it is tried: {}", ran.text);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn an_argument_of_a_path_cannot_name_another_resource(db: PgPool) {
    let w = World::new(db).await;
    for id in [".", "..", ".\\t.", "\\t..", "..\\n", "\\u0085", ""] {
        let input = format!(r#"{{"id":"{id}"}}"#);
        let ran = program("certctl-cli", &w.url, &["call", "get_team", "--json", &input], &[]).await;
        assert_eq!(ran.code, Some(2), "{id}: {}", ran.text);
    }
    let input = r#"{"id":"../teams/t-unassigned"}"#;
    let ran = program("certctl-cli", &w.url, &["call", "get_team", "--json", input], &[]).await;
    assert_eq!(ran.code, Some(1), "the server has no such team: {}", ran.text);
}
