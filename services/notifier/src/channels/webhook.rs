//! A signed HTTP POST.

use std::time::Duration;

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use certctl_model::{
    id::{CertificateId, NotificationId},
    notice::NoticeKind,
    secret::Secret,
    time::Time,
};
use futures_util::future::BoxFuture;
use reqwest::{
    Client, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
    redirect::Policy,
};
use serde::Serialize;
use serde_json::{Map, Value};
use time::{OffsetDateTime, format_description::well_known::Rfc2822};
use url::Url;

use super::{Channel, Delivery, Message};

const TIMEOUT: Duration = Duration::from_secs(10);

/// Posts events to one address.
pub struct Webhook {
    http: Client,
    url: Url,
    keys: Option<Keys>,
}

/// What events are signed with, made from one secret.
struct Keys {
    /// For `X-Signature`: the octets of the secret.
    body: hmac::Key,
    /// For `webhook-signature`: what a secret that begins with `whsec_` stands for in base64, or the same octets.
    standard: hmac::Key,
}

impl Keys {
    fn new(secret: &str) -> Self {
        let key = |octets: &[u8]| hmac::Key::new(hmac::HMAC_SHA256, octets);
        let decoded = secret
            .strip_prefix("whsec_")
            .and_then(|text| STANDARD.decode(text).ok());
        Self {
            body: key(secret.as_bytes()),
            standard: decoded.map_or_else(|| key(secret.as_bytes()), |octets| key(&octets)),
        }
    }

    /// The value of `webhook-signature` (Standard Webhooks): a receiver that checks the time refuses what is replayed.
    fn standard(&self, id: &str, seconds: i64, body: &[u8]) -> String {
        let signed = [format!("{id}.{seconds}.").as_bytes(), body].concat();
        format!("v1,{}", STANDARD.encode(hmac::sign(&self.standard, &signed)))
    }
}

impl Webhook {
    /// Prepares the client; connects to nothing yet.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(url: &Url, secret: Option<Secret>) -> anyhow::Result<Self> {
        let mut http = Client::builder()
            .user_agent("certctl-notifier/1.0")
            .timeout(TIMEOUT)
            .redirect(Policy::none());
        if url.scheme() == "http" {
            // Without redirects TLS is never spoken; hosts without CA certificates can still post in plain text.
            http = http.tls_certs_only([]);
        }
        Ok(Self {
            http: http.build()?,
            url: url.clone(),
            keys: secret.map(|secret| Keys::new(secret.expose())),
        })
    }
}

/// The body of the POST.
#[derive(Serialize)]
struct Event<'a> {
    r#type: &'static str,
    event_id: &'a NotificationId,
    event_type: NoticeKind,
    subject: &'a str,
    body: &'a str,
    recipient: &'a str,
    created_at: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_id: Option<&'a CertificateId>,
    metadata: Map<String, Value>,
}

fn body(message: &Message) -> Vec<u8> {
    let event = Event {
        r#type: "event",
        event_id: &message.id,
        event_type: message.kind,
        subject: &message.subject,
        body: &message.body,
        recipient: &message.recipient,
        created_at: message.created_at,
        certificate_id: message.certificate.as_ref(),
        metadata: Map::from_iter([("severity".to_owned(), Value::from(message.kind.severity().as_str()))]),
    };
    serde_json::to_vec(&event).expect("an event is plain data")
}

/// The value of `X-Signature`: receivers compute the same over the octets of the body.
fn signature(key: &hmac::Key, body: &[u8]) -> String {
    format!("sha256={}", hex::encode(hmac::sign(key, body)))
}

impl Channel for Webhook {
    fn deliver<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<(), Delivery>> {
        Box::pin(async move {
            let body = body(message);
            let mut request = self
                .http
                .post(self.url.clone())
                .header(CONTENT_TYPE, "application/json")
                .header("Idempotency-Key", message.id.as_str());
            let (id, seconds) = (message.id.as_str(), message.now.unix());
            request = request.header("webhook-id", id).header("webhook-timestamp", seconds);
            if let Some(keys) = &self.keys {
                request = request
                    .header("webhook-signature", keys.standard(id, seconds, &body))
                    .header("X-Signature", signature(&keys.body, &body))
                    .header("X-Signature-Algorithm", "sha256");
            }
            let response = request.body(body).send().await.map_err(|error| Delivery::Retry {
                after: None,
                // The address may carry a token.
                reason: format!("the webhook cannot be reached: {}", chain(&error.without_url())),
            })?;
            let after = response
                .headers()
                .get(RETRY_AFTER)
                .and_then(|value| value.to_str().ok());
            judge(response.status(), after.and_then(|text| retry_after(text, message.now)))
        })
    }
}

