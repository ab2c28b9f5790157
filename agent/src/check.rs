//! The command `otel-ebpf check`: says in plain words what this host and
//! these privileges allow and what is missing.
//!
//! [`checks`] judges facts and does no I/O, so each verdict can be tested;
//! [`run`] gathers the facts and prints. What only the modules that load
//! programs and read interpreters can tell comes in through [`Trials`].

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::Path;

use crate::kernel::{Features, Lockdown, features};
use crate::target::process::{ProcessError, ProcessInfo};
use crate::target::service::{TargetSettings, derive_service_name};

/// How bad the outcome of a check is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// As it should be.
    Ok,
    /// Tracing works, but not all of it or not everywhere.
    Warn,
    /// Tracing is impossible.
    Missing,
}

/// The outcome of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was checked.
    pub name: &'static str,
    /// How bad it is.
    pub state: State,
    /// What was found and what it means.
    pub found: String,
    /// What to do about it; empty where there is nothing to do.
    pub advice: &'static str,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            state: State::Ok,
            found: found.into(),
            advice: "",
        }
    }

    fn warn(name: &'static str, found: impl Into<String>, advice: &'static str) -> Self {
        Self {
            name,
            state: State::Warn,
            found: found.into(),
            advice,
        }
    }

    fn missing(name: &'static str, found: impl Into<String>, advice: &'static str) -> Self {
        Self {
            name,
            state: State::Missing,
            found: found.into(),
            advice,
        }
    }
}

/// What has to be tried to be known.
pub struct Trials<L, I> {
    /// Loads a BPF program; the error is the kernel's reason.
    pub try_load: L,
    /// Finds the interpreter of a process and describes it, for example
    /// `CPython 3.12.3`.
    pub find_interpreter: I,
}

/// Runs all checks, prints them and returns the exit code: 0 if tracing is
/// possible, 1 if it is not.
pub fn run<L, I>(pid: Option<u32>, trials: Trials<L, I>, out: &mut dyn Write) -> io::Result<u8>
where
    L: FnOnce() -> Result<(), String>,
    I: FnOnce(&ProcessInfo) -> Result<String, String>,
{
    let mut outcomes = checks(&features(), &Privileges::read(), (trials.try_load)());
    if let Some(pid) = pid {
        outcomes.extend(target_checks(
            ProcessInfo::read(pid),
            trials.find_interpreter,
        ));
    }
    report(&outcomes, out)
}

/// Rights of this process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Privileges {
    /// Effective capabilities, one bit each (`CapEff`).
    pub capabilities: u64,
    /// Whether it runs in the initial user namespace, outside of which
    /// capabilities mean nothing to BPF.
    pub initial_user_namespace: bool,
    /// Whether it runs in the initial pid namespace, whose ids BPF reports.
    pub initial_pid_namespace: bool,
    /// Soft limit of `RLIMIT_MEMLOCK`, bytes; `None` is unlimited.
    pub locked_memory: Option<u64>,
}

impl Privileges {
    /// Reads the rights of this process.
    pub fn read() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let pid_namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        Self {
            capabilities: effective_capabilities(&read("/proc/self/status")),
            initial_user_namespace: is_initial_user_map(&read("/proc/self/uid_map")),
            initial_pid_namespace: pid_namespace == Path::new(INITIAL_PID_NAMESPACE),
            locked_memory: rustix::process::getrlimit(rustix::process::Resource::Memlock).current,
        }
    }

    /// Names of the capabilities that tracing needs and that are not held.
    pub fn lacking(&self) -> Vec<&'static str> {
        NEEDS
            .iter()
            .filter(|need| need.otherwise == State::Missing && !self.meets(need))
            .map(|need| need.name)
            .collect()
    }

    fn meets(&self, need: &Need) -> bool {
        self.has(need.capability) || need.in_sys_admin && self.has(capability::SYS_ADMIN)
    }

    fn has(&self, capability: u32) -> bool {
        self.capabilities >> capability & 1 != 0
    }
}

