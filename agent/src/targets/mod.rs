//! What certificates are deployed to. A target says what to do; `deploy` does it.

mod nginx;

use certctl_model::connector::{TargetConfig, TargetType};
use serde_json::Value;

use crate::bundle::Bundle;
use crate::deploy::Plan;

/// A place for a certificate.
pub trait Target {
    /// Says what has to be done so that `bundle` is served.
    fn plan(&self, bundle: &Bundle) -> Plan;
}

/// Reads the target of a work item.
///
/// # Errors
/// The configuration is incomplete or dangerous.
pub fn read(kind: TargetType, config: &Value) -> Result<Box<dyn Target + Send>, String> {
    let config = TargetConfig::read(kind, config)
        .map_err(|(field, error)| format!("the target's configuration cannot be used: {field}: {error}"))?;
    match config {
        TargetConfig::Nginx(config) => Ok(Box::new(nginx::Nginx(config))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn targets_that_cannot_be_served_are_refused_with_a_reason() {
        let same = json!({ "cert_path": "/a.pem", "chain_path": "/a.pem" });
        for (config, said) in [
            (json!({}), "config.cert_path"),
            (json!({ "cert_path": "a.pem" }), "absolute path"),
            (
                json!({ "cert_path": "/a.pem", "reload_cmd": "nginx; true" }),
                "no shell",
            ),
            (same, "three different files"),
        ] {
            let error = read(TargetType::Nginx, &config).err().unwrap();
            assert!(error.contains(said), "{error}");
        }
        assert!(read(TargetType::Nginx, &json!({ "cert_path": "/etc/tls/a.pem" })).is_ok());
    }
}
