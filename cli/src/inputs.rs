//! The inputs of an operation as arguments: what is in the path is positional, the rest are flags.

use std::{fs, path::Path};

use certctl_contract::{endpoint::Operation, tools};
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Map, Value};

use crate::failure::Failure;

/// Flags of the program itself, which no input may take. `format` of an operation is meant before that of the output.
const OURS: &[&str] = &[
    "server",
    "api_key",
    "ca_cert",
    "output",
    "idempotency_key",
    "color",
    "help",
    "json",
    "all",
];

/// How the text of a flag becomes JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Integer,
    Number,
    Switch,
    Texts,
    /// Keys and texts: `tier=low`.
    Pairs,
    Json,
}

/// One input.
struct Input {
    name: String,
    kind: Kind,
    help: String,
    required: bool,
    in_path: bool,
}

fn inputs(operation: &Operation) -> Vec<Input> {
    let tool = tools::tool(operation);
    let path: Vec<&str> = (operation.path_params)().iter().map(|p| p.name).collect();
    let required = tool.input["required"].as_array().cloned().unwrap_or_default();
    let properties = tool.input["properties"].as_object().cloned().unwrap_or_default();
    let input = |(name, schema): (String, Value)| Input {
        in_path: path.contains(&name.as_str()),
        required: required.iter().any(|r| *r == name.as_str()),
        kind: kind(&schema),
        help: help(&schema),
        name,
    };
    properties.into_iter().map(input).collect()
}

fn kind(schema: &Value) -> Kind {
    let choices = ["anyOf", "oneOf"]
        .into_iter()
        .find_map(|several| schema[several].as_array());
    if let Some(choices) = choices {
        let first = choices.iter().find(|c| c["type"] != "null");
        return first.map_or(Kind::Json, kind);
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        _ => vec![],
    };
    match types.into_iter().find(|t| *t != "null") {
        Some("string") => Kind::Text,
        Some("integer") => Kind::Integer,
        Some("number") => Kind::Number,
        Some("boolean") => Kind::Switch,
        Some("array") if kind(&schema["items"]) == Kind::Text => Kind::Texts,
        Some("object") if schema["additionalProperties"]["type"] == "string" => Kind::Pairs,
        _ => Kind::Json,
    }
}

fn help(schema: &Value) -> String {
    let doc = schema["description"].as_str().unwrap_or_default();
    let doc = doc.split("\n\n").next().unwrap_or_default().replace('\n', " ");
    let inner = ["anyOf", "oneOf"]
        .into_iter()
        .find_map(|several| schema[several].get(0));
    let listed = [Some(schema), inner, schema.get("items")].into_iter().flatten();
    let words: Vec<&str> = listed
        .filter_map(|s| s["enum"].as_array())
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    match words.is_empty() {
        true => doc,
        false => format!("{doc} One of {}.", words.join(", ")).trim_start().to_owned(),
    }
}

/// The flag of an input.
fn flag(name: &str) -> String {
    match OURS.contains(&name) {
        true => format!("body-{}", name.replace('_', "-")),
        false => name.replace('_', "-"),
    }
}

/// The key of an input among the matches.
fn key(name: &str) -> String {
    match OURS.contains(&name) {
        true => format!("body_{name}"),
        false => name.to_owned(),
    }
}

/// Adds an argument for each input.
pub(crate) fn describe(mut command: Command, operation: &Operation) -> Command {
    let inputs = inputs(operation);
    let names: Vec<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
    for input in &inputs {
        let arg = Arg::new(key(&input.name)).help(input.help.clone());
        let arg = match input.in_path {
            true => arg.required(true).value_name(input.name.to_ascii_uppercase()),
            false => {
                let arg = arg.long(flag(&input.name)).value_name(match input.kind {
                    Kind::Text | Kind::Texts => "TEXT",
                    Kind::Integer | Kind::Number => "NUMBER",
                    Kind::Switch => "true|false",
                    Kind::Pairs => "KEY=TEXT",
                    Kind::Json => "JSON",
                });
                let arg = match input.kind {
                    Kind::Texts | Kind::Pairs => arg.action(ArgAction::Append),
                    Kind::Switch => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
                    // `--sort -createdAt`, `--days -1`: what stands behind these is never a flag.
                    _ if input.name == "sort" => arg.allow_hyphen_values(true),
                    Kind::Integer | Kind::Number => arg.allow_negative_numbers(true),
                    Kind::Text | Kind::Json => arg,
                };
                match input.name.strip_suffix("_id") {
                    Some(short) if !names.contains(&short) && !OURS.contains(&short) => {
                        arg.visible_alias(short.replace('_', "-"))
                    }
                    _ => arg,
                }
            }
        };
        let arg = match input.required && !input.in_path {
            true => arg.required_unless_present("json"),
            false => arg,
        };
        // A flag of the program that the parent has handed down already gives way.
        let known = command.get_arguments().any(|known| known.get_id() == arg.get_id());
        command = match known {
            true => command.mut_arg(key(&input.name), |_| arg),
            false => command.arg(arg),
        };
    }
    if operation.body.is_some() {
        let json = Arg::new("json").long("json").value_name("JSON");
        command = command.arg(json.help("More keys in one object: the JSON itself, @FILE, or - for standard input"));
    }
    command
}

/// Reads the inputs that were given.
pub(crate) fn read(operation: &Operation, matches: &ArgMatches) -> Result<Map<String, Value>, Failure> {
    let mut given = match operation.body.is_some() {
        true => object(matches.get_one::<String>("json").map(String::as_str))?,
        false => Map::new(),
    };
    for input in inputs(operation) {
        let texts: Vec<&str> = matches
            .get_many::<String>(&key(&input.name))
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect();
        if let Some(value) = value(&input, &texts)? {
            given.insert(input.name, value);
        }
    }
    Ok(given)
}