/// The initial pid namespace always has this number (`PROC_PID_INIT_INO` of
/// `include/linux/proc_ns.h`).
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Numbers of capabilities (`include/uapi/linux/capability.h`).
mod capability {
    pub(super) const DAC_READ_SEARCH: u32 = 2;
    pub(super) const SYS_PTRACE: u32 = 19;
    pub(super) const SYS_ADMIN: u32 = 21;
    pub(super) const SYS_RESOURCE: u32 = 24;
    pub(super) const PERFMON: u32 = 38;
    pub(super) const BPF: u32 = 39;
}

/// What a capability is needed for.
struct Need {
    name: &'static str,
    capability: u32,
    /// Whether `CAP_SYS_ADMIN` includes it.
    in_sys_admin: bool,
    /// How bad it is to lack it.
    otherwise: State,
    purpose: &'static str,
    advice: &'static str,
}

const NEEDS: &[Need] = &[
    Need {
        name: "CAP_BPF",
        capability: capability::BPF,
        in_sys_admin: true,
        otherwise: State::Missing,
        purpose: "loading programs and making maps",
        advice: "run as root, or give the agent CAP_BPF (CAP_SYS_ADMIN includes it)",
    },
    Need {
        name: "CAP_PERFMON",
        capability: capability::PERFMON,
        in_sys_admin: true,
        otherwise: State::Missing,
        purpose: "attaching to tracepoints and functions, reading memory in programs",
        advice: "run as root, or give the agent CAP_PERFMON (CAP_SYS_ADMIN includes it)",
    },
    Need {
        name: "CAP_SYS_PTRACE",
        capability: capability::SYS_PTRACE,
        in_sys_admin: false,
        otherwise: State::Missing,
        purpose: "reading the memory and environment of other processes",
        advice: "run as root, or give the agent CAP_SYS_PTRACE",
    },
    Need {
        name: "CAP_DAC_READ_SEARCH",
        capability: capability::DAC_READ_SEARCH,
        in_sys_admin: false,
        otherwise: State::Warn,
        purpose: "opening executables and libraries of other users",
        advice: "give the agent CAP_DAC_READ_SEARCH if it is to trace processes of other users",
    },
];

/// Judges the host and the agent's rights.
pub fn checks(
    features: &Features,
    privileges: &Privileges,
    loaded: Result<(), String>,
) -> Vec<Check> {
    let mut outcomes = vec![kernel_version(features), offsets(features)];
    outcomes.push(match features.ring_buffer {
        true => Check::ok("BPF ring buffer", "there"),
        false => Check::missing(
            "BPF ring buffer",
            "not in this kernel, events cannot be delivered",
            UPGRADE,
        ),
    });
    outcomes.push(match features.uprobes {
        true => Check::ok("uprobes", "there"),
        false => Check::missing(
            "uprobes",
            "not in this kernel, or neither /sys/bus/event_source nor tracefs can be seen",
            "use a kernel with CONFIG_UPROBE_EVENTS, and mount /sys into the agent's container",
        ),
    });
    outcomes.push(system_call_tracepoints(features));
    outcomes.extend(NEEDS.iter().map(|need| need_check(need, privileges)));
    outcomes.extend(namespaces(privileges));
    outcomes.push(lockdown(features));
    outcomes.extend(settings(features, privileges));
    outcomes.push(match loaded {
        Ok(()) => Check::ok("loading a BPF program", "works"),
        Err(reason) => Check::missing(
            "loading a BPF program",
            format!("refused by the kernel: {reason}"),
            "see the rows above; if they are all ok, look for a seccomp filter or a security module",
        ),
    });
    outcomes
}

