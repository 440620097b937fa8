//! What each command asks the server and shows.

use std::{
    fs,
    io::{self, IsTerminal, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use certctl_client::{Body, Client};
use certctl_contract::{catalogue, endpoint::Operation, health::ApiHealth};
use certctl_runtime::private::NewFile;
use clap::ArgMatches;
use serde_json::{Map, Value, json};

use crate::{
    args::{self, Action, Format, Globals},
    compromise,
    failure::Failure,
    import, inputs, issue, key_hash, lists,
    output::{self, Style},
    pages, recovery, renew, table,
    table::Row,
    watch,
};

const OPERATIONS: output::Columns = &[
    ("OPERATION", "operation"),
    ("METHOD", "method"),
    ("PATH", "path"),
    ("SUMMARY", "summary"),
];

/// Whom to ask, and how to show what they say.
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) format: Option<Format>,
    pub(crate) output: Option<PathBuf>,
    pub(crate) style: Style,
}

impl Session {
    /// Checks the settings; connects to nothing yet.
    pub(crate) fn new(globals: Globals) -> Result<Self, Failure> {
        let mut builder = Client::builder(&globals.server)
            .token(globals.api_key)
            .allow_plain_http(globals.allow_plain_http)
            .user_agent(concat!("certctl-cli/", env!("CARGO_PKG_VERSION")));
        if let Some(file) = &globals.ca_cert {
            let pem = std::fs::read(file).map_err(|e| Failure::Usage(format!("{}: {e}", file.display())))?;
            builder = builder.ca_cert(pem);
        }
        let client = builder.build()?;
        let client = match &globals.idempotency_key {
            Some(key) => client.with_idempotency_key(key)?,
            None => client,
        };
        Ok(Self {
            client,
            format: globals.format,
            output: globals.output,
            style: Style::new(globals.color),
        })
    }

    /// How lists and what was done are shown.
    pub(crate) fn lists_as(&self) -> Format {
        self.format.unwrap_or(Format::Table)
    }

    fn things_as(&self) -> Format {
        self.format.unwrap_or(Format::Json)
    }

    /// Calls an operation whose answer is JSON.
    pub(crate) async fn ask(&self, operation: &Operation, input: Map<String, Value>) -> Result<Value, Failure> {
        match self.client.call_json(operation, input).await?.body {
            Body::Json(value) => Ok(value),
            Body::Empty | Body::Bytes { .. } => Err(Failure::Failed(format!(
                "the server's answer to {} is not JSON; is the address right?",
                operation.id()
            ))),
        }
    }
}

/// Does what was typed.
pub(crate) async fn run(globals: Globals, action: Action) -> Result<(), Failure> {
    match action {
        Action::Version => return Ok(output::line(concat!("certctl-cli ", env!("CARGO_PKG_VERSION")))?),
        Action::Completions(shell) => return pages::completions(shell, &mut args::shown()),
        Action::Man(directory) => return pages::man(args::shown(), directory.as_deref()),
        Action::Call(matches) if matches.get_flag("list") => return operations(globals.format),
        _ => {}
    }
    let session = Session::new(globals)?;
    match action {
        Action::Operation(row, matches) => operation(&session, &row, &matches).await,
        Action::Status => status(&session).await,
        Action::Issue(matches) => issue::run(&session, &matches).await,
        Action::Import(matches) => import::run(&session, &matches).await,
        Action::Restore(matches) => recovery::run(&session, &matches).await,
        Action::Prove(matches) => compromise::run(&session, &matches).await,
        Action::Call(matches) => call(&session, &matches).await,
        Action::Version | Action::Completions(_) | Action::Man(_) => unreachable!("they need no server"),
    }
}

