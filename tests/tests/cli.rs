//! Live tests of the command line: exit codes, messages, and an agent whose
//! surroundings are in the way. They start the real agent on real processes.
//!
//! They need root, BPF and pyenv's Pythons. `OTEL_EBPF_AGENT` names the
//! agent; otherwise the one that was built beside this test is used.

use std::process::Command;

use otel_ebpf_tests::program::{
    Ended, Program, SERVER, agent, agent_path, counter, idle, let_go, pyenv, python, refuses,
    request, run, server, wait_until, without_settings,
};

// === usage ===

#[test]
fn without_arguments_there_is_help() {
    let ended = run(&[]);
    refuses(&ended, 2, &["Usage: otel-ebpf", "--pid <PID>", "Examples:"]);
    assert_eq!(ended.out, "");
}

#[test]
fn help_and_version_are_asked_for() {
    let version = run(&["--version"]);
    assert_eq!(
        (version.code, version.out.as_str()),
        (Some(0), "otel-ebpf 0.1.0")
    );
    let help = run(&["--help"]);
    assert_eq!(help.code, Some(0));
    for part in [
        "Tracing:",
        "Export:",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_LOG_LEVEL",
        "Examples:",
        "Exit codes:",
    ] {
        assert!(help.out.contains(part), "no {part:?} in {}", help.out);
    }
    for hidden in ["__exec", "load-only"] {
        assert!(!help.out.contains(hidden), "{hidden}");
    }
    assert!(run(&["run", "--help"]).out.contains("exit code"));
}

#[test]
fn wrong_usage_ends_with_2_and_says_what_is_wrong() {
    for (arguments, part) in [
        (&["--bogus"][..], "--bogus"),
        (&["--stats"], "nothing to trace: give --pid PID"),
        (&["--pid"], "a value is required for '--pid"),
        (&["--pid", "abc"], "a process id is a whole number"),
        (&["--pid", "0"], "0 is no process"),
        (&["--pid", "1", "--ring-size", "3"], "a power of two"),
        (&["--pid", "1", "--ring-size", "4096"], "at most 1024"),
        (
            &["--pid", "1", "--otlp-endpoint", "ftp://x"],
            "\"ftp://x\" for --otlp-endpoint: its scheme must be http or https",
        ),
        (
            &["--pid", "1", "--otlp-protocol", "json"],
            "http/protobuf, grpc",
        ),
        (&["--pid", "1", "--otlp-compression", "xz"], "gzip"),
        (
            &["--pid", "1", "--traces-exporter", "jaeger"],
            "--traces-exporter",
        ),
        (
            &["--pid", "1", "--bsp-max-queue-size", "0"],
            "--bsp-max-queue-size",
        ),
        (&["run"], "<CMD>..."),
        (&["check", "--pid", "x"], "a process id is a whole number"),
    ] {
        refuses(&run(arguments), 2, &[part]);
    }
    // Headers hold secrets: they are not repeated.
    let ended = run(&["--pid", "1", "--otlp-headers", "s3cret"]);
    refuses(&ended, 2, &["--otlp-headers: header 1 has no \"=\""]);
    assert!(!ended.err.contains("s3cret"));
}

#[test]
fn variables_that_are_wrong_warn_once_and_leave_the_default() {
    let mut command = agent(&["--otlp-file", "/dev/null", "run", "--", "/bin/true"]);
    let wrong = [
        ("OTEL_BSP_SCHEDULE_DELAY", "soon"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "pigeon"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "xz"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "1s"),
        ("OTEL_ATTRIBUTE_COUNT_LIMIT", "many"),
        ("OTEL_LOG_LEVEL", "loud"),
    ];
    let ended = Program::start(command.envs(wrong)).ended();
    refuses(&ended, 0, &[]);
    for (name, value) in wrong {
        let lines: Vec<_> = ended.err.lines().filter(|it| it.contains(name)).collect();
        assert_eq!(lines.len(), 1, "{name}: {ended:#?}");
        assert!(lines[0].contains(value) && lines[0].contains("ignored"));
    }
    assert!(
        !ended.err.contains('\u{1b}'),
        "colors off a terminal: {ended:#?}"
    );
}

