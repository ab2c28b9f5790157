//! Writing to a file or a terminal without holding up anything else.
//!
//! A disk may be slow and a terminal may be stopped, so writes run on a
//! thread for blocking work, one at a time: the next begins when the last has
//! ended, also when the one who waited for that has given up.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::JoinHandle;

use super::ExportError;

/// Something that is written to.
pub(super) struct Writer {
    /// Its name in errors.
    name: String,
    output: Arc<Mutex<dyn Write + Send>>,
    pending: Option<JoinHandle<std::io::Result<()>>>,
    /// Why the last write failed, if it did; a part of it may be there.
    failure: Option<ExportError>,
}

impl Writer {
    pub(super) fn new(name: String, output: impl Write + Send + 'static) -> Self {
        Self {
            name,
            output: Arc::new(Mutex::new(output)),
            pending: None,
            failure: None,
        }
    }

    /// Writes whole lines and flushes them. After a failed write it begins
    /// with a line of its own.
    ///
    /// To write nothing has the result of the last write.
    pub(super) async fn write(&mut self, mut lines: Vec<u8>) -> Result<(), ExportError> {
        if lines.is_empty() {
            return self.failure.clone().map_or(Ok(()), Err);
        }
        self.finish().await;
        if self.failure.is_some() {
            lines.insert(0, b'\n');
        }
        let output = Arc::clone(&self.output);
        self.pending = Some(tokio::task::spawn_blocking(move || {
            let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
            output.write_all(&lines)?;
            output.flush()
        }));
        self.finish().await;
        self.failure.clone().map_or(Ok(()), Err)
    }

    /// Waits for the write under way, if there is one.
    async fn finish(&mut self) {
        let Some(pending) = &mut self.pending else {
            return;
        };
        let result = match pending.await {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        self.pending = None;
        self.failure = result.err().map(|reason| ExportError::Write {
            path: self.name.clone(),
            reason,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    /// Writes only when it is let.
    struct Gate {
        open: mpsc::Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if self.open.recv().is_err() {
                return Err(std::io::ErrorKind::BrokenPipe.into());
            }
            self.written.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn writes_wait_for_each_other_even_when_given_up() {
        let (opener, open) = mpsc::channel();
        let written = Arc::<Mutex<Vec<u8>>>::default();
        let gate = Gate {
            open,
            written: Arc::clone(&written),
        };
        let mut writer = Writer::new("gate".to_owned(), gate);
        let moment = Duration::from_millis(1);
        for _ in 0..3 {
            let write = tokio::time::timeout(moment, writer.write(b"1\n".to_vec()));
            assert!(write.await.is_err());
        }
        opener.send(()).unwrap();
        opener.send(()).unwrap();
        assert_eq!(writer.write(b"2\n".to_vec()).await, Ok(()));
        assert_eq!(*written.lock().unwrap(), b"1\n2\n");
        drop(opener);
        let error = ExportError::Write {
            path: "gate".to_owned(),
            reason: "broken pipe".to_owned(),
        };
        assert_eq!(writer.write(b"3\n".to_vec()).await, Err(error.clone()));
        assert_eq!(writer.write(Vec::new()).await, Err(error));
    }
}
