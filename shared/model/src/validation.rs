//! Whether a server serves what was deployed.

crate::words! {
    /// What was seen at an address.
    pub enum EndpointOutcome {
        /// What should be served is.
        Served = "Served",
        /// Something else is.
        Differs = "Differs",
        /// Nobody answers, or not with TLS.
        Unreachable = "Unreachable",
        /// Something was deployed there since it was checked last.
        Unchecked = "Unchecked",
    }
}
