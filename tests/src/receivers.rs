//! Whom certctl tells: a webhook and a mail server that remember what they were told.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use aws_lc_rs::hmac;
use axum::Router;
use axum::extract::State;
use axum::routing::post;
use bytes::Bytes;
use certctl_runtime::serve;
use certctl_runtime::tasks::Tasks;
use http::{HeaderMap, StatusCode};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::{python, repository};

/// One delivery to the webhook.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The body.
    pub event: Value,
    /// Whether the signature is the one of these octets under the shared secret.
    pub signed: bool,
    /// What tells a repetition from news.
    pub idempotency_key: String,
    /// What was answered.
    pub status: u16,
}

impl Delivery {
    /// A text of the body.
    pub fn text(&self, key: &str) -> &str {
        self.event[key].as_str().unwrap_or_default()
    }
}

#[derive(Default)]
struct Seen {
    deliveries: Vec<Delivery>,
    refusals: BTreeMap<String, VecDeque<u16>>,
}

/// A webhook.
#[derive(Clone)]
pub struct Webhook {
    /// Where it is.
    pub url: String,
    /// The secret shared with it.
    pub secret: String,
    seen: Arc<Mutex<Seen>>,
    tasks: Tasks,
}

impl Webhook {
    /// Starts one that accepts everything.
    ///
    /// # Panics
    ///
    /// There is no free port.
    pub async fn start() -> Self {
        let listener = serve::listen(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let hook = Self {
            url: format!("http://{address}/events"),
            secret: "a-secret-of-the-webhook".to_owned(),
            seen: Arc::default(),
            tasks: Tasks::new(),
        };
        let router = Router::new().route("/events", post(receive)).with_state(hook.clone());
        serve::serve(listener, router, &hook.tasks).await;
        hook
    }

    /// Answers the next events of a type with these statuses.
    pub fn answer(&self, event_type: &str, statuses: &[u16]) {
        let mut seen = self.seen.lock().expect("nobody panics with the lock");
        seen.refusals
            .insert(event_type.to_owned(), statuses.iter().copied().collect());
    }

    /// Everything that was delivered so far, in order.
    pub fn deliveries(&self) -> Vec<Delivery> {
        self.seen
            .lock()
            .expect("nobody panics with the lock")
            .deliveries
            .clone()
    }
}

async fn receive(State(hook): State<Webhook>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let header = |name| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let key = hmac::Key::new(hmac::HMAC_SHA256, hook.secret.as_bytes());
    let given = header("x-signature")
        .strip_prefix("sha256=")
        .and_then(|digits| hex::decode(digits).ok());
    let signed = given.is_some_and(|tag| hmac::verify(&key, &body, &tag).is_ok());
    let event: Value = serde_json::from_slice(&body).unwrap_or_default();
    let mut seen = hook.seen.lock().expect("nobody panics with the lock");
    let refusal = seen
        .refusals
        .get_mut(event["event_type"].as_str().unwrap_or_default())
        .and_then(VecDeque::pop_front);
    let status = refusal.unwrap_or(200);
    seen.deliveries.push(Delivery {
        signed: signed && header("x-signature-algorithm") == "sha256",
        idempotency_key: header("idempotency-key").to_owned(),
        event,
        status,
    });
    StatusCode::from_u16(status).expect("tests use statuses of HTTP")
}

/// Starts a mail server that accepts every message and keeps none; returns its port.
///
/// # Panics
///
/// There is no free port.
pub async fn any_mail(tasks: &Tasks) -> u16 {
    let listener = serve::listen(([127, 0, 0, 1], 0).into()).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let owner = tasks.clone();
    tasks.spawn("mail server", async move {
        let stop = owner.token();
        loop {
            let accepted = tokio::select! { accepted = listener.accept() => accepted, () = stop.cancelled() => return };
            let Ok((stream, _)) = accepted else { continue };
            let stop = owner.token();
            owner.spawn("mail", async move {
                tokio::select! { _ended = converse(stream) => {}, () = stop.cancelled() => {} }
            });
        }
    });
    port
}

/// RFC 5321, as much of it as a client needs to hand over a message.
async fn converse(mut stream: TcpStream) -> std::io::Result<()> {
    let (read, mut write) = stream.split();
    let mut lines = BufReader::new(read).lines();
    write.write_all(b"220 test ESMTP\r\n").await?;
    while let Some(line) = lines.next_line().await? {
        let answer: &[u8] = match line.split([' ', ':']).next().unwrap_or_default() {
            "DATA" => {
                write.write_all(b"354 go on\r\n").await?;
                while lines.next_line().await?.is_some_and(|line| line != ".") {}
                b"250 taken\r\n"
            }
            "QUIT" => b"221 bye\r\n",
            _ => b"250 fine\r\n",
        };
        write.write_all(answer).await?;
    }
    Ok(())
}

/// How the mail server wants to be talked to.
pub enum Security<'a> {
    /// No TLS, no names.
    Plain,
    /// STARTTLS with this certificate and key (PEM files), and then a name and a password.
    StartTls {
        /// Certificate.
        cert: &'a Path,
        /// Key.
        key: &'a Path,
        /// Name.
        username: &'a str,
        /// Password.
        password: &'a str,
    },
}

/// A mail server that keeps what it accepts.
pub struct Mailbox {
    /// The port on 127.0.0.1.
    pub port: u16,
    file: PathBuf,
    _server: Child,
}

impl Mailbox {
    /// Starts it; `file` gets a line of JSON for each message.
    ///
    /// # Panics
    ///
    /// It does not start.
    pub async fn start(file: &Path, security: Security<'_>) -> Self {
        let mut command = Command::new(python());
        command.arg(repository().join("tests/tools/smtp_sink.py")).arg(file);
        if let Security::StartTls {
            cert,
            key,
            username,
            password,
        } = security
        {
            command.arg("--cert").arg(cert).arg("--key").arg(key);
            command.args(["--username", username, "--password", password]);
        }
        let mut server = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(server.stdout.take().expect("it is piped")).lines();
        let port = lines.next_line().await.unwrap().expect("the mail server says its port");
        Self {
            port: port.trim().parse().unwrap(),
            file: file.to_owned(),
            _server: server,
        }
    }

    /// The messages so far: `from`, `to`, `tls`, `user`, `headers`, `body`.
    pub fn messages(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.file).unwrap_or_default();
        let whole = text.lines().filter_map(|line| serde_json::from_str(line).ok());
        whole.collect()
    }
}
