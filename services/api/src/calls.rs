//! Every API call in the trail: bounded, batched, durable.

use std::sync::{Arc, Mutex, MutexGuard};

use certctl_model::audit::Actor;

/// What is known of a call, filled in by whoever finds out. It outlives a handler that panics.
#[derive(Clone, Debug, Default)]
pub struct Call(Arc<Mutex<Facts>>);

#[derive(Clone, Debug, Default)]
struct Facts {
    operation: Option<&'static str>,
    actor: Option<Actor>,
    body_hash: String,
}

impl Call {
    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Notes which operation it is.
    pub fn of(&self, operation: &'static str) {
        self.facts().operation = Some(operation);
    }

    /// Notes who calls.
    pub fn by(&self, actor: &Actor) {
        self.facts().actor = Some(actor.clone());
    }

    /// Notes the SHA-256 of the body.
    pub fn hashed(&self, digest: &[u8]) {
        self.facts().body_hash = hex::encode(&digest[..8]);
    }
}
