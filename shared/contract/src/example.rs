//! Examples, read off schemas: a type's own `examples`, its default, its first word, or a text that fits the name.

use serde_json::{Map, Value, json};

/// Whose example it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// What a client sends: everything it may say.
    Request,
    /// What the server answers: what it always says.
    Reply,
}

/// Texts that fit a field; `Type.field` goes before `field`.
const TEXTS: &[(&str, &str)] = &[
    ("NewIssuer.type", "local"),
    ("IssuerChanges.type", "local"),
    ("NewTarget.type", "NGINX"),
    ("TargetChanges.type", "NGINX"),
    ("Triggered.status", "renewal_triggered"),
    ("Issuer.status", "active"),
    ("Target.status", "active"),
    ("HealthReport.status", "healthy"),
    ("AuthMode.auth_type", "api-key"),
    ("name", "shop"),
    ("common_name", "shop.example.net"),
    ("sans", "shop.example.net"),
    ("names", "shop.example.net"),
    ("environment", "production"),
    ("description", "What it is for."),
    ("email", "team@example.net"),
    ("recipient", "team@example.net"),
    ("hostname", "web1.example.net"),
    ("version", "1.4.0"),
    ("match_version", ">=1.2"),
    ("os", "linux"),
    ("match_os", "linux"),
    ("architecture", "x86_64"),
    ("match_architecture", "x86_64"),
    ("ip_address", "192.0.2.10"),
    ("match_ip_cidr", "192.0.2.0/24"),
    ("actor", "api-key-user"),
    ("action", "certificate_created"),
    ("resource_type", "certificate"),
    ("resource_id", "mc-1"),
    ("message", "It was done."),
    ("reason", "It is needed."),
    ("wait", "30s"),
    ("q", "shop"),
    ("status", "done"),
    ("required_san_patterns", "[a-z]+\\.example\\.net"),
    ("spiffe_uri_pattern", ""),
    ("fingerprint", SHA256),
    ("fingerprint_sha256", SHA256),
    ("spki_sha256", SHA256),
    ("path", "/etc/nginx/tls/shop.pem"),
    ("source_path", "/etc/nginx/tls/shop.pem"),
    ("directories", "/etc/nginx/tls"),
    ("subject_dn", "CN=shop.example.net"),
    ("issuer_dn", "CN=Example CA"),
    ("severity", "Warning"),
    ("date", "2026-11-23"),
];

const SHA256: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

/// The second is not shown where the first is: only one of them may be sent.
const EITHER: &[(&str, &str)] = &[("ids", "filter")];

/// Optional parts of answers that are worth showing.
const SHOWN: &[&str] = &["page", "per_page", "next_cursor", "expires_at", "job_id", "job_ids"];

/// An example of `schema`, which is that of the field `name`.
pub fn of(name: &str, schema: &Value, definitions: &Map<String, Value>, side: Side) -> Value {
    Maker { definitions, side }.make("", name, schema, 0)
}

struct Maker<'a> {
    definitions: &'a Map<String, Value>,
    side: Side,
}

