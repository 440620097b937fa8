//! certctl on one machine: the real binaries, a private Postgres, an agent and an nginx to deploy to.
//!
//! The command `certctl-local` is a short story told with these parts, and the end-to-end tests use the same ones.
//!
//! | module | what it gives |
//! |---|---|
//! | [`platform`] | everything together: started in order, waited for, tended, stopped |
//! | [`postgres`] | a private cluster made by the installed binaries |
//! | [`nginx`] | an nginx of its own on a high port, and what any TLS server serves |
//! | [`process`] | one program as a child that does not outlive us |
//! | [`story`] | the demo: from a request to the certificate being served |
//! | [`instance`] | at most one platform per directory, and how to find and stop it |
//! | [`ports`] | free ports, remembered |
//! | [`files`] | directories and secrets with the right modes |
//!
//! # Not here
//!
//! Nothing of what certctl does: this crate knows the programs by their variables and the API by its JSON, like anyone
//! outside.

pub mod files;
pub mod instance;
pub mod nginx;
pub mod platform;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod story;
