//! Other users of a machine on which certctl-local or a command of root runs.
