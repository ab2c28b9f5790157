//! Live tests of the interpreter search: real Pythons of every version, and
//! processes that are none.
//!
//! They need permission to read other processes (root), but no BPF. A Python
//! that is not installed fails its test, unless
//! `OTEL_EBPF_ALLOW_MISSING_PYTHONS=1` is set. `OTEL_EBPF_UVLOOP_PYTHON` names
//! a Python with uvloop.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use abi::map::target_flag;
use otel_ebpf::remote::{Process, ProcessError};
use otel_ebpf::target::births::Birth;
use otel_ebpf::target::interpreter::{Interpreter, InterpreterError};
use otel_ebpf::target::placement;
use otel_ebpf::target::uvloop;
use otel_ebpf_tests::python::{Python, Running, present};
use pyframes::{Memory, object, text};

/// Starts four threads, prints what the test compares with, and waits until
/// its input ends.
const THREADED: &str = r#"
import sys, threading
ready = threading.Barrier(5)
done = threading.Event()
idents = []
def work():
    idents.append(threading.get_ident())
    ready.wait()
    done.wait()
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
ready.wait()
idents.append(threading.get_ident())
print("%d %d %d" % sys.version_info[:3], hasattr(sys, "_is_gil_enabled") and not sys._is_gil_enabled())
print(*idents)
sys.stdout.flush()
sys.stdin.read()
done.set()
"#;

/// Prints a line and waits until its input ends; for any Python.
const IDLE: &str = "import sys\nsys.stdout.write('up\\n')\nsys.stdout.flush()\nsys.stdin.read()\n";

fn process(running: &Running) -> Process {
    Process::open(running.pid()).expect("opens the child")
}

fn find(running: &Running) -> Result<Interpreter, InterpreterError> {
    Interpreter::find(&process(running))
}

fn run(python: &Python, code: &str) -> Running {
    Running::python(python, code).expect("starts")
}

fn start(command: &mut Command) -> Running {
    Running::start(command).expect("starts")
}

fn next_line(running: &mut Running) -> String {
    running.line().expect("readable")
}

/// A Python that has uvloop: the one `OTEL_EBPF_UVLOOP_PYTHON` names, or
/// pyenv's.
fn with_uvloop() -> Option<Python> {
    let named = std::env::var_os("OTEL_EBPF_UVLOOP_PYTHON")
        .map(|program| Python::here(PathBuf::from(program)));
    let has_it = |python: &Python| {
        let import = python.command().args(["-c", "import uvloop"]).output();
        import.is_ok_and(|output| output.status.success())
    };
    let found = named.into_iter().chain(Python::pyenv("3.12")).find(has_it);
    present(found, "a Python with uvloop (set OTEL_EBPF_UVLOOP_PYTHON)")
}

/// Compares everything that is read with what the process says of itself.
fn check_python(python: Option<Python>) {
    check_build(python, true);
}

