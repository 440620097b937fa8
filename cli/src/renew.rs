//! Renewing, and waiting until it is done.

use std::time::Duration;

use certctl_client::{Client, ClientError};
use certctl_contract::{
    certificates::{TriggerRenewal, Triggered},
    endpoint::NoBody,
    jobs::{GetJob, Job, JobFilter, JobSort, ListJobs},
    list::{List, Sort},
    query::{Id, NoParams},
};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::{
    args::{Format, Renew},
    commands,
    failure::Failure,
    output,
};

const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Triggers a renewal and, when asked, waits for its jobs.
pub(crate) async fn run(client: &Client, renew: Renew, format: Format) -> Result<(), Failure> {
    let deadline = Instant::now() + Duration::from_secs(renew.timeout);
    let id = renew
        .id
        .parse()
        .map_err(|e| Failure::Usage(format!("{}: {e}", renew.id)))?;
    let triggered = client.call::<TriggerRenewal>(Id { id }, NoParams, NoBody).await?;
    if !renew.wait {
        let jobs: Vec<String> = triggered.job_ids.iter().map(ToString::to_string).collect();
        let sentence = format!("renewal of {} begun: {}", renew.id, jobs.join(", "));
        return commands::tell(&json!(triggered), &sentence, format);
    }
    let jobs = wait(client, &renew, &triggered, deadline).await?;
    match format {
        Format::Json => output::json(&json!({ "status": "renewed", "jobs": jobs }))?,
        Format::Table => output::line(&format!("{} is renewed: {} jobs completed", renew.id, jobs.len()))?,
    }
    Ok(())
}

/// Waits until the jobs of the renewal, and the deployments that follow them, are finished.
async fn wait(client: &Client, renew: &Renew, triggered: &Triggered, deadline: Instant) -> Result<Vec<Job>, Failure> {
    let Some(first) = &triggered.job_id else {
        return Err(Failure::Failed("the server named no job to wait for".into()));
    };
    let first = client
        .call::<GetJob>(Id { id: first.clone() }, NoParams, NoBody)
        .await?;
    loop {
        match since(client, &first).await {
            Ok(jobs) => {
                if let Some(failed) = jobs.iter().find(|j| has_failed(j)) {
                    let why = failed.last_error.as_deref().unwrap_or("no reason was given");
                    return Err(Failure::Failed(format!(
                        "job {} is {}: {why}",
                        failed.id, failed.status
                    )));
                }
                if !jobs.is_empty() && jobs.iter().all(|j| j.status.is_terminal()) {
                    return Ok(jobs);
                }
            }
            Err(error) if error.is_retryable() => {}
            Err(error) => return Err(error.into()),
        }
        if Instant::now() + POLL_INTERVAL > deadline {
            return Err(Failure::Failed(format!(
                "the renewal of {} is not done after {} s; it goes on: see `certctl-cli list-jobs --certificate {}`",
                renew.id, renew.timeout, renew.id
            )));
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

fn has_failed(job: &Job) -> bool {
    job.status.is_terminal() && job.status.as_str() != "Completed"
}
