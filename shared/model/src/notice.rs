//! What is told to people, and where.

crate::words! {
    /// What a notification is about.
    pub enum NoticeKind {
        /// A certificate nears its end.
        ExpirationWarning = "ExpirationWarning" | "expiration_warning",
        /// A renewal has begun.
        RenewalStarted = "RenewalStarted" | "renewal_started",
        /// A certificate was issued again.
        RenewalSuccess = "RenewalSuccess" | "renewal_success",
        /// An issuance or renewal failed.
        RenewalFailure = "RenewalFailure" | "renewal_failure",
        /// A certificate is being served by a target.
        DeploymentSuccess = "DeploymentSuccess" | "deployment_success",
        /// A deployment failed and was rolled back.
        DeploymentFailure = "DeploymentFailure" | "deployment_failure",
        /// A rule is violated.
        PolicyViolation = "PolicyViolation" | "policy_violation",
        /// A request waits for people to agree to it.
        ApprovalRequested = "ApprovalRequested" | "approval_requested",
        /// A request is signed although those who should have agreed to it did not.
        ApprovalOverridden = "ApprovalOverridden" | "approval_overridden",
        /// A certificate was revoked.
        Revocation = "Revocation",
        /// A server does not serve what it should.
        Drift = "Drift",
        /// An agent is not heard of any more.
        AgentOffline = "AgentOffline" | "agent_offline",
        /// A CRL was not made in time.
        CrlLate = "CrlLate" | "crl_late",
    }
}

crate::words! {
    /// How much a notification matters.
    pub enum NoticeSeverity {
        /// Something went as it should.
        Info = "Info",
        /// Somebody should do something in time.
        Warning = "Warning",
        /// Something went wrong, or cannot be taken back.
        Critical = "Critical",
    }
}

impl NoticeKind {
    /// How much it matters.
    pub const fn severity(self) -> NoticeSeverity {
        match self {
            Self::RenewalStarted | Self::RenewalSuccess | Self::DeploymentSuccess => NoticeSeverity::Info,
            Self::ExpirationWarning | Self::PolicyViolation | Self::ApprovalRequested | Self::AgentOffline => {
                NoticeSeverity::Warning
            }
            Self::RenewalFailure
            | Self::DeploymentFailure
            | Self::ApprovalOverridden
            | Self::Revocation
            | Self::Drift
            | Self::CrlLate => NoticeSeverity::Critical,
        }
    }

    /// Whether people get mail of it. That something began is for programs that follow it: people hear how it ended.
    pub const fn is_mailed(self) -> bool {
        !matches!(self, Self::RenewalStarted)
    }
}

crate::words! {
    /// Where a notification goes.
    pub enum Channel {
        /// SMTP, to the owner's address.
        Email = "Email",
        /// A signed HTTP POST.
        Webhook = "Webhook",
    }
}

crate::words! {
    /// How far a notification has come.
    pub enum NoticeStatus {
        /// Waits to be sent, or to be sent again.
        Pending = "pending",
        /// Accepted by the receiving server.
        Sent = "sent",
        /// Given up: refused for good, or tried too often.
        Failed = "failed",
        /// Nobody is configured to receive it.
        Skipped = "skipped",
        /// Read by an operator.
        Read = "read",
    }
}