// === what cannot be traced ===

#[test]
fn what_is_no_process_to_trace_is_said_plainly() {
    refuses(
        &run(&["--pid", "4194303"]),
        1,
        &["there is no process 4194303"],
    );
    // kthreadd.
    refuses(&run(&["--pid", "2"]), 1, &["process 2 is a kernel thread"]);

    let mut threaded = Command::new(python());
    threaded.args([
        "-c",
        "import threading, time\n\
         thread = threading.Thread(target=time.sleep, args=(600,), daemon=True)\n\
         thread.start()\n\
         print(thread.native_id, flush=True)\n\
         time.sleep(600)",
    ]);
    let threaded = Program::start(&mut threaded);
    let thread = threaded.out.line_with("");
    refuses(
        &run(&["--pid", &thread]),
        1,
        &[&format!(
            "{thread} is a thread of process {}",
            threaded.pid()
        )],
    );

    let sleep = Program::start(Command::new("/bin/sleep").arg("600"));
    let ended = run(&["--pid", &sleep.pid().to_string()]);
    refuses(
        &ended,
        1,
        &[&format!("process {}: not a Python process", sleep.pid())],
    );
    assert_eq!(
        ended.err.matches("not a Python process").count(),
        1,
        "{ended:#?}"
    );
}

#[test]
fn other_pythons_are_named() {
    for series in ["2.7", "3.6", "3.7"] {
        let Some(python) = pyenv(series) else {
            continue;
        };
        let old = idle(&python, &[]);
        let ended = run(&["--pid", &old.pid().to_string()]);
        refuses(
            &ended,
            1,
            &[&format!(
                "Python {series} is too old, the oldest supported version is 3.8"
            )],
        );
    }

    let directory = tempfile::tempdir().expect("tempdir");
    let source = directory.path().join("startup.c");
    let library = directory.path().join("libpypy3.10-c.so");
    std::fs::write(&source, "int rpython_startup_code(void) { return 0; }\n").expect("writes");
    let mut compile = Command::new("cc");
    compile.args(["-shared", "-o"]).arg(&library).arg(&source);
    assert!(compile.status().expect("cc").success());
    let pypy = Program::start(
        Command::new("/bin/sleep")
            .arg("600")
            .env("LD_PRELOAD", &library),
    );
    let maps = format!("/proc/{}/maps", pypy.pid());
    wait_until("the library", || {
        std::fs::read_to_string(&maps).is_ok_and(|maps| maps.contains("libpypy"))
    });
    let ended = run(&["--pid", &pypy.pid().to_string()]);
    refuses(
        &ended,
        1,
        &["the process runs PyPy, and only CPython is supported"],
    );
}

#[test]
fn a_process_that_asks_for_no_traces_is_refused() {
    for setting in [
        ("OTEL_SDK_DISABLED", "true"),
        ("OTEL_TRACES_EXPORTER", "none"),
    ] {
        let quiet = idle(&python(), &[setting]);
        let ended = run(&["--pid", &quiet.pid().to_string()]);
        refuses(
            &ended,
            1,
            &[&format!(
                "process {} asks for no traces ({} in its environment)",
                quiet.pid(),
                setting.0
            )],
        );
    }
}

#[test]
fn a_target_that_ends_at_any_moment_does_no_harm() {
    for idx in 0..20 {
        let mut short = Program::start(Command::new(python()).args(["-S", "-c", "pass"]));
        if idx % 2 == 0 {
            // Ended, and not waited for: a zombie.
            short.out.all();
        }
        let ended = run(&[
            "--otlp-file",
            "/dev/null",
            "--pid",
            &short.pid().to_string(),
        ]);
        match ended.code {
            Some(0) => refuses(&ended, 0, &["every traced process has ended", "summary"]),
            _ => refuses(&ended, 1, &[&short.pid().to_string()]),
        }
        _ = short.child.wait();
    }
}

// === rights ===

fn with_dropped(capabilities: &str, arguments: &[&str]) -> Ended {
    let mut command = Command::new("capsh");
    command
        .arg(format!("--drop={capabilities}"))
        .args(["--shell=/usr/bin/env", "--"])
        .arg(agent_path())
        .args(arguments);
    without_settings(&mut command);
    Program::start(&mut command).ended()
}

