//! Attacks through the public surface, the file system and the database roles: a hostile operator (`approval`,
//! `principals`), a hostile agent or server (`host_files`, `host_commands`, `client`, `server_answers`), a hostile
//! relying party or network (`edge`), a compromised service (`database`) and another user of the same host (`local`).

mod approval;
mod client;
mod database;
mod edge;
mod host_commands;
mod host_files;
mod local;
mod principals;
mod server_answers;
