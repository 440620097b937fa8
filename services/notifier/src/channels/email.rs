//! SMTP (RFC 5321), to the owner's address.

use std::time::{Duration, SystemTime};

use anyhow::Context;
use futures_util::future::BoxFuture;
use lettre::{
    Address, AsyncSmtpTransport, AsyncTransport, Tokio1Executor,
    message::{
        Mailbox,
        header::{ContentType, HeaderName, HeaderValue},
    },
    transport::smtp::{
        self,
        authentication::Credentials,
        client::{Certificate, Tls, TlsParameters},
    },
};

use url::Host;

use super::{Channel, Delivery, Message};
use crate::config::{Security, Smtp};

/// How long the server may take for one command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// Sends plain text through one server.
pub struct Email {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
}

impl Email {
    /// Prepares the transport; connects to nothing yet.
    ///
    /// # Errors
    /// When the password or the CA file cannot be read.
    pub fn new(host: &str, smtp: &Smtp) -> anyhow::Result<Self> {
        let tls = match smtp.security {
            Security::Starttls => Tls::Required(tls(host, smtp)?),
            Security::Tls => Tls::Wrapper(tls(host, smtp)?),
            Security::None => Tls::None,
        };
        let mut transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(host)
            .port(smtp.port)
            .tls(tls)
            .timeout(Some(COMMAND_TIMEOUT));
        if let Some(username) = &smtp.username {
            let password = smtp.password()?.unwrap_or_default();
            transport = transport.credentials(Credentials::new(username.clone(), password.expose().to_owned()));
        }
        Ok(Self {
            transport: transport.build(),
            from: smtp.from.clone(),
        })
    }
}

fn tls(host: &str, smtp: &Smtp) -> anyhow::Result<TlsParameters> {
    const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";
    let mut parameters = TlsParameters::builder(host.to_owned());
    if let Some(file) = &smtp.ca_file {
        let pem = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        anyhow::ensure!(
            pem.windows(BEGIN.len()).any(|window| window == BEGIN),
            "{} holds no PEM certificate",
            file.display()
        );
        let authority = Certificate::from_pem(&pem);
        parameters =
            parameters.add_root_certificate(authority.with_context(|| format!("{} cannot be read", file.display()))?);
    }
    parameters.build().context("TLS for SMTP cannot be set up")
}

impl Channel for Email {
    fn deliver<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<(), Delivery>> {
        Box::pin(async move {
            let email = build(&self.from, message).map_err(|reason| Delivery::Reject { reason })?;
            self.transport.send(email).await.map(|_| ()).map_err(refusal)
        })
    }
}

/// Makes the e-mail. Every header is encoded by the library; what could break a line is taken out before.
fn build(from: &Mailbox, message: &Message) -> Result<lettre::Message, String> {
    let to: Mailbox = message
        .recipient
        .trim()
        .parse()
        .map_err(|error| format!("the recipient is no address: {error}"))?;
    let to = Mailbox::new(to.name, in_ascii(&to.email)?);
    let subject: String = message
        .subject
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let auto_submitted = HeaderName::new_from_ascii_str("Auto-Submitted");
    lettre::Message::builder()
        .from(from.clone())
        .to(to)
        .subject(subject)
        .date(SystemTime::from(message.now.date_time()))
        .message_id(Some(format!("<{}@certctl>", message.id)))
        // RFC 3834 §5: no out-of-office reply to this.
        .raw_header(HeaderValue::new(auto_submitted, "auto-generated".into()))
        .header(ContentType::TEXT_PLAIN)
        .body(format!("{}\n", message.body))
        .map_err(|error| format!("the e-mail cannot be made: {error}"))
}

/// An internationalised domain in its form of ASCII (RFC 5890 §2.3.2.1), which every mail server takes.
fn in_ascii(address: &Address) -> Result<Address, String> {
    if address.domain().is_ascii() {
        return Ok(address.clone());
    }
    let domain = Host::parse(address.domain()).map_err(|error| format!("the domain of the recipient: {error}"))?;
    Address::new(address.user(), domain.to_string()).map_err(|error| format!("the recipient is no address: {error}"))
}