/// Judges one process.
pub fn target_checks(
    process: Result<ProcessInfo, ProcessError>,
    find_interpreter: impl FnOnce(&ProcessInfo) -> Result<String, String>,
) -> Vec<Check> {
    let process = match process {
        Ok(process) => process,
        Err(error) => {
            return vec![Check::missing(
                "process",
                error.to_string(),
                process_advice(&error),
            )];
        }
    };
    let settings = TargetSettings::new(&process.environment);
    let name = settings.service_name.clone().or_else(|| {
        let named = settings
            .resource_attributes
            .iter()
            .find(|(key, _)| key == "service.name");
        named
            .map(|(_, name)| name.clone())
            .filter(|name| !name.is_empty())
    });
    let name = name.unwrap_or_else(|| derive_service_name(&process));
    let mut outcomes = vec![Check::ok(
        "process",
        format!(
            "{} ({}), service name {name}",
            process.pid,
            process.executable_name()
        ),
    )];
    outcomes.push(match find_interpreter(&process) {
        Ok(description) => Check::ok("interpreter", description),
        Err(reason) => Check::missing(
            "interpreter",
            reason,
            "give the id of a process that runs CPython",
        ),
    });
    if settings.disabled || settings.traces_suppressed {
        outcomes.push(Check::warn(
            "settings",
            "the process asks not to be traced (OTEL_SDK_DISABLED or OTEL_TRACES_EXPORTER)",
            "start the process without that variable",
        ));
    }
    if settings.instrumented {
        outcomes.push(Check::warn(
            "settings",
            "opentelemetry-instrument is already in the process, spans would be doubled",
            "use one of the two",
        ));
    }
    let warnings = settings.warnings.into_iter();
    outcomes.extend(warnings.map(|warning| Check::warn("settings", warning, "")));
    outcomes
}

const UPGRADE: &str = "use a kernel of version 5.10 or newer";

fn process_advice(error: &ProcessError) -> &'static str {
    match error {
        ProcessError::NoSuchProcess { .. } | ProcessError::Exited { .. } => {
            "look up the id again; in a container the agent needs the host's pid namespace"
        }
        ProcessError::Thread { .. } => "give the id of the process",
        ProcessError::KernelThread { .. } => "give the id of a process that runs CPython",
        ProcessError::NotPermitted { .. } => "run as root, or give the agent CAP_SYS_PTRACE",
        ProcessError::Unreadable { .. } | ProcessError::Unexpected { .. } => {
            "check that /proc is mounted"
        }
    }
}

fn kernel_version(features: &Features) -> Check {
    let release = &features.release;
    match features.version {
        Some(version) if version >= (5, 10) => Check::ok("kernel", format!("Linux {release}")),
        Some(_) => Check::missing(
            "kernel",
            format!("Linux {release} is older than 5.10"),
            UPGRADE,
        ),
        None => Check::warn(
            "kernel",
            format!("version of Linux {release} not understood"),
            UPGRADE,
        ),
    }
}

fn offsets(features: &Features) -> Check {
    let name = "kernel types (BTF)";
    match &features.offsets {
        Ok(offsets) if offsets.unix_addr == u32::MAX => Check::warn(
            name,
            "there, but for Unix sockets, whose paths are not shown",
            "nothing is wrong: this kernel has Unix sockets as a module",
        ),
        Ok(_) => Check::ok(name, "there"),
        Err(reason) => Check::missing(
            name,
            reason.clone(),
            "use a kernel with CONFIG_DEBUG_INFO_BTF, and mount /sys into the agent's container",
        ),
    }
}

fn system_call_tracepoints(features: &Features) -> Check {
    let name = "system call tracepoints";
    match features.system_call_tracepoints {
        Some(true) => Check::ok(name, "there"),
        Some(false) => Check::missing(
            name,
            "not in this kernel, reads and writes cannot be seen",
            "use a kernel with CONFIG_FTRACE_SYSCALLS",
        ),
        None => Check::warn(name, "not known without BTF", ""),
    }
}

fn need_check(need: &Need, privileges: &Privileges) -> Check {
    let umbrella = need.in_sys_admin && privileges.has(capability::SYS_ADMIN);
    if privileges.has(need.capability) {
        return Check::ok(need.name, format!("held, for {}", need.purpose));
    }
    if umbrella {
        return Check::ok(
            need.name,
            format!("held through CAP_SYS_ADMIN, for {}", need.purpose),
        );
    }
    Check {
        name: need.name,
        state: need.otherwise,
        found: format!("not held, needed for {}", need.purpose),
        advice: need.advice,
    }
}

