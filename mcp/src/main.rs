//! The API as tools of the Model Context Protocol, over standard input and output.
//!
//! Tools, their schemas and their calls are all read from the contract's table. Not here: operations of its own, state,
//! logs (standard output belongs to the protocol).

mod server;

use std::path::PathBuf;

use anyhow::Context;
use certctl_client::{Client, Secret};
use clap::{Parser, builder::BoolishValueParser};
use rmcp::{ServiceExt, transport::stdio};

use crate::server::{Offer, Server};

/// Serves the certctl API as tools of the Model Context Protocol over standard input and output.
#[derive(Debug, Parser)]
#[command(name = "certctl-mcp", version)]
struct Args {
    /// Address of the certctl API.
    #[arg(long, env = "CERTCTL_SERVER_URL", default_value = "http://localhost:8443")]
    server: String,

    /// API key.
    #[arg(long, env = "CERTCTL_API_KEY", hide_env_values = true)]
    api_key: Option<Secret>,

    /// PEM file of authorities that the server's certificate may come from, besides those of the system.
    #[arg(long, env = "CERTCTL_CA_CERT", value_name = "FILE")]
    ca_cert: Option<PathBuf>,

    /// Speak plain http to a server on another machine, where others could read the API key.
    #[arg(long, env = "CERTCTL_ALLOW_PLAIN_HTTP", value_parser = BoolishValueParser::new(), default_missing_value = "true", num_args = 0..=1, require_equals = true, default_value = "false")]
    allow_plain_http: bool,

    /// Offer only tools that change nothing. Also with CERTCTL_MCP_READ_ONLY=true, which an argument does not override.
    #[arg(long, value_parser = BoolishValueParser::new(), default_missing_value = "true", num_args = 0..=1, require_equals = true, default_value = "false")]
    read_only: bool,
}

/// What the environment says, parsed apart from the arguments: clap lets an argument override a variable.
#[derive(Debug, Parser)]
#[command(no_binary_name = true)]
struct Environment {
    #[arg(long, env = "CERTCTL_MCP_READ_ONLY", value_parser = BoolishValueParser::new(), default_value = "false")]
    read_only: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let environment = Environment::try_parse_from::<_, &str>([]).unwrap_or_else(|error| error.exit());
    let mut builder = Client::builder(&args.server)
        .token(args.api_key.unwrap_or_default())
        .allow_plain_http(args.allow_plain_http)
        .user_agent(concat!("certctl-mcp/", env!("CARGO_PKG_VERSION")));
    if let Some(file) = &args.ca_cert {
        builder = builder.ca_cert(std::fs::read(file).with_context(|| file.display().to_string())?);
    }
    let client = builder.build()?;
    let offer = if args.read_only || environment.read_only {
        Offer::Reading
    } else {
        Offer::Everything
    };
    Server::new(client, offer)
        .serve(stdio())
        .await
        .context("the protocol did not start")?
        .waiting()
        .await?;
    Ok(())
}
