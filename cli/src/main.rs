//! The command line.
//!
//! | module | holds |
//! |---|---|
//! | [`args`] | what can be typed |
//! | [`table`] | the contract's table as commands: nouns, verbs, joined names |
//! | [`inputs`] | the inputs of an operation as arguments and flags |
//! | [`key_hash`] | the SHA-256 of the key in a file, in place of an input |
//! | [`commands`] | what each command asks the server and shows |
//! | [`lists`] | one page, or all of them |
//! | [`watch`] | looking again until it has ended |
//! | [`renew`] | renewing, and waiting until it is done |
//! | [`issue`] | a certificate for a key that stays here |
//! | [`import`] | taking over the certificates of PEM files |
//! | [`recovery`] | bringing back revocations from the files of a journal |
//! | [`compromise`] | showing that a private key is known |
//! | [`pages`] | completions and manual pages |
//! | [`output`] | tables, JSON, and a standard output that may be closed |
//! | [`failure`] | what went wrong, as messages and exit codes |
//!
//! Not here: operations of its own; whatever the server can do is in the table.

mod args;
mod commands;
mod compromise;
mod failure;
mod import;
mod inputs;
mod issue;
mod key_hash;
mod lists;
mod output;
mod pages;
mod recovery;
mod renew;
mod table;
mod watch;

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let (globals, action) = args::read(args::command().get_matches());
    match commands::run(globals, action).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report();
            failure.exit_code()
        }
    }
}
