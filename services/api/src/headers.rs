//! Origins and security headers.
