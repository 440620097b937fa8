//! Privileges that a service gives up before it does its work: core dumps, capabilities, files, ports and system calls.
//!
//! Each measure is taken where the kernel has it and logged either way. All of it holds for the calling thread and for
//! those that it starts, so it is done before there are any others.

use std::{
    collections::BTreeMap,
    fs::DirBuilder,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope, path_beneath_rules,
};
use rustix::{
    mm::{MlockAllFlags, mlockall},
    process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit},
    thread::{
        CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set,
        set_capabilities, set_no_new_privs,
    },
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use tracing::{info, warn};

/// Whether the process gives things up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Hardening {
    /// What the kernel has.
    On,
    /// All of it; where something is missing, the service does not start.
    Required,
    /// Core files alone: for the day on which something does not work and it must be found out why.
    Off,
}

/// How much a service gives up.
#[derive(Clone, Copy, Debug, Args)]
pub struct HardeningSetting {
    /// What the process gives up at its start: `on` takes each measure that the kernel has, `required` refuses to start
    /// without one of them, `off` is for finding out why something does not work.
    #[arg(long = "hardening", env = "CERTCTL_HARDENING", value_enum, default_value = "on")]
    pub hardening: Hardening,
}

/// The files and ports of a process, and what else it keeps.
#[derive(Debug, Default)]
pub struct Needs {
    /// Files, and directories with all that is below them, that it reads.
    pub reads: Vec<PathBuf>,
    /// Directories below which it writes.
    pub writes: Vec<PathBuf>,
    /// Ports that it connects to over TCP; none for any.
    pub connects: Option<Vec<u16>>,
    /// Ports that it listens on over TCP.
    pub listens: Vec<u16>,
    /// Whether its memory is kept out of swap.
    pub locks_memory: bool,
}

/// A measure: what it is, and either what now holds or why it does not.
pub type Measure = (&'static str, Result<String>);

/// Hardens the process as the setting `variable` says, and logs it.
///
/// # Errors
/// A measure that is required and cannot be taken.
pub fn harden(variable: &str, setting: Hardening, needs: &Needs) -> Result<()> {
    if setting == Hardening::Off {
        no_core_files()?;
        warn!("{variable} is off: code that takes this process over can do all that its user can");
        return Ok(());
    }
    let mut lacking = Vec::new();
    for (what, taken) in measures(needs) {
        match taken {
            Ok(now) => info!("hardened: {what}: {now}"),
            Err(why) => {
                warn!("not hardened: {what}: {why:#}");
                lacking.push(what);
            }
        }
    }
    ensure!(
        setting != Hardening::Required || lacking.is_empty(),
        "{variable} is required, but there is no hardening of {}",
        lacking.join(", ")
    );
    Ok(())
}

/// Takes every measure.
pub fn measures(needs: &Needs) -> Vec<Measure> {
    let memory = needs.locks_memory.then(|| ("memory", locked()));
    let mut measures = vec![("core dumps", no_core())];
    measures.extend(memory);
    measures.extend([
        ("privileges", no_new_privileges()),
        ("capabilities", no_capabilities(&needs.listens)),
        ("files and ports", landlocked(needs)),
        ("system calls", filtered()),
    ]);
    measures
}

impl Needs {
    /// What every service reads: libraries, names of hosts, certificates to trust, how many processors there are.
    pub fn of_every_service() -> Self {
        let system = [
            "/etc",
            "/usr",
            "/lib",
            "/lib64",
            // Where /etc/resolv.conf may point.
            "/run/systemd/resolve",
            "/run/resolvconf",
            "/dev/null",
            "/dev/urandom",
            "/proc/self",
            "/proc/sys",
            "/sys/fs/cgroup",
        ];
        let mut needs = Self {
            reads: system.map(PathBuf::from).into(),
            ..Self::default()
        };
        // Where the TLS library finds certificates to trust instead of those of the system.
        let trusted = ["SSL_CERT_FILE", "SSL_CERT_DIR"].map(std::env::var_os);
        needs.reads.extend(trusted.into_iter().flatten().map(PathBuf::from));
        needs
    }

    /// Adds the directories of files, and of the files that they link to: files are replaced by renaming.
    pub fn read_files(&mut self, files: impl IntoIterator<Item = PathBuf>) {
        for file in files {
            self.reads.push(directory_of(&file));
            if let Ok(linked) = file.canonicalize() {
                self.reads.push(directory_of(&linked));
            }
        }
    }

    /// Adds a directory, which is made, for its owner alone, unless it exists: rules are for files that exist.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn write_below(&mut self, directory: &Path) -> Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .with_context(|| format!("cannot make the directory {}", directory.display()))?;
        self.writes.push(directory.to_owned());
        Ok(())
    }
}

/// The directory of a file; the file itself where that would be everything.
pub fn directory_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(directory) if directory.parent().is_some() => directory.to_owned(),
        _ => file.to_owned(),
    }
}

/// A core file would hold keys and secrets; a process that cannot be dumped cannot be traced either (ptrace(2)).
fn no_core() -> Result<String> {
    no_core_files()?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("the process stays dumpable")?;
    Ok("off; other processes of the user cannot look into this one".to_owned())
}

fn no_core_files() -> Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).context("the limit on core files cannot be set")
}

