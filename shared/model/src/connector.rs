//! Types and configurations of issuers and targets, and the spellings clients use for them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

crate::words! {
    /// Who signs.
    pub enum IssuerType {
        /// The authority whose key our signer holds.
        Local = "local" | "GenericCA" | "generic_ca" | "local_ca",
    }
}

crate::words! {
    /// What certificates are deployed to.
    pub enum TargetType {
        /// NGINX, on the agent's host.
        Nginx = "NGINX",
    }
}

/// How an NGINX target is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NginxConfig {
    /// Absolute path of the certificate file: leaf first, then the intermediates. In all three paths `{id}` and `{name}`
    /// stand for the certificate's, so that a target can have several certificates.
    pub cert_path: String,
    /// Absolute path of the file with the issuer chain alone.
    pub chain_path: String,
    /// Absolute path of the private key file, written with mode 0600.
    pub key_path: String,
    /// Program and arguments that check the configuration, separated by spaces; never given to a shell.
    pub validate_command: String,
    /// Program and arguments that make NGINX take the new files.
    pub reload_command: String,
    /// `host:port` to connect to after the reload, to see the new certificate being served. Empty: not checked.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub verify_address: String,
    /// Server name sent in that connection; the certificate's common name when empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub verify_server_name: String,
    /// Where clients connect to, as `host:port`: every address of each is looked at regularly, and has to serve what was
    /// deployed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<String>,
    /// Whether the agent writes a self-signed pair of a day's life where no files are yet, so that NGINX can be started
    /// before the certificate is issued.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub placeholder: bool,
}

/// Every key of a configuration of type NGINX, with the other spellings of some.
const NGINX_KEYS: [&str; 11] = [
    "cert_path",
    "chain_path",
    "key_path",
    "validate_command",
    "validate_cmd",
    "reload_command",
    "reload_cmd",
    "verify_address",
    "verify_server_name",
    "endpoints",
    "placeholder",
];
/// What stands for a certificate's id and name in paths.
const PLACEHOLDERS: [&str; 2] = ["{id}", "{name}"];

/// Endpoints of one target.
const MOST_ENDPOINTS: usize = 32;
/// Octets of a path. Linux has 4,096, with links resolved.
const MAX_PATH: usize = 1_024;
/// Octets of a file's name. Linux has 255; new files and backups lie beside with up to 29 more.
const MAX_FILE_NAME: usize = 220;
/// Stands in the names of new files and backups.
const RESERVED: &str = ".certctl-";

/// A target's configuration, by type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetConfig {
    /// NGINX.
    Nginx(NginxConfig),
}

impl TargetConfig {
    /// Where clients connect to, and the server name they send; the certificate's own when empty.
    pub fn endpoints(&self) -> (&[String], &str) {
        match self {
            TargetConfig::Nginx(config) => (&config.endpoints, &config.verify_server_name),
        }
    }

    /// Reads a configuration in any spelling clients use (`reload_cmd`, `validate_cmd`), filling in what has a default.
    ///
    /// # Errors
    /// The field and what would be right.
    pub fn read(kind: TargetType, config: &Value) -> Result<Self, (&'static str, String)> {
        let empty = Map::new();
        let config = match config {
            Value::Null => &empty,
            Value::Object(map) => map,
            _ => return Err(("config", "an object is needed".to_owned())),
        };
        match kind {
            TargetType::Nginx => NginxConfig::read(config).map(TargetConfig::Nginx),
        }
    }

    /// The keys of a configuration that mean nothing for its type, and are not kept.
    pub fn ignored(kind: TargetType, config: &Value) -> Vec<String> {
        let known: &[&str] = match kind {
            TargetType::Nginx => &NGINX_KEYS,
        };
        let keys = config.as_object().into_iter().flat_map(Map::keys);
        keys.filter(|key| !known.contains(&key.as_str())).cloned().collect()
    }

    /// The files that are written for a certificate, or without one as the configuration names them.
    pub fn paths(&self) -> [&str; 3] {
        match self {
            TargetConfig::Nginx(config) => [&config.cert_path, &config.chain_path, &config.key_path],
        }
    }

    /// Whether a path has a placeholder.
    pub fn is_template(&self) -> bool {
        let has = |path: &str| PLACEHOLDERS.iter().any(|placeholder| path.contains(placeholder));
        self.paths().into_iter().any(has)
    }

    /// The configuration for one certificate, without placeholders.
    #[must_use]
    pub fn for_certificate(mut self, id: &str, name: &str) -> Self {
        let [by_id, by_name] = PLACEHOLDERS;
        let name = file_name(name);
        match &mut self {
            TargetConfig::Nginx(config) => {
                for path in [&mut config.cert_path, &mut config.chain_path, &mut config.key_path] {
                    *path = path.replace(by_id, id).replace(by_name, &name);
                }
            }
        }
        self
    }