/// `has_births` where the machine code tells in which register a new context
/// is; elsewhere return probes are used.
fn check_build(python: Option<Python>, has_births: bool) {
    let Some(python) = python else { return };
    let mut running = run(&python, THREADED);
    let version = next_line(&mut running);
    let idents: BTreeSet<u64> = next_line(&mut running)
        .split(' ')
        .map(|ident| ident.parse().expect("a number"))
        .collect();
    assert_eq!(idents.len(), 5, "{version}");

    let process = process(&running);
    let found = Interpreter::find(&process).unwrap_or_else(|error| panic!("{version}: {error}"));
    let told = found.version;
    let free_threaded = if told.free_threaded { "True" } else { "False" };
    let read = format!(
        "{} {} {} {free_threaded}",
        told.major, told.minor, told.micro
    );
    assert_eq!(read, version);

    let threads = found.threads(&process).expect("lists threads");
    let thread_ids: BTreeSet<u64> = threads.iter().map(|thread| thread.thread_id).collect();
    assert_eq!(thread_ids, idents);
    for thread in &threads {
        assert_eq!(found.tss.indirect, None);
        let slot = thread.thread_id.wrapping_add_signed(found.tss.slot);
        assert_eq!(process.u64(slot), Ok(thread.address));
    }

    let target = found.target();
    // Threads of `threading` run in contexts of their own since 3.14.
    let flags = match told.minor {
        14.. => target_flag::PYTHON | target_flag::THREAD_CONTEXTS,
        _ => target_flag::PYTHON,
    };
    assert_eq!(target.flags, flags);
    assert_eq!(target.tss_slot, found.tss.slot);
    assert_eq!(target.tstate_thread_id, found.layout.tstate.thread_id);

    let module = found
        .module(&process, "threading")
        .expect("reads")
        .expect("is imported");
    let name = object::module_attribute(&process, &found.layout, module, "__name__");
    let name = name.expect("reads").expect("has a name");
    let mut buffer = [0; 32];
    let name = text::read_str(&process, &found.layout, name, &mut buffer).expect("reads");
    assert_eq!(name.text, "threading");
    assert_eq!(found.has_module(&process, "no_such_module"), Ok(false));
    assert_eq!(found.has_module(&process, "thread"), Ok(false));

    check_probes(&process, &found);
    if has_births {
        check_births(&process, &found);
    } else {
        let births = found.context_births(&process).expect("finds the makers");
        assert!(births.is_none(), "now it tells: check it as the others are");
    }
}

/// Every way in which a context comes into being has a place for a plain
/// probe.
fn check_births(process: &Process, found: &Interpreter) {
    let births = found.context_births(process).expect("finds the makers");
    let births = births.expect("the code tells where the result is");
    let count = |kind: fn(&Birth) -> bool| births.iter().filter(|(birth, _)| kind(birth)).count();
    assert!(count(|birth| matches!(birth, Birth::CopiedIn(_))) > 0);
    assert!(count(|birth| matches!(birth, Birth::CreatedIn(_))) > 0);
}

/// A function of the interpreter is found by symbol and by method table, and
/// has the same bytes in the file and in memory.
fn check_probes(process: &Process, found: &Interpreter) {
    let symbol = found
        .image
        .elf
        .symbol("PyContext_CopyCurrent")
        .expect("reads")
        .expect("exported");
    let bytes = found.image.elf.function(symbol).expect("reads");
    let mut mapped = vec![0; bytes.len()];
    assert!(process.read(found.image.address(symbol), &mut mapped));
    assert_eq!(mapped, bytes);
    assert!(!placement::entry(&bytes).single_stepped);

    let lock = ("_thread", "LockType", "acquire");
    let located = found
        .method_address(process, lock.0, lock.1, lock.2)
        .expect("reads");
    let located = located.expect("has the method");
    assert_eq!(
        (located.device, located.inode),
        (found.image.device, found.image.inode)
    );
    let in_file = found
        .image
        .elf
        .bytes(located.file_offset, 16)
        .expect("reads");
    assert_eq!(
        process
            .bytes::<16>(located.address)
            .expect("reads")
            .as_slice(),
        in_file
    );
    assert_eq!(Some(located.file_offset), {
        let virtual_address = located.address.wrapping_sub(found.image.load_bias);
        found.image.elf.file_offset(virtual_address)
    });
    // Builds with symbols name the very same place.
    if let Some(symbol) = found
        .image
        .elf
        .symbol("lock_PyThread_acquire_lock")
        .expect("reads")
    {
        assert_eq!(located.address, found.image.address(symbol));
    }
    let missing = found.method_address(process, lock.0, lock.1, "no_such_method");
    assert_eq!(missing.expect("reads"), None);
}

#[test]
fn reads_python_3_8() {
    check_python(Python::pyenv("3.8"));
}

#[test]
fn reads_python_3_9() {
    check_python(Python::pyenv("3.9"));
}

