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
        Some(tool.read_only),
        Some(false),
    );
    Tool::new(tool.name, tool.description, Arc::new(tool.input)).with_annotations(hints)
}

fn text(body: Body) -> String {
    match body {
        Body::Json(value) => value.to_string(),
        Body::Empty => json!({ "status": "deleted" }).to_string(),
        Body::Bytes { content_type, bytes } => json!({
            "content_type": content_type, "bytes": bytes.len(), "base64": STANDARD.encode(&bytes),
        })
        .to_string(),
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
