//! What every service needs in order to run, whatever it does.
//!
//! A service is `parse → build → run → drain`, and each step has a module:
//!
//! | step | module | what it gives |
//! |---|---|---|
//! | parse | [`config`] | the settings every service shares, parsers for values, the configuration page |
//! | build | [`hardening`] | privileges that a process gives up |
//! | build | [`telemetry`] | logs to standard error, metrics as Prometheus text |
//! | run | [`serve`] | a bounded HTTP server over TCP or a Unix socket, health and readiness |
//! | run | [`client_addr`] | who asks, behind proxies that are trusted |
//! | run | [`places`] | how many connections there are, and which gives way |
//! | run | [`tls`] | the certificate of a public address |
//! | run | [`served`] | what a TLS server really serves |
//! | run | [`private`] | directories and files that other users cannot plant or replace |
//! | run | [`journal`] | lines on disk before anybody is told |
//! | run | [`periodic`] | loops that run at intervals or when woken |
//! | drain | [`tasks`] | the owner of every task, and the shutdown in two stages |
//! | test | [`failpoint`] | places where a crash test can hold a process |
//!
//! # Not here
//!
//! No domain words: nothing in this crate knows what a certificate or a job is, and it depends on no other crate of
//! the workspace. No routes but the operational three, no database, no clients, no clock of the domain. What only one
//! service needs stays in that service.

pub mod client_addr;
pub mod config;
pub mod failpoint;
pub mod hardening;
pub mod journal;
mod pace;
pub mod periodic;
pub mod places;
pub mod private;
mod rarely;
pub mod serve;
pub mod served;
pub mod tasks;
pub mod telemetry;
pub mod tls;