#[test]
fn reads_python_3_10() {
    check_python(Python::pyenv("3.10"));
}

#[test]
fn reads_python_3_11() {
    check_python(Python::pyenv("3.11"));
}

#[test]
fn reads_python_3_12() {
    check_python(Python::pyenv("3.12"));
}

#[test]
fn reads_python_3_13() {
    check_python(Python::pyenv("3.13"));
}

#[test]
fn reads_the_stripped_python_of_the_distribution() {
    check_python(Python::system());
}

#[test]
fn reads_the_stripped_python_of_debian_11() {
    check_python(Python::debian("bullseye", "3.9"));
}

#[test]
fn reads_the_stripped_python_of_debian_13() {
    check_python(Python::debian("trixie", "3.13"));
}

#[test]
fn reads_the_stripped_python_of_debian_14() {
    check_build(Python::debian("forky", "3.14"), false);
}

#[test]
fn reads_a_free_threaded_python_3_13() {
    check_build(Python::free_threaded("3.13"), false);
}

#[test]
fn reads_a_free_threaded_python_3_14() {
    check_python(Python::free_threaded("3.14"));
}

/// Newer than what is known: it is named, not guessed at.
#[test]
fn names_a_version_whose_structures_are_not_known() {
    let Some(python) = Python::debian("forky", "3.15") else {
        return;
    };
    let mut running = run(&python, IDLE);
    assert_eq!(next_line(&mut running), "up");
    match find(&running) {
        Err(InterpreterError::UnknownVersion(version)) => {
            assert_eq!((version.major, version.minor), (3, 15));
        }
        other => panic!("{other:?}"),
    }
}

/// What is read must be what the version says, or nothing is believed.
#[test]
fn an_interpreter_that_contradicts_itself_is_not_believed() {
    let published = "import ctypes\n\
        runtime = ctypes.c_char.in_dll(ctypes.pythonapi, '_PyRuntime')\n\
        version = ctypes.c_uint64.from_address(ctypes.addressof(runtime) + 8)\n\
        version.value = 0x030c00f0\n";
    for (series, change, expected) in [
        (
            "3.9",
            "import sys\nsys.hexversion = 0x030a00f0\n",
            "sys.hexversion is not where it belongs",
        ),
        (
            "3.12",
            "import sys\nsys.hexversion = 'twelve'\n",
            "sys.hexversion is not where it belongs",
        ),
        (
            "3.13",
            published,
            "it publishes the offsets of another version",
        ),
    ] {
        let Some(python) = Python::pyenv(series) else {
            continue;
        };
        let mut running = run(&python, &format!("{change}{IDLE}"));
        assert_eq!(next_line(&mut running), "up");
        match find(&running) {
            Err(InterpreterError::LayoutMismatch { check, .. }) => assert_eq!(check, expected),
            other => panic!("{series}: {other:?}"),
        }
    }
}

#[test]
fn names_versions_that_are_too_old() {
    for (series, expected) in [("2.7", (2, 7)), ("3.6", (3, 6)), ("3.7", (3, 7))] {
        let Some(program) = Python::pyenv(series) else {
            continue;
        };
        let mut running = run(&program, IDLE);
        assert_eq!(next_line(&mut running), "up");
        match find(&running) {
            Err(InterpreterError::TooOld { major, minor }) => assert_eq!((major, minor), expected),
            other => panic!("{series}: {other:?}"),
        }
    }
}

#[test]
fn a_program_without_an_interpreter_is_not_python() {
    let running = start(Command::new("/bin/sleep").arg("600"));
    // Until the dynamic linker has finished, there is less to see, but never
    // an interpreter.
    let found = find(&running);
    assert!(
        matches!(found, Err(InterpreterError::NotPython)),
        "{found:?}"
    );
}