#[test]
fn missing_rights_are_named() {
    let idle = idle(&python(), &[]);
    let pid = idle.pid().to_string();
    let check = |dropped: &str, lacking: &[&str]| {
        let checked = with_dropped(dropped, &["check"]);
        assert_eq!(checked.code, Some(1), "{checked:#?}");
        for name in lacking {
            let row = checked.out.lines().find(|line| line.contains(name));
            assert!(
                row.is_some_and(|row| row.starts_with("missing ")),
                "{checked:#?}"
            );
        }
        let refused = with_dropped(dropped, &["--pid", &pid]);
        let message = format!("otel-ebpf: lacking {}: run it as root", lacking.join(", "));
        refuses(&refused, 1, &[&message]);
    };
    check("cap_bpf,cap_sys_admin", &["CAP_BPF"]);
    check("cap_perfmon,cap_sys_admin", &["CAP_PERFMON"]);
    check(
        "cap_bpf,cap_perfmon,cap_sys_ptrace,cap_sys_admin",
        &["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE"],
    );
    // CAP_SYS_ADMIN stands for the two that belong to BPF.
    let enough = with_dropped("cap_bpf,cap_perfmon", &["check"]);
    assert_eq!(enough.code, Some(0), "{enough:#?}");
}

#[test]
fn check_judges_host_and_process() {
    let host = run(&["check"]);
    assert_eq!(host.code, Some(0), "{host:#?}");
    for part in [
        "ok       loading a BPF program",
        "CAP_SYS_PTRACE",
        "\ntracing is possible",
    ] {
        assert!(host.out.contains(part), "no {part:?} in {}", host.out);
    }
    let idle = idle(&python(), &[("OTEL_SERVICE_NAME", "orders")]);
    let process = run(&["check", "--pid", &idle.pid().to_string()]);
    assert_eq!(process.code, Some(0), "{process:#?}");
    assert!(process.out.contains("CPython 3.") && process.out.contains("service name orders"));
    let none = run(&["check", "--pid", "4194303"]);
    assert_eq!(none.code, Some(1));
    assert!(none.out.contains("there is no process 4194303"));
}

// === run ===

#[test]
fn run_passes_the_code_on() {
    let file = ["--otlp-file", "/dev/null", "run", "--"];
    let with = |command: &[&str]| run(&[&file[..], command].concat());
    refuses(&with(&["/bin/sh", "-c", "exit 7"]), 7, &["summary lost=0"]);
    refuses(&with(&["/bin/sh", "-c", "kill -9 $$"]), 137, &[]);
    refuses(
        &with(&["/no/such/program"]),
        127,
        &["cannot run /no/such/program: No such file or directory"],
    );
    refuses(&with(&["/etc/passwd"]), 126, &["cannot run /etc/passwd"]);
    let python = python();
    let quick = with(&[python.to_str().expect("text"), "-c", "print('said')"]);
    refuses(&quick, 0, &["every traced process has ended"]);
    assert_eq!(quick.out, "said");
}

#[test]
fn run_says_when_there_is_no_python_and_passes_the_signal_on() {
    let running = Program::start(&mut agent(&["run", "--", "/bin/sleep", "600"]));
    let line = running.err.line_with("no Python in process");
    assert!(
        line.contains("(sleep) so far: not a Python process; its children are followed"),
        "{line}"
    );
    running.terminate();
    // As a shell tells of SIGTERM.
    refuses(&running.ended(), 143, &["every traced process has ended"]);
}

#[test]
fn run_follows_the_children_of_a_shell() {
    let script = format!("{} -c \"$SERVER\" & wait", python().display());
    let mut command = agent(&["--otlp-file", "/dev/null", "run", "--", "/bin/sh", "-c"]);
    let running = Program::start(command.arg(&script).env("SERVER", SERVER));
    let port: u16 = running.out.line_with("").parse().expect("a port");
    running.err.line_with("Python 3.");
    request(port);
    let child = running.err.line_with("Python 3.");
    let pid = child
        .split_whitespace()
        .find_map(|word| word.strip_suffix(':')?.parse::<u32>().ok())
        .unwrap_or_else(|| panic!("no process in {child}"));
    // The shell ends by the agent's signal, its child by ours.
    running.terminate();
    let killed = Command::new("kill").arg(pid.to_string()).status();
    assert!(killed.expect("kill").success());
    let ended = running.ended();
    assert!(counter(&ended.err, "spans.server") >= 1, "{ended:#?}");
}

