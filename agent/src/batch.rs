//! The batch span processor: a bounded queue before each exporter.
//!
//! The pipeline pushes finished spans and never waits: when a queue is full
//! the span is dropped and counted. One task per exporter takes batches out
//! and exports them one after another, so that a slow receiver holds up only
//! itself (specification, Trace SDK: Batching processor). It counts what
//! becomes of every span; it does not retry, which is the exporter's.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use crate::assemble::Span;
use crate::config::BatchConfig;
use crate::export::{Delivery, ExportError, Exporter};
use crate::stats::ExportStats;

/// Longest delay before an exporter that shows spans as they come.
pub const LIVE_DELAY: Duration = Duration::from_millis(200);

/// Takes spans to the exporters.
///
/// Each exporter has a queue of its own, and with several of them a span is
/// counted once for each.
pub struct Processor {
    sender: Sender,
    shutdown: watch::Sender<Option<Instant>>,
    workers: Vec<JoinHandle<()>>,
}

impl Processor {
    /// Starts a task for each exporter.
    pub fn start(
        exporters: Vec<Box<dyn Exporter>>,
        config: &BatchConfig,
        stats: &Arc<ExportStats>,
        runtime: &Handle,
    ) -> Self {
        let (shutdown, _) = watch::channel(None);
        let mut queues = Vec::new();
        let mut workers = Vec::new();
        for exporter in exporters {
            let queue = Arc::new(Queue::new(config));
            let delay = if exporter.is_live() {
                config.schedule_delay.min(LIVE_DELAY)
            } else {
                config.schedule_delay
            };
            let worker = Worker {
                exporter,
                queue: Arc::clone(&queue),
                stats: Arc::clone(stats),
                shutdown: shutdown.subscribe(),
                delay,
                export_timeout: config.export_timeout,
                lost: None,
            };
            queues.push(queue);
            workers.push(runtime.spawn(worker.run()));
        }
        Self {
            sender: Sender {
                queues: queues.into(),
                stats: Arc::clone(stats),
            },
            shutdown,
            workers,
        }
    }

    /// The end that spans are pushed into.
    pub fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// Takes no more spans, exports those that wait, and returns when that is
    /// done or the time is over; what is left then is dropped and counted.
    pub async fn shutdown(self, time: Duration) {
        for queue in self.sender.queues.iter() {
            queue.close();
        }
        let deadline = Instant::now() + time;
        // There is no receiver only if there is no exporter.
        self.shutdown.send_replace(Some(deadline));
        for worker in self.workers {
            if let Err(error) = worker.await {
                tracing::error!(%error, "an exporter's task failed");
            }
        }
    }
}

/// Pushes spans to the exporters.
#[derive(Clone)]
pub struct Sender {
    queues: Arc<[Arc<Queue>]>,
    stats: Arc<ExportStats>,
}

impl Sender {
    /// Hands over a span; never waits for an exporter.
    pub fn push(&self, span: Span) {
        let Some((last, others)) = self.queues.split_last() else {
            return;
        };
        for queue in others {
            self.push_to(queue, span.clone());
        }
        self.push_to(last, span);
    }

    fn push_to(&self, queue: &Queue, span: Span) {
        self.stats.spans_received.one();
        match queue.push(span) {
            Ok(()) => {}
            Err(Full::Full) => self.stats.queue_full.one(),
            Err(Full::Closed) => self.stats.shutdown.one(),
        }
    }
}

/// Why a queue did not take a span.
enum Full {
    /// It holds all it may.
    Full,
    /// The processor is shutting down.
    Closed,
}

/// Spans that wait for one exporter.
struct Queue {
    waiting: Mutex<Waiting>,
    /// Wakes the worker when a batch is complete.
    batch_ready: Notify,
    max_len: usize,
    batch_len: usize,
}

#[derive(Default)]
struct Waiting {
    spans: VecDeque<Span>,
    is_closed: bool,
}

impl Queue {
    fn new(config: &BatchConfig) -> Self {
        Self {
            waiting: Mutex::default(),
            batch_ready: Notify::new(),
            max_len: config.max_queue_size,
            batch_len: config
                .max_export_batch_size
                .clamp(1, config.max_queue_size.max(1)),
        }
    }

    fn push(&self, span: Span) -> Result<(), Full> {
        let len = {
            let mut waiting = self.lock();
            if waiting.is_closed {
                return Err(Full::Closed);
            }
            if waiting.spans.len() >= self.max_len {
                return Err(Full::Full);
            }
            waiting.spans.push_back(span);
            waiting.spans.len()
        };
        // Once is enough: the worker looks at the length before it sleeps.
        if len == self.batch_len {
            self.batch_ready.notify_one();
        }
        Ok(())
    }

