//! Logging in with an identity provider, and the sessions that follow.
