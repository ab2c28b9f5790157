//! The OpenTelemetry resource of one traced process.
//!
//! Attributes by the semantic conventions 1.44: service, telemetry SDK and
//! distribution, process and its runtime, host, operating system, container.
//! What the process's own environment asks for wins. Command-line arguments
//! are left out: they carry secrets, and the convention makes them opt-in.
//! Built by attach, once per process, from what `target` has read.

use std::io::Read;
use std::path::Path;

use uuid::Uuid;

use crate::attribute::{Attributes, Value};
use crate::target::process::ProcessInfo;
use crate::target::service::TargetSettings;

/// Resource attributes of one process; built once when it is found.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// Attributes by the resource conventions, `service.name` among them.
    pub attributes: Attributes,
}

impl Resource {
    /// Puts together what is known. `service_name` is the derived one, used
    /// where the process's settings name none.
    pub fn new(
        process: &ProcessInfo,
        settings: &TargetSettings,
        service_name: &str,
        runtime: Option<&Runtime>,
        host: &Host,
    ) -> Self {
        let mut attributes = Attributes::new();
        let mut add = |key: &'static str, value: Option<String>| {
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                attributes.push((key.into(), value.into()));
            }
        };
        add("service.name", Some(service_name.to_owned()));
        add(
            "service.instance.id",
            Some(instance_id(&host.boot_id, process)),
        );
        add("telemetry.sdk.name", Some(AGENT.to_owned()));
        add("telemetry.sdk.language", Some("python".to_owned()));
        add("telemetry.sdk.version", Some(VERSION.to_owned()));
        add("telemetry.distro.name", Some(AGENT.to_owned()));
        add("telemetry.distro.version", Some(VERSION.to_owned()));
        add(
            "process.creation.time",
            (process.created != 0).then(|| iso_8601(process.created)),
        );
        add(
            "process.executable.name",
            Some(process.executable_name().to_owned()),
        );
        add(
            "process.executable.path",
            process
                .executable
                .as_deref()
                .map(|path| path.to_string_lossy().into_owned()),
        );
        add("process.command", command_name(&process.command_line));
        add(
            "process.owner",
            Some(
                process
                    .owner
                    .clone()
                    .unwrap_or_else(|| process.uid.to_string()),
            ),
        );
        if let Some(Runtime {
            name,
            version,
            description,
            server,
        }) = runtime
        {
            if let Some((name, version)) = server {
                add("webengine.name", Some((*name).to_owned()));
                add("webengine.version", version.clone());
            }
            add("process.runtime.name", Some(name.clone()));
            add("process.runtime.version", Some(version.clone()));
            add("process.runtime.description", description.clone());
        }
        add("host.name", Some(host.name.clone()));
        add("host.id", host.id.clone());
        add(
            "host.arch",
            Some(host_arch(std::env::consts::ARCH).to_owned()),
        );
        add("os.type", Some("linux".to_owned()));
        add("os.version", Some(host.kernel_release.clone()));
        add(
            "container.id",
            container_id(&process.cgroup, &process.mountinfo),
        );
        attributes.push(("process.pid".into(), i64::from(process.pid).into()));
        // In order of precedence, lowest first.
        for (key, value) in &settings.resource_attributes {
            if !RESERVED.contains(&key.as_str()) && (key != "service.name" || !value.is_empty()) {
                set(&mut attributes, key, value);
            }
        }
        if let Some(name) = &settings.service_name {
            set(&mut attributes, "service.name", name);
        }
        Self { attributes }
    }

    /// The value of `service.name`.
    pub fn service_name(&self) -> &str {
        self.attributes
            .iter()
            .find_map(|(key, value)| match value {
                Value::Str(name) if key == "service.name" => Some(name.as_ref()),
                _ => None,
            })
            .unwrap_or("unknown_service")
    }
}

