//! The main job as a newcomer sees it: two commands, and a certificate on a real nginx.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use certctl_local::nginx::{SERVER_NAME, served};
use certctl_tests::stage::{alone, cli, directory, show_logs};
use certctl_tests::{Ran, eventually, openssl, repository, run_command};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_command_serves_a_certificate_that_is_renewed_without_a_failed_handshake_and_survives_a_restart() {
    let _alone = alone().await;
    let dir = directory();
    let dir = Running(dir.path());

    let said = dir.script("up", &["--detach"]).await.ok();
    for step in [
        "postgres",
        "signer",
        "nginx",
        "requested",
        "signed",
        "deployed",
        "verified",
    ] {
        assert!(said.contains(step), "up does not tell of \"{step}\": {said}");
    }
    let env = dir.env();
    let names: Vec<_> = env.keys().map(String::as_str).collect();
    assert_eq!(names, ["CERTCTL_API_KEY", "CERTCTL_DEMO_TLS", "CERTCTL_SERVER_URL"]);
    let (server, key, demo) = (
        &env["CERTCTL_SERVER_URL"],
        &env["CERTCTL_API_KEY"],
        &env["CERTCTL_DEMO_TLS"],
    );
    let address: SocketAddr = demo.parse().unwrap();

    // Anyone can have the CA's certificate, and with it openssl trusts the demo.
    let ca = get(&format!("{server}/ca/iss-local.crt"), None).await;
    let ca_pem = dir.0.join("ca-as-published.pem");
    fs::write(&ca_pem, pem::encode(&pem::Pem::new("CERTIFICATE", ca.clone()))).unwrap();
    let client = format!(
        "s_client -connect {demo} -servername {SERVER_NAME} -verify_hostname {SERVER_NAME} -CAfile {}",
        ca_pem.display()
    );
    let shown = openssl(&client).await.text;
    assert!(shown.contains("Verify return code: 0 (ok)"), "{shown}");
    let listed = cli(server, key, &["list-certs"]).await.ok();
    let row = listed.lines().find(|line| line.contains("mc-demo")).expect(&listed);
    assert!(row.contains("Active") && row.contains(SERVER_NAME), "{row}");

    // Renewed under the eyes of clients that insist.
    let first = served(address, SERVER_NAME).await.unwrap();
    let watch = Watch::start(address, &ca);
    eventually("the first handshakes", Duration::from_secs(10), async || {
        ensure!(watch.count() >= 20, "there were {}", watch.count());
        Ok(())
    })
    .await;
    let renewed = Instant::now();
    cli(server, key, &["renew-cert", "mc-demo", "--wait", "--timeout", "60"])
        .await
        .ok();
    let renewed = renewed.elapsed();
    let seen = watch.count();
    eventually("more handshakes", Duration::from_secs(10), async || {
        ensure!(watch.count() >= seen + 20, "there were {}", watch.count() - seen);
        Ok(())
    })
    .await;
    let watched = watch.end().await;
    println!("renewed in {renewed:?} under {} handshakes", watched.handshakes);
    assert_eq!(watched.failures, Vec::<String>::new());
    let second = served(address, SERVER_NAME).await.unwrap();
    assert_ne!(first.serial, second.serial);
    assert_eq!(
        watched.leaves,
        BTreeSet::from([first.chain[0].clone(), second.chain[0].clone()])
    );

    let versions = dir.versions().await;
    let column = |key: &str| -> Vec<_> { versions.iter().map(|v| v[key].as_str().unwrap().to_owned()).collect() };
    assert_eq!(column("serial_number"), [second.serial.clone(), first.serial]);
    let keys = column("spki_sha256");
    assert_ne!(keys[0], keys[1], "the key was used again");

    // Everything is still there after a restart.
    dir.script("down", &[]).await.ok();
    assert!(
        served(address, SERVER_NAME).await.is_err(),
        "nginx runs on after script/down"
    );
    dir.script("up", &["--detach"]).await.ok();
    let env = dir.env();
    let (server, address) = (&env["CERTCTL_SERVER_URL"], env["CERTCTL_DEMO_TLS"].parse().unwrap());
    assert_eq!(get(&format!("{server}/ca/iss-local.crt"), None).await, ca);
    assert_eq!(dir.versions().await, versions);
    assert_eq!(served(address, SERVER_NAME).await.unwrap(), second);
    let again = dir.script("up", &["--detach"]).await.ok();
    assert!(again.contains("already runs"), "{again}");
    dir.script("down", &[]).await.ok();
}

/// A directory in which `script/up` may have started something; it is stopped in any case.
struct Running<'a>(&'a Path);

