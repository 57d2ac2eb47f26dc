// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "the helper functions of a test are test code too")]
//! A worker sleeps when idle, and nothing that arrives is left lying.

use plinth_ids::Moment;
use plinth_rt::{
    Inbox, Mode, Poller, Timing, Wake, Waker, Worker, WorkerConfig, allowed_cpus, cycles, inbox,
};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// Long enough for a loaded machine; a test that has to wait for it has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers each message through its own channel.
struct Echo {
    inbox: Inbox<(u64, mpsc::Sender<u64>)>,
    wake: Wake,
    armed: Arc<AtomicU64>,
}

impl Poller for Echo {
    fn poll(&mut self, _now: Moment) -> usize {
        let Some((number, answer)) = self.inbox.take() else { return 0 };
        answer.send(number).unwrap();
        1
    }

    fn arm(&mut self) -> Wake {
        self.armed.fetch_add(1, Ordering::Relaxed);
        self.wake
    }

    fn watch(&self, watch: &mut dyn FnMut(BorrowedFd<'_>)) {
        // A source without descriptor is one that is not named here.
        if self.wake == Wake::Descriptors {
            watch(self.inbox.as_fd());
        }
    }
}

struct Bench {
    worker: Worker,
    sender: plinth_rt::InboxSender<(u64, mpsc::Sender<u64>)>,
    armed: Arc<AtomicU64>,
}

fn bench(mode: Mode, wake: Wake, timing: Timing) -> Bench {
    let (sender, inbox) = inbox(64).unwrap();
    let armed = Arc::new(AtomicU64::new(0));
    let config = WorkerConfig { mode, timing, ..WorkerConfig::new("echo") };
    let thread_armed = Arc::clone(&armed);
    let worker = Worker::spawn(config, move || Echo { inbox, wake, armed: thread_armed }).unwrap();
    Bench { worker, sender, armed }
}

fn wait_until(mut claim: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !claim() {
        assert!(Instant::now() < end, "it did not happen within {PATIENCE:?}");
        std::thread::yield_now();
    }
}

fn call(bench: &Bench, number: u64) {
    let (sender, answer) = mpsc::channel();
    bench.sender.send_within((number, sender), PATIENCE).unwrap();
    assert_eq!(answer.recv_timeout(PATIENCE), Ok(number));
}

#[test]
fn every_message_to_a_worker_that_falls_asleep_is_answered() {
    // With no spin at all the worker is always about to fall asleep: a wake-up that can be lost
    // is lost here, and the timed poll does not hide it, because there is none.
    for mode in [Mode::Interrupt, Mode::Adaptive] {
        let timing = Timing { spin: Duration::ZERO, ..Timing::default() };
        let bench = bench(mode, Wake::Descriptors, timing);
        for number in 0..20_000 {
            call(&bench, number);
        }
        // The last round is counted after its answer has gone out.
        wait_until(|| bench.worker.stats().snapshot().work == 20_000);
        let stats = bench.worker.stats().snapshot();
        assert_eq!(stats.busy_rounds, 20_000);
        assert!(stats.sleeps > 0, "{stats:?}");
    }
}

/// A source that announces work only while it is armed, as a virtio ring does.
#[derive(Default)]
struct Quiet {
    waiting: AtomicU64,
    is_armed: AtomicBool,
}

struct QuietPoller {
    source: Arc<Quiet>,
    waker: Waker,
}

impl Poller for QuietPoller {
    fn poll(&mut self, _now: Moment) -> usize {
        usize::try_from(self.source.waiting.swap(0, Ordering::SeqCst)).unwrap()
    }

    fn arm(&mut self) -> Wake {
        self.source.is_armed.store(true, Ordering::SeqCst);
        Wake::Descriptors
    }

    fn disarm(&mut self) {
        self.source.is_armed.store(false, Ordering::SeqCst);
    }

