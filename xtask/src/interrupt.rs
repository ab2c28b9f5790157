//! Ctrl-C and SIGTERM, noticed instead of obeyed at once.
//!
//! Services run in process groups of their own, which a terminal's Ctrl-C
//! does not reach: a task that starts some must live long enough to end them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// From here on, interrupts are only noted.
pub(crate) fn watch() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("cannot watch for signals")?;
    let (mut interrupt, mut terminate) = runtime.block_on(async {
        let pair = (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        );
        Ok::<_, std::io::Error>(pair)
    })?;
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        REQUESTED.store(true, Ordering::Relaxed);
    });
    Ok(())
}

/// Whether the task was asked to end.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// Fails if the task was asked to end.
pub(crate) fn check() -> Result<()> {
    if requested() {
        bail!("interrupted");
    }
    Ok(())
}
