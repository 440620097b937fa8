//! Cursors of lists: whatever is sent continues its own list or is refused.
#![no_main]

use certctl_api::cursor::Cursor;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &str| {
    if let Ok(cursor) = Cursor::read(data, "-createdAt", "status=Active") {
        let again = Cursor::read(&cursor.write(), "-createdAt", "status=Active");
        assert!(again.is_ok(), "what we write can be read");
    }
});
