//! Servers that try to make an agent run programs its host did not allow.
