//! What went wrong, in the caller's words: the only place that turns errors into status codes.

use certctl_client::ClientError;
use certctl_contract::{
    problem::{Kind, Problem},
    query::Invalid,
};
use certctl_store::Error as StoreError;

use crate::{access_log::RequestId, app::ProblemResponse};

/// Why a request was not answered as asked.
#[derive(Debug)]
pub struct ApiError {
    kind: Kind,
    detail: String,
    errors: Vec<Invalid>,
    /// What the log says and the caller does not see.
    cause: Option<String>,
}

impl ApiError {
    /// An error of this kind; `detail` says what was wrong and what would be right.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            errors: vec![],
            cause: None,
        }
    }

    /// 400: it cannot be read.
    pub fn malformed(detail: impl Into<String>, errors: Vec<Invalid>) -> Self {
        Self {
            errors,
            ..Self::new(Kind::Malformed, detail)
        }
    }

    /// 422: it can be read, but one value cannot be accepted.
    pub fn invalid(field: &str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        let errors = vec![Invalid::new(field, &*detail)];
        Self {
            errors,
            ..Self::new(Kind::Invalid, format!("{field}: {detail}"))
        }
    }

    /// 404.
    pub fn missing(kind: &str, id: impl std::fmt::Display) -> Self {
        Self::new(Kind::NotFound, format!("there is no {kind} {id}"))
    }

    /// 503: worth trying again.
    pub fn unavailable(cause: impl Into<String>) -> Self {
        let detail = "the server cannot do this now; try again";
        Self {
            cause: Some(cause.into()),
            ..Self::new(Kind::Unavailable, detail)
        }
    }

    /// 500.
    pub fn internal(cause: impl Into<String>) -> Self {
        let detail = "something went wrong in the server; its log has more under this request id";
        Self {
            cause: Some(cause.into()),
            ..Self::new(Kind::Internal, detail)
        }
    }

    /// What kind it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The answer. Logs what the caller does not see.
    pub fn into_problem(self, id: &RequestId) -> ProblemResponse {
        if let Some(cause) = &self.cause {
            match self.kind {
                Kind::Internal => tracing::error!(request_id = %id.0, error = %cause, "request {} failed", id.0),
                _ => tracing::warn!(request_id = %id.0, error = %cause, "request {} could not be answered", id.0),
            }
        }
        // Clients of earlier servers show `message` only.
        let detail = match self.errors.first() {
            Some(first) if !self.detail.contains(first.detail.as_str()) => {
                format!("{}: {}: {}", self.detail, first.field, first.detail)
            }
            _ => self.detail,
        };
        let mut problem = Problem::new(self.kind, detail);
        problem.request_id = Some(id.0.clone());
        problem.errors = self.errors;
        let retry_after = matches!(self.kind, Kind::Unavailable | Kind::TooMany).then_some(1);
        ProblemResponse { problem, retry_after }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Missing { kind, id } => Self::missing(kind, id),
            StoreError::WrongJobState { .. } | StoreError::Conflict(_) => {
                Self::new(Kind::WrongState, error.to_string())
            }
            StoreError::Taken { constraint } => {
                let field = field_of(&constraint);
                let errors = vec![Invalid::new(field, "is in use")];
                Self {
                    errors,
                    ..Self::new(Kind::Taken, format!("{field} is in use; choose another"))
                }
            }
            StoreError::Reference { constraint } => {
                Self::invalid(field_of(&constraint), "names something that does not exist")
            }
            StoreError::OutOfScope { .. } => Self::new(Kind::Forbidden, error.to_string()),
            StoreError::Unstorable => Self::malformed("a text holds a NUL character, which is not accepted", vec![]),
            StoreError::Busy(cause) => Self::unavailable(cause.to_string()),
            StoreError::Refused(why) => Self::unavailable(why),
            StoreError::LeaseLost | StoreError::Silent | StoreError::Broken(_) => Self::internal(error.to_string()),
        }
    }
}

impl From<sqlx::Error> for ApiError {
    fn from(error: sqlx::Error) -> Self {
        StoreError::from(error).into()
    }
}

impl From<ClientError> for ApiError {
    /// Of the signer: what it refuses is a conflict, its absence a reason to try again.
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Problem(problem) if problem.is(Kind::NotFound) => Self::new(Kind::NotFound, problem.detail),
            ClientError::Problem(problem) if problem.is(Kind::Unsupported) => {
                Self::new(Kind::Unsupported, problem.detail)
            }
            ClientError::Problem(problem) if problem.status < 500 => Self::new(Kind::BadUpstream, problem.detail),
            other => Self::unavailable(other.to_string()),
        }
    }
}

/// The field a constraint speaks of: `teams_name_key` of `name`, `certificates_owner_id_fkey` of `owner_id`.
fn field_of(constraint: &str) -> &str {
    const TABLES: [&str; 13] = [
        "api_keys_",
        "certificate_targets_",
        "renewal_policies_",
        "certificates_",
        "teams_",
        "owners_",
        "profiles_",
        "issuers_",
        "agents_",
        "agent_groups_",
        "policy_rules_",
        "policy_rule_scopes_",
        "targets_",
    ];
    let rest = TABLES
        .iter()
        .find_map(|table| constraint.strip_prefix(table))
        .unwrap_or(constraint);
    let field = ["_fkey", "_key", "_check"]
        .iter()
        .find_map(|suffix| rest.strip_suffix(suffix))
        .unwrap_or(rest);
    match field {
        "pkey" => "id",
        "agent_name" => "name",
        "profile" | "profile_id" => "certificate_profile_id",
        "target_id" => "target_ids",
        field => field,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_and_detail_contain_the_first_field_error() {
        let id = RequestId("r".to_owned());
        let errors = vec![Invalid::new("limit", "is at least 1"), Invalid::new("b", "is unknown")];
        let problem = ApiError::malformed("the query cannot be read", errors)
            .into_problem(&id)
            .problem;
        assert_eq!(problem.detail, "the query cannot be read: limit: is at least 1");
        assert_eq!((problem.message, problem.errors.len()), (problem.detail, 2));
        let problem = ApiError::invalid("name", "is empty").into_problem(&id).problem;
        assert_eq!(problem.detail, "name: is empty", "it is said once");
    }

    #[test]
    fn constraints_name_their_field() {
        for (constraint, field) in [
            ("teams_name_key", "name"),
            ("teams_pkey", "id"),
            ("certificates_owner_id_fkey", "owner_id"),
            ("targets_agent_name_key", "name"),
            ("certificate_targets_target_id_fkey", "target_ids"),
            ("renewal_policies_profile_fkey", "certificate_profile_id"),
        ] {
            assert_eq!(field_of(constraint), field);
        }
    }
}
