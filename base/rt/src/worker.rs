// SPDX-License-Identifier: Apache-2.0
//! The thread and its rounds.

use crate::epoll::Epoll;
use crate::{AffinityError, Clock, Poller, Wake, Waker, WorkerStats, cycles, pin_to};
use plinth_ids::Moment;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

/// What a worker does when there is nothing to do.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Mode {
    /// Never sleeps: the whole CPU, the least latency.
    Poll,
    /// Spins for a while, then sleeps.
    #[default]
    Adaptive,
    /// Sleeps as soon as a round finds nothing.
    Interrupt,
}

impl std::str::FromStr for Mode {
    type Err = ModeError;

    fn from_str(text: &str) -> Result<Self, ModeError> {
        match text {
            "poll" => Ok(Self::Poll),
            "adaptive" => Ok(Self::Adaptive),
            "interrupt" => Ok(Self::Interrupt),
            _ => Err(ModeError { text: text.to_owned() }),
        }
    }
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{text:?} is no worker mode: write poll, adaptive or interrupt")]
pub struct ModeError {
    text: String,
}

/// The trade between CPU and latency.
///
/// `spin` is what an idle gap may last before a wake-up is paid for it. The timed poll is only
/// used while a source has no descriptor: a packet that comes to it while the worker sleeps
/// waits for up to `timed_poll_min` if the last work is recent, up to `timed_poll_max` if it is
/// not; one look costs tens of µs of CPU, most of it the wake-up (docs/dataplane-io.md).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timing {
    pub spin: Duration,
    pub timed_poll_min: Duration,
    pub timed_poll_max: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            spin: Duration::from_micros(100),
            timed_poll_min: Duration::from_millis(1),
            timed_poll_max: Duration::from_millis(8),
        }
    }
}

/// After this many looks that found nothing, the time between two looks doubles.
const LOOKS_BEFORE_BACKOFF: u32 = 64;

#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Of the thread; Linux keeps the first 15 bytes.
    pub name: String,
    pub cpu: Option<u32>,
    pub mode: Mode,
    pub timing: Timing,
    /// The clock that gives the poller its `now`.
    pub clock: Clock,
}

impl WorkerConfig {
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            cpu: None,
            mode: Mode::default(),
            timing: Timing::default(),
            clock: Clock::new(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("no eventfd or epoll set for the worker")]
    Descriptor { source: io::Error },
    #[error("the worker's thread cannot be started")]
    Thread { source: io::Error },
    #[error("the worker cannot be pinned")]
    Pin { source: AffinityError },
}

/// A running worker. Dropping it stops it and waits for its thread.
#[derive(Debug)]
pub struct Worker {
    thread: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    waker: Waker,
    stats: Arc<WorkerStats>,
}

impl Worker {
    /// Starts a thread, pins it, and runs the poller that `make` gives. `make` runs on the
    /// thread, so that what belongs to one thread is made there.
    ///
    /// # Errors
    /// Before `make` runs, or not at all.
    pub fn spawn<P: Poller>(
        config: WorkerConfig,
        make: impl FnOnce() -> P + Send + 'static,
    ) -> Result<Self, SpawnError> {
        let descriptor = |source| SpawnError::Descriptor { source };
        let waker = Waker::new().map_err(descriptor)?;
        let epoll = Epoll::new().map_err(descriptor)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stats = Arc::new(WorkerStats::new());
        let (started, start) = mpsc::channel();
        let (thread_stop, thread_waker) = (Arc::clone(&stop), waker.clone());
        let thread_stats = Arc::clone(&stats);
        let thread = std::thread::Builder::new()
            .name(config.name.clone())
            .spawn(move || {
                let pinned = config.cpu.map_or(Ok(()), pin_to);
                let is_pinned = pinned.is_ok();
                // The other end waits for exactly this message.
                let _ = started.send(pinned);
                if is_pinned {
                    let mut rounds = Rounds {
                        poller: make(),
                        config,
                        epoll,
                        watched: None,
                        waker: thread_waker,
                        stop: thread_stop,
                        stats: thread_stats,
                    };
                    rounds.run();
                }
            })
            .map_err(|source| SpawnError::Thread { source })?;
        start
            .recv()
            .expect("the thread sends before anything that could end it")
            .map_err(|source| SpawnError::Pin { source })?;
        Ok(Self { thread: Some(thread), stop, waker, stats })
    }

