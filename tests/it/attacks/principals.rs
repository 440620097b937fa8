//! Principals that try to pass as another principal.