    /// The oldest spans, at most a batch of them.
    fn take(&self) -> Vec<Span> {
        let mut waiting = self.lock();
        let len = waiting.spans.len().min(self.batch_len);
        waiting.spans.drain(..len).collect()
    }

    fn len(&self) -> usize {
        self.lock().spans.len()
    }

    fn close(&self) {
        self.lock().is_closed = true;
    }

    /// A queue is whole between any two of its operations, so a panic
    /// elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task of one exporter.
struct Worker {
    exporter: Box<dyn Exporter>,
    queue: Arc<Queue>,
    stats: Arc<ExportStats>,
    shutdown: watch::Receiver<Option<Instant>>,
    delay: Duration,
    export_timeout: Duration,
    /// Spans lost since exports began to fail; none while they succeed.
    lost: Option<u64>,
}

impl Worker {
    async fn run(mut self) {
        let mut next = Instant::now() + self.delay;
        while self.shutdown.borrow().is_none() {
            let is_due = Instant::now() >= next;
            if !is_due && self.queue.len() < self.queue.batch_len {
                tokio::select! {
                    () = self.queue.batch_ready.notified() => {}
                    () = sleep_until(next) => {}
                    // An error means that the processor is gone; so is the
                    // one who could have asked for a shutdown.
                    changed = self.shutdown.changed() => if changed.is_err() {
                        return;
                    }
                }
                continue;
            }
            // When it is due, all that waits now; else only whole batches.
            let mut left = if is_due {
                self.queue.len()
            } else {
                self.queue.batch_len
            };
            loop {
                let batch = self.queue.take();
                left = left.saturating_sub(batch.len().max(1));
                if !batch.is_empty() || self.exporter.is_live() {
                    self.export(batch).await;
                }
                if left == 0 || self.shutdown.borrow().is_some() {
                    break;
                }
            }
            next = Instant::now() + self.delay;
        }
        self.drain().await;
    }

    /// Exports what waits until nothing does or the deadline has passed.
    async fn drain(&mut self) {
        loop {
            let batch = self.queue.take();
            if batch.is_empty() {
                break;
            }
            self.export(batch).await;
        }
        let mut shutdown = self.shutdown.clone();
        tokio::select! {
            biased;
            result = self.exporter.finish() => if let Err(error) = result {
                tracing::warn!(exporter = self.exporter.name(), %error, "last export failed");
            },
            () = past_deadline(&mut shutdown) => {}
        }
    }

    async fn export(&mut self, batch: Vec<Span>) {
        let count = batch.len() as u64;
        let mut shutdown = self.shutdown.clone();
        let is_late = shutdown
            .borrow()
            .is_some_and(|deadline| deadline <= Instant::now());
        if is_late {
            self.stats.shutdown.add(count);
            return;
        }
        let result = tokio::select! {
            biased;
            result = timeout(self.export_timeout, self.exporter.export(batch)) => result,
            () = past_deadline(&mut shutdown) => {
                self.stats.shutdown.add(count);
                return;
            }
        };
        let result = result.unwrap_or_else(|_| {
            Err(ExportError::GaveUp {
                attempts: 1,
                reason: format!("not exported within {:?}", self.export_timeout),
            })
        });
        match result {
            Ok(delivery) => self.delivered(count, &delivery),
            Err(error) => self.failed(count, &error),
        }
    }

    fn delivered(&mut self, count: u64, delivery: &Delivery) {
        let exporter = self.exporter.name();
        let rejected = delivery.rejected.min(count);
        self.stats.rejected.add(rejected);
        self.stats.spans_exported.add(count - rejected);
        if rejected > 0 {
            let message = &delivery.message;
            tracing::warn!(exporter, rejected, of = count, %message, "receiver rejected spans");
        } else if !delivery.message.is_empty() {
            tracing::warn!(exporter, message = %delivery.message, "receiver warns");
        }
        if let Some(lost) = self.lost.take() {
            tracing::info!(exporter, lost, "exports succeed again");
        }
    }

