//! Requests to identity providers: bounded in time and size, never redirected, never in the clear.

use std::time::Duration;

use anyhow::{Context, ensure};
use openidconnect::{HttpRequest, HttpResponse};
use reqwest::{Client, Response, redirect::Policy};
use url::{Host, Url};

const TIMEOUT: Duration = Duration::from_secs(5);
const MOST: usize = 256 * 1024;

/// A client for one identity provider.
#[derive(Clone)]
pub struct Http(Client);

/// Why nothing came back. Carries no address: one may carry a code.
#[derive(Debug)]
pub struct Failure(anyhow::Error);

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

impl std::error::Error for Failure {}

/// Whether nobody can listen or answer in between: https, or this very machine.
///
/// # Errors
/// When somebody could.
pub fn check(url: &Url) -> anyhow::Result<()> {
    let here = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    };
    ensure!(
        url.scheme() == "https" || (url.scheme() == "http" && here),
        "{url} is not https (plain http is for this machine only)"
    );
    Ok(())
}

impl Http {
    /// Prepares a client for this address and its neighbours.
    ///
    /// # Errors
    /// When the address will not do, or TLS cannot be set up.
    pub fn new(url: &Url) -> anyhow::Result<Self> {
        check(url)?;
        let mut http = Client::builder()
            .user_agent("certctl-api/1.0")
            .timeout(TIMEOUT)
            .redirect(Policy::none());
        if url.scheme() == "http" {
            // TLS is never spoken then; machines without CA certificates can do without.
            http = http.tls_certs_only([]);
        }
        Ok(Self(http.build()?))
    }

    /// Fetches a document.
    ///
    /// # Errors
    /// When it is not there, too large or too slow.
    pub async fn get(&self, url: Url) -> anyhow::Result<Vec<u8>> {
        check(&url)?;
        let request = self.0.get(url).header("accept", "application/json");
        let response = request.send().await.map_err(reqwest::Error::without_url)?;
        ensure!(response.status().is_success(), "it answers {}", response.status());
        body(response).await
    }

    /// Sends what the OpenID Connect library has made.
    ///
    /// # Errors
    /// As [`Http::get`]; refusals of the provider are answers.
    pub async fn send(&self, request: HttpRequest) -> Result<HttpResponse, Failure> {
        self.exchange(request).await.map_err(Failure)
    }

    async fn exchange(&self, request: HttpRequest) -> anyhow::Result<HttpResponse> {
        check(&Url::parse(&request.uri().to_string())?)?;
        let request = reqwest::Request::try_from(request).context("the request cannot be sent")?;
        let response = self.0.execute(request).await.map_err(reqwest::Error::without_url)?;
        let mut answer = http::Response::builder().status(response.status());
        if let Some(headers) = answer.headers_mut() {
            headers.extend(response.headers().clone());
        }
        Ok(answer.body(body(response).await?)?)
    }
}

async fn body(mut response: Response) -> anyhow::Result<Vec<u8>> {
    let mut octets = vec![];
    while let Some(chunk) = response.chunk().await.map_err(reqwest::Error::without_url)? {
        ensure!(
            octets.len() + chunk.len() <= MOST,
            "its answer is larger than {MOST} octets"
        );
        octets.extend_from_slice(&chunk);
    }
    Ok(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_this_machine_only() {
        for (url, fits) in [
            ("https://idp.example.com/keys", true),
            ("http://127.0.0.1:8080/keys", true),
            ("http://[::1]/keys", true),
            ("http://localhost/keys", true),
            ("http://idp.example.com/keys", false),
            ("http://localhost.example.com/keys", false),
            ("file:///etc/passwd", false),
        ] {
            assert_eq!(check(&url.parse().unwrap()).is_ok(), fits, "{url}");
        }
    }
}
