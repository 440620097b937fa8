//! What can be typed. Commands of operations come from the contract's table.

use std::path::PathBuf;

use certctl_client::Secret;
use clap::{
    Arg, ArgAction, ArgMatches, Command,
    builder::{BoolishValueParser, PossibleValuesParser},
    value_parser,
};
use clap_complete::Shell;

use crate::{
    compromise, inputs, issue, key_hash, recovery,
    table::{self, NOUNS, Row},
};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  refused by the server, or failed
  2  wrong usage; nothing was sent
  3  the server cannot be reached
  4  done in part: some of several things failed";

/// Joined names that are shown in `--help`; all others work too.
const SHOWN: &[&str] = &[
    "list-certs",
    "get-cert",
    "renew-cert",
    "revoke-cert",
    "list-agents",
    "list-jobs",
    "health",
    "metrics",
];

/// How to show an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// What the server said.
    Json,
}

/// What goes with every command.
#[derive(Clone, Debug)]
pub(crate) struct Globals {
    pub(crate) server: String,
    pub(crate) api_key: Secret,
    pub(crate) ca_cert: Option<PathBuf>,
    pub(crate) allow_plain_http: bool,
    pub(crate) format: Option<Format>,
    pub(crate) output: Option<PathBuf>,
    pub(crate) idempotency_key: Option<String>,
    pub(crate) color: Option<bool>,
}

/// What was typed.
pub(crate) enum Action {
    Operation(Box<Row>, ArgMatches),
    Status,
    Issue(ArgMatches),
    Import(ArgMatches),
    Restore(ArgMatches),
    Prove(ArgMatches),
    Call(ArgMatches),
    Completions(Shell),
    Man(Option<PathBuf>),
    Version,
}

/// The whole command line.
pub(crate) fn command() -> Command {
    spelled(|_| true)
}

/// What is shown of it: each operation once, but for a few that have two names. For completions and manual pages.
pub(crate) fn shown() -> Command {
    spelled(|hidden| !hidden)
}

fn spelled(included: fn(bool) -> bool) -> Command {
    let mut command = Command::new("certctl-cli")
        .version(env!("CARGO_PKG_VERSION"))
        .about(
            "Requests, renews, deploys and revokes the certificates that certctl manages, and all else its API can do",
        )
        .after_help(EXIT_CODES)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .args(globals());
    let mut done = vec![];
    for noun in NOUNS {
        if !done.contains(&noun.name) {
            done.push(noun.name);
            let group = Command::new(noun.name).about(noun.about).visible_aliases(noun.aliases);
            command = command.subcommand(
                group
                    .subcommand_required(true)
                    .arg_required_else_help(true)
                    .defer(verbs),
            );
        }
    }
    for row in table::rows() {
        let mut names = row.joined().into_iter();
        let name = names.next().expect("an operation has a name");
        let hidden = !SHOWN.contains(&name.as_str());
        if !included(hidden) {
            continue;
        }
        let joined = Command::new(name)
            .aliases(names)
            .about(row.operation.summary())
            .hide(hidden);
        command = command.subcommand(joined.defer(|command| match table::by_name(command.get_name()) {
            Some(row) => described(command, &row),
            None => command,
        }));
    }
    command.subcommands([
        Command::new("status").about("Ask whether the server is alive, and summarise the inventory"),
        issue::command(),
        import(),
        recovery::command(),
        compromise::command(),
        call(),
        Command::new("completions")
            .about("Print completions for a shell")
            .arg(Arg::new("shell").required(true).value_parser(value_parser!(Shell))),
        Command::new("man")
            .about("Write the manual pages: one for each command into a directory, or the main one to standard output")
            .arg(
                Arg::new("directory")
                    .value_name("DIRECTORY")
                    .value_parser(value_parser!(PathBuf)),
            ),
        Command::new("version").about("Print the version"),
    ])
}

