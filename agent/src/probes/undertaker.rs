//! Takes down the probes of processes that have ended, beside the pipeline: the
//! kernel takes a tenth of a second for each.

use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use aya::programs::uprobe::UProbeLink;

/// A thread that detaches probes.
pub(super) struct Undertaker {
    /// None once nothing more will come.
    links: Option<mpsc::Sender<Vec<UProbeLink>>>,
    thread: Option<JoinHandle<()>>,
}

impl Undertaker {
    pub(super) fn start() -> std::io::Result<Self> {
        let (sender, links) = mpsc::channel::<Vec<UProbeLink>>();
        let work = move || links.into_iter().for_each(drop);
        let thread = thread::Builder::new().name("undertaker".to_owned());
        Ok(Self {
            links: Some(sender),
            thread: Some(thread.spawn(work)?),
        })
    }

    /// Detaches them, some time.
    pub(super) fn take(&self, links: Vec<UProbeLink>) {
        if let Some(sender) = &self.links {
            // Without its reader the channel gives them back, and they are
            // detached here.
            let _dropped = sender.send(links);
        }
    }
}

impl Drop for Undertaker {
    /// Waits until it is done.
    fn drop(&mut self) {
        self.links = None;
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}
