//! The table read as an OpenAPI 3.1 document.

use std::collections::BTreeSet;

use http::Method;
use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use crate::{
    endpoint::{Access, Operation, snake},
    example::{self, Side},
    problem::{self, Kind, Problem},
    query::{Invalid, Param},
};

/// What the groups of operations are about, in the order of the catalogue.
const TAGS: &[(&str, &str)] = &[
    (
        "health",
        "Liveness, readiness, and what a client needs to know before it has a key.",
    ),
    ("sessions", "Logging in with a browser."),
    ("api_keys", "Named API keys with roles."),
    (
        "certificates",
        "Managed certificates, their versions, and what can be done with them.",
    ),
    ("transfer", "Certificates in and out."),
    ("bulk", "Many certificates at once."),
    ("revocation", "CRLs and OCSP under the API's own paths."),
    ("blocked_keys", "Keys that are not certified any more."),
    ("freezes", "Times in which nothing is renewed by itself."),
    ("endpoints", "What is served where clients connect to."),
    ("key_compromise", "Revocation by whoever has the key of a certificate."),
    (
        "recovery",
        "What a database that was restored has forgotten, and is told again.",
    ),
    ("issuers", "Who signs."),
    ("targets", "Where certificates are put."),
    (
        "agents",
        "Registration, heartbeat, and the work that agents fetch and report.",
    ),
    ("agent_groups", "Agents that match, and those named."),
    ("discovery", "Certificates found on hosts, and what becomes of them."),
    ("jobs", "The steps of issuing and deploying."),
    (
        "explain",
        "Why a certificate or a job stands where it stands, and what happens next.",
    ),
    ("policies", "Policy rules and their violations."),
    ("profiles", "What may be issued."),
    (
        "renewal_policies",
        "When certificates are renewed and how often it is tried.",
    ),
    ("renewals", "Renewals to come."),
    ("teams", "Groups of owners."),
    ("owners", "Who answers for certificates and is told about them."),
    ("audit", "The trail: who did what."),
    ("notifications", "Notifications sent and to be sent."),
    ("scheduler", "What runs by itself, and how it went."),
    ("stats", "Figures for charts."),
    ("metrics", "Figures as JSON."),
];

const ABOUT: &str = "The life of TLS certificates: request, issue, deploy, verify, renew, revoke.\n\n\
    Times are RFC 3339 in UTC. Every problem is an RFC 9457 document whose `type` a program can match. A query \
    parameter that is not known is refused; a key of a body that is not known is ignored. `x-permission` of an \
    operation says what its caller must be allowed to do.";

