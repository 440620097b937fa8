//! The API as this agent sees it: it answers, refuses, or is away.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};
use certctl_client::retry::Backoff;
use certctl_client::{Client, ClientError};
use certctl_contract::endpoint::Endpoint;
use certctl_model::secret::Secret;

use crate::config::Config;

/// A client with one key.
#[derive(Debug)]
pub(crate) struct Server {
    client: Client,
    long_poll: Duration,
}

/// Why a call had no result.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The server has decided; asking the same again changes nothing.
    Refused { status: u16, said: String },
    /// The server was not reached, or is busy or broken.
    Away(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Refused { said, .. } | Self::Away(said)) = self;
        f.write_str(said)
    }
}

impl From<ClientError> for Trouble {
    fn from(error: ClientError) -> Self {
        let said = shortened(&error.to_string());
        match error.status() {
            // A request that took too long or came too often is welcome later.
            Some(status @ 400..=499) if !matches!(status, 408 | 429) => Self::Refused { status, said },
            _ => Self::Away(said),
        }
    }
}

/// What a server says, for logs and reports: one line of bounded length.
fn shortened(text: &str) -> String {
    const MAX_CHARS: usize = 1_000;
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let short: String = plain.clone().take(MAX_CHARS).collect();
    match plain.count() > MAX_CHARS {
        true => short + " …",
        false => short,
    }
}

/// The largest answer that an agent reads. A hundred work items with a hundred names each are a tenth of it.
const MAX_REPLY_BYTES: usize = 4 * 1024 * 1024;

impl Server {
    pub(crate) fn new(config: &Config, token: Option<Secret>) -> Result<Self> {
        let authorities = match &config.ca_cert {
            Some(path) => std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?,
            None => Vec::new(),
        };
        let client = Client::builder(config.server_url.as_str())
            .token(token.unwrap_or_default())
            .ca_cert(authorities)
            .allow_plain_http(config.allow_plain_http)
            .max_reply_bytes(MAX_REPLY_BYTES)
            .user_agent(concat!("certctl-agent/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self {
            client,
            long_poll: config.long_poll,
        })
    }

    pub(crate) async fn call<E: Endpoint>(
        &self,
        path: E::Path,
        query: E::Query,
        body: E::Body,
    ) -> Result<E::Reply, Trouble> {
        Ok(self.client.call::<E>(path, query, body).await?)
    }

    /// The same for an answer that the server may hold back for the time of a long poll.
    pub(crate) async fn wait_for<E: Endpoint>(
        &self,
        path: E::Path,
        query: E::Query,
        body: E::Body,
    ) -> Result<E::Reply, Trouble> {
        /// For the way there and back, and for a server that is slow to notice the time.
        const MARGIN: Duration = Duration::from_secs(15);
        Ok(self
            .client
            .call_with_timeout::<E>(path, query, body, self.long_poll + MARGIN)
            .await?)
    }
}

/// 1 s doubling to 60 s, less a random part, so that a fleet does not come back in step.
pub(crate) fn backoff() -> Backoff {
    Backoff::new(Duration::from_secs(1), Duration::from_secs(60))
}
