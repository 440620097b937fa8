//! Stories through the public surface, and checks of what we publish.

mod approvals;
mod arrows;
mod bad_input;
mod broken_nginx;
mod bulk;
mod compatibility;
mod crashes;
mod documents;
mod groups;
mod linting;
mod lists;
mod login;
mod main_job;
mod notifications;
mod notifications_api;
mod policies;
mod renewal;
mod revocation;
mod schema;
mod targets;
mod tokens;
mod tools;
mod two_of_each;
mod who;