async fn operation(session: &Session, row: &Row, matches: &ArgMatches) -> Result<(), Failure> {
    let operation = &row.operation;
    let mut input = inputs::read(operation, matches)?;
    key_hash::read(operation, matches, &mut input)?;
    let flag = |name: &str| {
        matches
            .try_get_one::<bool>(name)
            .ok()
            .flatten()
            .copied()
            .unwrap_or(false)
    };
    let number = |name: &str| {
        matches
            .try_get_one::<u64>(name)
            .ok()
            .flatten()
            .copied()
            .unwrap_or_default()
    };
    // Not a parameter of the operation, or `inputs` would have read it.
    let fields = match input.contains_key("fields") {
        true => None,
        false => matches.try_get_one::<String>("fields").ok().flatten().cloned(),
    };
    if flag("wait") {
        return renew::run(session, input, number("timeout")).await;
    }
    if flag("watch") {
        return watch::run(session, operation, input, number("interval")).await;
    }
    if row.is_list() && flag("all") {
        return lists::walk(session, operation, input).await;
    }
    if session.output.is_some() || is_file(operation) {
        return pass_on(session, operation, input).await;
    }
    if row.is_list() {
        return lists::page(session, operation, input).await;
    }
    let id = (operation.path_params)()
        .first()
        .and_then(|param| input.get(param.name).cloned());
    match session.client.call_json(operation, input).await?.body {
        Body::Json(value) => show(session, operation, id.as_ref(), prune(value, fields.as_deref())),
        Body::Empty => Ok(()),
        Body::Bytes { bytes, .. } => Ok(output::Passing::default().write(&bytes)?),
    }
}

/// Shows an answer: what was done is a word on a line, unless JSON is asked for; anything else is JSON, unless a table is.
fn show(session: &Session, operation: &Operation, id: Option<&Value>, value: Value) -> Result<(), Failure> {
    let done = value["status"]
        .as_str()
        .filter(|_| value.get("id").is_none() && is_word(operation));
    match (session.format, done) {
        (None | Some(Format::Table), Some(word)) => {
            let of = id
                .and_then(Value::as_str)
                .map(|id| format!("{id}: "))
                .unwrap_or_default();
            let jobs: Vec<&str> = value["job_ids"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            let jobs = if jobs.is_empty() || id.is_none() {
                String::new()
            } else {
                format!(" ({})", jobs.join(", "))
            };
            Ok(output::line(&format!("{of}{word}{jobs}"))?)
        }
        _ => thing(session, &value),
    }
}

/// Whether an operation answers with what became of it, rather than with a thing.
fn is_word(operation: &Operation) -> bool {
    operation.method.as_str() == "POST" || operation.tag == "health"
}

fn thing(session: &Session, value: &Value) -> Result<(), Failure> {
    match (session.things_as(), value.as_array()) {
        (Format::Json, _) => output::json(value)?,
        (Format::Table, Some(rows)) => {
            let columns = output::columns_of(rows);
            output::rows(rows, &columns, session.style)?;
        }
        (Format::Table, None) => output::keys(value, session.style)?,
    }
    Ok(())
}

/// Whether an operation answers with something that is passed on as it comes.
fn is_file(operation: &Operation) -> bool {
    !operation.answers_with_json() && !operation.content_types.is_empty()
}

/// Keeps these keys of a thing, or of each of several.
fn prune(value: Value, fields: Option<&str>) -> Value {
    let Some(fields) = fields else {
        return value;
    };
    let wanted: Vec<&str> = fields.split(',').map(str::trim).collect();
    match value {
        Value::Object(map) => Value::Object(
            map.into_iter()
                .filter(|(key, _)| wanted.contains(&key.as_str()))
                .collect(),
        ),
        Value::Array(items) => items.into_iter().map(|item| prune(item, Some(fields))).collect(),
        other => other,
    }
}

/// Passes an answer on as it comes, to standard output or to a file.
async fn pass_on(session: &Session, operation: &Operation, input: Map<String, Value>) -> Result<(), Failure> {
    let mut stream = session.client.download_json(operation, input).await?;
    let media = stream.content_type.split(';').next().unwrap_or_default().to_owned();
    let is_text =
        media.starts_with("text/") || media.ends_with("json") || media.ends_with("pem-file") || media.contains("pem-");
    let Some(path) = &session.output else {
        if io::stdout().is_terminal() && !is_text && !media.is_empty() {
            let said = format!("the answer is {media}; redirect standard output or give --output to have it");
            return Ok(output::line(&said)?);
        }
        let mut passing = output::Passing::default();
        while let Some(piece) = stream.chunk().await? {
            passing.write(&piece)?;
        }
        return Ok(());
    };
    let failed = |e: io::Error| Failure::Failed(format!("{}: {e}", path.display()));
    // A file that is there is replaced when all has come, and not before.
    let mut file = output_file(path).map_err(failed)?;
    while let Some(piece) = stream.chunk().await? {
        file.write_all(&piece).map_err(failed)?;
    }
    file.commit().map_err(failed)
}

/// An output file under a random name, until it is complete.
fn output_file(path: &Path) -> io::Result<NewFile> {
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return Err(io::Error::other("it is not a file; redirect standard output instead"));
    }
    NewFile::beside(path, output_mode(path))
}

