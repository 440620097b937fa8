//! Services that try to use their database role for more than their work.
