//! The project's tasks: `cargo xtask build | demo | test | parity | bench |
//! kernels | roots | tidy`.
//!
//! One module per task, and those that they share: `toolchain` (what must be
//! installed), `python` (virtual environments), `debian` (packages), `roots`
//! (interpreters of other systems), `group` (child processes),
//! `grace` (how fast the kernel detaches probes), `interrupt` (Ctrl-C), `http`
//! (a small client), `service` (the Python applications and the agent) and
//! `attribution` (that suite's report).
//! Everything a task creates lies under `target/`, but for that report.

#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a task's output is what it is for"
)]

mod attribution;
mod debian;
mod grace;
mod group;
mod http;
mod interrupt;
mod python;
mod roots;
mod service;
mod toolchain;

mod bench;
mod demo;
mod kernels;
mod parity;
mod test;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

use crate::toolchain::Toolchain;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Tasks of otel-ebpf")]
enum Task {
    /// Builds the release agent, target/release/otel-ebpf
    Build,
    /// Runs a shop of two services under load and shows their traces
    Demo(demo::Options),
    /// Runs every test; needs root
    Test(test::Options),
    /// Compares our spans with those of the in-process instrumentation
    Parity(parity::Options),
    /// Measures what tracing costs a service, beside the in-process SDK
    Bench(bench::Options),
    /// Loads every BPF program on Debian's kernels, in QEMU
    Kernels(kernels::Options),
    /// Downloads and builds the interpreters of other systems, for tests
    Roots,
    /// Checks the rules of style and structure
    Tidy,
}

fn main() -> ExitCode {
    let done = match Task::parse() {
        Task::Build => Toolchain::ensure().and_then(|tools| tools.build_agent().map(drop)),
        Task::Demo(options) => demo::run(&options),
        Task::Test(options) => test::run(&options),
        Task::Parity(options) => parity::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::Kernels(options) => kernels::run(&options),
        Task::Roots => roots::run_task(),
        Task::Tidy => tidy::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// The workspace's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Where tasks put what they create.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Says what is being done, and why it takes time.
fn say(message: impl std::fmt::Display) {
    eprintln!("xtask: {message}");
}