/// The whole document.
pub fn document(operations: &[Operation]) -> Value {
    let settings = SchemaSettings::draft2020_12().with(|s| s.definitions_path = "/components/schemas".into());
    let mut generator = settings.into_generator();
    let problem = generator.subschema_for::<Problem>();
    let mut described: Vec<(&Operation, Value)> = operations
        .iter()
        .map(|operation| (operation, describe(operation, &mut generator)))
        .collect();
    let mut schemas = generator.take_definitions(true);
    schemas.values_mut().for_each(tighten);
    for (_, item) in &mut described {
        tighten(item);
        empty_means_absent(item, &mut schemas);
    }
    sparse_rows(&mut schemas);
    let mut paths = Map::new();
    for (operation, mut item) in described {
        exemplify(&mut item, &schemas);
        null_means_empty(&mut item);
        let path = paths.entry(operation.path()).or_insert_with(|| json!({}));
        path[operation.method.as_str().to_ascii_lowercase()] = item;
    }
    let used: BTreeSet<&str> = operations.iter().map(|o| o.tag).collect();
    let tags: Vec<Value> = TAGS
        .iter()
        .filter(|(name, _)| used.contains(name))
        .map(|(name, doc)| json!({ "name": name, "description": doc }))
        .collect();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "certctl",
            "version": "1",
            "description": ABOUT,
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" }
        },
        "servers": [{ "url": "/", "description": "The server that serves this document." }],
        "tags": tags,
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": responses(&problem.to_value()),
            "headers": headers(),
            "parameters": header_parameters(),
            "securitySchemes": {
                "key": { "type": "http", "scheme": "bearer", "description": "An API key, an agent's key or a JWT." },
                "session": {
                    "type": "apiKey", "in": "cookie", "name": "__Host-certctl-session",
                    "description": "A session of a browser."
                },
                "csrf": {
                    "type": "apiKey", "in": "header", "name": "X-CSRF-Token",
                    "description": "With a session, on what changes something: the token the session was given."
                }
            }
        },
        "security": [{ "key": [] }, { "session": [] }]
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
    if let Some(fields) = parameters.iter_mut().find(|p| p["name"] == "fields") {
        fields["schema"] = fields_schema(operation, generator);
    }
    let mut success = json!({
        "description": operation.summary(),
        "headers": {
            "X-Request-ID": { "$ref": "#/components/headers/X-Request-ID" },
            "RateLimit": { "$ref": "#/components/headers/RateLimit" },
            "RateLimit-Policy": { "$ref": "#/components/headers/RateLimit-Policy" },
        },
    });
    for media in operation.content_types {
        let schema = match (operation.reply)(generator) {
            Some(schema) => json!({ "schema": schema }),
            None => json!({}),
        };
        success["content"][media] = schema;
    }
    let mut responses = Map::new();
    if is_tagged(operation) {
        success["headers"]["ETag"] = json!({ "$ref": "#/components/headers/ETag" });
        parameters.push(json!({ "$ref": "#/components/parameters/If-None-Match" }));
        responses.insert("304".into(), json!({ "$ref": "#/components/responses/NotModified" }));
    }
    if operation.is_repeatable() {
        success["headers"]["Idempotency-Replayed"] = json!({ "$ref": "#/components/headers/Idempotency-Replayed" });
        parameters.push(json!({ "$ref": "#/components/parameters/Idempotency-Key" }));
    }
    responses.insert(operation.status.to_string(), success);
    for status in problems(operation) {
        let kind = Kind::ALL.iter().find(|k| k.status() == status);
        let name = component(kind.expect("statuses of problems are those of kinds").title());
        responses.insert(
            status.to_string(),
            json!({ "$ref": format!("#/components/responses/{name}") }),
        );
    }
    responses.insert("default".into(), json!({ "$ref": "#/components/responses/Problem" }));
    let mut described = json!({
        "operationId": operation.id(),
        "tags": [operation.tag],
        "summary": operation.summary(),
        "description": operation.doc,
        "parameters": parameters,
        "responses": responses,
    });
    described["x-permission"] = match operation.access {
        Access::Open => json!("none"),
        Access::Anyone => json!("any"),
        Access::Agent => json!("agent"),
        Access::AgentItself => json!("agent-itself"),
        Access::Bootstrap => json!("bootstrap"),
        Access::Needs(permission) => json!(permission),
    };
    if !matches!(operation.access, Access::Open | Access::Agent) {
        described["x-scope"] = json!(operation.scoping);
    }
    match operation.access {
        Access::Open => described["security"] = json!([]),
        _ if operation.method != Method::GET => {
            described["security"] = json!([{ "key": [] }, { "session": [], "csrf": [] }]);
        }
        _ => {}
    }
    if let Some(schema) = operation.body {
        let schema = schema(generator).to_value();
        let name = schema["$ref"].as_str().and_then(|r| r.rsplit('/').next());
        let definition = name
            .and_then(|name| generator.definitions().get(name))
            .unwrap_or(&schema);
        // Without keys that are needed, no body at all is as good as an empty object.
        let required = definition["required"].as_array().is_some_and(|keys| !keys.is_empty());
        let content = json!({ "application/json": { "schema": schema } });
        described["requestBody"] = json!({ "content": content, "required": required });
    }
    described
}

/// Whether the answer carries an `ETag`: what is read as JSON does.
fn is_tagged(operation: &Operation) -> bool {
    operation.method == Method::GET && operation.answers_with_json()
}

