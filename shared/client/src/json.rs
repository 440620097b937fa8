//! Calling an operation by its row of the catalogue: JSON in, JSON out. The command line and the tools use it.

use certctl_contract::{
    endpoint::{Class, Operation},
    tools,
};
use serde_json::{Map, Value};

use crate::{Answer, Client, ClientError, Download};

/// An answer, undecoded.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonReply {
    /// The HTTP status, 200 to 299.
    pub status: u16,
    /// What came with it.
    pub body: Body,
}

/// The body of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// JSON.
    Json(Value),
    /// None.
    Empty,
    /// Something else, DER for example.
    Bytes {
        /// Its media type.
        content_type: String,
        /// Its octets.
        bytes: Vec<u8>,
    },
}

impl Client {
    /// Calls an operation with one flat object that holds the parameters of path and query and the keys of the body.
    ///
    /// # Errors
    /// [`ClientError::BadInput`] names inputs the operation does not have and path parameters that are missing.
    pub async fn call_json(&self, operation: &Operation, input: Map<String, Value>) -> Result<JsonReply, ClientError> {
        let parts = Parts::split(operation, input)?;
        let url = self.url(&operation.path(), &parts.path, &parts.query)?;
        let answer = self.send(operation.method.clone(), url, parts.body, None).await?;
        reply(answer)
    }
}

impl Client {
    /// Calls an operation as [`Client::call_json`] does, and hands its answer out as it arrives, however large it is.
    ///
    /// # Errors
    /// As [`Client::call_json`].
    pub async fn download_json(
        &self,
        operation: &Operation,
        input: Map<String, Value>,
    ) -> Result<Download, ClientError> {
        let parts = Parts::split(operation, input)?;
        let url = self.url(&operation.path(), &parts.path, &parts.query)?;
        let timeout = Class::Export.stream_timeout();
        let response = self
            .ask(operation.method.clone(), url, parts.body, Some(timeout))
            .await?;
        Ok(self.arriving(response))
    }
}

/// Where each input goes.
struct Parts {
    path: Vec<String>,
    query: Vec<(&'static str, String)>,
    body: Option<Vec<u8>>,
}

impl Parts {
    fn split(operation: &Operation, mut input: Map<String, Value>) -> Result<Self, ClientError> {
        let tool = tools::tool(operation);
        let known = tool.input.get("properties").and_then(Value::as_object);
        let is_known = |name: &String| known.is_some_and(|known| known.contains_key(name));
        let unknown: Vec<&str> = input.keys().filter(|n| !is_known(n)).map(String::as_str).collect();
        if !unknown.is_empty() {
            let names: Vec<&str> = known.into_iter().flat_map(Map::keys).map(String::as_str).collect();
            return Err(ClientError::BadInput(format!(
                "{} has no input {}; known are: {}",
                operation.id(),
                unknown.join(", "),
                if names.is_empty() {
                    "none".to_owned()
                } else {
                    names.join(", ")
                },
            )));
        }
        let mut path = Vec::new();
        for param in (operation.path_params)() {
            let value = input.remove(param.name).unwrap_or(Value::Null);
            let text = text(param.name, &value)?;
            path.push(text.ok_or_else(|| ClientError::BadInput(format!("{} is missing", param.name)))?);
        }
        let mut query = Vec::new();
        for param in (operation.query_params)() {
            let value = input.remove(param.name).unwrap_or(Value::Null);
            query.extend(text(param.name, &value)?.map(|text| (param.name, text)));
        }
        let body = operation
            .body
            .map(|_| serde_json::to_vec(&input).expect("JSON is plain data"));
        Ok(Self { path, query, body })
    }
}

/// A parameter as text; lists are joined by commas.
fn text(name: &str, value: &Value) -> Result<Option<String>, ClientError> {
    Ok(match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::Array(items) => {
            let texts: Result<Vec<Option<String>>, ClientError> = items.iter().map(|item| text(name, item)).collect();
            Some(texts?.into_iter().flatten().collect::<Vec<_>>().join(","))
        }
        Value::Object(_) => return Err(ClientError::BadInput(format!("{name}: a text or a number is needed"))),
    })
}

fn reply(answer: Answer) -> Result<JsonReply, ClientError> {
    // A file is kept as it is, even one that holds JSON.
    let body = match media_type(&answer.content_type) {
        _ if answer.file_name.is_some() => Body::Bytes {
            content_type: answer.content_type,
            bytes: answer.octets,
        },
        _ if answer.octets.is_empty() => Body::Empty,
        "application/json" => Body::Json(
            serde_json::from_slice(&answer.octets)
                .map_err(|e| ClientError::BadReply(format!("the answer is not JSON: {e}")))?,
        ),
        _ => Body::Bytes {
            content_type: answer.content_type,
            bytes: answer.octets,
        },
    };
    Ok(JsonReply {
        status: answer.status.as_u16(),
        body,
    })
}

fn media_type(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or("").trim()
}