/// Keys must not be written to swap. With a limit every later allocation could fail, so it is all or nothing.
fn locked() -> Result<String> {
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    if setrlimit(Resource::Memlock, unlimited).is_err() {
        let limit = rustix::process::getrlimit(Resource::Memlock).current;
        bail!(
            "it may be swapped: locked memory is limited to {} octets; without a limit it is locked",
            limit.unwrap_or_default()
        );
    }
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)
        .context("it may be swapped: it cannot be locked")?;
    Ok("never swapped".to_owned())
}

fn no_new_privileges() -> Result<String> {
    set_no_new_privs(true).context("set-user-id programs would still gain them")?;
    Ok("none are gained by any program".to_owned())
}

/// Ports below 1024 need a capability of their own; it is all that is kept.
fn no_capabilities(listens: &[u16]) -> Result<String> {
    let is_privileged = listens.iter().any(|port| (1..1024).contains(port));
    let before = capabilities(None).context("they cannot be read")?.effective;
    let kept = match is_privileged {
        true => before & CapabilitySet::NET_BIND_SERVICE,
        false => CapabilitySet::empty(),
    };
    // Without CAP_SETPCAP the bounding set stays, which counts for programs that are started: none is.
    for bit in 0..64 {
        let _ = remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit));
    }
    let _ = clear_ambient_capability_set();
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).context("they cannot be dropped")?;
    Ok(if kept.is_empty() {
        "none"
    } else {
        "none but that of listening on ports below 1024"
    }
    .to_owned())
}

fn landlocked(needs: &Needs) -> Result<String> {
    const NEWEST: ABI = ABI::V6;
    let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = AccessFs::from_all(NEWEST) & !AccessFs::Execute & !AccessFs::MakeBlock & !AccessFs::MakeChar;
    let ports = |ports: &[u16], access: AccessNet| -> Vec<_> {
        ports
            .iter()
            .map(|port| Ok::<_, landlock::RulesetError>(NetPort::new(*port, access)))
            .collect()
    };
    let network = match &needs.connects {
        Some(_) => AccessNet::from_all(NEWEST),
        None => AccessNet::BindTcp.into(),
    };
    let connects = needs.connects.as_deref().unwrap_or_default();
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(network)?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .add_rules(path_beneath_rules(&needs.reads, read))?
        .add_rules(path_beneath_rules(&["/dev/null"], read | AccessFs::WriteFile))?
        .add_rules(path_beneath_rules(&needs.writes, write))?
        .add_rules(ports(connects, AccessNet::ConnectTcp))?
        .add_rules(ports(&needs.listens, AccessNet::BindTcp))?
        .restrict_self()?;
    match (status.ruleset, status.landlock) {
        (RulesetStatus::FullyEnforced, _) => Ok(format!(
            "Landlock; it writes below [{}], connects to ports [{}] and listens on [{}]",
            listed(needs.writes.iter().map(|path| path.display())),
            if needs.connects.is_some() {
                listed(connects)
            } else {
                "any".to_owned()
            },
            listed(&needs.listens)
        )),
        (RulesetStatus::PartiallyEnforced, LandlockStatus::Available { effective_abi, .. }) => Ok(format!(
            "Landlock, as far as its version {effective_abi:?} goes: before 4 it knows no ports, before 6 no signals"
        )),
        _ => bail!("the kernel has no Landlock, or it is not enabled"),
    }
}

fn listed(all: impl IntoIterator<Item = impl ToString>) -> String {
    let all: Vec<_> = all.into_iter().map(|one| one.to_string()).collect();
    all.join(", ")
}

/// A program that neither starts others, nor looks into them, nor changes the kernel needs none of these.
fn filtered() -> Result<String> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)
        .map_err(|_| anyhow::anyhow!("there is no filter for this processor"))?;
    let mut refused: BTreeMap<i64, Vec<SeccompRule>> = REFUSED.iter().map(|call| (*call, vec![])).collect();
    // Threads are started by the same call as processes; the flag tells them apart.
    let thread = u64::try_from(libc::CLONE_THREAD)?;
    refused.insert(libc::SYS_clone, vec![rule(0, SeccompCmpOp::MaskedEq(thread), &[0])?]);
    apply(refused, libc::EPERM, arch)?;
    // Its flags are in memory, where no filter looks. The C library then goes the old way.
    apply([(libc::SYS_clone3, vec![])].into(), libc::ENOSYS, arch)?;
    let families = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6].map(|family| u64::from(family.unsigned_abs()));
    let others = [libc::SYS_socket, libc::SYS_socketpair]
        .into_iter()
        .map(|call| Ok((call, vec![rule(0, SeccompCmpOp::Ne, &families)?])))
        .collect::<Result<_>>()?;
    apply(others, libc::EAFNOSUPPORT, arch)?;
    Ok("seccomp; no programs, no processes, no tracing, no modules, no mounts, no io_uring, sockets of Unix and IP alone".to_owned())
}

/// Holds when the argument compares so with every value.
fn rule(argument: u8, comparison: SeccompCmpOp, values: &[u64]) -> Result<SeccompRule> {
    let conditions = values
        .iter()
        .map(|value| SeccompCondition::new(argument, SeccompCmpArgLen::Dword, comparison.clone(), *value))
        .collect::<Result<_, _>>()?;
    Ok(SeccompRule::new(conditions)?)
}

fn apply(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: i32, arch: TargetArch) -> Result<()> {
    let refusal = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refusal, arch)?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&program).context("the kernel takes no filter")
}

const REFUSED: &[i64] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_perf_event_open,
    libc::SYS_bpf,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_open_by_handle_at,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
];
