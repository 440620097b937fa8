//! Processor time of processes, as the kernel counts it.

use std::{fs, time::Duration};

use anyhow::Context;

/// The kernel tells times to programs in hundredths of a second, whatever its own clock does.
const TICK: Duration = Duration::from_millis(10);

/// What one process has used so far, with its threads.
///
/// # Errors
/// When it is gone.
pub(crate) fn of_process(pid: u32) -> anyhow::Result<Duration> {
    let stat = Stat::of(pid).with_context(|| format!("there is no process {pid}"))?;
    Ok(stat.own)
}

/// What a process and its children have used so far, those included that have ended: a Postgres with its backends.
///
/// # Errors
/// When it is gone.
pub(crate) fn of_family(pid: u32) -> anyhow::Result<Duration> {
    let parent = Stat::of(pid).with_context(|| format!("there is no process {pid}"))?;
    let all = fs::read_dir("/proc")?.flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let children = pids.filter_map(Stat::of).filter(|stat| stat.parent == pid);
    Ok(parent.own + parent.ended + children.map(|stat| stat.own + stat.ended).sum::<Duration>())
}

struct Stat {
    parent: u32,
    own: Duration,
    ended: Duration,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        Self::read(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The second field is the program's name and may contain anything; fields are counted behind its parenthesis.
    fn read(stat: &str) -> Option<Self> {
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        let ticks = |at: usize| -> Option<Duration> { Some(TICK * fields.get(at)?.parse().ok()?) };
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            own: ticks(11)? + ticks(12)?,
            ended: ticks(13)? + ticks(14)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_kernel_is_read() {
        let line = "42 (a) b) S 7 42 42 0 -1 4194560 100 200 0 0 150 50 30 20 20 0 4 0 100 1 1";
        let stat = Stat::read(line).unwrap();
        assert_eq!(
            (stat.parent, stat.own, stat.ended),
            (7, Duration::from_secs(2), Duration::from_millis(500))
        );
    }

    #[test]
    fn our_own_time_is_known() {
        // Time goes on between the two: what is read first is not more.
        let own = of_process(std::process::id()).unwrap();
        assert!(of_family(std::process::id()).unwrap() >= own);
        assert!(of_process(u32::MAX).is_err());
    }
}