impl Running<'_> {
    async fn script(&self, name: &str, args: &[&str]) -> Ran {
        let mut command = Command::new(repository().join("script").join(name));
        command.args(args).arg("--dir").arg(self.0);
        // A build inside a test must not take the test's own variables for its own; nobody's database is used.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            let kept = ["CARGO_HOME", "CARGO_TARGET_DIR"].contains(&name.as_str());
            if !kept
                && ["CARGO", "CERTCTL_", "LD_LIBRARY_PATH"]
                    .iter()
                    .any(|start| name.starts_with(start))
            {
                command.env_remove(name);
            }
        }
        command.env("CERTCTL_PROFILE", "dev");
        run_command(command).await
    }

    fn env(&self) -> BTreeMap<String, String> {
        let path = self.0.join("env");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let text = fs::read_to_string(path).unwrap();
        let pair = |line: &str| {
            let (name, value) = line.strip_prefix("export ")?.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        };
        text.lines()
            .map(|line| pair(line).unwrap_or_else(|| panic!("{line} is no variable")))
            .collect()
    }

    async fn versions(&self) -> Vec<Value> {
        let env = self.env();
        let url = format!("{}/api/v1/certificates/mc-demo/versions", env["CERTCTL_SERVER_URL"]);
        let body = get(&url, Some(&env["CERTCTL_API_KEY"])).await;
        let list: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(list["total"], list["data"].as_array().unwrap().len());
        list["data"].as_array().unwrap().clone()
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            show_logs(self.0);
        }
        let down = std::process::Command::new(repository().join("script/down"))
            .arg("--dir")
            .arg(self.0)
            .output();
        if let Err(error) = down {
            println!("script/down: {error}");
        }
    }
}

async fn get(url: &str, key: Option<&str>) -> Vec<u8> {
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(10))
        .build()
        .unwrap();
    let request = key
        .into_iter()
        .fold(client.get(url), |request, key| request.bearer_auth(key));
    let response = request.send().await.unwrap().error_for_status().unwrap();
    response.bytes().await.unwrap().to_vec()
}

/// Clients that ask the demo for its page, over and over.
struct Watch {
    stop: CancellationToken,
    clients: JoinSet<Watched>,
    count: Arc<std::sync::atomic::AtomicU64>,
}

#[derive(Default)]
struct Watched {
    handshakes: u64,
    failures: Vec<String>,
    leaves: BTreeSet<Vec<u8>>,
}

impl Watch {
    fn start(address: SocketAddr, ca: &[u8]) -> Self {
        const CLIENTS: usize = 4;
        const PACE: Duration = Duration::from_millis(8);
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(ca.to_vec())).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = rustls::client::Resumption::disabled();
        let connector = TlsConnector::from(Arc::new(config));
        let (stop, count) = (CancellationToken::new(), Arc::default());
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            let (connector, stop, count): (_, _, Arc<std::sync::atomic::AtomicU64>) =
                (connector.clone(), stop.clone(), Arc::clone(&count));
            clients.spawn(async move {
                let mut watched = Watched::default();
                let mut pace = interval(PACE);
                while !stop.is_cancelled() {
                    pace.tick().await;
                    match visit(&connector, address).await {
                        Ok(leaf) => watched.leaves.extend([leaf]),
                        Err(why) => watched.failures.push(format!("{why:#}")),
                    }
                    watched.handshakes += 1;
                    count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
                watched
            });
        }
        Self { stop, clients, count }
    }

    fn count(&self) -> u64 {
        self.count.load(std::sync::atomic::Ordering::Relaxed)
    }

    async fn end(self) -> Watched {
        self.stop.cancel();
        let each = self.clients.join_all().await;
        each.into_iter().fold(Watched::default(), |mut all, one| {
            all.handshakes += one.handshakes;
            all.failures.extend(one.failures);
            all.leaves.extend(one.leaves);
            all
        })
    }
}

/// A handshake that verifies the chain and the name, and a page read to its end. Returns the leaf.
async fn visit(connector: &TlsConnector, address: SocketAddr) -> anyhow::Result<Vec<u8>> {
    let visit = async {
        let name = ServerName::try_from(SERVER_NAME)?;
        let stream = TcpStream::connect(address).await.context("no connection")?;
        let mut stream = connector.connect(name, stream).await.context("no handshake")?;
        let leaf = stream.get_ref().1.peer_certificates().context("no certificate")?[0].to_vec();
        stream
            .write_all(b"GET / HTTP/1.0\r\n\r\n")
            .await
            .context("no request")?;
        let mut page = String::new();
        stream.read_to_string(&mut page).await.context("no page")?;
        ensure!(page.ends_with("certctl demo\n"), "another page: {page}");
        Ok(leaf)
    };
    timeout(Duration::from_secs(5), visit)
        .await
        .context("it takes too long")?
}
