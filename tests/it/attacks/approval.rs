//! Operators who try to approve what they took part in.