#[test]
fn a_process_that_has_ended_is_told_so() {
    let mut running = start(&mut Command::new("/bin/cat"));
    let process = process(&running);
    running.end_input().expect("ends");
    running.wait().expect("waits");
    let found = Interpreter::find(&process);
    let told = matches!(
        found,
        Err(InterpreterError::Process(
            ProcessError::NoSuchProcess | ProcessError::Exited
        ))
    );
    assert!(told, "{found:?}");
}

/// Runs itself once more as a user without rights and compares there.
#[test]
fn a_process_of_another_user_needs_permission() {
    if let Some(pid) = std::env::var_os(FOREIGN_PID) {
        let pid = pid.to_string_lossy().parse().expect("a process id");
        let opened = Process::open(pid);
        assert!(
            matches!(opened, Err(ProcessError::PermissionDenied(_))),
            "{opened:?}"
        );
        return;
    }
    let running = start(Command::new("/bin/sleep").arg("600"));
    let directory = tempfile::tempdir().expect("tempdir");
    let program = directory.path().join("test");
    std::fs::copy(std::env::current_exe().expect("a path"), &program).expect("copies");
    let readable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(directory.path(), readable).expect("opens the directory");
    let output = Command::new(&program)
        .args(["--exact", "a_process_of_another_user_needs_permission"])
        .env(FOREIGN_PID, running.pid().to_string())
        .uid(NOBODY)
        .gid(NOBODY)
        .current_dir("/")
        .output()
        .expect("starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

#[test]
fn an_interpreter_that_never_started_is_not_initialized() {
    let Some(program) = Python::pyenv("3.12") else {
        return;
    };
    let lib = program
        .program
        .parent()
        .and_then(Path::parent)
        .expect("a prefix")
        .join("lib");
    let library = lib.join("libpython3.12.so.1.0");
    let running = start(
        Command::new("/bin/sleep")
            .arg("600")
            .env("LD_PRELOAD", &library),
    );
    let process = process(&running);
    wait_until(|| {
        let files = process.mapped_files().unwrap_or_default();
        files
            .iter()
            .any(|file| file.is_executable() && file.first().path == library)
    });
    let found = Interpreter::find(&process);
    assert!(
        matches!(found, Err(InterpreterError::NotInitialized)),
        "{found:?}"
    );
}

#[test]
fn pypy_is_named() {
    let directory = tempfile::tempdir().expect("tempdir");
    let source = directory.path().join("startup.c");
    let library = directory.path().join("libpypy3.10-c.so");
    std::fs::write(&source, "int rpython_startup_code(void) { return 0; }\n").expect("writes");
    let compiled = Command::new("cc")
        .args(["-shared", "-o"])
        .arg(&library)
        .arg(&source)
        .status()
        .expect("cc");
    assert!(compiled.success());
    let running = start(
        Command::new("/bin/sleep")
            .arg("600")
            .env("LD_PRELOAD", &library),
    );
    let process = process(&running);
    wait_until(|| {
        let files = process.mapped_files().unwrap_or_default();
        files
            .iter()
            .any(|file| file.is_executable() && file.first().path == library)
    });
    let found = Interpreter::find(&process);
    assert!(matches!(found, Err(InterpreterError::PyPy)), "{found:?}");
}

#[test]
fn every_moment_of_a_start_is_told_truly() {
    for minor in 8..=13 {
        let Some(program) = Python::pyenv(&format!("3.{minor}")) else {
            continue;
        };
        let running = run(&program, IDLE);
        let deadline = Instant::now() + DEADLINE;
        loop {
            match find(&running) {
                Ok(found) => {
                    assert_eq!(found.version.minor, minor);
                    break;
                }
                // Before the exec it is this test, then a program whose
                // library is not loaded, then an interpreter that starts.
                Err(
                    InterpreterError::NotPython
                    | InterpreterError::NotInitialized
                    | InterpreterError::Process(ProcessError::Exited),
                ) => {}
                Err(error) => panic!("{error}"),
            }
            assert!(Instant::now() < deadline, "never initialized");
        }
    }
}

/// The paths in its maps lead nowhere from our root nor from its own.
#[test]
fn a_process_in_a_chroot_is_read() {
    let Some(program) = Python::system() else {
        return;
    };
    let root = tempfile::tempdir().expect("tempdir");
    let enter = r#"mount --bind / "$1" && exec chroot "$1" "$2" -c "$3""#;
    let mut running = start(
        Command::new("unshare")
            .args(["--mount", "sh", "-c", enter, "sh"])
            .args([root.path(), &program.program])
            .arg(IDLE),
    );
    assert_eq!(next_line(&mut running), "up");
    let found = find(&running).expect("finds");
    assert_eq!(found.version.major, 3);
    let symbol = found
        .image
        .elf
        .symbol("PyContext_CopyCurrent")
        .expect("reads");
    assert!(symbol.is_some());
    assert!(found.image.path.exists());
}

/// An echo server on uvloop: prints its port and the address of the C function
/// behind `UVStream.write`, then for each connection the
/// address of the transport and its descriptor.
const UVLOOP: &str = r#"
import asyncio, ctypes, uvloop, uvloop.loop
word = lambda address: ctypes.c_uint64.from_address(address).value
class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        fd = transport.get_extra_info("socket").fileno()
        print(id(transport), fd, type(transport).__name__, flush=True)
        self.transport = transport
    def data_received(self, data):
        self.transport.write(data)
async def main():
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1])
    # The function object's m_ml and its ml_meth, 16 and 8 bytes in.
    print(word(word(id(uvloop.loop.UVStream.write) + 16) + 8), flush=True)
    await server.serve_forever()
