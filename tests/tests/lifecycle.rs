//! Live: how the agent starts, follows processes, hands its spans over and
//! goes away again, well or not.
//!
//! `cargo xtask test` runs it; it needs root.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use otel_ebpf_tests::agent::{Agent, AgentOptions, Counters, Ended, clean};
use otel_ebpf_tests::app::{App, Service};
use otel_ebpf_tests::process::{Group, PATIENCE, Signal, path_from, send, shell_code, wait_for};
use otel_ebpf_tests::receiver::{Answer, Receiver};
use otel_ebpf_tests::trace::{Kind, brief, from_file, from_received, only};

// === otel-ebpf run ===

/// The agent's words up to the command that it is to run.
fn run_words(folder: &Path) -> Result<Vec<OsString>> {
    let mut words = AgentOptions::new(&[]).words(folder)?;
    words.extend(["run".into(), "--".into()]);
    Ok(words)
}

/// Runs a Python program under the agent to its end.
fn run_python(folder: &Path, program: &str) -> Result<(i32, Vec<String>)> {
    let python = path_from("OTEL_EBPF_PYTHON", "../target/python/apps/bin/python")?;
    let words = run_words(folder)?;
    let mut command = Command::new(&words[0]);
    clean(&mut command);
    command.args(&words[1..]).arg(python).args(["-c", program]);
    let mut group = Group::spawn("otel-ebpf run", &mut command)?;
    let status = group.wait(PATIENCE)?;
    Ok((shell_code(status), group.lines()))
}

#[test]
fn run_traces_from_the_first_request_and_ends_with_the_command() -> Result<()> {
    // How each server ends when asked to: gunicorn well, uvicorn by the signal.
    for (service, code) in [
        (Service::gunicorn("flask_app"), 0),
        (Service::uvicorn("fastapi_app"), 128 + 15),
        (Service::uvloop("fastapi_app"), 128 + 15),
    ] {
        let folder = tempfile::tempdir()?;
        // Its start ends with the first answer, to `GET /`.
        let mut app = service.start_under(&run_words(folder.path())?)?;
        app.connect()?.get("/items/1")?;
        app.group.signal(Signal::TERM)?;
        let status = app.group.wait(PATIENCE)?;
        let spans = from_file(&folder.path().join("spans.jsonl"))?;
        let paths: Vec<_> = spans.iter().map(|span| span.text("url.path")).collect();
        assert_eq!(paths, ["/", "/items/1"], "{}", app.group.log());
        let answered = |span: &otel_ebpf_tests::trace::Span| {
            span.number("http.response.status_code") == Some(200)
        };
        assert!(spans.iter().all(answered));
        assert_eq!(shell_code(status), code, "{}", app.group.log());
        Counters::of(&app.group.lines())?.assert_nothing_lost();
    }
    Ok(())
}

#[test]
fn run_passes_the_exit_code_on() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (program, expected) in [
        ("pass", 0),
        ("import sys; sys.exit(7)", 7),
        ("import os; os.kill(os.getpid(), 9)", 128 + 9),
    ] {
        let (code, lines) = run_python(folder.path(), program)?;
        assert_eq!(code, expected, "{program}: {lines:#?}");
    }
    Ok(())
}

/// A client by hand, which sends what no library does: credentials in a
/// target.
#[test]
fn run_traces_a_client_and_hides_its_credentials() -> Result<()> {
    let downstream = Service::uvicorn("downstream").start()?;
    let folder = tempfile::tempdir()?;
    let port = downstream.port();
    let program = format!(
        "import socket\n\
         s = socket.create_connection(('127.0.0.1', {port}))\n\
         s.sendall(b'GET http://ann:s3cret@127.0.0.1:{port}/x?sig=s3cret HTTP/1.1\\r\\nHost: h\\r\\nConnection: close\\r\\n\\r\\n')\n\
         while s.recv(4096): pass\n"
    );
    let (code, lines) = run_python(folder.path(), &program)?;
    assert_eq!(code, 0, "{lines:#?}");
    let spans = from_file(&folder.path().join("spans.jsonl"))?;
    let span = only(&spans, Kind::Client, "/x");
    let expected = format!("http://REDACTED:REDACTED@127.0.0.1:{port}/x?sig=REDACTED");
    assert_eq!(span.text("url.full"), expected);
    span.assert_root();
    assert_eq!(spans.len(), 1, "{}", brief(&spans));
    Ok(())
}

