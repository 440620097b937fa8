//! JSON bodies of every operation: whatever is sent is read or refused.
#![no_main]

use std::sync::LazyLock;

use certctl_contract::{catalogue, endpoint::Operation};
use libfuzzer_sys::fuzz_target;

static OPERATIONS: LazyLock<Vec<Operation>> = LazyLock::new(catalogue);

fuzz_target!(|data: (u8, &[u8])| {
    let operation = &OPERATIONS[usize::from(data.0) % OPERATIONS.len()];
    let _ = (operation.check_body)(data.1);
});