/// Statuses of the problems that can happen.
fn problems(operation: &Operation) -> BTreeSet<u16> {
    let mut statuses = BTreeSet::from([400, 429, 500, 503]);
    let mut may = |condition: bool, status: &[u16]| {
        if condition {
            statuses.extend(status);
        }
    };
    may(operation.access != Access::Open, &[401]);
    may(!matches!(operation.access, Access::Open | Access::Anyone), &[403]);
    may(!(operation.path_params)().is_empty(), &[404]);
    may(operation.method != Method::GET, &[409]);
    may(operation.body.is_some(), &[413, 422]);
    may(operation.is_repeatable(), &[422]);
    let of_an_issuer = matches!(operation.tag, "issuers" | "revocation");
    may(
        of_an_issuer && (operation.method == Method::POST || !operation.answers_with_json()),
        &[501, 502],
    );
    statuses
}

fn parameter(param: &Param, place: &str, generator: &mut SchemaGenerator) -> Value {
    let schema = (param.schema)(generator).to_value();
    // `{id}` is of a type whose name says of what.
    let thing = schema["$ref"]
        .as_str()
        .and_then(|r| r.rsplit('/').next()?.strip_suffix("Id"));
    let doc = match (place, param.name, thing) {
        ("path", "id", Some(thing)) => format!("Which {}: its id.", snake(thing).replace('_', " ")),
        _ => param.doc.to_owned(),
    };
    let schema = match place {
        // An empty value counts as none.
        "query" => json!({ "anyOf": [schema, { "const": "" }] }),
        _ => schema,
    };
    json!({
        "name": param.name,
        "in": place,
        "required": place == "path",
        "description": doc,
        "schema": schema,
    })
}

/// `fields` names keys of the rows of a page.
fn fields_schema(operation: &Operation, generator: &mut SchemaGenerator) -> Value {
    let page = (operation.reply)(generator)
        .map(|schema| schema.to_value())
        .unwrap_or_default();
    let row = &definition_of(&page, generator)["properties"]["data"]["items"];
    let row = definition_of(row, generator);
    let keys: Vec<&str> = row["properties"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, _)| key.as_str())
        .collect();
    let any = keys.join("|");
    json!({ "anyOf": [{ "type": "string", "pattern": format!("^({any})(,({any}))*$") }, { "const": "" }] })
}

/// What a reference to a component leads to.
fn definition_of(schema: &Value, generator: &SchemaGenerator) -> Value {
    let name = schema["$ref"].as_str().and_then(|r| r.rsplit('/').next());
    let definition = name.and_then(|name| generator.definitions().get(name));
    definition.unwrap_or(schema).clone()
}

/// `Unprocessable Content` as the name of a component.
fn component(title: &str) -> String {
    title.replace(' ', "")
}

fn responses(problem: &Value) -> Value {
    let request_id = json!({ "$ref": "#/components/headers/X-Request-ID" });
    let mut all = Map::new();
    all.insert(
        "Problem".into(),
        json!({
            "description": "What was wrong and what would be right (RFC 9457).",
            "headers": { "X-Request-ID": request_id },
            "content": { problem::CONTENT_TYPE: { "schema": problem } }
        }),
    );
    all.insert(
        "NotModified".into(),
        json!({
            "description": "What the client has is still right.",
            "headers": { "X-Request-ID": request_id, "ETag": { "$ref": "#/components/headers/ETag" } }
        }),
    );
    for kind in Kind::ALL {
        let response = all.entry(component(kind.title())).or_insert_with(|| {
            let mut headers = json!({ "X-Request-ID": request_id });
            match kind.status() {
                401 => headers["WWW-Authenticate"] = json!({ "$ref": "#/components/headers/WWW-Authenticate" }),
                429 => {
                    for name in ["Retry-After", "RateLimit", "RateLimit-Policy"] {
                        headers[name] = json!({ "$ref": format!("#/components/headers/{name}") });
                    }
                }
                503 => headers["Retry-After"] = json!({ "$ref": "#/components/headers/Retry-After" }),
                _ => {}
            }
            json!({
                "description": kind.title(),
                "headers": headers,
                "content": { problem::CONTENT_TYPE: { "schema": problem, "examples": {} } }
            })
        });
        let mut example = Problem::new(*kind, kind.doc());
        example.request_id = Some("c5c1295a-85e0-4b0a-ab8e-d22f52c24fc7".into());
        if matches!(kind, Kind::Malformed | Kind::Invalid) {
            example.errors = vec![Invalid::new(
                "name",
                "has 1 to 255 characters, without control characters",
            )];
        }
        response["content"][problem::CONTENT_TYPE]["examples"][kind.slug()] =
            json!({ "summary": kind.doc(), "value": example });
    }
    Value::Object(all)
}