/// What is known of a thread goes with it: more of them than the kernel's
/// table has room for, one after the other, and a call that the last one makes.
#[test]
fn threads_that_end_make_room_for_others() -> Result<()> {
    const THREADS: usize = 34_000;
    let downstream = Service::uvicorn("downstream").start()?;
    let folder = tempfile::tempdir()?;
    let port = downstream.port();
    let program = format!(
        "import _thread, urllib.request\n\
         def each(work):\n\
         \x20   ended = _thread.allocate_lock()\n\
         \x20   ended.acquire()\n\
         \x20   _thread.start_new_thread(lambda: (work(), ended.release()), ())\n\
         \x20   ended.acquire()\n\
         for _ in range({THREADS}):\n\
         \x20   each(int)\n\
         each(lambda: urllib.request.urlopen('http://127.0.0.1:{port}/last').read())\n"
    );
    let (code, lines) = run_python(folder.path(), &program)?;
    assert_eq!(code, 0, "{lines:#?}");
    let spans = from_file(&folder.path().join("spans.jsonl"))?;
    only(&spans, Kind::Client, "/last").assert_root();
    Counters::of(&lines)?.assert_nothing_lost();
    Ok(())
}

// === Workers ===

/// Workers that are started while the agent looks are traced from the first
/// request that they read.
#[test]
fn respawned_workers_are_traced_from_their_first_request() -> Result<()> {
    const REQUESTS: usize = 40;
    for (name, service) in [
        ("gunicorn", Service::gunicorn("flask_app").workers(2)),
        ("uvicorn", Service::uvicorn("fastapi_app").workers(2)),
        ("uvloop", Service::uvloop("fastapi_app").workers(2)),
    ] {
        let mut app = service.env("OTEL_SERVICE_NAME", name).start()?;
        let before: BTreeSet<u32> = app.workers().into_iter().collect();
        let agent = Agent::attach(&app.pids())?;
        for &worker in &before {
            send(worker, Signal::KILL)?;
        }
        // They wait in the backlog until somebody accepts them.
        let mut waiting = Vec::new();
        for id in 0..REQUESTS {
            let mut connection = app.connect()?;
            let head = connection.head("GET", &format!("/items/{id}"), &[], 0);
            connection.send(head)?;
            waiting.push(connection);
        }
        for connection in &mut waiting {
            let response = connection.response(false).context(name)?;
            assert_eq!(response.status, 200, "{name}");
        }
        let after = wait_for("two new workers", PATIENCE, || {
            app.group.expect_running()?;
            let workers: BTreeSet<u32> = app.workers().into_iter().collect();
            Ok((workers.len() == 2 && workers.is_disjoint(&before)).then_some(workers))
        })?;
        let ended = stop(agent, name)?;
        let served: HashSet<_> = ended.spans.iter().map(|span| span.target()).collect();
        assert_eq!(served.len(), REQUESTS, "{name}: {}", brief(&ended.spans));
        assert_eq!(
            ended.spans.len(),
            REQUESTS,
            "{name}: {}",
            brief(&ended.spans)
        );
        let mut instances = HashMap::new();
        for span in &ended.spans {
            assert!(
                after.contains(&span.pid()),
                "{name}: {}",
                brief(&ended.spans)
            );
            assert_eq!(span.service(), name);
            instances.insert(span.pid(), span.resource["service.instance.id"].to_string());
        }
        let different: HashSet<_> = instances.values().collect();
        assert_eq!(different.len(), instances.len(), "{instances:?}");
    }
    Ok(())
}

/// Workers that end by themselves every few requests, while others go on.
#[test]
fn short_lived_workers_lose_no_span() -> Result<()> {
    const REQUESTS: usize = 120;
    let app = Service::gunicorn("flask_app")
        .workers(2)
        .arguments(&["--max-requests", "10"])
        .start()?;
    let agent = Agent::attach(&app.pids())?;
    for id in 0..REQUESTS {
        let close = [("Connection", "close")];
        let response = app
            .connect()?
            .request("GET", &format!("/items/{id}"), &close, b"")?;
        assert_eq!(response.status, 200, "{id}");
    }
    let ended = stop(agent, "gunicorn")?;
    let served: HashSet<_> = ended.spans.iter().map(|span| span.target()).collect();
    assert_eq!(
        (served.len(), ended.spans.len()),
        (REQUESTS, REQUESTS),
        "{}\n{:#?}",
        brief(&ended.spans),
        ended.counters
    );
    let pids: HashSet<_> = ended.spans.iter().map(|span| span.pid()).collect();
    assert!(pids.len() >= REQUESTS / 12, "{} workers", pids.len());
    Ok(())
}