fn globals() -> Vec<Arg> {
    let global = |name: &'static str| Arg::new(name).global(true).help_heading("Global options");
    vec![
        global("server")
            .long("server")
            .value_name("URL")
            .env("CERTCTL_SERVER_URL")
            .default_value("http://localhost:8443")
            .help("Address of the certctl API"),
        global("api_key")
            .long("api-key")
            .value_name("KEY")
            .env("CERTCTL_API_KEY")
            .hide_env_values(true)
            .help("API key"),
        global("ca_cert")
            .long("ca-cert")
            .value_name("FILE")
            .env("CERTCTL_CA_CERT")
            .value_parser(value_parser!(PathBuf))
            .help("PEM file of authorities that the server's certificate may come from, besides those of the system"),
        global("allow_plain_http")
            .long("allow-plain-http")
            .env("CERTCTL_ALLOW_PLAIN_HTTP")
            .value_parser(BoolishValueParser::new())
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .default_value("false")
            .hide_default_value(true)
            .hide_possible_values(true)
            .help("Speak plain http to a server on another machine, where others could read the API key"),
        global("format")
            .long("format")
            .value_name("FORMAT")
            .value_parser(PossibleValuesParser::new(["table", "json"]))
            .help("How to show the answer: lists are tables and single things JSON unless this says otherwise"),
        global("output")
            .long("output")
            .short('o')
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .help("Write what the server answers to this file, as it came"),
        global("idempotency_key")
            .long("idempotency-key")
            .value_name("KEY")
            .help("Name this call: repeated with the same name and inputs it is done once"),
        global("color")
            .long("color")
            .value_name("WHEN")
            .value_parser(PossibleValuesParser::new(["auto", "always", "never"]))
            .default_value("auto")
            .help("Whether tables are coloured; auto: on a terminal, unless NO_COLOR is set"),
        global("no_color")
            .long("no-color")
            .env("NO_COLOR")
            .hide(true)
            .hide_env(true)
            .num_args(0..=1)
            .default_missing_value("1"),
    ]
}

/// The verbs under a noun.
fn verbs(mut noun: Command) -> Command {
    let name = noun.get_name().to_owned();
    for row in table::rows().into_iter().filter(|row| row.noun == name) {
        let mut command = Command::new(row.verb.clone()).about(row.operation.summary());
        if row.verb == "archive" {
            command = command.visible_alias("delete");
        }
        noun = noun.subcommand(described(command, &row));
    }
    match name.as_str() {
        "certs" => noun.subcommand(import()),
        _ => noun,
    }
}

/// The arguments of an operation, and what this program adds to it.
fn described(command: Command, row: &Row) -> Command {
    let long: Vec<&str> = row.operation.doc.lines().map(str::trim).collect();
    let command = command.long_about(
        long.join("\n")
            .replace("\n\n", "\u{0}")
            .replace('\n', " ")
            .replace('\u{0}', "\n\n"),
    );
    let command = inputs::describe(command, &row.operation);
    let mut command = key_hash::describe(command, &row.operation);
    let has = |command: &Command, name: &str| command.get_arguments().any(|arg| arg.get_id() == name);
    if row.is_list() {
        let all = Arg::new("all").long("all").action(ArgAction::SetTrue);
        command = command.arg(all.help("Every page: walks the list to its end and writes rows as they come"));
    }
    if row.operation.answers_with_json() && !has(&command, "fields") {
        let fields = Arg::new("fields").long("fields").value_name("KEYS");
        command = command.arg(fields.help("Keys to show of the answer, separated by commas"));
    }
    if row.is_watchable() {
        let watch = Arg::new("watch").long("watch").action(ArgAction::SetTrue);
        let interval = Arg::new("interval")
            .long("interval")
            .value_name("SECONDS")
            .value_parser(value_parser!(u64).range(1..));
        command = command
            .arg(watch.help("Look again until all that is shown has ended; fails when any of it failed"))
            .arg(
                interval
                    .default_value("2")
                    .requires("watch")
                    .help("How often to look, with --watch"),
            );
    }
    if row.operation.id() == "trigger_renewal" {
        let wait = Arg::new("wait").long("wait").action(ArgAction::SetTrue);
        let timeout = Arg::new("timeout")
            .long("timeout")
            .value_name("SECONDS")
            .value_parser(value_parser!(u64));
        command = command.arg(wait.help("Wait until the new version is deployed")).arg(
            timeout
                .default_value("300")
                .requires("wait")
                .help("How many seconds to wait at most"),
        );
    }
    command
}

fn import() -> Command {
    let flag = |name: &'static str, help: &'static str| Arg::new(name).long(name).value_name("TEXT").help(help);
    Command::new("import")
        .about("Take over certificates that others issued, from PEM files")
        .long_about(
            "Take over certificates that others issued, from PEM files.\n\nFiles are sent in batches, each certificate \
             with the CA certificates of the files that lead from it. A certificate that is there already is reported \
             as a duplicate and is no error: an import that broke off is finished by running it again. Private keys \
             stay where they are.",
        )
        .arg(
            Arg::new("files")
                .required(true)
                .num_args(1..)
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("PEM files, each with any number of certificates"),
        )
        .args([
            flag("owner", "Id of the owner they get").visible_alias("owner-id"),
            flag("team", "Id of the team they get").visible_alias("team-id"),
            flag("issuer", "Id of the issuer that is to renew them").visible_alias("issuer-id"),
            flag("renewal-policy", "Id of the renewal policy they get").visible_alias("renewal-policy-id"),
            flag("environment", "The environment they get; imported when absent"),
        ])
}

