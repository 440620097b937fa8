//! POSTs that are repeated with an `Idempotency-Key` are done once.