    fn watch(&self, watch: &mut dyn FnMut(BorrowedFd<'_>)) {
        watch(self.waker.as_fd());
    }
}

#[test]
fn work_that_arrives_just_before_the_arming_is_found() {
    let source = Arc::new(Quiet::default());
    let waker = Waker::new().unwrap();
    let poller = QuietPoller { source: Arc::clone(&source), waker: waker.clone() };
    let config = WorkerConfig { mode: Mode::Interrupt, ..WorkerConfig::new("quiet") };
    let worker = Worker::spawn(config, || poller).unwrap();
    for number in 1..=50_000 {
        source.waiting.fetch_add(1, Ordering::SeqCst);
        if source.is_armed.load(Ordering::SeqCst) {
            waker.wake();
        }
        wait_until(|| worker.stats().snapshot().work == number);
    }
}

#[test]
fn messages_from_many_threads_all_arrive() {
    let bench = bench(Mode::Interrupt, Wake::Descriptors, Timing::default());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let bench = &bench;
            scope
                .spawn(move || (0..2_000).for_each(|number| call(bench, thread * 10_000 + number)));
        }
    });
    wait_until(|| bench.worker.stats().snapshot().work == 8_000);
}

#[test]
fn an_idle_worker_stops_making_rounds() {
    let bench = bench(Mode::Adaptive, Wake::Descriptors, Timing::default());
    wait_until(|| bench.worker.stats().snapshot().sleeps > 0);
    let asleep = bench.worker.stats().snapshot();
    // Only its own message wakes it: the number of rounds between is the wake-up's.
    std::thread::sleep(Duration::from_millis(50));
    let later = bench.worker.stats().snapshot();
    assert!(later.rounds - asleep.rounds < 3, "{asleep:?} {later:?}");
    call(&bench, 1);
}

#[test]
fn a_source_without_descriptor_is_looked_at_from_time_to_time() {
    let timing = Timing { timed_poll_max: Duration::from_millis(2), ..Timing::default() };
    let bench = bench(Mode::Adaptive, Wake::Timer, timing);
    wait_until(|| bench.worker.stats().snapshot().sleeps > 3);
    for number in 0..10 {
        call(&bench, number);
    }
    assert!(bench.armed.load(Ordering::Relaxed) > 0);
}

#[test]
fn a_polling_worker_never_sleeps_and_still_stops() {
    let bench = bench(Mode::Poll, Wake::Descriptors, Timing::default());
    wait_until(|| bench.worker.stats().snapshot().rounds > 100_000);
    call(&bench, 1);
    assert_eq!(bench.worker.stats().snapshot().sleeps, 0);
    assert_eq!(bench.armed.load(Ordering::Relaxed), 0);
    bench.worker.stop();
}

#[test]
fn a_sleeping_worker_stops_and_drops_its_poller_on_its_thread() {
    struct Last(mpsc::Sender<Option<String>>);
    impl Drop for Last {
        fn drop(&mut self) {
            let thread = std::thread::current();
            self.0.send(thread.name().map(str::to_owned)).unwrap();
        }
    }
    impl Poller for Last {
        fn poll(&mut self, _now: Moment) -> usize {
            0
        }
        fn arm(&mut self) -> Wake {
            Wake::Descriptors
        }
    }
    let (sender, dropped) = mpsc::channel();
    let worker = Worker::spawn(WorkerConfig::new("last-words"), move || Last(sender)).unwrap();
    wait_until(|| worker.stats().snapshot().sleeps > 0);
    worker.stop();
    assert_eq!(dropped.try_recv(), Ok(Some("last-words".to_owned())));
}

#[test]
fn a_deadline_ends_the_sleep() {
    struct Alarm {
        at: Option<Moment>,
        rang: mpsc::Sender<Moment>,
    }
    impl Poller for Alarm {
        fn poll(&mut self, now: Moment) -> usize {
            let at = *self.at.get_or_insert(now + Duration::from_millis(30));
            if now < at {
                return 0;
            }
            self.at = Some(Moment::MAX);
            self.rang.send(now - at).unwrap();
            1
        }
        fn deadline(&self) -> Option<Moment> {
            self.at
        }
        fn arm(&mut self) -> Wake {
            Wake::Descriptors
        }
    }
    let (rang, ring) = mpsc::channel();
    let _worker = Worker::spawn(WorkerConfig::new("alarm"), || Alarm { at: None, rang }).unwrap();
    ring.recv_timeout(PATIENCE).unwrap();
}

