//! The command line.
//!
//! | module | holds |
//! |---|---|
//! | [`args`] | what can be typed; filters of lists come from the contract's table |
//! | [`commands`] | what each command asks the server and shows |
//! | [`renew`] | renewing, and waiting until it is done |
//! | [`import`] | registering the certificates of PEM files |
//! | [`output`] | tables, JSON, and a standard output that may be closed |
//! | [`failure`] | what went wrong, as messages and exit codes |
//!
//! Not here: operations of its own; whatever the server can do is reached with `call`.

mod args;
mod commands;
mod failure;
mod import;
mod output;
mod renew;

use std::process::ExitCode;

use certctl_client::Client;
use clap::Parser;

use crate::{args::Args, failure::Failure};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report();
            failure.exit_code()
        }
    }
}

async fn run(args: Args) -> Result<(), Failure> {
    let client = Client::builder(&args.server)
        .token(args.api_key.unwrap_or_default())
        .user_agent(concat!("certctl-cli/", env!("CARGO_PKG_VERSION")))
        .build()?;
    commands::run(&client, args.command, args.format).await
}
