//! Origins and security headers.

use std::{str::FromStr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use crate::app::App;

/// Which pages of other origins may read answers.
#[derive(Clone, Debug, Default)]
pub enum Origins {
    /// None: no header speaks of origins.
    #[default]
    Same,
    /// All, but without cookies.
    Any,
    /// These, with cookies.
    Listed(Vec<HeaderValue>),
}

impl FromStr for Origins {
    type Err = String;

    /// Reads `*`, or origins separated by commas.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
        if parts.contains(&"*") {
            return Ok(Origins::Any);
        }
        let origin = |part: &&str| {
            let wrong = || format!("\"{part}\" is not an origin; write for example https://certctl.example.com");
            let url = url::Url::parse(part).map_err(|_| wrong())?;
            // What browsers send is the canonical form.
            let origin = url.origin().ascii_serialization();
            match url.path() == "/" && url.query().is_none() && origin != "null" {
                true => HeaderValue::try_from(origin).map_err(|_| wrong()),
                false => Err(wrong()),
            }
        };
        match parts.iter().map(origin).collect::<Result<Vec<_>, _>>()? {
            none if none.is_empty() => Ok(Origins::Same),
            listed => Ok(Origins::Listed(listed)),
        }
    }
}

/// What every answer says.
#[derive(Clone, Debug, Default)]
pub struct Headers {
    /// Whom browsers let read it.
    pub origins: Origins,
    /// Whether browsers must come back over TLS.
    pub tls: bool,
}

impl Headers {
    /// Adds what keeps browsers from doing harm with an answer.
    pub fn secure(&self, headers: &mut HeaderMap) {
        secure(self.tls, headers);
    }
}

/// Answers `OPTIONS`, before any key is looked at: 204 without content, whatever the path (RFC 9110 §9.3.7). What browsers
/// ask before they ask (the Fetch standard's preflight) is answered by the headers that every answer has.
pub async fn options(request: Request, next: Next) -> Response {
    match *request.method() == Method::OPTIONS {
        true => StatusCode::NO_CONTENT.into_response(),
        false => next.run(request).await,
    }
}

/// Adds what every answer says. What an answer says itself stays.
pub async fn dress(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let origin = request.headers().get(header::ORIGIN).cloned();
    let api = request.uri().path().starts_with("/api/");
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    share(&app.headers.origins, origin, headers);
    secure(app.headers.tls, headers);
    if api && !headers.contains_key(header::CACHE_CONTROL) {
        // What has a validator may be kept by the one who asked, to ask again with it.
        let keep = if headers.contains_key(header::ETAG) {
            "private, no-cache"
        } else {
            "no-store"
        };
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(keep));
    }
    response
}

fn share(origins: &Origins, origin: Option<HeaderValue>, headers: &mut HeaderMap) {
    let allowed = match (origins, origin) {
        (Origins::Same, _) => return,
        (Origins::Any, _) => HeaderValue::from_static("*"),
        (Origins::Listed(listed), origin) => {
            headers.append(header::VARY, HeaderValue::from_static("Origin"));
            match origin.filter(|origin| listed.contains(origin)) {
                None => return,
                Some(origin) => {
                    let yes = HeaderValue::from_static("true");
                    headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
                    origin
                }
            }
        }
    };
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
    for (name, text) in [
        (
            header::ACCESS_CONTROL_ALLOW_METHODS,
            "GET, POST, PUT, DELETE, PATCH, OPTIONS",
        ),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "Content-Type, Authorization, X-Request-ID, Idempotency-Key, If-Match, If-None-Match, X-CSRF-Token",
        ),
        (header::ACCESS_CONTROL_MAX_AGE, "86400"),
        (
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            "ETag, X-Request-ID, Retry-After, RateLimit, RateLimit-Policy, \
             X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset, Idempotency-Replayed",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(text));
    }
}

fn secure(tls: bool, headers: &mut HeaderMap) {
    const RESOURCES: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
    let always = [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; frame-ancestors 'none'",
        ),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (RESOURCES, "same-origin"),
    ];
    let with_tls = tls.then_some((header::STRICT_TRANSPORT_SECURITY, "max-age=31536000"));
    for (name, text) in always.into_iter().chain(with_tls) {
        headers.entry(name).or_insert(HeaderValue::from_static(text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(setting: &str, origin: Option<&'static str>) -> [Option<String>; 4] {
        let mut headers = HeaderMap::new();
        let origin = origin.map(HeaderValue::from_static);
        share(&setting.parse().unwrap(), origin, &mut headers);
        [
            "access-control-allow-origin",
            "vary",
            "access-control-allow-credentials",
            "access-control-max-age",
        ]
        .map(|name| headers.get(name).map(|value| value.to_str().unwrap().to_owned()))
    }

    #[test]
    fn answers_are_shared_with_the_origins_that_are_listed_and_no_other() {
        const LIST: &str = "https://a.example, http://localhost:5173";
        let [none, star, max, yes] = [None, Some("*".into()), Some("86400".into()), Some("true".into())];
        let vary = Some("Origin".into());
        let a = Some("https://a.example".to_owned());
        for (setting, origin, headers) in [
            ("", Some("https://a.example"), [none.clone(), None, None, None]),
            ("*", Some("https://a.example"), [star.clone(), None, None, max.clone()]),
            ("https://b.example,*", None, [star, None, None, max.clone()]),
            (
                LIST,
                Some("https://a.example"),
                [a, vary.clone(), yes.clone(), max.clone()],
            ),
            (
                LIST,
                Some("http://localhost:5173"),
                [Some("http://localhost:5173".into()), vary.clone(), yes, max],
            ),
            (
                LIST,
                Some("https://a.example.evil.test"),
                [none.clone(), vary.clone(), None, None],
            ),
            (LIST, Some("http://a.example"), [none.clone(), vary.clone(), None, None]),
            (LIST, Some("null"), [none.clone(), vary.clone(), None, None]),
            (LIST, None, [none, vary, None, None]),
        ] {
            assert_eq!(shared(setting, origin), headers, "{setting:?} {origin:?}");
        }
    }

    #[test]
    fn what_is_not_an_origin_is_refused() {
        for text in ["a.example", "https://a.example/path", "file:///x", "null"] {
            assert!(text.parse::<Origins>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_answer_may_have_a_policy_of_its_own() {
        let mut headers = HeaderMap::new();
        headers.insert(
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_static("default-src 'self'"),
        );
        secure(false, &mut headers);
        assert_eq!(headers[header::CONTENT_SECURITY_POLICY], "default-src 'self'");
        assert_eq!(headers[header::X_FRAME_OPTIONS], "DENY");
        assert!(!headers.contains_key(header::STRICT_TRANSPORT_SECURITY));
        secure(true, &mut headers);
        assert!(headers.contains_key(header::STRICT_TRANSPORT_SECURITY));
    }
}