    /// The configuration as agents read it.
    pub fn to_value(&self) -> Value {
        match self {
            TargetConfig::Nginx(config) => serde_json::to_value(config).expect("texts are plain data"),
        }
    }
}

impl NginxConfig {
    fn read(config: &Map<String, Value>) -> Result<Self, (&'static str, String)> {
        let cert_path = path(config, "cert_path")?.ok_or_else(|| {
            (
                "config.cert_path",
                "the absolute path of the certificate file is needed".to_owned(),
            )
        })?;
        let beside = |suffix: &str| match cert_path.rsplit_once('.') {
            Some((stem, extension)) if !extension.contains('/') => format!("{stem}{suffix}.{extension}"),
            _ => format!("{cert_path}{suffix}"),
        };
        let key_beside = format!(
            "{}.key",
            cert_path
                .rsplit_once('.')
                .filter(|(_, e)| !e.contains('/'))
                .map_or(cert_path.as_str(), |(stem, _)| stem)
        );
        let placeholder = match config.get("placeholder") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(placeholder)) => *placeholder,
            Some(_) => return Err(("config.placeholder", "is true or false".to_owned())),
        };
        let (validate_command, reload_command) = commands(config)?;
        let config = Self {
            chain_path: path(config, "chain_path")?.unwrap_or_else(|| beside("-chain")),
            key_path: path(config, "key_path")?.unwrap_or(key_beside),
            validate_command,
            reload_command,
            verify_address: text(config, "verify_address")?.unwrap_or_default(),
            verify_server_name: text(config, "verify_server_name")?.unwrap_or_default(),
            endpoints: endpoints(config)?,
            placeholder,
            cert_path,
        };
        config.paths_are_different_files()?;
        match placeholder && TargetConfig::Nginx(config.clone()).is_template() {
            true => Err((
                "config.placeholder",
                "cannot be true where paths have {id} or {name}: the files are known only with a certificate"
                    .to_owned(),
            )),
            false => Ok(config),
        }
    }

    /// Agents write three files. One that holds certificate and key together is not written: its mode would be wrong for
    /// one of the two.
    fn paths_are_different_files(&self) -> Result<(), (&'static str, String)> {
        let paths = [
            ("config.cert_path", &self.cert_path),
            ("config.chain_path", &self.chain_path),
            ("config.key_path", &self.key_path),
        ];
        for (at, (field, path)) in paths.iter().enumerate() {
            for (other, before) in &paths[..at] {
                let other = other.trim_start_matches("config.");
                if path == before {
                    let text = format!(
                        "{path} is {other} as well; cert_path, chain_path and key_path are three different files"
                    );
                    return Err((*field, text));
                }
                let inside =
                    |outer: &str, inner: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'));
                if inside(path, before) || inside(before, path) {
                    return Err((
                        *field,
                        format!("one of {path} and {other} {before} would be a directory of the other"),
                    ));
                }
            }
        }
        Ok(())
    }
}

/// A certificate's name as a part of a path.
fn file_name(name: &str) -> String {
    const LONGEST: usize = 128;
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || "._-".contains(c) {
            c
        } else {
            '_'
        }
    };
    let text: String = name.chars().take(LONGEST).map(plain).collect();
    match text.strip_prefix('.') {
        Some(rest) => format!("_{rest}"),
        None if text.is_empty() => "_".to_owned(),
        None => text,
    }
}

fn text(config: &Map<String, Value>, key: &'static str) -> Result<Option<String>, (&'static str, String)> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) if !text.contains(crate::text::is_hidden) => Ok(Some(text.clone())),
        Some(_) => Err(("config", format!("{key} is a text without control characters"))),
    }
}

fn endpoints(config: &Map<String, Value>) -> Result<Vec<String>, (&'static str, String)> {
    let wrong = |what: String| Err(("config.endpoints", what));
    let given = match config.get("endpoints") {
        None | Some(Value::Null) => return Ok(vec![]),
        Some(Value::Array(given)) if given.len() <= MOST_ENDPOINTS => given,
        Some(_) => return wrong(format!("a list of at most {MOST_ENDPOINTS} texts is needed")),
    };
    let mut endpoints = Vec::with_capacity(given.len());
    for one in given {
        let is_endpoint = |text: &&str| {
            let split = text.rsplit_once(':');
            split.is_some_and(|(host, port)| {
                let plain = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
                !host.is_empty() && host.chars().all(plain) && port.parse::<u16>().is_ok_and(|port| port > 0)
            })
        };
        match one.as_str().filter(is_endpoint) {
            Some(endpoint) => endpoints.push(endpoint.to_owned()),
            None => return wrong(format!("{one} is not a host and a port, like \"www.example.com:443\"")),
        }
    }
    endpoints.sort();
    endpoints.dedup();
    Ok(endpoints)
}