/// Receivers refuse for reasons that pass: a route that is not deployed yet, a secret that is being replaced, a gateway in
/// between. Only 410 says that it is final (RFC 9110 §15.5.11).
fn judge(status: StatusCode, after: Option<Duration>) -> Result<(), Delivery> {
    let reason = format!("the webhook answered {status}");
    match status.as_u16() {
        200..=299 => Ok(()),
        410 => Err(Delivery::Reject { reason }),
        300..=399 => Err(Delivery::Retry {
            after,
            reason: format!("{reason}; redirects are not followed"),
        }),
        _ => Err(Delivery::Retry { after, reason }),
    }
}

/// RFC 9110 §10.2.3: seconds, or a date.
fn retry_after(text: &str, now: Time) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = OffsetDateTime::parse(text.trim(), &Rfc2822).ok()?;
    Some(Time::new(at).since(now))
}

/// An error and its causes, outermost first.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_the_hmac_of_the_body() {
        // RFC 4231 §4.3.
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"Jefe");
        assert_eq!(
            signature(&key, b"what do ya want for nothing?"),
            "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn a_standard_signature_covers_id_time_and_body() {
        // The example of the specification, Standard Webhooks.
        let keys = Keys::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let body = br#"{"test": 2432232314}"#;
        assert_eq!(
            keys.standard("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
        let plain = Keys::new("geheim");
        assert_ne!(plain.standard("a", 1, body), plain.standard("a", 2, body));
    }

    #[test]
    fn an_event_has_the_published_shape() {
        let message = Message {
            id: "ne-7".parse().unwrap(),
            kind: NoticeKind::RenewalSuccess,
            certificate: Some("mc-1".parse().unwrap()),
            recipient: "webhook".into(),
            subject: "s".into(),
            body: "b".into(),
            created_at: Time::from_unix(1_800_000_000),
            now: Time::from_unix(1_800_000_009),
        };
        let event: Value = serde_json::from_slice(&body(&message)).unwrap();
        assert_eq!(
            event,
            serde_json::json!({
                "type": "event", "event_id": "ne-7", "event_type": "RenewalSuccess", "subject": "s", "body": "b",
                "recipient": "webhook", "created_at": "2027-01-15T08:00:00Z", "certificate_id": "mc-1", "metadata": { "severity": "Info" },
            })
        );
    }

    #[test]
    fn the_status_decides_between_delivered_later_and_never() {
        let now = Time::from_unix(1_800_000_000);
        for (status, said, expected) in [
            (200, None, "delivered"),
            (204, None, "delivered"),
            (429, Some("120"), "later 120"),
            (503, Some("Fri, 15 Jan 2027 08:01:00 GMT"), "later 60"),
            (503, Some("Fri, 15 Jan 2027 07:00:00 GMT"), "later 0"),
            (500, Some("soon"), "later"),
            (302, None, "later"),
            (400, None, "later"),
            (401, None, "later"),
            (404, None, "later"),
            (409, None, "later"),
            (425, Some("3"), "later 3"),
            (410, None, "never"),
        ] {
            let after = said.and_then(|text| retry_after(text, now));
            let found = match judge(StatusCode::from_u16(status).unwrap(), after) {
                Ok(()) => "delivered".to_owned(),
                Err(Delivery::Retry { after: None, .. }) => "later".to_owned(),
                Err(Delivery::Retry { after: Some(after), .. }) => format!("later {}", after.as_secs()),
                Err(Delivery::Reject { .. }) => "never".to_owned(),
            };
            assert_eq!(found, expected, "{status} {said:?}");
        }
    }
}