/// The Python implementation a process runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// `sys.implementation.name`, for example `cpython`.
    pub name: String,
    /// Version as the convention wants it, for example `3.12.3`.
    pub version: String,
    /// `sys.version`, where it is known.
    pub description: Option<String>,
    /// The server that runs the application (`webengine.*`): name and, where
    /// it is known, version.
    pub server: Option<(&'static str, Option<String>)>,
}

/// What is the same for every process of this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Host name.
    pub name: String,
    /// The machine id, if it has one.
    pub id: Option<String>,
    /// Unique to the time since the last boot.
    pub boot_id: String,
    /// Release of the kernel.
    pub kernel_release: String,
}

impl Host {
    /// Asks this machine.
    pub fn read() -> Self {
        let uname = rustix::system::uname();
        Self {
            name: uname.nodename().to_string_lossy().into_owned(),
            id: MACHINE_ID.iter().find_map(identifier),
            boot_id: identifier("/proc/sys/kernel/random/boot_id").unwrap_or_default(),
            kernel_release: uname.release().to_string_lossy().into_owned(),
        }
    }
}

/// What this agent calls itself. `opentelemetry` is reserved for the
/// project's own SDKs (conventions, `telemetry.sdk.name`).
const AGENT: &str = "otel-ebpf";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Attributes that tell who made the telemetry and are not the process's to
/// set.
const RESERVED: [&str; 3] = [
    "telemetry.sdk.name",
    "telemetry.sdk.language",
    "telemetry.sdk.version",
];

/// The namespace that the conventions give for `service.instance.id`.
const INSTANCE_NAMESPACE: Uuid = Uuid::from_u128(0x4d63_009a_8d0f_11ee_aad7_4c79_6ed8_e320);

/// Where the machine id is. Seen through process 1, it is the host's also
/// when the agent runs in a container with the host's processes.
const MACHINE_ID: [&str; 3] = [
    "/proc/1/root/etc/machine-id",
    "/etc/machine-id",
    "/var/lib/dbus/machine-id",
];

fn set(attributes: &mut Attributes, key: &str, value: &str) {
    let value = Value::from(value.to_owned());
    match attributes.iter_mut().find(|(known, _)| known == key) {
        // A number stays one: the process's word for its own id is not needed.
        Some((_, Value::Int(_))) => {}
        Some((_, known)) => *known = value,
        None => attributes.push((key.to_owned().into(), value)),
    }
}

/// The same for the same process, however often the agent is restarted.
fn instance_id(boot_id: &str, process: &ProcessInfo) -> String {
    let identity = format!("{boot_id}:{}:{}", process.pid, process.start_ticks);
    Uuid::new_v5(&INSTANCE_NAMESPACE, identity.as_bytes()).to_string()
}

/// The command without arguments. A title set in place of the command line
/// is one argument; it is cut at its first space, for it may repeat them all.
fn command_name(command_line: &[String]) -> Option<String> {
    match command_line {
        [title] => title.split_whitespace().next().map(str::to_owned),
        [command, ..] => Some(command.clone()),
        [] => None,
    }
}

/// The first line of a small file, if it is a plain identifier.
fn identifier(path: impl AsRef<Path>) -> Option<String> {
    let mut text = String::new();
    std::fs::File::open(path)
        .ok()?
        .take(256)
        .read_to_string(&mut text)
        .ok()?;
    let line = text.lines().next()?.trim();
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '-';
    // systemd writes `uninitialized` during the first boot.
    (!line.is_empty() && line != "uninitialized" && line.chars().all(is_plain))
        .then(|| line.to_owned())
}

/// The convention's names of processor architectures.
fn host_arch(rust: &str) -> &str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `2024-02-29T12:34:56.789Z`.
fn iso_8601(unix_nanoseconds: u64) -> String {
    let milliseconds = unix_nanoseconds / 1_000_000;
    let seconds = milliseconds / 1000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil_date(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        milliseconds % 1000
    )
}

