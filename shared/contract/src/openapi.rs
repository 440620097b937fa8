//! The table read as an OpenAPI 3.1 document.

use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use crate::{
    endpoint::{Access, Operation},
    problem::{self, Problem},
    query::Param,
};

/// The whole document.
pub fn document(operations: &[Operation]) -> Value {
    let settings = SchemaSettings::draft2020_12().with(|s| s.definitions_path = "/components/schemas".into());
    let mut generator = settings.into_generator();
    let problem = generator.subschema_for::<Problem>();
    let mut paths = Map::new();
    for operation in operations {
        let item = paths.entry(operation.path()).or_insert_with(|| json!({}));
        item[operation.method.as_str().to_ascii_lowercase()] = describe(operation, &mut generator);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "certctl",
            "version": "1",
            "description": "The life of TLS certificates: request, issue, deploy, verify, renew, revoke.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" }
        },
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "responses": {
                "Problem": {
                    "description": "What was wrong and what would be right (RFC 9457).",
                    "content": { problem::CONTENT_TYPE: { "schema": problem } }
                }
            },
            "securitySchemes": { "key": { "type": "http", "scheme": "bearer" } }
        },
        "security": [{ "key": [] }]
    })
}

fn describe(operation: &Operation, generator: &mut SchemaGenerator) -> Value {
    let mut parameters: Vec<Value> = Vec::new();
    for (place, list) in [
        ("path", (operation.path_params)()),
        ("query", (operation.query_params)()),
    ] {
        parameters.extend(list.iter().map(|p| parameter(p, place, generator)));
    }
    let mut success = json!({ "description": operation.summary() });
    for media in operation.content_types {
        let schema = match (operation.reply)(generator) {
            Some(schema) => json!({ "schema": schema }),
            None => json!({}),
        };
        success["content"][media] = schema;
    }
    let mut described = json!({
        "operationId": operation.id(),
        "tags": [operation.tag],
        "summary": operation.summary(),
        "description": operation.doc,
        "parameters": parameters,
        "responses": {
            operation.status.to_string(): success,
            "default": { "$ref": "#/components/responses/Problem" }
        },
    });
    match operation.access {
        Access::Open => described["security"] = json!([]),
        Access::Anyone => {}
        Access::Agent => described["x-permission"] = json!("agent"),
        Access::Bootstrap => described["x-permission"] = json!("bootstrap"),
        Access::Needs(permission) => described["x-permission"] = json!(permission),
    }
    if let Some(schema) = operation.body {
        let content = json!({ "application/json": { "schema": schema(generator) } });
        described["requestBody"] = json!({ "content": content });
    }
    described
}

fn parameter(param: &Param, place: &str, generator: &mut SchemaGenerator) -> Value {
    json!({
        "name": param.name,
        "in": place,
        "required": place == "path",
        "description": param.doc,
        "schema": (param.schema)(generator),
    })
}
