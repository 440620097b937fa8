//! The authority whose key our signer holds.

use certctl_client::{Client, ClientError};
use certctl_contract::{
    query::NoParams,
    signer::{IssueBatch, IssueBatchRequest, IssueOutcome},
};
use futures_util::future::BoxFuture;

use super::{IssueError, Issued, Issuer, Order};

/// Asks the signer, telling it the job and nothing else.
pub struct Local {
    signer: Client,
}

impl Local {
    pub(crate) fn new(signer: Client) -> Self {
        Self { signer }
    }
}

impl Issuer for Local {
    fn issue<'a>(&'a self, orders: &'a [Order]) -> BoxFuture<'a, Vec<Result<Issued, IssueError>>> {
        Box::pin(async move {
            let request = IssueBatchRequest {
                job_ids: orders.iter().map(|order| order.job.clone()).collect(),
            };
            let answered = self.signer.call::<IssueBatch>(NoParams, NoParams, request).await;
            let answered = answered.and_then(|batch| match batch.outcomes.len() == orders.len() {
                true => Ok(batch.outcomes),
                false => Err(ClientError::BadReply("not one outcome for each job".to_owned())),
            });
            match answered {
                Ok(outcomes) => outcomes.into_iter().map(answer).collect(),
                Err(error) => vec![Err(refusal(error)); orders.len()],
            }
        })
    }
}

fn answer(outcome: IssueOutcome) -> Result<Issued, IssueError> {
    match outcome {
        IssueOutcome::Issued(issued) => Ok(Issued {
            certificate_pem: issued.certificate_pem,
            chain_pem: issued.chain_pem,
        }),
        IssueOutcome::Refused(problem) => Err(refusal(ClientError::Problem(Box::new(problem)))),
    }
}

/// A signer that is away or busy says nothing about the job; one that fails may fail because of it.
fn refusal(error: ClientError) -> IssueError {
    let counts = match &error {
        ClientError::Unreachable(_) => false,
        ClientError::BadReply(_) => true,
        ClientError::Problem(problem) if matches!(problem.status, 429 | 503) => false,
        ClientError::Problem(problem) if problem.status >= 500 => true,
        ClientError::Problem(problem) => return IssueError::Refused(problem.detail.clone()),
        ClientError::BadInput(_) => return IssueError::Refused(error.to_string()),
    };
    IssueError::Retry {
        after: None,
        counts,
        reason: format!("the signer: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use certctl_contract::problem::{Kind, Problem};

    use super::*;

    #[test]
    fn only_a_signer_that_was_there_and_failed_uses_up_a_try() {
        for (status, expected) in [
            (429, Some(false)),
            (503, Some(false)),
            (500, Some(true)),
            (502, Some(true)),
            (504, Some(true)),
            (409, None),
            (422, None),
        ] {
            let mut problem = Problem::new(Kind::Internal, "no");
            problem.status = status;
            let counts = match refusal(ClientError::Problem(Box::new(problem))) {
                IssueError::Retry { counts, .. } => Some(counts),
                IssueError::Refused(_) => None,
            };
            assert_eq!(counts, expected, "{status}");
        }
    }
}
