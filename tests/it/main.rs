//! Stories through the public surface, and checks of what we publish.

mod broken_nginx;
mod crashes;
mod main_job;
mod notifications;
mod revocation;
mod two_of_each;