fn headers() -> Value {
    json!({
        "X-Request-ID": {
            "description": "The request's id, which the server's log carries too.",
            "schema": { "type": "string", "format": "uuid" }
        },
        "RateLimit": {
            "description": "Where calls are limited: how many are left (`r`), and in how many seconds all will be (`t`).",
            "schema": { "type": "string" },
            "example": "\"operators\";r=99;t=1"
        },
        "RateLimit-Policy": {
            "description": "Where calls are limited: how many at most (`q`), and in how many seconds as many come back (`w`).",
            "schema": { "type": "string" },
            "example": "\"operators\";q=100;w=2"
        },
        "ETag": {
            "description": "Names this answer; give it back as `If-None-Match`.",
            "schema": { "type": "string" }
        },
        "Idempotency-Replayed": {
            "description": "`true` when it was done before under the same `Idempotency-Key`, and not again.",
            "schema": { "type": "string" }
        },
        "WWW-Authenticate": {
            "description": "How to authenticate.",
            "schema": { "type": "string" }
        },
        "Retry-After": {
            "description": "Seconds to wait before trying again.",
            "schema": { "type": "integer", "minimum": 0 }
        }
    })
}

fn header_parameters() -> Value {
    json!({
        "Idempotency-Key": {
            "name": "Idempotency-Key", "in": "header", "required": false,
            "description": "A name of the caller's choice for this call. Repeated within a day with the same body, it is \
                done once and answered alike; with another body it is refused.",
            "schema": { "type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]([ -~]*[!-~])?$" },
            "example": "renew-shop-2026-11-23"
        },
        "If-None-Match": {
            "name": "If-None-Match", "in": "header", "required": false,
            "description": "The `ETag` of an earlier answer; 304 when nothing has changed since.",
            "schema": { "type": "string" },
            "example": "W/\"3c7f6a2b91d0e845\""
        }
    })
}

/// Says the bounds of integers that have a width, which JSON Schema leaves to `format`.
fn tighten(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(tighten),
        Value::Object(map) => {
            let (least, most) = match map.get("format").and_then(Value::as_str) {
                Some("int32") => (json!(i32::MIN), json!(i32::MAX)),
                Some("int64") => (json!(i64::MIN), json!(i64::MAX)),
                Some("uint16") => (json!(0), json!(u16::MAX)),
                Some("uint32") => (json!(0), json!(u32::MAX)),
                _ => (Value::Null, Value::Null),
            };
            if !most.is_null() {
                map.entry("minimum").or_insert(least);
                map.entry("maximum").or_insert(most);
            }
            map.values_mut().for_each(tighten);
        }
        _ => {}
    }
}

/// A body of which nothing is needed may be `null`.
fn null_means_empty(item: &mut Value) {
    if let Some(body) = item.get_mut("requestBody").filter(|body| body["required"] == false) {
        let schema = &mut body["content"]["application/json"]["schema"];
        *schema = json!({ "anyOf": [schema.take(), { "type": "null" }] });
    }
}

