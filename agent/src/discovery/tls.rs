//! Finds the calls of OpenSSL in a process's files and probes them, also in
//! files that are loaded later.

use std::sync::Arc;

use abi::map::target_flag;

use super::files::Files;
use super::{Discovery, tell};
use crate::probes::{Hook, Probes};
use crate::remote::{MappedFile, Process};
use crate::target::elf::MappedElf;
use crate::target::tls::{TlsSite, sites};

/// Files that have OpenSSL in them where no `libssl` is: CPython's own module,
/// and the one of `cryptography`'s wheels, which pyOpenSSL calls.
const BUNDLES: [&str; 2] = ["_ssl.", "_rust."];

/// The places in a file that are probed.
#[derive(Default)]
pub(super) struct Calls {
    sites: Vec<(TlsSite, u64)>,
    unseen: usize,
}

/// The calls of OpenSSL in a mapped file that may have some, and the file.
fn calls(
    known: &mut Files<Arc<Calls>>,
    process: &Process,
    mapped: &MappedFile,
    interpreter: bool,
) -> Option<(Arc<Calls>, MappedElf)> {
    let name = mapped.first().path.file_name()?.to_string_lossy();
    if ["libssl", "libcrypto"]
        .iter()
        .any(|own| name.starts_with(own))
    {
        return None;
    }
    let image = MappedElf::open(process, mapped).ok()?;
    let bundles = BUNDLES.iter().any(|bundle| name.starts_with(bundle));
    if !(interpreter || bundles || image.elf.needs("libssl")) {
        return None;
    }
    let look = |image: &MappedElf| {
        let (sites, unseen) = sites(&image.elf)?;
        Ok(Arc::new(Calls { sites, unseen }))
    };
    Some((known.of(&image, look, "calls of OpenSSL")?, image))
}

impl Discovery {
    /// Probes the calls of OpenSSL in files that were not looked at before.
    pub(super) fn hook_tls(&mut self, pid: u32, process: &Process, probes: &mut Probes) {
        let Some(tracee) = self.tracees.get_mut(&pid) else {
            return;
        };
        let Ok(files) = process.mapped_files() else {
            return;
        };
        let own = tracee.interpreter.as_ref().map(|interpreter| {
            let image = &interpreter.image;
            (image.device, image.inode)
        });
        let mut found = false;
        for mapped in files.iter().filter(|mapped| mapped.is_executable()) {
            let first = mapped.first();
            let id = (first.device, first.inode);
            if !tracee.searched.insert(id) {
                continue;
            }
            let found_calls = calls(&mut self.callers, process, mapped, own == Some(id));
            let Some((calls, image)) = found_calls else {
                continue;
            };
            self.stats.tls_unseen.add(calls.unseen as u64);
            let is_end = |site: &TlsSite| matches!(site, TlsSite::ReadDone | TlsSite::WriteDone);
            let (ends, begins): (Vec<_>, Vec<_>) =
                calls.sites.iter().partition(|(site, _)| is_end(site));
            let mut attach = |&(site, offset): &(TlsSite, u64)| {
                self.stats
                    .hook(pid, probes, Hook::Tls(site), &image.path, offset)
            };
            // A call that is never seen to end would go on for good.
            if !ends.is_empty() && ends.into_iter().all(&mut attach) {
                found |= begins.into_iter().map(attach).fold(false, |_, _| true);
            }
        }
        if found && tracee.target.flags & target_flag::TLS == 0 {
            tracing::debug!(pid, "TLS is followed");
            tracee.target.flags |= target_flag::TLS;
            tell(pid, tracee, probes);
        }
    }
}
