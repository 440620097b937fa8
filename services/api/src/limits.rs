//! How much a party may ask: GCRA in Redis, or in the process.