/// Year, month and day of the Gregorian calendar, given days since
/// 1970-01-01.
///
/// Counted from 0000-03-01, a year ends with February and its leap day, and
/// 400 years are always 146,097 days.
fn civil_date(days_since_epoch: u64) -> (u64, u64, u64) {
    /// Days from 0000-03-01 to 1970-01-01.
    const EPOCH: u64 = 719_468;
    const DAYS_OF_400_YEARS: u64 = 146_097;
    const DAYS_OF_100_YEARS: u64 = 36_524;
    const DAYS_OF_4_YEARS: u64 = 1_461;

    let days = days_since_epoch + EPOCH;
    let (era, day_of_era) = (days / DAYS_OF_400_YEARS, days % DAYS_OF_400_YEARS);
    // The last day of 100 and of 400 years belongs to the year before.
    let century = (day_of_era / DAYS_OF_100_YEARS).min(3);
    let day_of_century = day_of_era - century * DAYS_OF_100_YEARS;
    let (olympiad, day_of_olympiad) = (
        day_of_century / DAYS_OF_4_YEARS,
        day_of_century % DAYS_OF_4_YEARS,
    );
    let year_of_olympiad = (day_of_olympiad / 365).min(3);
    let mut day = day_of_olympiad - year_of_olympiad * 365;
    let year = era * 400 + century * 100 + olympiad * 4 + year_of_olympiad;
    // From March on.
    let lengths = [31, 30, 31, 30, 31, 31, 30, 31, 30, 31, 31, 29];
    let mut n_months = 0;
    for length in lengths {
        if day < length {
            break;
        }
        day -= length;
        n_months += 1;
    }
    match n_months {
        0..=9 => (year, n_months + 3, day + 1),
        _ => (year + 1, n_months - 9, day + 1),
    }
}

/// The container a process is in, by its control groups; where these are
/// hidden by a cgroup namespace, by the files the runtime mounts into it.
fn container_id(cgroup: &str, mountinfo: &str) -> Option<String> {
    // `hierarchy:controllers:path`, the innermost group last.
    let by_group = cgroup
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .find_map(|path| path.rsplit('/').find_map(container_in));
    by_group.or_else(|| {
        // Field 4 is the mounted directory, field 5 where it is mounted.
        mountinfo
            .lines()
            .filter_map(|line| {
                let mut fields = line.split(' ');
                Some((fields.nth(3)?, fields.next()?))
            })
            .filter(|(_, at)| matches!(*at, "/etc/hostname" | "/etc/hosts" | "/etc/resolv.conf"))
            .filter(|(from, _)| from.contains("/containers/") || from.contains("-containers/"))
            .find_map(|(from, _)| from.split('/').find_map(container_in))
    })
}