impl Maker<'_> {
    fn make(&self, owner: &str, name: &str, schema: &Value, depth: usize) -> Value {
        const DEEPEST: usize = 12;
        if let Some(named) = schema["$ref"].as_str().and_then(|r| r.rsplit('/').next()) {
            return match self.definitions.get(named) {
                Some(definition) if depth < DEEPEST => self.make(named, name, definition, depth + 1),
                _ => Value::Null,
            };
        }
        if let Some(example) = schema["examples"].get(0).or(schema.get("example")) {
            return example.clone();
        }
        if let Some(text) = self
            .text(owner, name)
            .filter(|_| is(schema, "string") && schema["enum"].is_null())
        {
            return json!(text);
        }
        let given = [schema.get("const"), schema["enum"].get(0), schema.get("default")];
        if let Some(value) = given.into_iter().flatten().find(|v| !v.is_null()) {
            return value.clone();
        }
        for several in ["anyOf", "oneOf", "allOf"] {
            let choices = schema[several].as_array().map(Vec::as_slice).unwrap_or_default();
            if let Some(first) = choices.iter().find(|c| c["type"] != "null") {
                return self.make(owner, name, first, depth);
            }
        }
        match schema {
            _ if schema["properties"].is_object() => self.object(owner, schema, depth),
            _ if is(schema, "array") => json!([self.make(owner, name, &schema["items"], depth + 1)]),
            _ if is(schema, "string") && schema["format"] == "date-time" => json!("2026-11-23T12:07:06Z"),
            _ if is(schema, "string") => json!("text"),
            _ if is(schema, "integer") || is(schema, "number") => number(schema),
            _ if is(schema, "boolean") => json!(true),
            _ if schema["additionalProperties"].is_object() => {
                json!({ "tier": self.make(owner, "tier", &schema["additionalProperties"], depth + 1) })
            }
            _ => json!({}),
        }
    }

    fn object(&self, owner: &str, schema: &Value, depth: usize) -> Value {
        let required = schema["required"].as_array().map(Vec::as_slice).unwrap_or_default();
        let properties = schema["properties"].as_object().into_iter().flatten();
        let barred = |name: &str| {
            EITHER
                .iter()
                .any(|(one, other)| *other == name && !schema["properties"][one].is_null())
        };
        let shown = |name: &str| {
            !barred(name)
                && (self.side == Side::Request
                    || SHOWN.contains(&name)
                    || required.iter().any(|r| r.as_str() == Some(name)))
        };
        let made = properties
            .filter(|(name, _)| shown(name))
            .map(|(name, property)| (name.clone(), self.make(owner, name, property, depth + 1)))
            .collect();
        Value::Object(made)
    }

    fn text(&self, owner: &str, name: &str) -> Option<&'static str> {
        let qualified = format!("{owner}.{name}");
        let find = |key: &str| TEXTS.iter().find(|(known, _)| *known == key).map(|(_, text)| *text);
        find(&qualified).or_else(|| find(name))
    }
}

fn is(schema: &Value, kind: &str) -> bool {
    match &schema["type"] {
        Value::String(one) => one == kind,
        Value::Array(several) => several.iter().any(|s| s == kind),
        _ => false,
    }
}

fn number(schema: &Value) -> Value {
    let least = schema["minimum"].as_i64().unwrap_or(1);
    let most = schema["maximum"].as_i64().unwrap_or(i64::MAX);
    json!(least.max(1).min(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_is_what_the_type_says_or_what_fits_the_name() {
        let definitions = json!({ "TeamId": { "type": "string", "examples": ["t-1"] } });
        let definitions = definitions.as_object().unwrap();
        for (name, schema, expected) in [
            ("id", json!({ "$ref": "#/components/schemas/TeamId" }), json!("t-1")),
            (
                "email",
                json!({ "type": ["string", "null"] }),
                json!("team@example.net"),
            ),
            ("n", json!({ "type": "integer", "minimum": 0, "maximum": 0 }), json!(0)),
            ("n", json!({ "type": "integer", "minimum": 5 }), json!(5)),
            ("sort", json!({ "type": "string", "enum": ["a", "b"] }), json!("a")),
            (
                "x",
                json!({ "anyOf": [{ "type": "null" }, { "type": "boolean" }] }),
                json!(true),
            ),
            (
                "tags",
                json!({ "type": "object", "additionalProperties": { "type": "string" } }),
                json!({ "tier": "text" }),
            ),
            ("config", json!(true), json!({})),
        ] {
            assert_eq!(
                of(name, &schema, definitions, Side::Request),
                expected,
                "{name} {schema}"
            );
        }
        let schema = json!({ "type": "object", "required": ["name"], "properties": {
            "name": { "type": "string" }, "failure": { "type": "string" },
        } });
        assert_eq!(of("", &schema, definitions, Side::Reply), json!({ "name": "shop" }));
        assert_eq!(
            of("", &schema, definitions, Side::Request),
            json!({ "name": "shop", "failure": "text" })
        );
    }
}