#[test]
fn run_leaves_alone_what_asks_for_no_traces() {
    for (name, value) in [
        ("OTEL_SDK_DISABLED", "true"),
        ("OTEL_TRACES_EXPORTER", "none"),
    ] {
        let mut command = agent(&["--otlp-file", "/dev/null", "run", "--", "/usr/bin/env"]);
        command.arg(format!("{name}={value}"));
        command.arg(python()).args(["-c", SERVER]);
        let running = Program::start(&mut command);
        running
            .err
            .line_with(&format!("asks for no traces ({name}"));
        let port = running.out.line_with("").parse().expect("a port");
        request(port);
        running.terminate();
        let ended = running.ended();
        refuses(&ended, 143, &[]);
        assert_eq!(counter(&ended.err, "spans.server"), 0, "{ended:#?}");
        assert_eq!(counter(&ended.err, "discovery.unwanted"), 1, "{ended:#?}");
    }
}

// === while tracing ===

#[test]
fn ends_well_when_every_target_has_ended() {
    let (mut one, mut two) = (idle(&python(), &[]), idle(&python(), &[]));
    let (first, second) = (one.pid().to_string(), two.pid().to_string());
    let running = Program::start(&mut agent(&[
        "--stats", "--pid", &first, "--pid", &second, "--pid", &first,
    ]));
    running.err.line_with(&format!("tracing {second}: Python"));
    let_go(&mut one);
    running.err.line_with("discovery.ended=1");
    let_go(&mut two);
    let ended = running.ended();
    refuses(
        &ended,
        0,
        &["every traced process has ended", "stats lost=0"],
    );
    assert_eq!(counter(&ended.err, "discovery.processes"), 2, "{ended:#?}");
    assert_eq!(counter(&ended.err, "discovery.ended"), 2, "{ended:#?}");
}

#[test]
fn standard_output_holds_spans_and_nothing_else() {
    let (service, port) = server();
    let pid = service.pid().to_string();
    let running = Program::start(&mut agent(&[
        "--stats",
        "--otlp-file",
        "-",
        "--bsp-schedule-delay",
        "50",
        "--pid",
        &pid,
    ]));
    running.err.line_with("tracing ");
    for _ in 0..20 {
        request(port);
    }
    running.err.line_with("spans.server=20");
    running.terminate();
    let ended = running.ended();
    refuses(&ended, 0, &["summary lost=0"]);
    let mut spans = 0;
    for line in ended.out.lines() {
        let batch: serde_json::Value = serde_json::from_str(line).expect(line);
        let groups = batch["resourceSpans"].as_array().expect("an array");
        spans += groups
            .iter()
            .flat_map(|group| group["scopeSpans"].as_array().into_iter().flatten())
            .map(|scope| scope["spans"].as_array().map_or(0, Vec::len))
            .sum::<usize>();
    }
    assert_eq!(spans, 20, "{}", ended.out);
}

#[test]
fn the_target_does_not_notice_that_the_agent_is_killed() {
    let (service, port) = server();
    let pid = service.pid().to_string();
    let running = Program::start(&mut agent(&["--otlp-file", "/dev/null", "--pid", &pid]));
    running.err.line_with("tracing ");
    request(port);
    drop(running);
    request(port);
    // And the next agent begins as if nothing had been.
    let again = Program::start(&mut agent(&["--otlp-file", "/dev/null", "--pid", &pid]));
    again.err.line_with("tracing ");
    request(port);
    again.terminate();
    let ended = again.ended();
    refuses(&ended, 0, &["summary lost=0"]);
    assert_eq!(counter(&ended.err, "spans.server"), 1, "{ended:#?}");
}
