//! Bulk operations: one thing done to many certificates.

crate::words! {
    /// What is done.
    pub enum BulkAction {
        /// A new version each.
        Renew = "renew",
        /// Revoked each.
        Revoke = "revoke",
        /// Another owner or team each.
        Reassign = "reassign",
    }
}

crate::words! {
    /// Where an operation stands.
    pub enum BulkStatus {
        /// Certificates wait for their turn.
        Running = "Running",
        /// Every certificate had its turn.
        Completed = "Completed",
        /// Called off: those that had not had their turn are left alone.
        Cancelled = "Cancelled",
    }
}

crate::words! {
    /// What became of one certificate.
    pub enum BulkOutcome {
        /// Has not had its turn.
        Waiting = "waiting",
        /// Done; in a dry run: would be done.
        Done = "done",
        /// Not done, for the reason given; in a dry run: would not be done.
        Refused = "refused",
        /// The operation was called off before its turn.
        Cancelled = "cancelled",
    }
}