fn namespaces(privileges: &Privileges) -> Vec<Check> {
    let mut outcomes = Vec::new();
    if !privileges.initial_user_namespace {
        outcomes.push(Check::missing(
            "user namespace",
            "the agent runs in a user namespace (rootless container), where capabilities do not reach BPF",
            "run it as root of the host",
        ));
    }
    if !privileges.initial_pid_namespace {
        outcomes.push(Check::missing(
            "pid namespace",
            "the agent runs in a pid namespace of its own and cannot match the kernel's process ids",
            "use the host's (docker run --pid=host, Kubernetes hostPID: true)",
        ));
    }
    outcomes
}

fn lockdown(features: &Features) -> Check {
    match features.lockdown {
        Lockdown::None => Check::ok("kernel lockdown", "off"),
        Lockdown::Integrity => Check::ok("kernel lockdown", "integrity, which allows tracing"),
        Lockdown::Confidentiality => Check::missing(
            "kernel lockdown",
            "confidentiality, which forbids programs to read memory",
            "boot with lockdown=integrity or without lockdown",
        ),
    }
}

/// Settings that are only worth a word where they are in the way.
fn settings(features: &Features, privileges: &Privileges) -> Vec<Check> {
    let mut outcomes = Vec::new();
    if features.ptrace_scope == Some(3) {
        outcomes.push(Check::missing(
            "kernel.yama.ptrace_scope",
            "3 forbids everybody to read the memory of other processes, until the next boot",
            "set it to 2 or less and boot again",
        ));
    }
    let may_trace = privileges.has(capability::PERFMON) || privileges.has(capability::SYS_ADMIN);
    if let Some(level) = features
        .perf_event_paranoid
        .filter(|level| *level > 2 && !may_trace)
    {
        outcomes.push(Check::warn(
            "kernel.perf_event_paranoid",
            format!("{level} forbids probes without CAP_PERFMON"),
            "run as root, or give the agent CAP_PERFMON",
        ));
    }
    let may_load = privileges.has(capability::BPF) || privileges.has(capability::SYS_ADMIN);
    if let Some(level) = features
        .unprivileged_bpf_disabled
        .filter(|level| *level > 0 && !may_load)
    {
        outcomes.push(Check::warn(
            "kernel.unprivileged_bpf_disabled",
            format!("{level} forbids programs without CAP_BPF"),
            "run as root, or give the agent CAP_BPF",
        ));
    }
    let may_raise = privileges.has(capability::SYS_RESOURCE);
    if let Some(limit) = privileges.locked_memory
        && features.memory_is_locked
        && !may_raise
        && limit < LOCKED_MEMORY
    {
        outcomes.push(Check::warn(
            "locked memory",
            format!(
                "limited to {} KiB, and this kernel counts maps against it",
                limit >> 10
            ),
            "raise it (ulimit -l unlimited, LimitMEMLOCK=infinity) or use Linux 5.11 or newer",
        ));
    }
    outcomes
}

/// What ring and maps take before Linux 5.11, generously.
const LOCKED_MEMORY: u64 = 128 << 20;

/// Prints the checks, a line each and one for the advice, and the verdict;
/// returns the exit code.
fn report(outcomes: &[Check], out: &mut dyn Write) -> io::Result<u8> {
    let width = outcomes
        .iter()
        .map(|check| check.name.len())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for Check {
        name,
        state,
        found,
        advice,
    } in outcomes
    {
        let state = match state {
            State::Ok => "ok",
            State::Warn => "warn",
            State::Missing => "missing",
        };
        // What the kernel or a process says may have several lines.
        let found = found
            .split(char::is_control)
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join(" ");
        writeln!(text, "{state:<8} {name:<width$}  {found}").map_err(io::Error::other)?;
        if !advice.is_empty() {
            writeln!(text, "{:<8} {:<width$}  -> {advice}", "", "").map_err(io::Error::other)?;
        }
    }
    let worst = outcomes
        .iter()
        .map(|check| check.state)
        .max()
        .unwrap_or(State::Ok);
    text.push_str(match worst {
        State::Ok => "\ntracing is possible\n",
        State::Warn => "\ntracing is possible, with the limits named above\n",
        State::Missing => "\ntracing is impossible until what is missing above is there\n",
    });
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(u8::from(worst == State::Missing))
}

