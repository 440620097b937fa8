//! Looking again until what is shown has ended.

use std::time::Duration;

use certctl_contract::endpoint::Operation;
use serde_json::{Map, Value};
use tokio::time::sleep;

use crate::{args::Format, commands::Session, failure::Failure, lists, output, table};

/// Shows a thing or a page whenever it has changed, until all of it has ended.
///
/// Fails when something of it did. A server that is away for a while is asked again.
pub(crate) async fn run(
    session: &Session,
    operation: &Operation,
    input: Map<String, Value>,
    seconds: u64,
) -> Result<(), Failure> {
    let mut shown = Value::Null;
    loop {
        let seen = match session.ask(operation, input.clone()).await {
            Ok(seen) => seen,
            Err(Failure::Client(error)) if error.is_retryable() && !shown.is_null() => {
                output::note(&format!("{error}; looking again"));
                shown.clone()
            }
            Err(failure) => return Err(failure),
        };
        if seen != shown {
            session.style.clear()?;
            match (table::is_list(operation), session.lists_as()) {
                (true, _) => lists::show(session, operation, &input, &seen)?,
                (false, Format::Json) => output::json(&seen)?,
                (false, Format::Table) => output::keys(&seen, session.style)?,
            }
            shown = seen;
        }
        let things = shown["data"].as_array().cloned().unwrap_or_else(|| vec![shown.clone()]);
        if things.iter().all(|thing| end(thing).is_some()) {
            let failed = things.iter().filter(|thing| end(thing) == Some(false)).count();
            return match failed {
                0 => Ok(()),
                n if n == things.len() => Err(Failure::Failed(format!("{n} did not succeed"))),
                n => Err(Failure::Partly(format!("{n} of {} did not succeed", things.len()))),
            };
        }
        sleep(Duration::from_secs(seconds.max(1))).await;
    }
}

/// Whether it has ended, and then whether well.
fn end(thing: &Value) -> Option<bool> {
    match thing["status"].as_str()? {
        word if word.eq_ignore_ascii_case("completed") => Some(thing["failed"].as_u64().unwrap_or(0) == 0),
        word if ["failed", "cancelled"].iter().any(|end| word.eq_ignore_ascii_case(end)) => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_has_ended_is_known_by_its_status() {
        for (thing, expected) in [
            (json!({ "status": "Running" }), None),
            (json!({ "status": "AwaitingApproval" }), None),
            (json!({ "status": "Completed" }), Some(true)),
            (json!({ "status": "completed", "failed": 2 }), Some(false)),
            (json!({ "status": "Failed" }), Some(false)),
            (json!({ "status": "Cancelled" }), Some(false)),
            (json!({}), None),
        ] {
            assert_eq!(end(&thing), expected, "{thing}");
        }
    }
}