/// The other program inherits nothing that would be taken for the service's.
#[test]
fn a_program_that_a_request_starts_changes_nothing() -> Result<()> {
    const REQUESTS: usize = 30;
    let app = Service::gunicorn("flask_app").start()?;
    let agent = Agent::attach(&app.pids())?;
    let mut connection = app.connect()?;
    for id in 0..REQUESTS {
        assert_eq!(connection.get(&format!("/spawn?id={id}"))?.status, 200);
    }
    let ended = stop(agent, "gunicorn")?;
    assert_eq!(ended.spans.len(), REQUESTS, "{}", brief(&ended.spans));
    for span in &ended.spans {
        assert_eq!(span.pid(), app.server_pid());
        assert_eq!(span.number("http.response.status_code"), Some(200));
    }
    Ok(())
}

/// Both workers of a service that runs already, with an identity each.
#[test]
fn workers_are_instances_of_one_service() -> Result<()> {
    for (name, service) in [
        ("gunicorn", Service::gunicorn("flask_app").workers(2)),
        ("uvicorn", Service::uvicorn("fastapi_app").workers(2)),
    ] {
        let app = service
            .env("OTEL_RESOURCE_ATTRIBUTES", "service.version=1.2")
            .start()?;
        let workers: BTreeSet<u32> = app.workers().into_iter().collect();
        let mut agent = Agent::attach(&app.pids())?;
        // Which of them accepts is the kernel's choice.
        let spans = wait_for("an answer of both", PATIENCE, || {
            app.connect()?.get("/items/1")?;
            agent.group.expect_running()?;
            let spans = agent.spans()?;
            let pids: BTreeSet<u32> = spans.iter().map(|span| span.pid()).collect();
            Ok((pids == workers).then_some(spans))
        })
        .context(name)?;
        let of = |key: &str| -> HashSet<String> {
            spans
                .iter()
                .map(|span| span.resource[key].to_string())
                .collect()
        };
        assert_eq!(of("service.instance.id").len(), 2, "{name}");
        let [version, description, server] = &runtime_of(name)?[..] else {
            bail!("the interpreter says something else");
        };
        for (key, expected) in [
            ("process.runtime.version", version),
            ("process.runtime.description", description),
            ("webengine.name", &name.to_owned()),
            ("webengine.version", server),
        ] {
            let expected = serde_json::Value::from(expected.as_str()).to_string();
            assert_eq!(of(key), HashSet::from([expected]), "{name} {key}");
        }
        for (key, expected) in [
            ("service.version", "\"1.2\""),
            ("telemetry.sdk.name", "\"otel-ebpf\""),
            ("telemetry.sdk.language", "\"python\""),
            ("process.runtime.name", "\"cpython\""),
            ("os.type", "\"linux\""),
        ] {
            assert_eq!(
                of(key),
                HashSet::from([expected.to_owned()]),
                "{name} {key}"
            );
        }
        assert_eq!(of("service.name").len(), 1, "{name}");
        stop(agent, name)?;
    }
    Ok(())
}

/// What the interpreter of the services says of itself and of a server: two
/// versions around a description.
fn runtime_of(server: &str) -> Result<Vec<String>> {
    let code = "import sys, importlib.metadata as packages\n\
                print('.'.join(map(str, sys.version_info[:3])))\n\
                print(sys.version)\nprint(packages.version(sys.argv[1]))";
    let python = path_from("OTEL_EBPF_PYTHON", "../target/python/apps/bin/python")?;
    let output = Command::new(python).args(["-c", code, server]).output()?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().map(str::to_owned).collect())
}

fn stop(agent: Agent, name: &str) -> Result<Ended> {
    let ended = agent.stop().context(name.to_owned())?;
    ended.counters.assert_nothing_lost();
    Ok(ended)
}

// === Handing over ===

