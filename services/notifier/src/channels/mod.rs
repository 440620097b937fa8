//! E-mail and webhook behind one trait.

pub mod email;
pub mod webhook;

use std::time::Duration;

use certctl_model::{
    id::{CertificateId, NotificationId},
    notice::{self, NoticeKind},
    time::Time,
};
use certctl_store::outbox::Claimed;
use futures_util::future::BoxFuture;

use crate::config::Config;

/// What is told to whom.
#[derive(Clone, Debug)]
pub struct Message {
    /// The same in every try.
    pub id: NotificationId,
    /// What it is about.
    pub kind: NoticeKind,
    /// Which certificate.
    pub certificate: Option<CertificateId>,
    /// To whom.
    pub recipient: String,
    /// One line.
    pub subject: String,
    /// The text.
    pub body: String,
    /// When it was enqueued.
    pub created_at: Time,
    /// When it is sent.
    pub now: Time,
}

impl Message {
    pub(crate) fn of(claim: &Claimed, now: Time) -> Self {
        Self {
            id: claim.id.clone(),
            kind: claim.kind,
            certificate: claim.certificate_id.clone(),
            recipient: claim.recipient.clone(),
            subject: claim.subject.clone(),
            body: claim.message.clone(),
            created_at: claim.created_at,
            now,
        }
    }
}

/// Why a message was not delivered; decides what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Not now.
    Retry {
        /// When the receiver wants to be asked again, if it said so.
        after: Option<Duration>,
        /// What happened.
        reason: String,
    },
    /// Never.
    Reject {
        /// Why.
        reason: String,
    },
}

/// A way to the outside.
pub trait Channel: Send + Sync {
    /// Hands a message to the receiving server. A repeated delivery is recognisable by the message's id.
    fn deliver<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<(), Delivery>>;
}

/// A channel, or why there is none.
pub enum Slot {
    /// Configured.
    On(Box<dyn Channel>),
    /// Not configured; the text says what is missing.
    Off(&'static str),
}

/// Every channel there is.
pub struct Channels {
    email: Slot,
    webhook: Slot,
}

impl Channels {
    pub(crate) fn build(config: &Config) -> anyhow::Result<Self> {
        let email = match &config.smtp.host {
            Some(host) => Slot::On(Box::new(email::Email::new(host, &config.smtp)?)),
            None => Slot::Off("no SMTP server is configured (CERTCTL_SMTP_HOST)"),
        };
        let webhook = match &config.webhook.url {
            Some(url) => Slot::On(Box::new(webhook::Webhook::new(url, config.webhook.secret()?)?)),
            None => Slot::Off("no webhook is configured (CERTCTL_WEBHOOK_URL)"),
        };
        Ok(Self { email, webhook })
    }

    pub(crate) fn of(&self, channel: notice::Channel) -> &Slot {
        match channel {
            notice::Channel::Email => &self.email,
            notice::Channel::Webhook => &self.webhook,
        }
    }
}
