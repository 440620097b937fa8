//! A signed HTTP POST.

use std::time::Duration;

use aws_lc_rs::hmac;
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
    key: Option<hmac::Key>,
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
            key: secret.map(|secret| hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes())),
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
            if let Some(key) = &self.key {
                request = request
                    .header("X-Signature", signature(key, &body))
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

fn judge(status: StatusCode, after: Option<Duration>) -> Result<(), Delivery> {
    let reason = format!("the webhook answered {status}");
    match status.as_u16() {
        200..=299 => Ok(()),
        408 | 429 | 500..=599 => Err(Delivery::Retry { after, reason }),
        300..=399 => Err(Delivery::Reject {
            reason: format!("{reason}; redirects are not followed"),
        }),
        _ => Err(Delivery::Reject { reason }),
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
            (302, None, "never"),
            (404, None, "never"),
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
