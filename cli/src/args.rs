//! What can be typed.

use std::{marker::PhantomData, path::PathBuf};

use certctl_client::Secret;
use certctl_contract::{
    agents::ListAgents,
    certificates::ListCertificates,
    endpoint::{Endpoint, Operation},
    jobs::ListJobs,
    tools,
};
use clap::{Arg, ArgMatches, Command as ClapCommand, FromArgMatches, Parser, Subcommand, ValueEnum};
use serde_json::{Map, Value};

/// Lists, renews and revokes the certificates that certctl manages.
#[derive(Debug, Parser)]
#[command(
    name = "certctl-cli",
    version,
    after_help = "Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 server unreachable."
)]
pub(crate) struct Args {
    /// Address of the certctl API.
    #[arg(
        long,
        global = true,
        help_heading = "Global options",
        env = "CERTCTL_SERVER_URL",
        default_value = "http://localhost:8443",
        value_name = "URL"
    )]
    pub(crate) server: String,

    /// API key.
    #[arg(
        long,
        global = true,
        help_heading = "Global options",
        env = "CERTCTL_API_KEY",
        hide_env_values = true,
        value_name = "KEY"
    )]
    pub(crate) api_key: Option<Secret>,

    /// How to show the answer: lists are tables and single things JSON unless this says otherwise.
    #[arg(long, global = true, help_heading = "Global options", value_enum)]
    pub(crate) format: Option<Format>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How to show an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// What the server said.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[command(flatten)]
    Do(Action),

    /// Certificates: list, get, renew, revoke.
    #[command(subcommand, visible_alias = "certificates")]
    Certs(Certs),

    /// Agents: list, get.
    #[command(subcommand)]
    Agents(Agents),

    /// Jobs: list, get, cancel, retry.
    #[command(subcommand)]
    Jobs(Jobs),
}

