//! Renewing, and waiting until it is done.

use std::time::Duration;

use certctl_client::{Client, ClientError};
use certctl_contract::{
    certificates::{RenewRequest, TriggerRenewal, Triggered},
    endpoint::NoBody,
    jobs::{GetJob, Job, JobFilter, JobSort, ListJobs},
    list::{List, Sort},
    query::{Id, NoParams},
};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

use crate::{args::Format, commands::Session, failure::Failure, output};

const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Triggers a renewal and waits for its jobs, at most so many seconds.
pub(crate) async fn run(session: &Session, input: Map<String, Value>, seconds: u64) -> Result<(), Failure> {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let name = input["id"].as_str().unwrap_or_default();
    let request = RenewRequest {
        csr_pem: input.get("csr_pem").and_then(Value::as_str).map(str::to_owned),
    };
    let id = name.parse().map_err(|e| Failure::Usage(format!("{name}: {e}")))?;
    let triggered = session
        .client
        .call::<TriggerRenewal>(Id { id }, NoParams, request)
        .await?;
    let jobs = wait(&session.client, name, &triggered, deadline).await?.ok_or_else(|| {
        Failure::Failed(format!(
            "the renewal of {name} is not done after {seconds} s; it goes on: see `certctl-cli jobs list --certificate {name}`"
        ))
    })?;
    match session.lists_as() {
        Format::Json => output::json(&json!({ "status": "renewed", "jobs": jobs }))?,
        Format::Table => output::line(&format!("{name} is renewed: {} jobs completed", jobs.len()))?,
    }
    Ok(())
}

/// Waits until the jobs of the renewal, and the deployments that follow them, are finished; none when time is up.
pub(crate) async fn wait(
    client: &Client,
    name: &str,
    triggered: &Triggered,
    deadline: Instant,
) -> Result<Option<Vec<Job>>, Failure> {
    let Some(first) = &triggered.job_id else {
        return Err(Failure::Failed(format!(
            "the server named no job of {name} to wait for"
        )));
    };
    let first = client
        .call::<GetJob>(Id { id: first.clone() }, NoParams, NoBody)
        .await?;
    loop {
        match since(client, &first).await {
            Ok(jobs) => {
                if let Some(failed) = jobs.iter().find(|j| has_failed(j)) {
                    let why = failed.last_error.as_deref().unwrap_or("no reason was given");
                    let again = match (failed.status.is_terminal(), failed.retry_at) {
                        (false, _) => format!("; tried again from {} on", failed.scheduled_at),
                        (true, Some(at)) => format!("; tried again from {at} on"),
                        (true, None) => String::new(),
                    };
                    return Err(Failure::Failed(format!(
                        "job {} is {}: {why}{again}",
                        failed.id, failed.status
                    )));
                }
                if !jobs.is_empty() && jobs.iter().all(|j| j.status.is_terminal()) {
                    return Ok(Some(jobs));
                }
            }
            Err(error) if error.is_retryable() => {}
            Err(error) => return Err(error.into()),
        }
        if Instant::now() + POLL_INTERVAL > deadline {
            return Ok(None);
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// Jobs of the same certificate that are not older than `first`.
async fn since(client: &Client, first: &Job) -> Result<Vec<Job>, ClientError> {
    let query = List {
        per_page: Some(100),
        sort: Some(Sort {
            key: JobSort::CreatedAt,
            descending: true,
        }),
        filter: JobFilter {
            certificate_id: Some(first.certificate_id.clone()),
            ..JobFilter::default()
        },
        ..List::default()
    };
    let page = client.call::<ListJobs>(NoParams, query, NoBody).await?;
    Ok(page
        .data
        .into_iter()
        .filter(|j| j.created_at >= first.created_at)
        .collect())
}

/// Ended without success, or, of a deployment, tried without success: the next attempt may be hours away.
fn has_failed(job: &Job) -> bool {
    let tried = job.attempts > 0 && job.last_error.is_some();
    match job.status.as_str() {
        "Pending" => is_deployment(job) && tried,
        status => job.status.is_terminal() && status != "Completed",
    }
}

fn is_deployment(job: &Job) -> bool {
    job.kind.as_str() == "Deployment"
}
