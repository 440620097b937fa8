//! Where the API meets the network: TLS, proxies, origins, and clients that are slow.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use axum::Router;
use axum::routing::{get, post};
use certctl_client::{Client, Secret};
use certctl_contract::{health::AuthCheck, query::NoParams};
use certctl_runtime::client_addr::{ClientAddr, ForwardedHeader, Proxies};
use certctl_runtime::serve::{self, Front, Limits};
use certctl_runtime::tasks::Tasks;
use certctl_runtime::tls::{Tls, TlsMin};
use certctl_tests::beside::HaProxy;
use certctl_tests::eventually;
use certctl_tests::stage::directory;
use certctl_tests::world::{KEY, World};
use http::Method;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use sqlx::PgPool;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

const PATIENCE: Duration = Duration::from_secs(20);

async fn front(front: Front, router: Router, tasks: &Tasks) -> SocketAddr {
    let listener = serve::listen(([127, 0, 0, 1], 0).into()).await.unwrap();
    let address = listener.local_addr().unwrap();
    serve::serve_front(front, listener, router, tasks);
    address
}

/// Answers with the address of the client.
fn who() -> Router {
    let route = get(async |client: axum::Extension<ClientAddr>| client.0.0.to_string());
    Router::new().route("/who", route)
}

fn behind(proxies: Proxies) -> Front {
    Front {
        proxies,
        ..Front::default()
    }
}

/// Sends octets and reads all that comes back.
async fn exchange(address: SocketAddr, octets: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(octets).await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .expect("the connection ends");
    String::from_utf8_lossy(&answer).into_owned()
}

const ASK: &str = "GET /who HTTP/1.1\r\nhost: a\r\nconnection: close\r\n";

#[tokio::test]
async fn proxies_name_the_client_only_if_they_are_trusted() {
    let tasks = Tasks::new();
    let loopback = || vec!["127.0.0.0/8".parse().unwrap()];
    let trusting = Proxies {
        trusted: loopback(),
        ..Proxies::default()
    };
    let speaking = Proxies {
        proxy_protocol: true,
        header: ForwardedHeader::Forwarded,
        ..trusting.clone()
    };
    let elsewhere = Proxies {
        trusted: vec!["192.0.2.0/24".parse().unwrap()],
        ..speaking.clone()
    };
    let spoofed = format!("{ASK}x-forwarded-for: 198.51.100.1, 203.0.113.5\r\nforwarded: for=198.51.100.9\r\n\r\n");
    let said = format!("PROXY TCP4 192.0.2.7 127.0.0.1 5000 443\r\n{spoofed}");
    for (proxies, sent, answer) in [
        (Proxies::default(), &spoofed, "127.0.0.1"),
        (trusting, &spoofed, "203.0.113.5"),
        // The header that the proxy does not write is the client's own.
        (speaking.clone(), &said, "192.0.2.7"),
        (elsewhere, &spoofed, "127.0.0.1"),
    ] {
        let address = front(behind(proxies.clone()), who(), &tasks).await;
        let answered = exchange(address, sent.as_bytes()).await;
        assert!(
            answered.ends_with(&format!("\r\n\r\n{answer}")),
            "{proxies:?}: {answered}"
        );
    }
    // A header nobody asked for is no HTTP, and a missing one is not guessed.
    let plain = front(Front::default(), who(), &tasks).await;
    assert!(exchange(plain, said.as_bytes()).await.starts_with("HTTP/1.1 400"));
    let strict = front(behind(speaking), who(), &tasks).await;
    assert_eq!(exchange(strict, spoofed.as_bytes()).await, "");
    assert!(tasks.drain(PATIENCE).await);
}