/// The commands by their full names.
#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// List certificates.
    ListCerts(Filter<ListCertificates>),
    /// Show a certificate.
    GetCert(Which),
    /// Renew a certificate now.
    RenewCert(Renew),
    /// Revoke a certificate.
    RevokeCert(Revoke),
    /// List agents.
    ListAgents(Filter<ListAgents>),
    /// List jobs.
    ListJobs(Filter<ListJobs>),
    /// Ask whether the server is alive.
    Health,
    /// Show the server's figures.
    Metrics,
    /// Ask whether the server is alive, and summarise the inventory.
    Status,
    /// Register the certificates of PEM files; CA certificates are skipped.
    Import(Import),
    /// Call any operation of the API.
    Call(Call),
    /// Print the version.
    Version,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Certs {
    /// List certificates.
    List(Filter<ListCertificates>),
    /// Show a certificate.
    Get(Which),
    /// Renew a certificate now.
    Renew(Renew),
    /// Revoke a certificate.
    Revoke(Revoke),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Agents {
    /// List agents.
    List(Filter<ListAgents>),
    /// Show an agent.
    Get(Which),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Jobs {
    /// List jobs.
    List(Filter<ListJobs>),
    /// Show a job.
    Get(Which),
    /// Cancel a job that is not finished and not being done.
    Cancel(Which),
    /// Try a failed job again.
    Retry(Which),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Which {
    /// Its id.
    pub(crate) id: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Renew {
    /// The certificate's id.
    pub(crate) id: String,

    /// Wait until the new version is deployed.
    #[arg(long)]
    pub(crate) wait: bool,

    /// How many seconds to wait at most.
    #[arg(long, default_value_t = 300, requires = "wait", value_name = "SECONDS")]
    pub(crate) timeout: u64,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Revoke {
    /// The certificate's id.
    pub(crate) id: String,

    /// Why: unspecified, keyCompromise, superseded or another reason of RFC 5280 §5.3.1.
    #[arg(long, default_value = "unspecified")]
    pub(crate) reason: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Import {
    /// PEM files, each with one or more certificates.
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Call {
    /// Which, as `call --list` names it.
    #[arg(required_unless_present = "list")]
    pub(crate) operation: Option<String>,

    /// Its parameters and the keys of its body in one object: the JSON itself, @FILE, or - for standard input.
    #[arg(long, value_name = "JSON")]
    pub(crate) json: Option<String>,

    /// List the operations.
    #[arg(long, conflicts_with_all = ["operation", "json"])]
    pub(crate) list: bool,
}

/// The query of a list, a flag for each parameter that the table declares.
#[derive(Clone, Debug)]
pub(crate) struct Filter<E> {
    pub(crate) query: Map<String, Value>,
    endpoint: PhantomData<E>,
}

impl<E: Endpoint> clap::Args for Filter<E> {
    fn augment_args(command: ClapCommand) -> ClapCommand {
        let operation = Operation::of::<E>("", "");
        let schema = tools::tool(&operation).input;
        (operation.query_params)().into_iter().fold(command, |command, param| {
            let words = schema["properties"][param.name]["enum"].as_array();
            let words: Vec<&str> = words.into_iter().flatten().filter_map(Value::as_str).collect();
            let help = match words.is_empty() {
                true => param.doc.to_owned(),
                false => format!("{} One of {}.", param.doc, words.join(", ")),
            };
            let mut arg = Arg::new(param.name)
                .long(param.name.replace('_', "-"))
                .value_name("VALUE")
                .allow_hyphen_values(param.name == "sort")
                .help(help);
            if let Some(short) = param.name.strip_suffix("_id") {
                arg = arg.visible_alias(short);
            }
            command.arg(arg)
        })
    }

    fn augment_args_for_update(command: ClapCommand) -> ClapCommand {
        Self::augment_args(command)
    }
}

impl<E: Endpoint> FromArgMatches for Filter<E> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given =
            |name: &'static str| Some((name.to_owned(), Value::from(matches.get_one::<String>(name)?.as_str())));
        let params = (Operation::of::<E>("", "").query_params)();
        Ok(Self {
            query: params.into_iter().filter_map(|param| given(param.name)).collect(),
            endpoint: PhantomData,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Command {
    /// The same command by its full name; what has none is a call.
    pub(crate) fn into_action(self) -> Action {
        let call = |operation: &str, which: Which| {
            Action::Call(Call {
                operation: Some(operation.to_owned()),
                json: Some(serde_json::json!({ "id": which.id }).to_string()),
                list: false,
            })
        };
        match self {
            Self::Do(action) => action,
            Self::Certs(Certs::List(filter)) => Action::ListCerts(filter),
            Self::Certs(Certs::Get(which)) => Action::GetCert(which),
            Self::Certs(Certs::Renew(renew)) => Action::RenewCert(renew),
            Self::Certs(Certs::Revoke(revoke)) => Action::RevokeCert(revoke),
            Self::Agents(Agents::List(filter)) => Action::ListAgents(filter),
            Self::Agents(Agents::Get(which)) => call("get_agent", which),
            Self::Jobs(Jobs::List(filter)) => Action::ListJobs(filter),
            Self::Jobs(Jobs::Get(which)) => call("get_job", which),
            Self::Jobs(Jobs::Cancel(which)) => call("cancel_job", which),
            Self::Jobs(Jobs::Retry(which)) => call("retry_job", which),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_list_has_a_flag_for_each_parameter_of_the_table() {
        let line =
            "certctl-cli list-jobs --status Failed --type Renewal --certificate mc-1 --per-page 5 --sort -createdAt";
        let args = Args::try_parse_from(line.split(' ')).unwrap();
        let Action::ListJobs(filter) = args.command.into_action() else {
            panic!("another command");
        };
        let query = serde_json::json!({
            "per_page": "5", "sort": "-createdAt", "status": "Failed", "type": "Renewal", "certificate_id": "mc-1",
        });
        assert_eq!(Value::Object(filter.query), query);
    }

    #[test]
    fn global_flags_stand_before_and_after_the_command() {
        for line in [
            "certctl-cli --format json --server http://a certs list",
            "certctl-cli certs list --server http://a --format json",
            "certctl-cli list-certs --format=json --server=http://a",
        ] {
            let args = Args::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(
                (args.format, args.server.as_str()),
                (Some(Format::Json), "http://a"),
                "{line}"
            );
        }
    }
}