/// With `fields`, the rows of a page have those keys alone.
fn sparse_rows(schemas: &mut Map<String, Value>) {
    let rows: Vec<(String, String)> = schemas
        .iter()
        .filter(|(_, page)| page["properties"]["per_page"].is_object())
        .filter_map(|(name, page)| {
            let row = page["properties"]["data"]["items"]["$ref"]
                .as_str()?
                .rsplit('/')
                .next()?;
            Some((name.clone(), row.to_owned()))
        })
        .collect();
    for (page, row) in rows {
        let sparse = format!("{row}Fields");
        let mut definition = schemas[&row].clone();
        if let Some(definition) = definition.as_object_mut() {
            definition.remove("required");
            definition.insert("description".into(), json!("The keys that `fields` names."));
        }
        schemas.insert(sparse.clone(), definition);
        let reference = |name: &str| json!({ "$ref": format!("#/components/schemas/{name}") });
        if let Some(items) = schemas
            .get_mut(&page)
            .and_then(|page| page.pointer_mut("/properties/data/items"))
        {
            *items = json!({ "anyOf": [reference(&row), reference(&sparse)] });
        }
    }
}

/// In requests an optional reference or word may be the empty text, which means that it is not given.
fn empty_means_absent(item: &Value, schemas: &mut Map<String, Value>) {
    let body = &item["requestBody"]["content"]["application/json"]["schema"]["$ref"];
    let Some(name) = body.as_str().and_then(|r| r.rsplit('/').next()) else {
        return;
    };
    let texts: BTreeSet<String> = schemas
        .iter()
        .filter(|(_, definition)| definition["type"] == "string")
        .map(|(name, _)| format!("#/components/schemas/{name}"))
        .collect();
    let properties = schemas
        .get_mut(name)
        .and_then(|s| s.get_mut("properties")?.as_object_mut());
    for property in properties.into_iter().flatten().map(|(_, property)| property) {
        let Some(choices) = property.get_mut("anyOf").and_then(Value::as_array_mut) else {
            continue;
        };
        let is_text = |c: &Value| c["$ref"].as_str().is_some_and(|r| texts.contains(r));
        let empty = json!({ "const": "" });
        if choices.iter().any(is_text) && choices.iter().any(|c| c["type"] == "null") && !choices.contains(&empty) {
            choices.push(empty);
        }
    }
}

/// Adds an example to what a client sends and to what the server answers.
fn exemplify(item: &mut Value, schemas: &Map<String, Value>) {
    let parameters = item.get_mut("parameters").and_then(Value::as_array_mut);
    for parameter in parameters.into_iter().flatten() {
        // Filters are left empty, so that trying an operation out finds something.
        if parameter["in"] == "path" {
            let name = parameter["name"].as_str().unwrap_or_default();
            parameter["example"] = example::of(name, &parameter["schema"], schemas, Side::Request);
        }
    }
    let mut media = |place: &str, side| {
        for content in item
            .pointer_mut(place)
            .and_then(Value::as_object_mut)
            .into_iter()
            .flatten()
        {
            let (_, media) = content;
            if media["schema"].is_object() {
                media["example"] = example::of("", &media["schema"], schemas, side);
            }
        }
    };
    media("/requestBody/content", Side::Request);
    for status in ["200", "201", "202"] {
        media(&format!("/responses/{status}/content"), Side::Reply);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_group_of_operations_says_what_it_is_about() {
        for operation in crate::catalogue() {
            assert!(TAGS.iter().any(|(name, _)| *name == operation.tag), "{}", operation.tag);
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = document(&crate::catalogue());
        fn walk(value: &Value, document: &Value) {
            if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
                assert!(document.pointer(&reference[1..]).is_some(), "{reference}");
            }
            match value {
                Value::Array(items) => items.iter().for_each(|v| walk(v, document)),
                Value::Object(map) => map.values().for_each(|v| walk(v, document)),
                _ => {}
            }
        }
        walk(&document, &document);
    }

    #[test]
    fn integers_have_the_bounds_of_their_width() {
        let mut schema = json!({ "properties": { "n": { "type": "integer", "format": "uint32", "minimum": 1 } } });
        tighten(&mut schema);
        let expected = json!({ "type": "integer", "format": "uint32", "minimum": 1, "maximum": u32::MAX });
        assert_eq!(schema["properties"]["n"], expected);
    }
}
