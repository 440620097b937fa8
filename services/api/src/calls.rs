//! Every API call in the trail: bounded, batched, durable.
