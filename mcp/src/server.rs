//! The table as an MCP server.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use certctl_client::{Body, Client, ClientError};
use certctl_contract::{catalogue, endpoint::Operation, tools};
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, Implementation, ListToolsResult,
        PaginatedRequestParams, ServerCapabilities, ServerConfig, Tool, ToolAnnotations,
    },
    service::RequestContext,
};
use serde_json::json;

/// Longest text handed to a model, in octets.
const MAX_TEXT_BYTES: usize = 256 * 1024;

/// Which tools there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offer {
    Everything,
    /// Those that change nothing.
    Reading,
}

/// Offers operations as tools and calls them.
pub(crate) struct Server {
    client: Client,
    tools: Vec<(Tool, Operation)>,
}

impl Server {
    pub(crate) fn new(client: Client, offer: Offer) -> Self {
        let tools = catalogue()
            .into_iter()
            .map(|operation| (tools::tool(&operation), operation))
            .filter(|(tool, _)| tool.read_only || offer == Offer::Everything)
            .map(|(tool, operation)| (described(tool), operation))
            .collect();
        Self { client, tools }
    }

    async fn call(&self, request: CallToolRequestParams) -> Result<CallToolResult, ErrorData> {
        let (_, operation) = self
            .tools
            .iter()
            .find(|(tool, _)| tool.name == request.name)
            .ok_or_else(|| ErrorData::invalid_params(format!("there is no tool {} here", request.name), None))?;
        let input = request.arguments.unwrap_or_default();
        Ok(match self.client.call_json(operation, input).await {
            Ok(reply) => CallToolResult::success(vec![ContentBlock::text(text(reply.body))]),
            Err(error) => CallToolResult::error(vec![ContentBlock::text(explain(&error))]),
        })
    }
}

fn described(tool: tools::Tool) -> Tool {
    let hints = ToolAnnotations::from_raw(
        None,
        Some(tool.read_only),
        Some(tool.destructive),
        Some(tool.idempotent),
        Some(false),
    );
    Tool::new(tool.name, tool.description, Arc::new(tool.input)).with_annotations(hints)
}

/// The body as one text: JSON and text as they came, anything else in base64. What is too long for a conversation is cut,
/// and says so.
fn text(body: Body) -> String {
    match body {
        Body::Json(value) => bounded(value.to_string()),
        Body::Empty => json!({ "status": "deleted" }).to_string(),
        Body::Bytes { content_type, bytes } => match String::from_utf8(bytes) {
            Ok(text) if is_text(&content_type) => bounded(text),
            Ok(text) => encoded(&content_type, text.as_bytes()),
            Err(error) => encoded(&content_type, error.as_bytes()),
        },
    }
}

fn is_text(content_type: &str) -> bool {
    let media = content_type.split(';').next().unwrap_or_default().trim();
    media.starts_with("text/")
        || ["json", "xml", "pem-file", "pem-certificate-chain"]
            .iter()
            .any(|end| media.ends_with(end))
}

fn bounded(text: String) -> String {
    if text.len() <= MAX_TEXT_BYTES {
        return text;
    }
    let beginning = &text[..text.floor_char_boundary(MAX_TEXT_BYTES)];
    json!({ "truncated": true, "bytes": text.len(), "hint": "ask for less: a filter, a smaller page, fewer fields",
        "beginning": beginning })
    .to_string()
}

fn encoded(content_type: &str, bytes: &[u8]) -> String {
    match bytes.len() <= MAX_TEXT_BYTES {
        true => {
            json!({ "content_type": content_type, "bytes": bytes.len(), "base64": STANDARD.encode(bytes) }).to_string()
        }
        false => json!({ "content_type": content_type, "bytes": bytes.len(), "truncated": true }).to_string(),
    }
}

/// For the model: what was wrong, so that it can do better.
fn explain(error: &ClientError) -> String {
    match error.problem() {
        Some(problem) => format!(
            "HTTP {} {}: {}",
            problem.status,
            problem.title,
            serde_json::to_string(problem).expect("representations are plain data")
        ),
        None => error.to_string(),
    }
}

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new("certctl", env!("CARGO_PKG_VERSION")))
            .with_instructions("Tools of certctl, which requests, renews, deploys and revokes TLS certificates.")
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let tools = self.tools.iter().map(|(tool, _)| tool.clone()).collect();
        Ok(ListToolsResult::with_all_items(tools))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        self.call(request).await.map(CallToolResponse::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text_and_what_is_too_long_is_cut_and_says_so() {
        let bytes = |content_type: &str, bytes: &[u8]| Body::Bytes {
            content_type: content_type.to_owned(),
            bytes: bytes.to_vec(),
        };
        for (body, expected) in [
            (bytes("text/csv; charset=utf-8", b"a,b\n"), "a,b\n".to_owned()),
            (bytes("application/x-pem-file", b"-----"), "-----".to_owned()),
            (
                bytes("application/pkix-crl", b"0\x00"),
                r#"{"content_type":"application/pkix-crl","bytes":2,"base64":"MAA="}"#.to_owned(),
            ),
            (
                bytes("text/plain", b"\xff"),
                r#"{"content_type":"text/plain","bytes":1,"base64":"/w=="}"#.to_owned(),
            ),
            (Body::Empty, r#"{"status":"deleted"}"#.to_owned()),
        ] {
            assert_eq!(text(body), expected);
        }
        let long = "ä".repeat(MAX_TEXT_BYTES);
        let cut: serde_json::Value = serde_json::from_str(&text(bytes("text/csv", long.as_bytes()))).unwrap();
        assert_eq!((&cut["truncated"], &cut["bytes"]), (&json!(true), &json!(long.len())));
        assert!(cut["beginning"].as_str().unwrap().len() <= MAX_TEXT_BYTES);
        let cut: serde_json::Value = serde_json::from_str(&text(bytes("x/y", long.as_bytes()))).unwrap();
        assert_eq!(
            cut,
            json!({ "content_type": "x/y", "bytes": long.len(), "truncated": true })
        );
    }
}