/// An absolute path of a file, without `.`, `..` and empty components: two spellings of one path are one path.
fn path(config: &Map<String, Value>, key: &'static str) -> Result<Option<String>, (&'static str, String)> {
    let wrong = |what: String| Err(("config", format!("{key} {what}")));
    let Some(given) = text(config, key)? else {
        return Ok(None);
    };
    let components: Vec<_> = given.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let is_file = given.starts_with('/') && !given.ends_with('/') && !given.ends_with("/.");
    let Some(name) = components.last().filter(|_| is_file && !components.contains(&"..")) else {
        return wrong("is an absolute path of a file, without \"..\"".to_owned());
    };
    if name.contains(RESERVED) {
        return wrong(format!(
            "has \"{RESERVED}\" in the file's name, which is reserved for files in transition"
        ));
    }
    if given.len() > MAX_PATH || components.iter().any(|part| part.len() > MAX_FILE_NAME) {
        return wrong(format!(
            "is too long: a path has at most {MAX_PATH} octets, and each part of it at most {MAX_FILE_NAME}"
        ));
    }
    let fixed = PLACEHOLDERS
        .iter()
        .fold(given.clone(), |path, placeholder| path.replace(placeholder, ""));
    if fixed.contains(['{', '}']) {
        return wrong("has a placeholder that is unknown; there are {id} and {name}".to_owned());
    }
    Ok(Some(format!("/{}", components.join("/"))))
}

/// The command that checks and the one that reloads. Clients join the two by `&&` in `reload_cmd`, which no shell reads.
fn commands(config: &Map<String, Value>) -> Result<(String, String), (&'static str, String)> {
    let given = |keys: [&'static str; 2]| match text(config, keys[0])? {
        Some(command) => Ok(Some(command)),
        None => text(config, keys[1]),
    };
    let (validate, reload) = (
        given(["validate_command", "validate_cmd"])?,
        given(["reload_command", "reload_cmd"])?,
    );
    let joined = reload.as_deref().and_then(|command| command.split_once("&&"));
    let (validate, reload) = match (joined, validate) {
        (Some((check, reload)), None) => (Some(check.trim().to_owned()), Some(reload.trim().to_owned())),
        (Some((check, reload)), Some(validate)) if check.split_whitespace().eq(validate.split_whitespace()) => {
            (Some(validate), Some(reload.trim().to_owned()))
        }
        (Some(_), Some(_)) => {
            let text =
                "reload_command has a check before &&, and validate_command is another one; leave one of them out";
            return Err(("config", text.to_owned()));
        }
        (None, validate) => (validate, reload),
    };
    Ok((
        command("validate_command", validate, "nginx -t")?,
        command("reload_command", reload, "nginx -s reload")?,
    ))
}