    pub fn stats(&self) -> &Arc<WorkerStats> {
        &self.stats
    }

    pub fn waker(&self) -> &Waker {
        &self.waker
    }

    /// Whether the thread is still there: it is until [`Self::stop`], unless it panicked.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Lets the present round end, drops the poller on its thread and waits for that.
    /// What must be drained first is a message to the poller.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // Release: pairs with the worker's Acquire load, so that what was written before the
        // stop is seen by the poller's drop.
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
        if let Some(thread) = self.thread.take()
            && let Err(panic) = thread.join()
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
    }
}

/// The state of the loop.
struct Rounds<P> {
    poller: P,
    config: WorkerConfig,
    epoll: Epoll,
    /// The version of the poller's descriptors that `epoll` has, `None` before the first sleep.
    watched: Option<u64>,
    waker: Waker,
    stop: Arc<AtomicBool>,
    stats: Arc<WorkerStats>,
}

impl<P: Poller> Rounds<P> {
    fn run(&mut self) {
        let spin = match self.config.mode {
            Mode::Poll => Duration::MAX,
            Mode::Adaptive => self.config.timing.spin,
            Mode::Interrupt => Duration::ZERO,
        };
        let mut busy_at = self.config.clock.now();
        while !self.is_stopped() {
            let (work, now) = self.round();
            if work > 0 {
                busy_at = now;
            } else if now.saturating_sub(busy_at) >= spin {
                self.idle();
                busy_at = self.config.clock.now();
            } else {
                std::hint::spin_loop();
            }
        }
    }

    fn is_stopped(&self) -> bool {
        // Acquire: see `Worker::end`.
        self.stop.load(Ordering::Acquire)
    }

    fn round(&mut self) -> (usize, Moment) {
        let before = cycles();
        let now = self.config.clock.now();
        let work = self.poller.poll(now);
        self.stats.count_round(work, cycles().saturating_sub(before));
        (work, now)
    }

    /// Armed until a round finds work or the worker is stopped.
    fn idle(&mut self) {
        let wake = self.poller.arm();
        let mut interval = self.config.timing.timed_poll_min;
        let mut looks = 0u32;
        loop {
            let (work, now) = self.round();
            if work > 0 || self.is_stopped() {
                break;
            }
            let all_watched = self.watch();
            let timed = wake == Wake::Timer || !all_watched;
            let until_deadline =
                self.poller.deadline().map(|deadline| deadline.saturating_sub(now));
            let limit = match (until_deadline, timed.then_some(interval)) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            self.stats.count_sleep();
            if self.epoll.sleep(limit) {
                // A descriptor was ready: whatever it announced is found by a plain round.
                break;
            }
            looks = looks.saturating_add(1);
            if looks.is_multiple_of(LOOKS_BEFORE_BACKOFF) {
                interval = (interval * 2).min(self.config.timing.timed_poll_max);
            }
        }
        self.poller.disarm();
    }

    /// Brings the epoll set up to the poller's descriptors. `false` when one of them, or the
    /// set itself, cannot be had: the timed poll then stands in.
    fn watch(&mut self) -> bool {
        let version = self.poller.watch_version();
        if self.watched == Some(version) {
            return true;
        }
        let Ok(epoll) = Epoll::new() else {
            self.stats.count_unwatchable();
            return false;
        };
        let mut all = epoll.add(self.waker.as_fd()).is_ok();
        self.poller.watch(&mut |fd| {
            if epoll.add(fd).is_err() {
                all = false;
            }
        });
        self.epoll = epoll;
        if all {
            self.watched = Some(version);
        } else {
            self.stats.count_unwatchable();
        }
        all
    }
}