/// The id in a path component: 64 hexadecimal digits, alone (cgroupfs,
/// Kubernetes) or as in `docker-<id>.scope`, `cri-containerd-<id>.scope`,
/// `crio-<id>`, `libpod-<id>.scope` (systemd), or after a colon as in
/// `kubepods-...slice:cri-containerd:<id>`.
fn container_in(component: &str) -> Option<String> {
    let name = component.strip_suffix(".scope").unwrap_or(component);
    let id = name.rsplit(['-', ':']).next()?;
    // The monitor beside a container carries the container's id too.
    let is_monitor = name.contains("conmon");
    let is_id = id.len() == 64
        && id
            .bytes()
            .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    (is_id && !is_monitor).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3f4e1d2c5b6a79880f1e2d3c4b5a69780f1e2d3c4b5a69783f4e1d2c5b6a7988";

    fn process() -> ProcessInfo {
        ProcessInfo {
            pid: 4242,
            start_ticks: 777,
            created: 1_709_210_096_789_000_000,
            command_line: vec![
                "/usr/bin/python3".into(),
                "app.py".into(),
                "--password=secret".into(),
            ],
            executable: Some("/usr/bin/python3.12".into()),
            uid: 33,
            comm: "python3".into(),
            cgroup: format!("0::/system.slice/docker-{ID}.scope\n"),
            ..ProcessInfo::default()
        }
    }

    fn host() -> Host {
        Host {
            name: "box".into(),
            id: Some("abc".into()),
            boot_id: "boot".into(),
            kernel_release: "6.8.0".into(),
        }
    }

    fn text<'a>(resource: &'a Resource, key: &str) -> Option<&'a str> {
        resource
            .attributes
            .iter()
            .find_map(|(known, value)| match value {
                Value::Str(value) if known == key => Some(value.as_ref()),
                _ => None,
            })
    }

    fn resource(settings: &TargetSettings) -> Resource {
        let runtime = Runtime {
            name: "cpython".into(),
            version: "3.12.3".into(),
            description: None,
            server: Some(("gunicorn", Some("27.0.1".into()))),
        };
        Resource::new(&process(), settings, "derived", Some(&runtime), &host())
    }

    #[test]
    fn carries_the_attributes_of_the_conventions() {
        let resource = resource(&TargetSettings::default());
        for (key, expected) in [
            ("service.name", "derived"),
            ("webengine.name", "gunicorn"),
            ("webengine.version", "27.0.1"),
            ("telemetry.sdk.name", "otel-ebpf"),
            ("telemetry.sdk.language", "python"),
            ("telemetry.sdk.version", VERSION),
            ("telemetry.distro.name", "otel-ebpf"),
            ("telemetry.distro.version", VERSION),
            ("process.creation.time", "2024-02-29T12:34:56.789Z"),
            ("process.executable.name", "python3.12"),
            ("process.executable.path", "/usr/bin/python3.12"),
            ("process.command", "/usr/bin/python3"),
            ("process.owner", "33"),
            ("process.runtime.name", "cpython"),
            ("process.runtime.version", "3.12.3"),
            ("host.name", "box"),
            ("host.id", "abc"),
            ("os.type", "linux"),
            ("container.id", ID),
        ] {
            assert_eq!(text(&resource, key), Some(expected), "{key}");
        }
        let pid = resource
            .attributes
            .iter()
            .find(|(key, _)| key == "process.pid");
        assert_eq!(pid.map(|(_, value)| value), Some(&Value::Int(4242)));
        assert_eq!(text(&resource, "process.runtime.description"), None);
        assert!(!format!("{resource:?}").contains("secret"));
        let mut keys: Vec<_> = resource.attributes.iter().map(|(key, _)| key).collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), resource.attributes.len());
    }

    #[test]
    fn the_environment_wins_in_the_order_of_the_specification() {
        let attributes = |members: &[(&str, &str)]| TargetSettings {
            resource_attributes: members
                .iter()
                .map(|(key, value)| ((*key).into(), (*value).into()))
                .collect(),
            ..TargetSettings::default()
        };
        let mut settings = attributes(&[
            ("service.name", "from-attributes"),
            ("service.namespace", "shop"),
            ("service.instance.id", "mine"),
            ("host.name", "other"),
            ("process.pid", "x"),
            ("telemetry.sdk.name", "opentelemetry"),
        ]);
        let second = resource(&settings);
        assert_eq!(second.service_name(), "from-attributes");
        assert_eq!(text(&second, "service.namespace"), Some("shop"));
        assert_eq!(text(&second, "service.instance.id"), Some("mine"));
        assert_eq!(text(&second, "host.name"), Some("other"));
        assert_eq!(text(&second, "process.pid"), None);
        assert_eq!(text(&second, "telemetry.sdk.name"), Some("otel-ebpf"));
        settings.service_name = Some("from-name".into());
        assert_eq!(resource(&settings).service_name(), "from-name");
        assert_eq!(
            resource(&attributes(&[("service.name", "")])).service_name(),
            "derived"
        );
    }

    #[test]
    fn an_instance_keeps_its_id_and_shares_it_with_nobody() {
        let id = instance_id("boot", &process());
        assert_eq!(id, instance_id("boot", &process()));
        assert_eq!(Uuid::parse_str(&id).map(|id| id.get_version_num()), Ok(5));
        assert_ne!(id, instance_id("boot2", &process()));
        assert_ne!(
            id,
            instance_id(
                "boot",
                &ProcessInfo {
                    pid: 4243,
                    ..process()
                }
            )
        );
        assert_ne!(
            id,
            instance_id(
                "boot",
                &ProcessInfo {
                    start_ticks: 778,
                    ..process()
                }
            )
        );
    }

    #[test]
    fn a_title_shows_no_arguments() {
        let line = |arguments: &[&str]| {
            arguments
                .iter()
                .map(|argument| (*argument).to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            command_name(&line(&["serve --password=secret"])).as_deref(),
            Some("serve")
        );
        assert_eq!(
            command_name(&line(&["/opt/my app/python", "x"])).as_deref(),
            Some("/opt/my app/python")
        );
        assert_eq!(command_name(&[]), None);
    }

    #[test]
    fn dates() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (68_169_599, "1972-02-28T23:59:59.000Z"),
            (68_169_600, "1972-02-29T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_800, "2000-03-01T00:00:00.000Z"),
            (978_220_800, "2000-12-31T00:00:00.000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
            (4_107_456_000, "2100-02-28T00:00:00.000Z"),
        ] {
            assert_eq!(iso_8601(seconds * 1_000_000_000), expected, "{seconds}");
        }
        assert_eq!(iso_8601(u64::MAX), "2554-07-21T23:34:33.709Z");
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut last = civil_date(0);
        for days in 1..200_000 {
            let next = civil_date(days);
            let (year, month, day) = last;
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 => 28 + u64::from(leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            let expected = match (day == length, month) {
                (false, _) => (year, month, day + 1),
                (true, 12) => (year + 1, 1, 1),
                (true, _) => (year, month + 1, 1),
            };
            assert_eq!(next, expected);
            last = next;
        }
    }

    #[test]
    fn containers_of_every_runtime() {
        let check = |cgroup: &str, mountinfo: &str, expected: Option<&str>| {
            let (cgroup, mountinfo) = (cgroup.replace("ID", ID), mountinfo.replace("ID", ID));
            assert_eq!(
                container_id(&cgroup, &mountinfo).as_deref(),
                expected,
                "{cgroup}{mountinfo}"
            );
        };
        let found = Some(ID);
        check("0::/system.slice/docker-ID.scope", "", found);
        check("12:cpu:/docker/ID\n11:memory:/docker/ID\n0::/", "", found);
        check(
            "0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-ID.scope",
            "",
            found,
        );
        check("0::/kubepods/burstable/pod1-2-3/ID", "", found);
        check(
            "0::/kubepods.slice/kubepods-pod1.slice/crio-ID.scope/container",
            "",
            found,
        );
        check(
            "0::/user.slice/user-1000.slice/user.slice/libpod-ID.scope/container",
            "",
            found,
        );
        check(
            "0::/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:ID",
            "",
            found,
        );
        check("0::/machine.slice/libpod-conmon-ID.scope", "", None);
        check(
            "0::/",
            "1 2 0:3 /var/lib/docker/containers/ID/hostname /etc/hostname rw - ext4 x rw",
            found,
        );
        check(
            "0::/",
            "1 2 0:3 /containers/storage/overlay-containers/ID/userdata/hosts /etc/hosts rw - tmpfs x rw",
            found,
        );
        check(
            "0::/",
            "1 2 0:3 /var/lib/docker/containers/ID/x /data rw - ext4 x rw",
            None,
        );
        check(
            "0::/user.slice/session-1.scope",
            "1 2 0:3 / / rw - ext4 x rw",
            None,
        );
        check("garbage\n::\n", "short line\n", None);
    }

    #[test]
    fn reads_this_machine() {
        let host = Host::read();
        assert!(
            !host.name.is_empty() && !host.boot_id.is_empty() && !host.kernel_release.is_empty()
        );
        assert_eq!(host, Host::read());
    }
}