/// The mode of an output file: that of the user's own file which it replaces, else what the umask leaves.
fn output_mode(path: &Path) -> u32 {
    let umask = fs::read_to_string("/proc/self/status").ok().and_then(|status| {
        let text = status.lines().find_map(|line| line.strip_prefix("Umask:"))?;
        u32::from_str_radix(text.trim(), 8).ok()
    });
    // Another user's file may be open to that user.
    let replaced = fs::symlink_metadata(path).ok().filter(|found| {
        let own = fs::metadata("/proc/self").is_ok_and(|process| process.uid() == found.uid());
        own && found.is_file()
    });
    match replaced {
        Some(found) => found.mode() & 0o777,
        None => 0o666 & !umask.unwrap_or(0o077),
    }
}

async fn status(session: &Session) -> Result<(), Failure> {
    let health = session.ask(&Operation::of::<ApiHealth>("", ""), Map::new()).await?;
    let summary = catalogue().into_iter().find(|o| o.id() == "dashboard_summary");
    let summary = summary.expect("the inventory can be summarised");
    let summary = session.ask(&summary, Map::new()).await?;
    let both = json!({ "health": health, "summary": summary });
    match session.lists_as() {
        Format::Json => output::json(&both)?,
        Format::Table => output::keys(&both, session.style)?,
    }
    Ok(())
}

fn operations(format: Option<Format>) -> Result<(), Failure> {
    let row = |o: &Operation| json!({ "operation": o.id(), "method": o.method.as_str(), "path": o.path(), "summary": o.summary() });
    let rows: Vec<Value> = catalogue().iter().map(row).collect();
    match format {
        Some(Format::Json) => output::json(&Value::Array(rows))?,
        _ => output::rows(&rows, &output::owned(OPERATIONS), Style::new(None))?,
    }
    Ok(())
}

async fn call(session: &Session, matches: &ArgMatches) -> Result<(), Failure> {
    let name = matches
        .get_one::<String>("operation")
        .cloned()
        .unwrap_or_default()
        .replace('-', "_");
    let id = name.strip_prefix("certctl_").unwrap_or(&name);
    let row = table::rows()
        .into_iter()
        .find(|row| row.operation.id() == id)
        .ok_or_else(|| {
            Failure::Usage(format!(
                "there is no operation {name}; `certctl-cli call --list` lists them"
            ))
        })?;
    let input = inputs::object(matches.get_one::<String>("json").map(String::as_str))?;
    if session.output.is_some() || is_file(&row.operation) {
        return pass_on(session, &row.operation, input).await;
    }
    match session.client.call_json(&row.operation, input).await?.body {
        Body::Json(value) => thing(session, &value),
        Body::Empty => Ok(()),
        Body::Bytes { bytes, .. } => Ok(output::Passing::default().write(&bytes)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_file_follows_no_planted_link_and_keeps_the_mode_of_the_own_file() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let put = |name: &str| {
            let mut file = output_file(&at(name)).unwrap();
            file.write_all(b"new").unwrap();
            file.commit().unwrap();
            fs::symlink_metadata(at(name)).unwrap()
        };
        fs::write(at("victim"), "kept").unwrap();
        symlink(at("victim"), at("out")).unwrap();
        symlink(at("victim"), at(&format!("out.part-{}", std::process::id()))).unwrap();
        assert!(put("out").is_file());
        assert_eq!(fs::read_to_string(at("victim")).unwrap(), "kept");
        fs::set_permissions(at("out"), fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(put("out").mode() & 0o777, 0o640);
        assert!(output_file(dir.path()).is_err() && output_file(Path::new("/dev/null")).is_err());
        // Half an answer leaves nothing.
        drop(output_file(&at("half")).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn fields_are_kept_of_things_and_of_each_of_several() {
        for (value, expected) in [
            (json!({ "a": 1, "b": 2, "c": 3 }), json!({ "a": 1, "c": 3 })),
            (json!([{ "a": 1, "b": 2 }]), json!([{ "a": 1 }])),
            (json!("x"), json!("x")),
        ] {
            assert_eq!(prune(value, Some("a, c")), expected);
        }
        assert_eq!(prune(json!({ "a": 1 }), None), json!({ "a": 1 }));
    }
}