#[test]
fn a_new_set_of_descriptors_is_watched_without_reading_the_old_one() {
    /// Moves from one inbox to the next at each message.
    struct Mover {
        inboxes: Vec<Inbox<mpsc::Sender<()>>>,
        version: u64,
    }
    impl Poller for Mover {
        fn poll(&mut self, _now: Moment) -> usize {
            let Some(answer) = self.inboxes.last().and_then(Inbox::take) else { return 0 };
            self.inboxes.pop();
            self.version += 1;
            answer.send(()).unwrap();
            1
        }
        fn arm(&mut self) -> Wake {
            Wake::Descriptors
        }
        fn watch(&self, watch: &mut dyn FnMut(BorrowedFd<'_>)) {
            self.inboxes.last().into_iter().for_each(|inbox| watch(inbox.as_fd()));
        }
        fn watch_version(&self) -> u64 {
            self.version
        }
    }
    let (senders, inboxes): (Vec<_>, Vec<_>) = (0..50).map(|_| inbox(1).unwrap()).unzip();
    let config = WorkerConfig { mode: Mode::Interrupt, ..WorkerConfig::new("mover") };
    let _worker = Worker::spawn(config, || Mover { inboxes, version: 0 }).unwrap();
    for sender in senders.iter().rev() {
        let (answer, answered) = mpsc::channel();
        sender.try_send(answer).unwrap();
        answered.recv_timeout(PATIENCE).unwrap();
    }
}

#[test]
fn a_pinned_worker_runs_where_it_was_told_and_its_maker_where_it_was() {
    let all = allowed_cpus().unwrap();
    let cpu = *all.last().unwrap();
    let config = WorkerConfig { cpu: Some(cpu), ..WorkerConfig::new("pinned") };
    let (sender, seen) = mpsc::channel();
    let worker = Worker::spawn(config, move || {
        sender.send(allowed_cpus().unwrap()).unwrap();
        Echo {
            inbox: inbox(1).unwrap().1,
            wake: Wake::Descriptors,
            armed: Arc::new(AtomicU64::new(0)),
        }
    })
    .unwrap();
    assert_eq!(seen.recv_timeout(PATIENCE), Ok(vec![cpu]));
    assert_eq!(allowed_cpus().unwrap(), all);
    worker.stop();
}

#[test]
fn a_cpu_that_is_not_there_is_refused_before_the_poller_is_made() {
    let config = WorkerConfig { cpu: Some(1023), ..WorkerConfig::new("nowhere") };
    let refused = Worker::spawn(config, || -> Echo { panic!("made on a CPU that is not there") });
    assert!(matches!(refused, Err(plinth_rt::SpawnError::Pin { .. })));
}

#[test]
fn busy_cycles_are_those_of_rounds_with_work() {
    struct Burner(u32);
    impl Poller for Burner {
        fn poll(&mut self, _now: Moment) -> usize {
            if self.0 == 0 {
                return 0;
            }
            self.0 -= 1;
            let end = cycles() + 100_000;
            while cycles() < end {}
            7
        }
        fn arm(&mut self) -> Wake {
            Wake::Descriptors
        }
    }
    let worker = Worker::spawn(WorkerConfig::new("burner"), || Burner(10)).unwrap();
    wait_until(|| worker.stats().snapshot().sleeps > 0);
    let stats = worker.stats().snapshot();
    assert_eq!((stats.busy_rounds, stats.work), (10, 70));
    assert!(stats.busy_cycles >= 1_000_000, "{stats:?}");
    let share = stats.busy_share_since(&worker.stats().at_start());
    assert!(share > 0.0 && share <= 1.0, "{share}");
}
