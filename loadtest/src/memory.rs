//! Memory of processes, as the kernel counts it.

use std::fs;

use anyhow::Context;

/// Resident memory of a process, in KiB.
pub(crate) struct Memory {
    pub(crate) now: u64,
    /// The most since it was reset.
    pub(crate) peak: u64,
}

impl Memory {
    /// Forgets the peak so far.
    ///
    /// # Errors
    /// When the process is gone or somebody else's.
    pub(crate) fn reset(pid: u32) -> anyhow::Result<Self> {
        fs::write(format!("/proc/{pid}/clear_refs"), "5").context("the peak cannot be forgotten")?;
        Self::of(pid)
    }

    /// As it is.
    ///
    /// # Errors
    /// When the process is gone.
    pub(crate) fn of(pid: u32) -> anyhow::Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| -> anyhow::Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok());
            number.with_context(|| format!("the kernel does not tell {name}"))
        };
        Ok(Self {
            now: field("VmRSS:")?,
            peak: field("VmHWM:")?,
        })
    }
}