fn exporting(app: &App, endpoint: &str, protocol: &str) -> AgentOptions {
    AgentOptions::new(&app.pids())
        .elsewhere()
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
}

#[test]
fn spans_arrive_over_grpc_and_http() -> Result<()> {
    let app = Service::gunicorn("flask_app").start()?;
    for protocol in ["grpc", "http/protobuf"] {
        let receiver = Receiver::start()?;
        let address = if protocol == "grpc" {
            receiver.grpc
        } else {
            receiver.http
        };
        let agent = exporting(&app, &format!("http://{address}"), protocol)
            .env("OTEL_BSP_SCHEDULE_DELAY", "50")
            .start()?;
        for id in 0..5 {
            app.connect()?.get(&format!("/items/{id}"))?;
        }
        receiver.wait_for_spans(5, PATIENCE).context(protocol)?;
        let ended = stop(agent, protocol)?;
        let spans = from_received(&receiver.received())?;
        let paths: BTreeSet<_> = spans.iter().map(|span| span.text("url.path")).collect();
        assert_eq!((paths.len(), spans.len()), (5, 5), "{}", brief(&spans));
        assert!(spans.iter().all(|span| span.pid() == app.server_pid()));
        assert_eq!(ended.counters.get("spans.server"), 5);
    }
    Ok(())
}

#[test]
fn sigterm_hands_over_what_waits_even_to_a_slow_receiver() -> Result<()> {
    const TIMEOUT: Duration = Duration::from_secs(4);
    let app = Service::gunicorn("flask_app").start()?;
    let receiver = Receiver::start()?;
    let unavailable =
        |seconds: &str| Answer::Http(503, vec![("retry-after", seconds.to_owned())], Vec::new());
    let endpoint = format!("http://{}", receiver.http);
    let options = exporting(&app, &endpoint, "http/protobuf")
        .env("OTEL_BSP_EXPORT_TIMEOUT", TIMEOUT.as_millis().to_string())
        .env("OTEL_BSP_SCHEDULE_DELAY", "600000");
    let agent = options.clone().start()?;
    for id in 0..3 {
        app.connect()?.get(&format!("/items/{id}"))?;
    }
    receiver.answer([unavailable("1")]);
    let ended = agent.hand_over(Signal::TERM, TIMEOUT + Duration::from_secs(5))?;
    assert_eq!(receiver.spans().len(), 3);
    ended.counters.assert_nothing_lost();

    // One that never answers does not hold it up for longer.
    let agent = options.start()?;
    app.connect()?.get("/items/9")?;
    receiver.answer(vec![Answer::Stall; 8]);
    let asked = Instant::now();
    let ended = agent.hand_over(Signal::TERM, TIMEOUT + Duration::from_secs(5))?;
    let took = asked.elapsed();
    assert!(
        took >= TIMEOUT - Duration::from_secs(1),
        "it gave up after {took:?}"
    );
    assert_eq!(receiver.spans().len(), 3);
    assert_eq!(ended.counters.get("lost"), 1, "{:#?}", ended.counters);
    Ok(())
}

#[test]
fn the_agent_ends_with_the_last_traced_process() -> Result<()> {
    let app = Service::gunicorn("flask_app").start()?;
    let agent = Agent::attach(&app.pids())?;
    app.connect()?.get("/items/1")?;
    drop(app);
    let ended = agent.wait(PATIENCE)?;
    assert_eq!(ended.spans.len(), 1, "{}", brief(&ended.spans));
    Ok(())
}

#[test]
fn a_process_that_is_no_python_is_refused() -> Result<()> {
    let sleeper = Group::spawn("a sleeper", Command::new("sleep").arg("1000"))?;
    let mut command = Command::new(otel_ebpf_tests::agent::binary()?);
    clean(&mut command);
    command.args(["--pid", &sleeper.pid().to_string()]);
    let mut agent = Group::spawn("the agent", &mut command)?;
    let status = agent.wait(PATIENCE)?;
    assert!(!status.success());
    let lines = agent.lines().join("\n");
    assert!(
        lines.contains(&format!("process {}", sleeper.pid())),
        "{lines}"
    );
    Ok(())
}

// === Going away ===

