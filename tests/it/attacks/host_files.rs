//! Local users and servers that try to make an agent read or replace other files.
