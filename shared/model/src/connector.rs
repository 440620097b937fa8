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
    /// Absolute path of the certificate file: leaf first, then the intermediates.
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
}

/// Endpoints of one target.
const MOST_ENDPOINTS: usize = 32;

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
        Ok(Self {
            chain_path: path(config, "chain_path")?.unwrap_or_else(|| beside("-chain")),
            key_path: path(config, "key_path")?.unwrap_or(key_beside),
            validate_command: command(config, ["validate_command", "validate_cmd"], "nginx -t")?,
            reload_command: command(config, ["reload_command", "reload_cmd"], "nginx -s reload")?,
            verify_address: text(config, "verify_address")?.unwrap_or_default(),
            verify_server_name: text(config, "verify_server_name")?.unwrap_or_default(),
            endpoints: endpoints(config)?,
            cert_path,
        })
    }
}

fn text(config: &Map<String, Value>, key: &'static str) -> Result<Option<String>, (&'static str, String)> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) if !text.contains(char::is_control) => Ok(Some(text.clone())),
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

fn path(config: &Map<String, Value>, key: &'static str) -> Result<Option<String>, (&'static str, String)> {
    match text(config, key)? {
        Some(path) if !path.starts_with('/') || path.ends_with('/') || path.split('/').any(|part| part == "..") => {
            Err(("config", format!("{key} is an absolute path of a file, without \"..\"")))
        }
        other => Ok(other),
    }
}

fn command(
    config: &Map<String, Value>,
    keys: [&'static str; 2],
    default: &str,
) -> Result<String, (&'static str, String)> {
    let given = match text(config, keys[0])? {
        Some(command) => Some(command),
        None => text(config, keys[1])?,
    };
    let command = given.unwrap_or_else(|| default.to_owned());
    if command.contains(|c| "|&;<>()$`\\\"'*?[]#~=%{}\n".contains(c)) {
        let text = format!(
            "{} is a program and its arguments separated by spaces; no shell reads it",
            keys[0]
        );
        return Err(("config", text));
    }
    Ok(command)
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
            json!({ "cert_path": "/etc/tls/a.pem", "reload_command": "systemctl reload nginx", "validate_cmd": "nginx -t", "chain_path": "" }),
        ] {
            let kind: TargetType = "nginx".parse().unwrap();
            assert_eq!(TargetConfig::read(kind, &given).unwrap().to_value(), expected);
        }
    }

    #[test]
    fn a_configuration_that_could_do_harm_is_refused() {
        for bad in [
            json!({}),
            json!({ "cert_path": "relative.pem" }),
            json!({ "cert_path": "/etc/../root/x" }),
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
