//! Short grace periods of the kernel's RCU, while tests run.
//!
//! The kernel waits for several of them whenever a probe is detached, under a
//! lock of the whole machine that attaching needs, too: 0.1 s where nothing
//! else is going on, and several times that under load. The live tests detach
//! thousands, and none of them is about that time. The kernel can hurry
//! (`rcu_expedited` in `Documentation/ABI/testing/sysfs-kernel-rcu`), as it does
//! while it boots.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::say;
use crate::toolchain::is_root;

/// Whether the kernel hurries: a number, more than 0 if it does.
const SWITCH: &str = "/sys/kernel/rcu_expedited";

/// Turns the switch on and tells so, waits for the end of its input, and turns
/// it off. A Ctrl-C, which all get, does not keep it from that.
const KEEPER: &str =
    r#"trap "" HUP INT TERM; echo 1 >"$1" && echo && cat >/dev/null; echo 0 >"$1""#;

/// The kernel hurries until this is dropped, or until this process has ended
/// in any other way: then nobody holds the keeper's input open.
pub(crate) struct Hurry(Child);

/// Makes the kernel hurry, if it does not yet and can.
pub(crate) fn hurry() -> Option<Hurry> {
    let hurry = keep(Path::new(SWITCH), !is_root());
    hurry.unwrap_or_else(|error| {
        say(format!(
            "the kernel detaches probes at its own pace: {error:#}"
        ));
        None
    })
}

/// Turns a switch on, unless somebody else has.
fn keep(switch: &Path, with_sudo: bool) -> Result<Option<Hurry>> {
    let state = fs::read_to_string(switch).with_context(|| switch.display().to_string())?;
    if state.trim() != "0" {
        return Ok(None);
    }
    let words: &[&str] = match with_sudo {
        true => &["sudo", "-n", "sh", "-c", KEEPER, "sh"],
        false => &["sh", "-c", KEEPER, "sh"],
    };
    let mut child = Command::new(words[0])
        .args(&words[1..])
        .arg(switch)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let mut told = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output).read_line(&mut told)?;
    }
    let hurry = Hurry(child);
    ensure!(!told.is_empty(), "cannot write {}", switch.display());
    Ok(Some(hurry))
}

impl Drop for Hurry {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _status = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn switch(state: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, state).unwrap();
        file
    }

    fn state(file: &tempfile::NamedTempFile) -> String {
        fs::read_to_string(file).unwrap()
    }

    #[test]
    fn the_switch_is_on_until_the_keeper_is_dropped() {
        let file = switch("0\n");
        let hurry = keep(file.path(), false).unwrap().unwrap();
        assert_eq!(state(&file), "1\n");
        drop(hurry);
        assert_eq!(state(&file), "0\n");
    }

    #[test]
    fn what_somebody_else_has_turned_on_stays_so() {
        let file = switch("1\n");
        assert!(keep(file.path(), false).unwrap().is_none());
        assert_eq!(state(&file), "1\n");
    }

    #[test]
    fn a_switch_that_is_not_there_is_an_error() {
        assert!(keep(Path::new("/nonexistent/switch"), false).is_err());
    }
}