fn call() -> Command {
    Command::new("call")
        .about("Call any operation of the API by its name")
        .args([
        Arg::new("operation")
            .required_unless_present("list")
            .help("Which, as `call --list` names it"),
        Arg::new("json").long("json").value_name("JSON").help(
            "Its parameters and the keys of its body in one object: the JSON itself, @FILE, or - for standard input",
        ),
        Arg::new("list")
            .long("list")
            .action(ArgAction::SetTrue)
            .conflicts_with_all(["operation", "json"])
            .help("List the operations"),
    ])
}

/// Reads what was typed.
pub(crate) fn read(matches: ArgMatches) -> (Globals, Action) {
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    let color = match text("color").as_deref() {
        Some("always") => Some(true),
        Some("never") => Some(false),
        _ if text("no_color").is_some_and(|set| !set.is_empty()) => Some(false),
        _ => None,
    };
    let globals = Globals {
        server: text("server").unwrap_or_default(),
        api_key: Secret::new(text("api_key").unwrap_or_default()),
        ca_cert: matches.get_one::<PathBuf>("ca_cert").cloned(),
        allow_plain_http: matches.get_one::<bool>("allow_plain_http").copied().unwrap_or(false),
        // An operation may have a format of its own, with words of its own.
        format: match text("format").as_deref() {
            Some("table") => Some(Format::Table),
            Some("json") => Some(Format::Json),
            _ => None,
        },
        output: matches.get_one::<PathBuf>("output").cloned(),
        idempotency_key: text("idempotency_key"),
        color,
    };
    (globals, action(&matches))
}

fn action(matches: &ArgMatches) -> Action {
    let (name, inner) = matches.subcommand().expect("a command is required");
    match name {
        "status" => Action::Status,
        "version" => Action::Version,
        "issue" => Action::Issue(inner.clone()),
        "import" => Action::Import(inner.clone()),
        "restore-revocations" => Action::Restore(inner.clone()),
        "prove-key-compromise" => Action::Prove(inner.clone()),
        "call" => Action::Call(inner.clone()),
        "completions" => Action::Completions(*inner.get_one("shell").expect("it is required")),
        "man" => Action::Man(inner.get_one("directory").cloned()),
        name => match (table::by_name(name), inner.subcommand()) {
            (Some(row), None) => Action::Operation(Box::new(row), inner.clone()),
            (_, Some(("import", deepest))) if name == "certs" => Action::Import(deepest.clone()),
            (_, Some((verb, deepest))) => {
                let row = table::by_verb(name, verb).expect("verbs come from the table");
                Action::Operation(Box::new(row), deepest.clone())
            }
            (None, None) => unreachable!("a noun needs a verb"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        let mut command = command();
        command.build();
        command.debug_assert();
    }

    #[test]
    fn global_flags_stand_before_and_after_the_command() {
        for line in [
            "certctl-cli --format json --server http://a certs list",
            "certctl-cli certs list --server http://a --format json",
            "certctl-cli list-certs --format=json --server=http://a",
        ] {
            let (globals, action) = read(command().try_get_matches_from(line.split(' ')).unwrap());
            assert_eq!(
                (globals.format, globals.server.as_str()),
                (Some(Format::Json), "http://a"),
                "{line}"
            );
            assert!(matches!(action, Action::Operation(row, _) if row.operation.id() == "list_certificates"));
        }
    }

    #[test]
    fn every_operation_is_reached_in_both_spellings() {
        for row in table::rows() {
            let id = row.operation.id();
            let path: Vec<String> = (row.operation.path_params)()
                .iter()
                .map(|p| format!("{}-1", p.name))
                .collect();
            let json = row.operation.body.map(|_| "--json={}".to_owned());
            let more: Vec<String> = path.into_iter().chain(json).collect();
            let nouns = vec![row.noun.to_owned(), row.verb.clone()];
            for words in row.joined().into_iter().map(|name| vec![name]).chain([nouns]) {
                let line = ["certctl-cli".to_owned()]
                    .into_iter()
                    .chain(words.clone())
                    .chain(more.clone());
                let matches = command()
                    .try_get_matches_from(line)
                    .unwrap_or_else(|e| panic!("{words:?}: {e}"));
                let (_, action) = read(matches);
                assert!(
                    matches!(action, Action::Operation(found, _) if found.operation.id() == id),
                    "{words:?}"
                );
            }
        }
    }
}
