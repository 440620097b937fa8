//! The document of the API, and a page that shows it. All the page needs is in the program: it asks no other host.

use std::sync::Arc;

use aws_lc_rs::digest;
use axum::{
    Router,
    body::Bytes,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use certctl_contract::{catalogue, openapi};

use crate::app::App;

/// Swagger UI by its authors, unchanged: see the README beside the files.
const VIEWER: [(&str, &[u8]); 4] = [
    (
        "swagger-ui-bundle.js",
        include_bytes!("../assets/swagger-ui/swagger-ui-bundle.js"),
    ),
    ("swagger-ui.css", include_bytes!("../assets/swagger-ui/swagger-ui.css")),
    ("index.css", include_bytes!("../assets/swagger-ui/index.css")),
    (
        "favicon-32x32.png",
        include_bytes!("../assets/swagger-ui/favicon-32x32.png"),
    ),
];

const DOCUMENT: &str = "/api/v1/openapi.json";
const PAGE: &str = "/api/docs";
/// The page runs its own scripts and speaks to its own server, and to nothing else. What draws it sets styles on elements.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = r#"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>certctl API</title>
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="stylesheet" href="docs/index.css">
<link rel="icon" type="image/png" sizes="32x32" href="docs/favicon-32x32.png">
</head>
<body>
<div id="page"></div>
<noscript>This page needs JavaScript. The document it shows is <a href="v1/openapi.json">openapi.json</a>.</noscript>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"#;

/// Nothing is validated elsewhere, and no key outlives the page.
const START: &str = r##"SwaggerUIBundle({
  url: "v1/openapi.json",
  dom_id: "#page",
  deepLinking: true,
  docExpansion: "none",
  filter: true,
  persistAuthorization: false,
  validatorUrl: "none",
});
"##;

/// Adds the document, made once from the table, and the page with its files.
pub fn mount(router: Router<Arc<App>>) -> Router<Arc<App>> {
    let document = serde_json::to_vec(&openapi::document(&catalogue())).expect("the document is plain data");
    let mut files = vec![
        (DOCUMENT.to_owned(), File::new("application/json", document)),
        (PAGE.to_owned(), File::new("text/html; charset=utf-8", HTML)),
        (format!("{PAGE}/start.js"), File::new(media_type("start.js"), START)),
    ];
    for (name, octets) in VIEWER {
        files.push((format!("{PAGE}/{name}"), File::new(media_type(name), octets)));
    }
    files.into_iter().fold(router, |router, (path, file)| {
        router.route(&path, get(async move |headers: HeaderMap| file.answer(&headers)))
    })
}

fn media_type(name: &str) -> &'static str {
    match name.rsplit('.').next() {
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("png") => "image/png",
        _ => "application/octet-stream",
    }
}

/// Octets that stay as they are until the program is replaced.
#[derive(Clone)]
struct File {
    media: &'static str,
    octets: Bytes,
    tag: HeaderValue,
}

impl File {
    fn new(media: &'static str, octets: impl Into<Bytes>) -> Self {
        let octets = octets.into();
        let hash = digest::digest(&digest::SHA256, &octets);
        let tag = format!("\"{}\"", hex::encode(&hash.as_ref()[..16]));
        let tag = HeaderValue::try_from(tag).expect("hexadecimal is ASCII");
        Self { media, octets, tag }
    }

    fn answer(&self, asked: &HeaderMap) -> Response {
        let known = asked
            .get(header::IF_NONE_MATCH)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default();
        let same = known
            .split(',')
            .any(|tag| tag.trim().trim_start_matches("W/") == self.tag);
        let mut response = match same {
            true => StatusCode::NOT_MODIFIED.into_response(),
            false => self.octets.clone().into_response(),
        };
        let headers = response.headers_mut();
        headers.insert(header::ETAG, self.tag.clone());
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=300"));
        headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if !same {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.media));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_viewer_holds_a_sanitizer_without_known_vulnerabilities() {
        let text = std::str::from_utf8(VIEWER[0].1).unwrap();
        let at = text.find("DOMPurify").expect("the viewer cleans what it shows");
        let near = &text[text.floor_char_boundary(at.saturating_sub(20_000))..text.ceil_char_boundary(at + 60_000)];
        // CVE-2025-15599 is mended in 3.2.7, CVE-2026-0540 in 3.3.2.
        assert!(
            near.contains("version=\"3.4.17\""),
            "another version: read its advisories, then change this test"
        );
    }
}