fn value(input: &Input, texts: &[&str]) -> Result<Option<Value>, Failure> {
    let Some(first) = texts.first() else {
        return Ok(None);
    };
    let wrong = |what: &str| Failure::Usage(format!("--{}: \"{first}\" is not {what}", flag(&input.name)));
    let value = match input.kind {
        // Filters and ids go out as they were typed: the server says what would be right.
        Kind::Text if input.name.ends_with("pem") => Value::from(contents(first)?),
        Kind::Text => Value::from(*first),
        Kind::Integer => first.parse::<i64>().map_err(|_| wrong("a whole number"))?.into(),
        Kind::Number => first.parse::<f64>().map_err(|_| wrong("a number"))?.into(),
        Kind::Switch => first.parse::<bool>().map_err(|_| wrong("true or false"))?.into(),
        // A pattern may hold a comma.
        Kind::Texts if input.name.ends_with("patterns") => texts.to_vec().into(),
        Kind::Texts => {
            let each = texts.iter().flat_map(|text| text.split(','));
            each.map(str::trim)
                .filter(|text| !text.is_empty())
                .collect::<Vec<_>>()
                .into()
        }
        Kind::Pairs => {
            let pair = |text: &&str| {
                text.split_once('=')
                    .map(|(key, value)| (key.to_owned(), Value::from(value)))
            };
            let pairs: Option<Map<String, Value>> = texts.iter().map(pair).collect();
            Value::Object(pairs.ok_or_else(|| wrong("KEY=TEXT"))?)
        }
        Kind::Json => serde_json::from_str(&contents(first)?).map_err(|e| wrong(&format!("JSON: {e}")))?,
    };
    Ok(Some(value))
}

/// The text itself, or what is in `@FILE`.
fn contents(given: &str) -> Result<String, Failure> {
    match given.strip_prefix('@') {
        Some(path) => read_file(Path::new(path)),
        None => Ok(given.to_owned()),
    }
}

fn read_file(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|e| Failure::Usage(format!("{}: {e}", path.display())))
}

/// Reads an object: the JSON itself, `@file`, or `-`.
pub(crate) fn object(given: Option<&str>) -> Result<Map<String, Value>, Failure> {
    let text = match given {
        None => return Ok(Map::new()),
        Some("-") => {
            std::io::read_to_string(std::io::stdin()).map_err(|e| Failure::Usage(format!("standard input: {e}")))?
        }
        Some(given) => contents(given)?,
    };
    serde_json::from_str(&text).map_err(|e| Failure::Usage(format!("--json: an object is needed: {e}")))
}

#[cfg(test)]
mod tests {
    use certctl_contract::catalogue;
    use serde_json::json;

    use super::*;

    fn parsed(id: &str, line: &str) -> Result<Map<String, Value>, String> {
        let operation = catalogue().into_iter().find(|o| o.id() == id).unwrap();
        let command = describe(Command::new("x").no_binary_name(true), &operation);
        let matches = command
            .try_get_matches_from(line.split_whitespace())
            .map_err(|e| e.to_string())?;
        read(&operation, &matches).map_err(|e| format!("{e:?}"))
    }

    #[test]
    fn flags_become_the_json_that_the_operation_takes() {
        for (id, line, expected) in [
            (
                "list_jobs",
                "--status Failed --type Renewal --certificate mc-1 --per-page 5 --sort -createdAt",
                json!({ "per_page": 5, "sort": "-createdAt", "status": "Failed", "type": "Renewal", "certificate_id": "mc-1" }),
            ),
            (
                "create_certificate",
                "--common-name a.test --sans a.test,b.test --sans c.test --tags tier=low --tags a=b=c --owner o-1",
                json!({
                    "common_name": "a.test", "sans": ["a.test", "b.test", "c.test"], "owner_id": "o-1",
                    "tags": { "tier": "low", "a": "b=c" },
                }),
            ),
            (
                "create_issuer",
                "--name x --type local --config {\"validity_days\":9} --enabled=false",
                json!({ "name": "x", "type": "local", "config": { "validity_days": 9 }, "enabled": false }),
            ),
            (
                "create_profile",
                "--name x --required-san-patterns [a-z]{1,9} --allow-short-lived --max-ttl-seconds 600",
                json!({
                    "name": "x", "required_san_patterns": ["[a-z]{1,9}"], "allow_short_lived": true,
                    "max_ttl_seconds": 600,
                }),
            ),
            (
                "update_team",
                "t-1 --json {\"name\":\"a\",\"description\":\"b\"} --name c",
                json!({ "id": "t-1", "name": "c", "description": "b" }),
            ),
            ("create_team", "--json {\"name\":\"a\"}", json!({ "name": "a" })),
            (
                "register_agent",
                "--name a --hostname h --body-api-key k",
                json!({ "name": "a", "hostname": "h", "api_key": "k" }),
            ),
        ] {
            assert_eq!(parsed(id, line).map(Value::Object), Ok(expected), "{id} {line}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_before_anything_is_sent() {
        for (id, line, needle) in [
            ("list_jobs", "--per-page many", "whole number"),
            ("create_team", "", "--name"),
            ("get_job", "", "<ID>"),
            ("create_issuer", "--name x --type local --config {", "JSON"),
            ("create_certificate", "--common-name a.test --tags tier", "KEY=TEXT"),
            ("create_team", "--name a --json [1]", "an object is needed"),
            ("create_team", "--name a --json @/nonexistent", "/nonexistent"),
        ] {
            let said = parsed(id, line).unwrap_err();
            assert!(said.contains(needle), "{id} {line}: {said}");
        }
    }
}