fn effective_capabilities(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok())
        .unwrap_or(0)
}

/// The initial user namespace maps every id to itself; a kernel without user
/// namespaces has no map.
fn is_initial_user_map(uid_map: &str) -> bool {
    uid_map.is_empty()
        || uid_map
            .split_ascii_whitespace()
            .eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use abi::map::KernelOffsets;

    use super::*;

    fn good_features() -> Features {
        Features {
            release: "6.8.0-45-generic".into(),
            version: Some((6, 8)),
            offsets: Ok(KernelOffsets::default()),
            system_call_tracepoints: Some(true),
            ring_buffer: true,
            uprobes: true,
            lockdown: Lockdown::Integrity,
            unprivileged_bpf_disabled: Some(2),
            perf_event_paranoid: Some(4),
            ptrace_scope: Some(1),
            memory_is_locked: false,
        }
    }

    fn root() -> Privileges {
        Privileges {
            capabilities: u64::MAX,
            initial_user_namespace: true,
            initial_pid_namespace: true,
            locked_memory: Some(64 << 10),
        }
    }

    /// Names and states of everything that is not ok.
    fn troubles(outcomes: &[Check]) -> Vec<(&'static str, State)> {
        let troubles = outcomes.iter().filter(|check| check.state != State::Ok);
        troubles.map(|check| (check.name, check.state)).collect()
    }

    fn check(features: &Features, privileges: &Privileges, expected: &[(&str, State)]) {
        assert_eq!(troubles(&checks(features, privileges, Ok(()))), expected);
    }

    #[test]
    fn root_on_a_good_kernel_lacks_nothing() {
        let outcomes = checks(&good_features(), &root(), Ok(()));
        assert_eq!(troubles(&outcomes), []);
        let mut text = Vec::new();
        assert_eq!(report(&outcomes, &mut text).expect("written"), 0);
        assert!(text.ends_with(b"\ntracing is possible\n"));
    }

    #[test]
    fn each_missing_feature_is_named() {
        let missing = State::Missing;
        let with = |change: fn(&mut Features), expected: &[(&str, State)]| {
            let mut features = good_features();
            change(&mut features);
            check(&features, &root(), expected);
        };
        with(|it| it.version = Some((5, 4)), &[("kernel", missing)]);
        with(|it| it.version = None, &[("kernel", State::Warn)]);
        with(
            |it| it.offsets = Err("no".into()),
            &[("kernel types (BTF)", missing)],
        );
        with(
            |it| {
                it.offsets = Ok(KernelOffsets {
                    unix_addr: u32::MAX,
                    ..KernelOffsets::default()
                })
            },
            &[("kernel types (BTF)", State::Warn)],
        );
        with(|it| it.ring_buffer = false, &[("BPF ring buffer", missing)]);
        with(|it| it.uprobes = false, &[("uprobes", missing)]);
        with(
            |it| it.system_call_tracepoints = Some(false),
            &[("system call tracepoints", missing)],
        );
        with(
            |it| it.lockdown = Lockdown::Confidentiality,
            &[("kernel lockdown", missing)],
        );
        with(
            |it| it.ptrace_scope = Some(3),
            &[("kernel.yama.ptrace_scope", missing)],
        );
        with(|it| it.memory_is_locked = true, &[]);
    }

    #[test]
    fn each_missing_right_is_named() {
        let missing = State::Missing;
        let without = |capabilities: &[u32], expected: &[(&str, State)]| {
            let mut privileges = root();
            for capability in capabilities {
                privileges.capabilities &= !(1 << capability);
            }
            check(&good_features(), &privileges, expected);
        };
        use capability::{BPF, DAC_READ_SEARCH, PERFMON, SYS_ADMIN, SYS_PTRACE};
        without(&[BPF, PERFMON], &[]);
        without(&[SYS_ADMIN], &[]);
        without(
            &[BPF, SYS_ADMIN],
            &[
                ("CAP_BPF", missing),
                ("kernel.unprivileged_bpf_disabled", State::Warn),
            ],
        );
        without(
            &[PERFMON, SYS_ADMIN],
            &[
                ("CAP_PERFMON", missing),
                ("kernel.perf_event_paranoid", State::Warn),
            ],
        );
        without(&[SYS_PTRACE], &[("CAP_SYS_PTRACE", missing)]);
        let nobody = Privileges {
            capabilities: 0,
            ..root()
        };
        assert_eq!(
            nobody.lacking(),
            ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE"]
        );
        assert!(root().lacking().is_empty());
        without(&[DAC_READ_SEARCH], &[("CAP_DAC_READ_SEARCH", State::Warn)]);
        let contained = Privileges {
            initial_user_namespace: false,
            initial_pid_namespace: false,
            ..root()
        };
        check(
            &good_features(),
            &contained,
            &[("user namespace", missing), ("pid namespace", missing)],
        );
    }

    #[test]
    fn locked_memory_matters_on_old_kernels_only() {
        let old = Features {
            memory_is_locked: true,
            ..good_features()
        };
        let limited = Privileges {
            capabilities: !(1 << capability::SYS_RESOURCE),
            ..root()
        };
        check(&old, &limited, &[("locked memory", State::Warn)]);
        check(&good_features(), &limited, &[]);
        check(
            &old,
            &Privileges {
                locked_memory: None,
                ..limited
            },
            &[],
        );
    }

    #[test]
    fn a_refused_program_makes_it_impossible() {
        let outcomes = checks(
            &good_features(),
            &root(),
            Err("operation not\npermitted".into()),
        );
        let mut text = Vec::new();
        assert_eq!(report(&outcomes, &mut text).expect("written"), 1);
        let text = String::from_utf8(text).expect("text");
        assert!(
            text.contains(
                "missing  loading a BPF program    refused by the kernel: operation not permitted\n"
            ),
            "{text}"
        );
        assert!(text.ends_with("\ntracing is impossible until what is missing above is there\n"));
    }

    #[test]
    fn a_process_is_judged_by_what_it_is_and_asks_for() {
        let gone = target_checks(Err(ProcessError::NoSuchProcess { pid: 7 }), |_| {
            Ok(String::new())
        });
        assert_eq!(troubles(&gone), [("process", State::Missing)]);
        assert_eq!(gone[0].found, "there is no process 7");
        let process = ProcessInfo {
            pid: 7,
            comm: "python3".into(),
            ..ProcessInfo::default()
        };
        let not_python = target_checks(Ok(process.clone()), |_| Err("not a Python process".into()));
        assert!(troubles(&not_python).contains(&("interpreter", State::Missing)));
        let mut quiet = process;
        quiet.environment.complete = true;
        quiet
            .environment
            .variables
            .push(("OTEL_SDK_DISABLED".into(), "true".into()));
        quiet
            .environment
            .variables
            .push(("OTEL_SERVICE_NAME".into(), "shop".into()));
        let quiet = target_checks(Ok(quiet), |_| Ok("CPython 3.12.3".into()));
        assert_eq!(troubles(&quiet), [("settings", State::Warn)]);
        assert_eq!(quiet[0].found, "7 (python3), service name shop");
    }

    #[test]
    fn rights_are_read_from_proc() {
        assert_eq!(
            effective_capabilities("CapPrm:\t1\nCapEff:\t000001fffeffffff\n"),
            0x1ff_feff_ffff
        );
        assert_eq!(effective_capabilities("CapEff:\tx\n"), 0);
        assert!(is_initial_user_map("         0          0 4294967295\n"));
        assert!(!is_initial_user_map("         0       1000          1\n"));
    }

    #[test]
    fn runs_on_this_host() {
        let trials = Trials {
            try_load: || Ok(()),
            find_interpreter: |_: &ProcessInfo| Ok("it".to_owned()),
        };
        let mut text = Vec::new();
        let code = run(Some(std::process::id()), trials, &mut text).expect("written");
        let text = String::from_utf8(text).expect("text");
        assert_eq!(
            code == 1,
            text.contains("\nmissing ") || text.starts_with("missing "),
            "{text}"
        );
        assert!(text.contains("CAP_BPF") && text.contains("interpreter"));
    }
}
