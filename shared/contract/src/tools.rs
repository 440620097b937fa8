//! The table read as tools: a name, a description and one flat schema for path, query and body together.

use http::Method;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::endpoint::{Access, Operation, Permission};

/// An operation as a tool.
#[derive(Clone, Debug)]
pub struct Tool {
    /// `certctl_` and the operation id.
    pub name: String,
    /// What it does.
    pub description: String,
    /// JSON Schema of its input, strict about unknown keys.
    pub input: Map<String, Value>,
    /// Whether it changes nothing.
    pub read_only: bool,
    /// Whether it takes something away for good.
    pub destructive: bool,
    /// Whether doing it twice leaves what doing it once leaves.
    pub idempotent: bool,
}

/// Reads an operation as a tool.
pub fn tool(operation: &Operation) -> Tool {
    let mut generator = SchemaSettings::draft2020_12()
        .with(|s| s.inline_subschemas = true)
        .into_generator();
    let mut properties = Map::new();
    let mut required: Vec<Value> = Vec::new();
    for param in (operation.path_params)() {
        required.push(json!(param.name));
        properties.insert(
            param.name.to_owned(),
            documented((param.schema)(&mut generator).to_value(), param.doc),
        );
    }
    for param in (operation.query_params)() {
        properties.insert(
            param.name.to_owned(),
            documented((param.schema)(&mut generator).to_value(), param.doc),
        );
    }
    if let Some(body) = operation.body {
        let schema = body(&mut generator).to_value();
        for (name, property) in properties_of(&schema) {
            properties.entry(name).or_insert(property);
        }
        required.extend(schema["required"].as_array().into_iter().flatten().cloned());
    }
    let input = json!({
        "type": "object", "properties": properties, "required": required, "additionalProperties": false
    });
    let Value::Object(input) = input else {
        unreachable!("the literal above is an object")
    };
    Tool {
        name: format!("certctl_{}", operation.id()),
        description: operation.doc.to_owned(),
        input,
        read_only: operation.method == Method::GET,
        destructive: operation.method == Method::DELETE
            || operation.access == Access::Needs(Permission::Revoke)
            || ENDING.contains(&operation.name),
        idempotent: matches!(operation.method, Method::GET | Method::PUT | Method::DELETE)
            || operation.access == Access::Needs(Permission::Revoke),
    }
}

/// POSTs that end something which nothing brings back.
const ENDING: &[&str] = &["CancelJob", "RejectJob"];

/// The keys of an object; of all its forms when it has several.
fn properties_of(schema: &Value) -> Vec<(String, Value)> {
    let own = schema["properties"].as_object().into_iter().flatten();
    let own = own.map(|(name, property)| (name.clone(), property.clone()));
    let forms = ["anyOf", "oneOf", "allOf"]
        .into_iter()
        .flat_map(|several| schema[several].as_array());
    own.chain(forms.flatten().flat_map(properties_of)).collect()
}

fn documented(mut schema: Value, doc: &str) -> Value {
    if let Value::Object(map) = &mut schema {
        map.entry("description").or_insert_with(|| json!(doc));
    }
    schema
}
