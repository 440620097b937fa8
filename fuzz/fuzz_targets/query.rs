//! Query strings of every operation: whatever is sent is read or refused by name.
#![no_main]

use std::sync::LazyLock;

use certctl_contract::{catalogue, endpoint::Operation};
use libfuzzer_sys::fuzz_target;

static OPERATIONS: LazyLock<Vec<Operation>> = LazyLock::new(catalogue);

fuzz_target!(|data: (u8, &str)| {
    let operation = &OPERATIONS[usize::from(data.0) % OPERATIONS.len()];
    if let Ok(pairs) = serde_urlencoded::from_str::<Vec<(String, String)>>(data.1)
        && let Err(invalid) = (operation.check_query)(pairs)
    {
        assert!(!invalid.is_empty(), "a refusal says why");
    }
});
