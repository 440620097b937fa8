//! Stories over a real database, as the notifier's own role, with a receiver that answers as it is told.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use aws_lc_rs::hmac;
use axum::{Router, body::Bytes, extract::State, http::HeaderMap, http::StatusCode, routing::post};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use certctl_model::{
    notice::Channel,
    time::{Clock, Time},
};
use certctl_runtime::{serve, tasks::Tasks};
use certctl_store::{
    Error,
    outbox::{self, Settlement},
};
use clap::Parser;
use sqlx::{PgPool, postgres::PgPoolOptions};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
};

use crate::{Notifier, config::Config, dispatch};

const SECRET: &str = "geheim";

#[derive(Default)]
struct Receiver {
    /// What to answer, first one first; 200 when there is nothing left.
    answers: Mutex<Vec<u16>>,
    /// Idempotency keys of what came with a right signature.
    heard: Mutex<Vec<String>>,
}

async fn hear(State(receiver): State<Arc<Receiver>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let header = |name: &str| headers[name].to_str().unwrap().to_owned();
    let signature = hex::decode(header("X-Signature").strip_prefix("sha256=").unwrap()).unwrap();
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    hmac::verify(&key, &body, &signature).unwrap();
    assert_eq!(header("X-Signature-Algorithm"), "sha256");
    assert_eq!(header("webhook-id"), header("Idempotency-Key"));
    let signed = [
        format!("{}.{}.", header("webhook-id"), header("webhook-timestamp")).as_bytes(),
        &body,
    ]
    .concat();
    let standard = STANDARD
        .decode(header("webhook-signature").strip_prefix("v1,").unwrap())
        .unwrap();
    hmac::verify(&key, &signed, &standard).unwrap();
    assert_eq!(header("User-Agent"), "certctl-notifier/1.0");
    receiver.heard.lock().unwrap().push(header("Idempotency-Key"));
    let mut answers = receiver.answers.lock().unwrap();
    match answers.is_empty() {
        true => StatusCode::OK,
        false => StatusCode::from_u16(answers.remove(0)).unwrap(),
    }
}

struct World {
    db: PgPool,
    clock: Clock,
    receiver: Arc<Receiver>,
    notifier: Arc<Notifier>,
    _tasks: Tasks,
}

impl World {
    async fn new(db: PgPool, answers: &[u16], more: &[&str]) -> Self {
        let (receiver, tasks) = (Arc::new(Receiver::default()), Tasks::new());
        receiver.answers.lock().unwrap().extend(answers);
        let listener = serve::listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let router = Router::new().route("/hook", post(hear)).with_state(receiver.clone());
        serve::serve(listener, router, &tasks).await;
        let arguments = ["certctl-notifier", "--database-url", "postgres://unused"];
        // A test may have a receiver of its own.
        let own = ["--webhook-url", &url];
        let own = own.iter().filter(|_| !more.contains(&"--webhook-url"));
        let secret = ["--webhook-secret", SECRET];
        let config = Config::parse_from(arguments.iter().chain(own).chain(&secret).chain(more));
        let options = (*db.connect_options()).clone().options([("role", "certctl_notifier")]);
        let as_notifier = PgPoolOptions::new().max_connections(20).connect_lazy_with(options);
        let clock = Clock::manual(Time::from_unix(1_800_000_000));
        let notifier = Notifier::over(as_notifier, &config, clock.clone()).unwrap();
        Self {
            db,
            clock,
            receiver,
            notifier,
            _tasks: tasks,
        }
    }