/// The executable pages of a process's interpreter: probes show in them.
fn code(pid: u32) -> Result<Vec<u8>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut bytes = Vec::new();
    for line in maps.lines() {
        if !line.contains(" r-xp ") || !line.contains("python") {
            continue;
        }
        let range = line.split(' ').next().unwrap_or_default();
        let (from, to) = range.split_once('-').context("no range")?;
        let from = u64::from_str_radix(from, 16)?;
        let to = u64::from_str_radix(to, 16)?;
        let mut page = vec![0; (to - from) as usize];
        memory.read_exact_at(&mut page, from)?;
        bytes.extend(page);
    }
    ensure!(!bytes.is_empty(), "the interpreter has no code");
    Ok(bytes)
}

/// The ids of BPF programs and links that a process holds.
fn programs(pid: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else {
        return found;
    };
    for entry in entries.flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        let ids = text.lines().filter(|line| line.starts_with("prog_id:"));
        found.extend(ids.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")));
    }
    found
}

#[test]
fn a_killed_agent_leaves_nothing_behind() -> Result<()> {
    for service in [
        Service::gunicorn("flask_app"),
        Service::uvloop("fastapi_app"),
    ] {
        let app = service.start()?;
        let pid = app.server_pid();
        let clean = code(pid)?;
        let mut agent = Agent::attach(&app.pids())?;
        ensure!(
            code(pid)? != clean,
            "no probe is to be seen in the interpreter"
        );
        let held = programs(&agent.group.pid().to_string());
        ensure!(!held.is_empty(), "the agent holds no BPF program");
        let mut connection = app.connect()?;
        connection.get("/items/1")?;
        agent.group.signal(Signal::KILL)?;
        agent.group.wait(PATIENCE)?;
        // The connection it watched goes on, and so do new ones.
        for id in 0..200 {
            assert_eq!(connection.get(&format!("/items/{id}"))?.status, 200);
            assert_eq!(app.connect()?.get("/items/1")?.status, 200);
        }
        wait_for("the interpreter as it was", PATIENCE, || {
            Ok((code(pid)? == clean).then_some(()))
        })?;
        for entry in fs::read_dir("/proc")?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.bytes().all(|byte| byte.is_ascii_digit()) {
                let left: Vec<_> = programs(&name).intersection(&held).cloned().collect();
                assert!(left.is_empty(), "{name} holds {left:?}");
            }
        }
        // And another agent finds the service as the first one did.
        let agent = Agent::attach(&app.pids())?;
        connection.get("/items/2")?;
        let ended = stop(agent, "the second agent")?;
        assert_eq!(ended.spans.len(), 1, "{}", brief(&ended.spans));
    }
    Ok(())
}

// === Its end ===

/// The answers that are due when it is told to stop are waited for, a short
/// while; what does not end by then is counted and no span.
#[test]
fn a_stop_waits_for_answers_that_are_due() -> Result<()> {
    let app = Service::uvicorn("fastapi_app").start()?;
    let begun = || -> Result<_> {
        let mut connection = app.connect()?;
        let head = format!("POST /echo HTTP/1.1\r\nHost: {}\r\n", app.port());
        connection.send(head + "Content-Length: 4\r\n\r\nab")?;
        Ok(connection)
    };
    // The answer comes at once; a busy machine may delay it beyond the limit.
    let mut seen = false;
    for _ in 0..5 {
        let agent = Agent::attach(&app.pids())?;
        let mut connection = begun()?;
        // A later request that is told of shows that this one has been read.
        app.connect()?.get("/items/1")?;
        agent.group.signal(Signal::TERM)?;
        connection.send("cd")?;
        let status = connection.response(false)?.status;
        assert_eq!(status, 200);
        let ended = agent.wait(PATIENCE)?;
        ended.counters.assert_nothing_lost();
        let unfinished = ended.counters.get("spans.unfinished");
        assert_eq!(
            ended.spans.len() as u64,
            2 - unfinished,
            "{}",
            brief(&ended.spans)
        );
        seen = unfinished == 0;
        if seen {
            break;
        }
    }
    ensure!(seen, "an agent waits for no answer");

    let agent = Agent::attach(&app.pids())?;
    let unanswered = begun()?;
    app.connect()?.get("/items/1")?;
    let ended = agent.stop()?;
    drop(unanswered);
    assert_eq!(ended.counters.get("spans.unfinished"), 1);
    ended.counters.assert_nothing_lost();
    assert_eq!(ended.spans.len(), 1, "{}", brief(&ended.spans));
    Ok(())
}