    /// Counts a failure; only the first of a row is worth a warning.
    fn failed(&mut self, count: u64, error: &ExportError) {
        let exporter = self.exporter.name();
        let reason = match error {
            ExportError::GaveUp { .. } => &self.stats.gave_up,
            ExportError::Refused(_) | ExportError::Write { .. } => &self.stats.refused,
            ExportError::TooLarge { .. } => &self.stats.too_large,
        };
        reason.add(count);
        if self.lost.is_none() {
            tracing::warn!(exporter, spans = count, %error, "export failed");
        } else {
            tracing::debug!(exporter, spans = count, %error, "export failed");
        }
        self.lost = Some(self.lost.unwrap_or(0).saturating_add(count));
    }
}

/// Ends when a shutdown was asked for and its time is over.
async fn past_deadline(shutdown: &mut watch::Receiver<Option<Instant>>) {
    loop {
        let deadline = *shutdown.borrow_and_update();
        if let Some(deadline) = deadline {
            return sleep_until(deadline).await;
        }
        if shutdown.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::Exporting;
    use crate::protocol::{Exchange, Role, Status};
    use crate::resource::Resource;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn span(id: u8) -> Span {
        Span {
            resource: Arc::new(Resource {
                attributes: Vec::new(),
            }),
            trace_id: [id; 16],
            span_id: [id; 8],
            parent: None,
            flags: 1,
            trace_state: String::new(),
            role: Role::Server,
            start: 1,
            end: 2,
            exchange: Exchange {
                scope: "otel-ebpf.http".into(),
                route_key: None,
                name: "GET /".into(),
                attributes: Vec::new(),
                status: Status::Unset,
            },
            events: Vec::new(),
        }
    }

    /// What an exporter does with each batch.
    #[derive(Clone)]
    enum Act {
        Accept,
        Reject(u64),
        Fail(ExportError),
        Take(Duration),
        Hang,
    }

    #[derive(Default)]
    struct Seen {
        /// When each batch came, in milliseconds, and its length.
        batches: Mutex<Vec<(u128, usize)>>,
        running: AtomicUsize,
        finished: AtomicUsize,
    }

    struct Fake {
        act: Act,
        live: bool,
        start: Instant,
        seen: Arc<Seen>,
    }

    impl Exporter for Fake {
        fn name(&self) -> &'static str {
            "fake"
        }

        fn export(&mut self, spans: Vec<Span>) -> Exporting<'_> {
            Box::pin(async move {
                let time = self.start.elapsed().as_millis();
                self.seen.batches.lock().unwrap().push((time, spans.len()));
                assert_eq!(
                    self.seen.running.fetch_add(1, Ordering::SeqCst),
                    0,
                    "concurrent"
                );
                let result = match self.act.clone() {
                    Act::Accept => Ok(Delivery::default()),
                    Act::Reject(rejected) => Ok(Delivery {
                        rejected,
                        message: "no".to_owned(),
                    }),
                    Act::Fail(error) => Err(error),
                    Act::Take(time) => {
                        tokio::time::sleep(time).await;
                        Ok(Delivery::default())
                    }
                    Act::Hang => std::future::pending().await,
                };
                self.seen.running.fetch_sub(1, Ordering::SeqCst);
                result
            })
        }

        fn is_live(&self) -> bool {
            self.live
        }

        fn finish(&mut self) -> Exporting<'_> {
            self.seen.finished.fetch_add(1, Ordering::SeqCst);
            Box::pin(async { Ok(Delivery::default()) })
        }
    }

    struct Setup {
        processor: Processor,
        seen: Arc<Seen>,
        stats: Arc<ExportStats>,
    }

    fn fake(act: Act, live: bool) -> (Box<dyn Exporter>, Arc<Seen>) {
        let seen = Arc::<Seen>::default();
        let exporter = Fake {
            act,
            live,
            start: Instant::now(),
            seen: Arc::clone(&seen),
        };
        (Box::new(exporter), seen)
    }

    fn setup(act: Act, live: bool) -> Setup {
        let (exporter, seen) = fake(act, live);
        let stats = Arc::<ExportStats>::default();
        let config = BatchConfig {
            max_queue_size: 8,
            max_export_batch_size: 3,
            ..BatchConfig::default()
        };
        let processor = Processor::start(vec![exporter], &config, &stats, &Handle::current());
        Setup {
            processor,
            seen,
            stats,
        }
    }

    impl Setup {
        fn push(&self, count: u8) {
            let sender = self.processor.sender();
            for id in 0..count {
                sender.push(span(id));
            }
        }

        fn batches(&self) -> Vec<(u128, usize)> {
            self.seen.batches.lock().unwrap().clone()
        }
    }

    async fn pass(millis: u64) {
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }

    /// Nonzero counters.
    fn counts(stats: &ExportStats) -> Vec<(&'static str, u64)> {
        let values = stats.values();
        values.into_iter().filter(|(_, value)| *value > 0).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_span_waits_for_the_delay_and_a_full_batch_does_not() {
        let setup = setup(Act::Accept, false);
        setup.push(2);
        pass(6_000).await;
        setup.push(7);
        pass(100).await;
        let batches = setup.batches();
        assert_eq!(
            batches.iter().map(|batch| batch.1).collect::<Vec<_>>(),
            [2, 3, 3]
        );
        assert!((5_000..5_010).contains(&batches[0].0), "{batches:?}");
        assert!((6_000..6_010).contains(&batches[2].0), "{batches:?}");
        pass(5_000).await;
        assert_eq!(setup.batches().len(), 4);
        assert_eq!(
            counts(&setup.stats),
            [("export.spans", 9), ("export.exported", 9)]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn all_that_waits_goes_when_the_delay_is_over() {
        let setup = setup(Act::Take(Duration::from_secs(1)), false);
        setup.push(8);
        pass(4_500).await;
        assert_eq!(setup.batches(), [(0, 3), (1_000, 3)]);
        pass(10_000).await;
        assert_eq!(
            setup.batches().iter().map(|batch| batch.1).sum::<usize>(),
            8
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_drops_and_counts() {
        let setup = setup(Act::Hang, false);
        setup.push(3);
        pass(1).await;
        setup.push(20);
        assert_eq!(
            counts(&setup.stats),
            [("export.spans", 23), ("export.dropped.queue_full", 12)]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_hanging_export_is_given_up() {
        let setup = setup(Act::Hang, false);
        setup.push(3);
        pass(30_100).await;
        assert_eq!(
            counts(&setup.stats),
            [("export.spans", 3), ("export.dropped.gave_up", 3)]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn every_outcome_has_its_counter() {
        let outcome = async |act| {
            let setup = setup(act, false);
            setup.push(3);
            pass(1).await;
            counts(&setup.stats)[1..].to_vec()
        };
        let fail = |error| Act::Fail(error);
        assert_eq!(
            outcome(Act::Reject(2)).await,
            [("export.exported", 1), ("export.dropped.rejected", 2)]
        );
        assert_eq!(
            outcome(Act::Reject(99)).await,
            [("export.dropped.rejected", 3)]
        );
        assert_eq!(
            outcome(fail(ExportError::Refused(String::new()))).await,
            [("export.dropped.refused", 3)]
        );
        assert_eq!(
            outcome(fail(ExportError::TooLarge { bytes: 1 })).await,
            [("export.dropped.too_large", 3)]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_exports_what_waits() {
        let setup = setup(Act::Take(Duration::from_secs(1)), false);
        setup.push(8);
        let sender = setup.processor.sender();
        setup.processor.shutdown(Duration::from_secs(10)).await;
        assert_eq!(setup.seen.finished.load(Ordering::SeqCst), 1);
        sender.push(span(1));
        assert_eq!(
            counts(&setup.stats),
            [
                ("export.spans", 9),
                ("export.exported", 8),
                ("export.dropped.shutdown", 1)
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_ends_at_its_deadline() {
        let setup = setup(Act::Hang, false);
        setup.push(8);
        pass(1).await;
        let start = Instant::now();
        setup.processor.shutdown(Duration::from_secs(2)).await;
        assert!(
            start.elapsed() < Duration::from_millis(2_010),
            "{:?}",
            start.elapsed()
        );
        assert_eq!(
            counts(&setup.stats),
            [("export.spans", 8), ("export.dropped.shutdown", 8)]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_exporter_does_not_hold_up_another() {
        let (slow, _) = fake(Act::Hang, false);
        let (quick, seen) = fake(Act::Accept, false);
        let stats = Arc::<ExportStats>::default();
        let config = BatchConfig::default();
        let processor = Processor::start(vec![slow, quick], &config, &stats, &Handle::current());
        for _ in 0..3 {
            processor.sender().push(span(1));
            pass(6_000).await;
        }
        assert_eq!(seen.batches.lock().unwrap().len(), 3);
        assert_eq!(stats.spans_received.value(), 6);
        assert_eq!(stats.spans_exported.value(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn live_exporters_are_served_often() {
        let setup = setup(Act::Accept, true);
        setup.push(1);
        pass(450).await;
        assert_eq!(setup.batches(), [(200, 1), (400, 0)]);
    }

    #[tokio::test(start_paused = true)]
    async fn without_exporters_spans_go_nowhere() {
        let stats = Arc::<ExportStats>::default();
        let processor = Processor::start(
            Vec::new(),
            &BatchConfig::default(),
            &stats,
            &Handle::current(),
        );
        processor.sender().push(span(1));
        processor.shutdown(Duration::from_secs(1)).await;
        assert_eq!(counts(&stats), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_processor_ends_its_tasks() {
        let setup = setup(Act::Accept, false);
        let queue = Arc::downgrade(&setup.processor.sender.queues[0]);
        drop(setup.processor);
        pass(1).await;
        assert!(queue.upgrade().is_none());
    }
}
