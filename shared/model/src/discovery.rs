//! Certificates found on hosts: how one stands, and what may become of it.

crate::words! {
    /// What became of a certificate that was found on a host.
    pub enum DiscoveryStatus {
        /// Nobody has decided yet.
        Unmanaged = "Unmanaged",
        /// It is a version of a managed certificate, or was claimed for one.
        Managed = "Managed",
        /// Somebody decided not to manage it.
        Dismissed = "Dismissed",
    }
}

impl DiscoveryStatus {
    /// Whether it can be claimed: once. What was dismissed can be.
    pub const fn can_be_claimed(self) -> bool {
        matches!(self, DiscoveryStatus::Unmanaged | DiscoveryStatus::Dismissed)
    }

    /// Whether it can be dismissed: once. What was claimed can be, and is then linked to nothing.
    pub const fn can_be_dismissed(self) -> bool {
        matches!(self, DiscoveryStatus::Unmanaged | DiscoveryStatus::Managed)
    }
}