fn command(key: &str, given: Option<String>, default: &str) -> Result<String, (&'static str, String)> {
    let command = given.unwrap_or_else(|| default.to_owned());
    if let Some(found) = command.chars().find(|c| "|&;<>()$`\\\"'*?[]#~=%{}".contains(*c)) {
        let text = format!(
            "{key} is one program and its arguments separated by spaces, and no shell reads it: \"{found}\" cannot stand \
             in it. A check goes into validate_command; for anything else put a script on the host, and its path here"
        );
        return Err(("config", text));
    }
    match command.trim().is_empty() {
        true => Err(("config", format!("{key} has nothing before or after &&"))),
        false => Ok(command),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_spelling_of_a_target_configuration_is_read_into_one() {
        let expected = json!({
            "cert_path": "/etc/tls/a.pem", "chain_path": "/etc/tls/a-chain.pem", "key_path": "/etc/tls/a.key",
            "validate_command": "nginx -t", "reload_command": "systemctl reload nginx"
        });
        for given in [
            json!({ "cert_path": "/etc/tls/a.pem", "reload_cmd": "systemctl reload nginx" }),
            json!({ "cert_path": "//etc/./tls//a.pem", "reload_cmd": "systemctl reload nginx" }),
            json!({ "cert_path": "/etc/tls/a.pem", "reload_command": "systemctl reload nginx", "validate_cmd": "nginx -t", "chain_path": "" }),
        ] {
            let kind: TargetType = "nginx".parse().unwrap();
            assert_eq!(TargetConfig::read(kind, &given).unwrap().to_value(), expected);
        }
    }

    #[test]
    fn a_check_and_a_reload_that_are_joined_are_read_apart() {
        let read = |config: Value| TargetConfig::read(TargetType::Nginx, &config).map(|config| config.to_value());
        let joined = "nginx -t && systemctl reload nginx";
        for given in [
            json!({ "cert_path": "/etc/tls/a.pem", "reload_cmd": joined }),
            json!({ "cert_path": "/etc/tls/a.pem", "reload_command": joined, "validate_command": "nginx  -t" }),
        ] {
            let config = read(given).unwrap();
            assert_eq!(config["reload_command"], "systemctl reload nginx");
            assert!(
                config["validate_command"]
                    .as_str()
                    .unwrap()
                    .split_whitespace()
                    .eq(["nginx", "-t"])
            );
        }
        for (reload, said) in [
            ("nginx -t && nginx -s reload && true", "no shell reads it"),
            ("nginx -t || true", "no shell reads it"),
            ("nginx -t &&", "nothing before or after"),
            ("nginx -s reload > /tmp/x", "put a script on the host"),
        ] {
            let (_, error) = read(json!({ "cert_path": "/a.pem", "reload_cmd": reload })).unwrap_err();
            assert!(error.contains(said), "{reload}: {error}");
        }
        let both = json!({ "cert_path": "/a.pem", "reload_cmd": joined, "validate_cmd": "true" });
        assert!(read(both).unwrap_err().1.contains("leave one of them out"));
    }

    #[test]
    fn paths_are_made_short_and_their_placeholders_stand_for_one_certificate() {
        let read = |config: Value| TargetConfig::read(TargetType::Nginx, &config);
        let config = read(json!({ "cert_path": "/etc//tls/./{name}.pem" })).unwrap();
        assert!(config.is_template());
        for (name, cert, key) in [
            (
                "www.example.com",
                "/etc/tls/www.example.com.pem",
                "/etc/tls/www.example.com.key",
            ),
            (
                "*.example/../x",
                "/etc/tls/_.example_.._x.pem",
                "/etc/tls/_.example_.._x.key",
            ),
            ("..", "/etc/tls/_..pem", "/etc/tls/_..key"),
            ("{id}", "/etc/tls/_id_.pem", "/etc/tls/_id_.key"),
        ] {
            let paths = config.clone().for_certificate("mc-1", name);
            assert_eq!((paths.paths()[0], paths.paths()[2]), (cert, key), "{name}");
        }
        let by_id = read(json!({ "cert_path": "/etc/{id}/a.pem" }))
            .unwrap()
            .for_certificate("mc-1", "a");
        assert_eq!(
            by_id.paths(),
            ["/etc/mc-1/a.pem", "/etc/mc-1/a-chain.pem", "/etc/mc-1/a.key"]
        );
        assert!(!read(json!({ "cert_path": "/etc/tls/a.pem" })).unwrap().is_template());
        for bad in [
            json!({ "cert_path": "/etc/{serial}.pem" }),
            json!({ "cert_path": "/etc/{id}.pem", "placeholder": true }),
            json!({ "cert_path": "/etc/a.pem", "placeholder": "yes" }),
            json!({ "cert_path": "/etc/tls/." }),
        ] {
            assert!(read(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_that_mean_nothing_are_told() {
        let config = json!({ "cert_path": "/a.pem", "reload_cmd": "x", "restart": true, "ssl": {} });
        assert_eq!(TargetConfig::ignored(TargetType::Nginx, &config), ["restart", "ssl"]);
    }

    #[test]
    fn a_configuration_that_could_do_harm_is_refused() {
        for bad in [
            json!({}),
            json!({ "cert_path": "relative.pem" }),
            json!({ "cert_path": "/etc/../root/x" }),
            json!({ "cert_path": "/etc/tls/" }),
            json!({ "cert_path": "/etc/tls/." }),
            json!({ "cert_path": "/" }),
            json!({ "cert_path": "/etc/a.pem.certctl-old" }),
            json!({ "cert_path": format!("/etc/{}", "x".repeat(221)) }),
            json!({ "cert_path": "/x/a".repeat(300) }),
            json!({ "cert_path": "/a.pem", "key_path": "/a.pem" }),
            json!({ "cert_path": "/etc/a.pem", "key_path": "/etc//./a.pem" }),
            json!({ "cert_path": "/a.pem", "chain_path": "/a.pem" }),
            json!({ "cert_path": "/a.key" }),
            json!({ "cert_path": "/etc/tls", "key_path": "/etc/tls/a.key" }),
            json!({ "cert_path": "/a.pem", "reload_command": "nginx; rm -rf x" }),
            json!({ "cert_path": "/a.pem", "reload_command": "$(x)" }),
            json!({ "cert_path": 7 }),
            json!({ "cert_path": "/a.pem", "endpoints": "www.example.com:443" }),
            json!({ "cert_path": "/a.pem", "endpoints": ["www.example.com"] }),
            json!({ "cert_path": "/a.pem", "endpoints": ["a b:443"] }),
            json!({ "cert_path": "/a.pem", "endpoints": ["[::1]:0"] }),
            json!([]),
        ] {
            assert!(TargetConfig::read(TargetType::Nginx, &bad).is_err(), "{bad}");
        }
    }
}
