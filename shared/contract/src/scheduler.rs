//! What runs by itself: which scheduler leads, and how the loops of schedulers and notifiers went.

use certctl_model::time::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

crate::resource! {
    scheduler "/api/v1/scheduler";

    /// Tell how everything went that runs by itself.
    ///
    /// Each process writes every few seconds. What a process wrote last stays for an hour after its end.
    GET "" GetScheduler() [Needs(View)] -> 200 SchedulerState;
}

/// Who leads, and how the loops went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SchedulerState {
    /// The scheduler that runs the loops that one of several runs; absent when none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<Leader>,
    /// By service, name and holder.
    pub loops: Vec<LoopState>,
}

/// Who leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "sqlx", derive(sqlx::FromRow))]
pub struct Leader {
    /// Host, process id, and what tells it from others.
    pub holder: String,
    /// Grows with every change of the leader.
    pub token: i64,
    /// Until when another cannot take over.
    pub until: Time,
}

/// How a loop of one process went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "sqlx", derive(sqlx::FromRow))]
pub struct LoopState {
    /// `scheduler` or `notifier`.
    pub service: String,
    /// Which loop.
    pub name: String,
    /// Which process: host, process id, and what tells it from others.
    pub holder: String,
    /// How often it runs when nobody wakes it, in milliseconds.
    pub every_ms: i64,
    /// How often it ran since its process began.
    pub runs: i64,
    /// How often that failed.
    pub failures: i64,
    /// What became of the last run: `ok`, `error`, `panic`, `timeout`, or `skipped` because it is the leader's.
    pub outcome: String,
    /// What went wrong then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How much it did then.
    pub done: i64,
    /// How long it took, in milliseconds.
    pub duration_ms: i64,
    /// When it began.
    pub last_run_at: Time,
    /// When a run ended well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_success_at: Option<Time>,
    /// When it runs again, unless it is woken.
    pub next_run_at: Time,
}
