//! Bearer tokens of other issuers.