#[tokio::test]
async fn haproxy_tells_who_asks_by_header_and_by_both_versions_of_its_protocol() {
    let tasks = Tasks::new();
    for (each, proxy_protocol) in [("send-proxy", true), ("send-proxy-v2", true), ("check", false)] {
        let dir = directory();
        let proxies = Proxies {
            trusted: vec!["127.0.0.2/32".parse().unwrap(), "127.0.0.1/32".parse().unwrap()],
            proxy_protocol,
            ..Proxies::default()
        };
        let address = front(behind(proxies), who(), &tasks).await;
        // With its own address trusted, the client is the one before it, which came from another loopback address.
        let option = if proxy_protocol { each.to_owned() } else { String::new() };
        let proxy = HaProxy::start(dir.path(), &[address], &option).await;
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.9:0".parse().unwrap()).unwrap();
        let mut stream = socket.connect(proxy.address).await.unwrap();
        stream.write_all(format!("{ASK}\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("127.0.0.9"), "{each}: {answer}");
    }
    assert!(tasks.drain(PATIENCE).await);
}

/// Writes a new pair for `localhost` and returns its certificate as PEM.
fn pair(cert: &Path, key: &Path) -> String {
    let CertifiedKey {
        cert: made,
        signing_key,
    } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(cert, made.pem()).unwrap();
    std::fs::write(key, signing_key.serialize_pem()).unwrap();
    made.pem()
}

fn browser(ca: &str, max: Option<reqwest::tls::Version>) -> reqwest::Client {
    let mut client = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([reqwest::Certificate::from_pem(ca.as_bytes()).unwrap()]);
    if let Some(max) = max {
        client = client.tls_version_max(max);
    }
    client.build().unwrap()
}

#[tokio::test]
async fn tls_is_1_3_with_http_2_and_follows_its_files_without_dropping_anyone() {
    let (dir, tasks) = (directory(), Tasks::new());
    let (cert, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
    let first = pair(&cert, &key);
    let tls = Arc::new(Tls::load(&cert, &key, TlsMin::Tls13).unwrap());
    tasks.spawn("tls", tls.clone().follow(tasks.token(), |_| {}));
    let with_tls = Front {
        tls: Some(tls),
        ..Front::default()
    };
    let address = front(with_tls, who(), &tasks).await;
    let url = format!("https://localhost:{}/who", address.port());

    let old = browser(&first, None);
    let answer = old.get(&url).send().await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), answer.version()),
        (200, http::Version::HTTP_2)
    );
    let older = browser(&first, Some(reqwest::tls::Version::TLS_1_2));
    assert!(older.get(&url).send().await.is_err(), "TLS 1.2 is not spoken");

    // Half a change is no change: a certificate without its key.
    let second = pair(&dir.path().join("new.crt"), &dir.path().join("new.key"));
    std::fs::rename(dir.path().join("new.crt"), &cert).unwrap();
    let refused = || {
        let text = certctl_runtime::telemetry::render();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("tls_reload_failures_total "));
        line.and_then(|count| count.parse::<u64>().ok()).unwrap_or(0)
    };
    eventually("the pair to be refused", PATIENCE, async || {
        ensure!(refused() > 0, "it was not");
        Ok(())
    })
    .await;
    browser(&first, None)
        .get(&url)
        .send()
        .await
        .expect("the old pair is still there");
    std::fs::rename(dir.path().join("new.key"), &key).unwrap();
    eventually("the new pair", PATIENCE, async || {
        Ok(browser(&second, None).get(&url).send().await?)
    })
    .await;
    // The connection of before goes on with what it began with.
    assert_eq!(old.get(&url).send().await.unwrap().status(), 200);
    assert!(browser(&first, None).get(&url).send().await.is_err());

    let both = Arc::new(Tls::load(&cert, &key, TlsMin::Tls12).unwrap());
    let with_tls = Front {
        tls: Some(both),
        ..Front::default()
    };
    let address = front(with_tls, who(), &tasks).await;
    let older = browser(&second, Some(reqwest::tls::Version::TLS_1_2));
    let url = format!("https://localhost:{}/who", address.port());
    assert_eq!(older.get(url).send().await.unwrap().status(), 200);

    // Plain HTTP, silence and noise on the TLS port end by themselves.
    assert!(
        !exchange(address, b"GET /who HTTP/1.1\r\nhost: a\r\n\r\n")
            .await
            .contains("200 OK")
    );
    drop((old, older));
    assert!(tasks.drain(PATIENCE).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_clients_are_ended_and_hold_up_nobody() {
    let tasks = Tasks::new();
    let echo = post(async |body: bytes::Bytes| body.len().to_string());
    let router = who().route("/echo", echo);
    let limits = Limits {
        header_timeout: Duration::from_millis(400),
        idle_timeout: Duration::from_secs(2),
        ..Limits::default()
    };
    let hurried = Front {
        limits,
        ..Front::default()
    };
    let address = front(hurried, router, &tasks).await;

    // Three hundred that drip their heads, and three hundred that promise a body.
    let mut heads = Vec::new();
    let mut bodies = Vec::new();
    for _ in 0..300 {
        let mut head = TcpStream::connect(address).await.unwrap();
        head.write_all(b"GET /who HTTP/1.1\r\nhost: a\r\nx-drip:")
            .await
            .unwrap();
        heads.push(head);
        let mut body = TcpStream::connect(address).await.unwrap();
        body.write_all(b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n1")
            .await
            .unwrap();
        bodies.push(body);
    }
    let mut worst = Duration::ZERO;
    for _ in 0..50 {
        let began = Instant::now();
        assert!(
            exchange(address, format!("{ASK}\r\n").as_bytes())
                .await
                .ends_with("127.0.0.1")
        );
        worst = worst.max(began.elapsed());
        // They go on dripping; those that were ended by now do not matter.
        for head in &mut heads {
            let _ = head.try_write(b"x");
        }
    }
    assert!(
        worst < Duration::from_millis(500),
        "somebody waited {worst:?} among slow clients"
    );
    for mut head in heads {
        let ended = timeout(PATIENCE, head.read_to_end(&mut Vec::new())).await;
        assert!(ended.is_ok(), "a slow head keeps its connection");
    }
    // A second head on a connection has no more time than the first, and silence more than either.
    let mut second = TcpStream::connect(address).await.unwrap();
    second.write_all(b"GET /who HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut octet = [0; 1];
    second.read_exact(&mut octet).await.unwrap();
    let began = Instant::now();
    second.write_all(b"GET /w").await.unwrap();
    let _ = timeout(PATIENCE, second.read_to_end(&mut Vec::new()))
        .await
        .expect("it is ended");
    assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
    drop(bodies);
    assert!(tasks.drain(PATIENCE).await);
}

#[tokio::test]
async fn a_head_that_is_too_large_is_a_431() {
    let tasks = Tasks::new();
    let address = front(Front::default(), who(), &tasks).await;
    let large = format!("{ASK}x-large: {}\r\n\r\n", "x".repeat(70_000));
    let answer = exchange(address, large.as_bytes()).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    let ordinary = format!("{ASK}x-large: {}\r\n\r\n", "x".repeat(30_000));
    assert!(exchange(address, ordinary.as_bytes()).await.starts_with("HTTP/1.1 200"));
    assert!(tasks.drain(PATIENCE).await);
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn the_client_speaks_to_a_server_whose_authority_it_is_told(db: PgPool) {
    let dir = directory();
    let (cert, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
    let authority = pair(&cert, &key);
    let settings = [
        ("--tls-cert-path", cert.to_str().unwrap()),
        ("--tls-key-path", key.to_str().unwrap()),
    ];
    let w = World::with_api(db, &settings).await;
    let url = w.url.replace("http://127.0.0.1", "https://localhost");
    let told = Client::builder(&url).token(Secret::new(KEY)).ca_cert(authority);
    told.build()
        .unwrap()
        .call::<AuthCheck>(NoParams, NoParams, Default::default())
        .await
        .unwrap();
    let untold = Client::builder(&url).token(Secret::new(KEY)).build().unwrap();
    assert!(
        untold
            .call::<AuthCheck>(NoParams, NoParams, Default::default())
            .await
            .is_err()
    );
    let answer = browser(&std::fs::read_to_string(&cert).unwrap(), None)
        .get(format!("{url}/health"))
        .send()
        .await;
    assert_eq!(
        answer.unwrap().headers()["strict-transport-security"],
        "max-age=31536000"
    );
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn browsers_are_told_nothing_about_origins_unless_the_settings_say_so(db: PgPool) {
    let w = World::new(db).await;
    let origin = [
        ("origin", "https://a.example"),
        ("access-control-request-method", "PUT"),
    ];
    for method in [Method::GET, Method::OPTIONS] {
        let answer = w.with_headers(method, "/api/v1/teams", Some(KEY), &origin, "").await;
        let told = answer
            .headers
            .keys()
            .any(|name| name.as_str().starts_with("access-control"));
        assert!(!told, "{answer:?}");
    }
    let answer = w
        .with_headers(Method::OPTIONS, "/api/v1/teams", None, &origin, "")
        .await;
    assert_eq!((answer.status, answer.octets.len()), (204, 0));
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn pages_of_listed_origins_may_read_answers_and_ask_before(db: PgPool) {
    let w = World::with_api(db, &[("--cors-origins", "https://a.example,https://b.example")]).await;
    for (origin, allowed) in [("https://a.example", true), ("https://c.example", false)] {
        let asked = [("origin", origin), ("access-control-request-method", "PUT")];
        let before = w
            .with_headers(Method::OPTIONS, "/api/v1/teams/t-1", None, &asked, "")
            .await;
        assert_eq!(before.status, 204, "{before:?}");
        assert!(!before.header("x-request-id").is_empty());
        // Refusals are readable too.
        for (key, status) in [(Some(KEY), 200), (None, 401)] {
            let answer = w.with_headers(Method::GET, "/api/v1/teams", key, &asked[..1], "").await;
            assert_eq!(answer.status, status);
            for answer in [&before, &answer] {
                let shared = if allowed { (origin, "true") } else { ("", "") };
                assert_eq!(
                    (
                        answer.header("access-control-allow-origin"),
                        answer.header("access-control-allow-credentials")
                    ),
                    shared
                );
                assert!(answer.headers.get_all("vary").iter().any(|value| value == "Origin"));
            }
        }
    }
}

#[sqlx::test(migrator = "certctl_store::MIGRATOR")]
async fn every_answer_has_the_security_headers_and_what_is_secret_is_not_stored(db: PgPool) {
    let w = World::new(db).await;
    for (method, path, key, status) in [
        (Method::GET, "/api/v1/teams", Some(KEY), 200),
        (Method::GET, "/api/v1/teams", None, 401),
        (Method::GET, "/api/v1/teams/nobody", Some(KEY), 404),
        (Method::PATCH, "/api/v1/teams", Some(KEY), 405),
        (Method::GET, "/nothing", None, 404),
        (Method::GET, "/health", None, 200),
        (Method::GET, "/ca/iss-local.crt", None, 200),
        (Method::GET, "/%ff", None, 400),
    ] {
        let answer = w.raw(method, path, key, "").await;
        assert_eq!(answer.status, status, "{answer:?}");
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-resource-policy", "same-origin"),
            // Not over plain HTTP (RFC 6797 §7.2).
            ("strict-transport-security", ""),
        ] {
            assert_eq!(answer.header(name), value, "{answer:?}");
        }
        if path.starts_with("/api/") {
            // What has a validator may be kept by whoever asked.
            let kept = if answer.header("etag").is_empty() {
                "no-store"
            } else {
                "private, no-cache"
            };
            assert_eq!(answer.header("cache-control"), kept, "{answer:?}");
        }
    }
    let agent = serde_json::json!({ "name": "web-1", "hostname": "web-1" });
    let registered = w.post("/api/v1/agents", agent).await;
    assert!(
        registered.status < 300 && registered.header("cache-control") == "no-store",
        "{registered:?}"
    );
}