    async fn enqueue(&self, n: usize, channel: &str, recipient: &str) {
        sqlx::query(
            "INSERT INTO notifications (id, type, channel, recipient, subject, message, dedup_key, status, not_before,
                                        created_at)
             VALUES ($1, 'RenewalSuccess', $2, $3, 'shop was renewed', 'Grüße.', $1, 'pending', $4, $4)",
        )
        .bind(format!("ne-{n}"))
        .bind(channel)
        .bind(recipient)
        .bind(self.clock.now())
        .execute(&self.db)
        .await
        .unwrap();
    }

    async fn drain_at(&self, seconds_later: u64) -> u64 {
        self.clock.advance(Duration::from_secs(seconds_later));
        self.notifier.drain().await.unwrap()
    }

    async fn state(&self) -> String {
        let sql = "SELECT string_agg(concat_ws(' ', status, attempts, error), ', ' ORDER BY id) FROM notifications";
        sqlx::query_scalar(sql).fetch_one(&self.db).await.unwrap()
    }

    fn heard(&self) -> Vec<String> {
        let mut heard = self.receiver.heard.lock().unwrap().clone();
        heard.sort();
        heard
    }
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_webhook_that_fails_once_is_posted_again_and_settled(db: PgPool) {
    let w = World::new(db, &[503], &[]).await;
    w.enqueue(1, "Webhook", "webhook").await;
    assert_eq!(w.drain_at(0).await, 1);
    assert_eq!(
        w.state().await,
        "pending 1 the webhook answered 503 Service Unavailable"
    );
    assert_eq!(w.drain_at(29).await, 0, "it waits for half a minute");
    assert_eq!(w.drain_at(1).await, 1);
    assert_eq!(w.state().await, "sent 2");
    assert_eq!(w.drain_at(3600).await, 0);
    assert_eq!(w.heard(), ["ne-1", "ne-1"]);
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_refused_or_hopeless_notification_becomes_a_dead_letter(db: PgPool) {
    let w = World::new(db, &[410, 500, 500], &["--max-attempts", "2"]).await;
    w.enqueue(1, "Webhook", "webhook").await;
    w.drain_at(0).await;
    w.enqueue(2, "Webhook", "webhook").await;
    w.drain_at(0).await;
    w.drain_at(30).await;
    assert_eq!(
        w.state().await,
        "failed 1 the webhook answered 410 Gone, \
         failed 2 given up after 2 tries: the webhook answered 500 Internal Server Error"
    );
}

#[sqlx::test(migrations = "../../migrations")]
async fn what_has_no_address_is_skipped_and_a_channel_without_receiver_has_no_rows(db: PgPool) {
    let w = World::new(db, &[], &[]).await;
    w.enqueue(1, "Email", "ops@example.net").await;
    w.enqueue(2, "Webhook", " ").await;
    assert_eq!(w.drain_at(0).await, 1);
    assert_eq!(w.state().await, "skipped 1 the owner of the certificate has no address");
    let channels =
        "SELECT string_agg(concat_ws(' ', channel, configured), ', ' ORDER BY channel) FROM notification_channels";
    let channels: String = sqlx::query_scalar(channels).fetch_one(&w.db).await.unwrap();
    assert_eq!(channels, "Email f, Webhook t");
    // Another notifier that has a mail server counts, and this one removes nothing meanwhile.
    outbox::declare(&w.db, Channel::Email, true, w.clock.now())
        .await
        .unwrap();
    w.enqueue(3, "Email", "ops@example.net").await;
    assert_eq!(w.drain_at(60).await, 0);
    assert!(w.state().await.contains("pending 0"), "{}", w.state().await);
    w.drain_at(300).await;
    assert!(!w.state().await.contains("pending"), "{}", w.state().await);
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_receiver_that_refuses_once_is_asked_again(db: PgPool) {
    let refusals = [401, 404, 409, 425, 302];
    let w = World::new(db, &refusals, &[]).await;
    for n in 1..=refusals.len() {
        w.enqueue(n, "Webhook", "webhook").await;
    }
    assert_eq!(w.drain_at(0).await, 5);
    assert_eq!(w.drain_at(30).await, 5);
    assert_eq!(w.state().await, ["sent 2"; 5].join(", "));
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_slow_receiver_delays_no_other_notification(db: PgPool) {
    let (slow, hook) = (
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
        Arc::new(Receiver::default()),
    );
    let url = format!("http://{}/hook", slow.local_addr().unwrap());
    let w = World::new(db, &[], &["--webhook-url", &url]).await;
    let (tasks, places) = (Tasks::new(), Arc::new(dispatch::Places::default()));
    let begin = async || {
        dispatch::begin(&w.notifier, Channel::Webhook, &places, &tasks)
            .await
            .unwrap()
    };
    w.enqueue(1, "Webhook", "webhook").await;
    assert_eq!(begin().await, 1);
    // The first is never answered.
    let _first = slow.accept().await.unwrap();
    let router = Router::new().route("/hook", post(hear)).with_state(hook.clone());
    let others = Tasks::new();
    serve::serve(slow, router, &others).await;
    for n in [2, 3] {
        w.enqueue(n, "Webhook", "webhook").await;
    }
    let mut freed = places.freed();
    assert_eq!(begin().await, 2);
    while hook.heard.lock().unwrap().len() < 2 {
        freed.changed().await.unwrap();
    }
    let mut heard = hook.heard.lock().unwrap().clone();
    heard.sort();
    assert_eq!(heard, ["ne-2", "ne-3"]);
}

#[sqlx::test(migrations = "../../migrations")]
async fn two_notifiers_deliver_everything_once(db: PgPool) {
    let w = World::new(db, &[], &[]).await;
    for n in 10..60 {
        w.enqueue(n, "Webhook", "webhook").await;
    }
    let (a, b) = tokio::join!(w.notifier.drain(), w.notifier.drain());
    assert_eq!(a.unwrap() + b.unwrap(), 50);
    assert_eq!(w.heard(), (10..60).map(|n| format!("ne-{n}")).collect::<Vec<_>>());
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_lost_lease_cannot_settle(db: PgPool) {
    let w = World::new(db, &[], &[]).await;
    w.enqueue(1, "Webhook", "webhook").await;
    let lease = Duration::from_secs(60);
    let slow = outbox::claim(&w.db, Channel::Webhook, w.clock.now(), lease, 10)
        .await
        .unwrap();
    assert_eq!(w.drain_at(59).await, 0, "it is claimed");
    assert_eq!(w.drain_at(1).await, 1);
    let error = "late".to_owned();
    let late = outbox::settle(&w.db, &slow[0], &Settlement::Failed { error }, w.clock.now()).await;
    assert!(matches!(late, Err(Error::LeaseLost)), "{late:?}");
    assert_eq!(w.state().await, "sent 1");
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_mail_server_that_never_answers_does_not_hold_up_webhooks(db: PgPool) {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port().to_string();
    let more = [
        "--smtp-host",
        "127.0.0.1",
        "--smtp-security",
        "none",
        "--smtp-port",
        &port,
    ];
    let w = World::new(db, &[], &more).await;
    for n in 10..30 {
        w.enqueue(n, "Email", "ops@example.net").await;
    }
    let story = async {
        // Kept open, so that the mail stays under way.
        let _connection = silent.accept().await.unwrap();
        w.enqueue(30, "Webhook", "webhook").await;
        assert_eq!(dispatch::drain(&w.notifier, Channel::Webhook).await.unwrap(), 1);
        assert_eq!(w.heard(), ["ne-30"]);
    };
    tokio::select! {
        _ = dispatch::drain(&w.notifier, Channel::Email) => unreachable!("nobody answers"),
        () = story => {}
    }
}

/// Speaks SMTP for one message and returns its text; the recipient is refused with `refusal`, if there is one.
async fn smtp_server(listener: TcpListener, refusal: Option<&str>) -> String {
    let (mut stream, _) = listener.accept().await.unwrap();
    let (read, mut write) = stream.split();
    let mut lines = BufReader::new(read).lines();
    let mut text = String::new();
    write.write_all(b"220 test ESMTP\r\n").await.unwrap();
    while let Some(line) = lines.next_line().await.unwrap() {
        let answer = match line.split([' ', ':']).next().unwrap() {
            "RCPT" if refusal.is_some() => refusal.unwrap(),
            "DATA" => {
                write.write_all(b"354 go on\r\n").await.unwrap();
                while let Some(line) = lines.next_line().await.unwrap().filter(|line| line != ".") {
                    text += &format!("{line}\n");
                }
                "250 taken"
            }
            _ => "250 fine",
        };
        write.write_all(format!("{answer}\r\n").as_bytes()).await.unwrap();
        if line.starts_with("DATA") || answer.starts_with(['4', '5']) {
            break;
        }
    }
    text
}

#[sqlx::test(migrations = "../../migrations")]
async fn an_email_goes_through_a_real_conversation(db: PgPool) {
    for (refusal, state) in [
        (None, "sent 1"),
        (
            Some("451 try later"),
            "pending 1 the SMTP server: transient error (451): try later",
        ),
        (
            Some("550 unknown"),
            "failed 1 the SMTP server: permanent error (550): unknown",
        ),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let more = [
            "--smtp-host",
            "127.0.0.1",
            "--smtp-port",
            &port,
            "--smtp-security",
            "none",
        ];
        let w = World::new(db.clone(), &[], &more).await;
        sqlx::query("DELETE FROM notifications").execute(&db).await.unwrap();
        w.enqueue(1, "Email", "ops@example.net").await;
        let (text, drained) = tokio::join!(smtp_server(listener, refusal), w.notifier.drain());
        assert_eq!((drained.unwrap(), w.state().await.as_str()), (1, state));
        if refusal.is_none() {
            for line in [
                "To: ops@example.net",
                "Message-ID: <ne-1@certctl>",
                "Subject: shop was renewed",
            ] {
                assert!(text.contains(line), "{text}");
            }
        }
    }
}