uvloop.run(main())
"#;

#[test]
fn uvloop_transports_lead_to_their_descriptors() {
    let Some(program) = with_uvloop() else { return };
    let mut running = run(&program, UVLOOP);
    let port: u16 = next_line(&mut running).parse().expect("a port");
    let write: u64 = next_line(&mut running).parse().expect("an address");
    let connections: Vec<_> = (0..3)
        .map(|_| std::net::TcpStream::connect(("127.0.0.1", port)).expect("connects"))
        .collect();
    let process = process(&running);
    let found = Interpreter::find(&process).expect("finds");
    assert_eq!(found.has_module(&process, "uvloop"), Ok(true));
    for _ in &connections {
        let line = next_line(&mut running);
        let fields: Vec<_> = line.split(' ').collect();
        let transport = fields[0].parse().expect("an address");
        let fd: i32 = fields[1].parse().expect("a descriptor");
        assert_eq!(fields[2], "TCPTransport");
        assert_eq!(
            uvloop::stream_fd(&process, &found.layout, transport),
            Ok(fd)
        );
        let link = std::fs::read_link(format!("/proc/{}/fd/{fd}", process.pid())).expect("is open");
        assert!(link.to_string_lossy().starts_with("socket:"), "{link:?}");
        assert!(uvloop::stream_fd(&process, &found.layout, transport + 8).is_err());
    }

    let (module, class, method) = uvloop::WRITE;
    let located = found
        .method_address(&process, module, class, method)
        .expect("reads");
    let located = located.expect("has the method");
    assert_eq!(located.address, write);
    assert!(
        located.path.to_string_lossy().contains("uvloop"),
        "{located:?}"
    );
    let file = std::fs::read(&located.path).expect("reads");
    let at = located.file_offset as usize;
    assert_eq!(
        process.bytes::<32>(located.address).expect("reads"),
        file[at..at + 32]
    );
}

fn wait_until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain");
        std::thread::yield_now();
    }
}

/// Tells the test that it runs without rights, and which process to read.
const FOREIGN_PID: &str = "OTEL_EBPF_TEST_FOREIGN_PID";

/// The user without rights.
const NOBODY: u32 = 65534;

/// Far longer than any of these processes takes to start.
const DEADLINE: Duration = Duration::from_secs(60);
