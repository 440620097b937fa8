//! Which issuances people have to agree to.

crate::words! {
    /// When people have to agree before a request is signed.
    pub enum Approval {
        /// Never.
        Never = "none" | "never",
        /// When a person asked for the certificate; what is planned goes on by itself.
        Manual = "manual",
        /// Always.
        Always = "always",
    }
}

/// How many people may be needed at most.
pub const MOST_APPROVERS: i32 = 3;