/// RFC 5321 §4.2.1: a 5yz answer is final, but for those to our credentials (RFC 4954 §6), which an operator mends.
fn refusal(error: smtp::Error) -> Delivery {
    let reason = format!("the SMTP server: {error}");
    let code = error.status().map(|code| code.to_string()).unwrap_or_default();
    match error.is_permanent() && !matches!(code.as_str(), "530" | "534" | "535" | "538") {
        true => Delivery::Reject { reason },
        false => Delivery::Retry { after: None, reason },
    }
}

#[cfg(test)]
mod tests {
    use certctl_model::{notice::NoticeKind, time::Time};

    use super::*;

    fn email(recipient: &str, subject: &str, body: &str) -> Result<String, String> {
        let message = Message {
            id: "ne-7".parse().unwrap(),
            kind: NoticeKind::RenewalSuccess,
            certificate: None,
            recipient: recipient.into(),
            subject: subject.into(),
            body: body.into(),
            created_at: Time::from_unix(0),
            now: Time::from_unix(1_800_000_000),
        };
        let email = build(&"certctl <certctl@example.net>".parse().unwrap(), &message)?;
        Ok(String::from_utf8(email.formatted()).unwrap())
    }

    #[test]
    fn an_email_is_plain_text_with_a_stable_id() {
        assert_eq!(
            email("ops@example.net", "shop was renewed", "Valid until tomorrow.").unwrap(),
            "From: certctl <certctl@example.net>\r\nTo: ops@example.net\r\nSubject: shop was renewed\r\n\
             Date: Fri, 15 Jan 2027 08:00:00 +0000\r\nMessage-ID: <ne-7@certctl>\r\nAuto-Submitted: auto-generated\r\n\
             Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 7bit\r\n\r\n\
             Valid until tomorrow.\r\n"
        );
    }

    #[test]
    fn mail_to_an_internationalised_domain_goes_to_its_ascii_form() {
        for (recipient, to) in [
            ("user@bücher.example", "user@xn--bcher-kva.example"),
            ("Anna <anna@BÜCHER.example>", "Anna <anna@xn--bcher-kva.example>"),
            ("user@例え.テスト", "user@xn--r8jz45g.xn--zckzah"),
            ("user@example.net", "user@example.net"),
        ] {
            let text = email(recipient, "s", "b").unwrap();
            assert!(text.contains(&format!("\r\nTo: {to}\r\n")), "{text}");
        }
    }

    #[test]
    fn no_text_can_add_a_header_or_a_recipient() {
        let text = email("ops@example.net", "a\r\nBcc: evil@example.net\r\n\r\nhello", "b").unwrap();
        let head = text.split_once("\r\n\r\n").unwrap().0;
        assert!(head.lines().all(|line| !line.starts_with("Bcc")), "{head}");
        for bad in [
            "ops",
            "a@b\r\nBcc: c@d.e",
            "a@example.net, b@example.net",
            "a@example.net>\n<b@example.net",
        ] {
            assert!(email(bad, "s", "b").is_err(), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_ca_file_without_a_certificate_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let smtp = |security| Smtp {
            host: None,
            port: 25,
            username: None,
            password: None,
            password_file: None,
            from: "certctl@example.net".parse().unwrap(),
            security,
            ca_file: Some(file.path().to_owned()),
        };
        for (security, accepted) in [
            (Security::Starttls, false),
            (Security::Tls, false),
            (Security::None, true),
        ] {
            assert_eq!(
                Email::new("mail.example.net", &smtp(security)).is_ok(),
                accepted,
                "{security:?}"
            );
        }
        let without = Smtp {
            ca_file: None,
            ..smtp(Security::Tls)
        };
        assert!(Email::new("mail.example.net", &without).is_ok());
    }
}
