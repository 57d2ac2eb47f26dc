// SPDX-License-Identifier: Apache-2.0
//! The workers, and the way from management threads to them.
//!
//! A message about a pool goes to the worker that keeps the pool, one about an attachment to the
//! worker that has its queues. What several workers have of a pool is gathered in `gather.rs`.

use crate::engine::{Engine, worker_of};
use crate::message::{Answer, EngineRefusal, Message};
use crossbeam_channel::{Sender, bounded};
use plinth_backends::{DeviceToken, WorkerLink};
use plinth_ids::PoolId;
use plinth_metrics::Metrics;
use plinth_obs::Chain;
use plinth_rt::{Bell, InboxSender, SpawnError, Worker, WorkerConfig, WorkerStats, inbox};
use plinth_volume::{VolumeAnswer, VolumeHandle, VolumeRequest};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Messages that may wait for a worker.
const INBOX: usize = 64;

/// Queues that may wait to be taken over.
const EVENTS: usize = 256;

/// How long a message may wait for room. The worker takes some each round; without it for this
/// long there is none.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a worker measures with.
#[derive(Clone, Debug)]
pub(crate) struct Instruments {
    pub(crate) metrics: Arc<Metrics>,
    /// Milliseconds from which on a request is slow.
    pub(crate) slow_ms: u64,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("no descriptor is left for the worker's inbox")]
    Inbox { source: io::Error },
    #[error("the worker cannot be started")]
    Spawn { source: SpawnError },
}

/// One worker, from outside.
#[derive(Debug)]
struct Hand {
    worker: Worker,
    inbox: InboxSender<Message>,
    link: WorkerLink,
    bell: Bell,
    cpu: Option<u32>,
}

/// The workers, and who of them has what.
#[derive(Debug)]
struct Crew {
    /// What a worker is started with, but for its name and CPU.
    config: WorkerConfig,
    instruments: Instruments,
    hands: Mutex<Vec<Hand>>,
    book: Mutex<Book>,
    next_host: AtomicU64,
}

/// Who has what. Only management threads look here.
#[derive(Debug, Default)]
struct Book {
    /// The workers that keep pools.
    homes: BTreeMap<PoolId, usize>,
    /// Pools that have a door at a worker.
    doors: BTreeSet<(PoolId, usize)>,
    /// Volumes that are held for attachments behind doors.
    held: BTreeMap<u64, (PoolId, VolumeHandle)>,
}

/// Asks the workers. Clones ask the same ones.
#[derive(Clone, Debug)]
pub(crate) struct WorkerPort {
    crew: Arc<Crew>,
}

/// Starts the first worker.
pub(crate) fn start(
    config: WorkerConfig,
    instruments: Instruments,
) -> Result<WorkerPort, StartError> {
    let cpu = config.cpu;
    let crew = Crew {
        config,
        instruments,
        hands: Mutex::default(),
        book: Mutex::default(),
        next_host: AtomicU64::new(1),
    };
    let first = crew.spawn(0, cpu)?;
    crew.hands().push(first);
    Ok(WorkerPort { crew: Arc::new(crew) })
}

impl Crew {
    /// A panic ends the process, so a lock is never found poisoned by a live one.
    fn hands(&self) -> MutexGuard<'_, Vec<Hand>> {
        self.hands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(&self, number: u8, cpu: Option<u32>) -> Result<Hand, StartError> {
        let descriptor = |source| StartError::Inbox { source };
        let mut config = self.config.clone();
        config.cpu = cpu;
        if number > 0 {
            config.name = format!("{}-{number}", config.name);
        }
        let (sender, receiver) = inbox(INBOX).map_err(descriptor)?;
        let bell = Bell::new().map_err(descriptor)?;
        let (events, event_receiver) = bounded(EVENTS);
        let (instruments, own_bell) = (self.instruments.clone(), bell.clone());
        let make = move || Engine::new(number, (receiver, own_bell), event_receiver, instruments);
        let worker = Worker::spawn(config, make).map_err(|source| StartError::Spawn { source })?;
        let waker = sender.clone();
        let link = WorkerLink::new(events, Arc::new(move || waker.wake()));
        Ok(Hand { worker, inbox: sender, link, bell, cpu })
    }
}

impl WorkerPort {
    /// Brings the workers to these CPUs: starts those that are missing, and moves those that run
    /// elsewhere. Workers that are too many stay, without work, until the process ends.
    ///
    /// # Errors
    /// What could not be done, for people.
    pub(crate) fn arrange(&self, cpus: &[u32]) -> Result<(), String> {
        for (number, &cpu) in (0u8..).zip(cpus) {
            let known = self.crew.hands().get(usize::from(number)).map(|hand| hand.cpu);
            match known {
                Some(known) if known == Some(cpu) => {}
                Some(_) => {
                    let (answer, answered) = bounded(1);
                    self.tell_to(usize::from(number), Message::Pin { cpu, answer })
                        .map_err(|error| Chain(&error).to_string())?;
                    let pinned = answered.recv().map_err(|_| "the worker has ended".to_owned())?;
                    pinned.map_err(|error| Chain(&error).to_string())?;
                    if let Some(hand) = self.crew.hands().get_mut(usize::from(number)) {
                        hand.cpu = Some(cpu);
                    }
                }
                None => {
                    let hand = self.crew.spawn(number, Some(cpu));
                    let hand = hand.map_err(|error| Chain(&error).to_string())?;
                    self.crew.hands().push(hand);
                    tracing::info!(worker = number, cpu, "worker started");
                }
            }
        }
        Ok(())
    }

    /// Ends all workers. Nothing is served by them any more.
    pub(crate) fn stop(&self) {
        let hands = std::mem::take(&mut *self.crew.hands());
        for hand in hands {
            hand.worker.stop();
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.crew.hands().len()
    }

    pub(crate) fn stats(&self) -> Vec<Arc<WorkerStats>> {
        self.crew.hands().iter().map(|hand| Arc::clone(hand.worker.stats())).collect()
    }

    /// The way from device threads to the worker of an attachment.
    pub(crate) fn link(&self, token: DeviceToken) -> Result<WorkerLink, EngineRefusal> {
        let worker = worker_of(token);
        let hands = self.crew.hands();
        let missing = EngineRefusal::WorkerMissing { worker };
        hands.get(worker).map(|hand| hand.link.clone()).ok_or(missing)
    }

    pub(crate) fn bell(&self, worker: usize) -> Result<Bell, EngineRefusal> {
        let hands = self.crew.hands();
        let missing = EngineRefusal::WorkerMissing { worker };
        hands.get(worker).map(|hand| hand.bell.clone()).ok_or(missing)
    }

    /// From here on this worker keeps the pool.
    pub(crate) fn settle(&self, pool: PoolId, worker: usize) -> Result<(), EngineRefusal> {
        self.bell(worker)?;
        self.crew.book().homes.insert(pool, worker);
        Ok(())
    }

    /// The worker that keeps a pool. Of one that nobody keeps, the first, which says so.
    pub(crate) fn home(&self, pool: PoolId) -> usize {
        self.crew.book().homes.get(&pool).copied().unwrap_or(0)
    }

    /// A number that no other disk has.
    pub(crate) fn new_host(&self) -> crate::seat::HostId {
        // Only makes numbers differ; publishes nothing.
        crate::seat::HostId(self.crew.next_host.fetch_add(1, Ordering::Relaxed))
    }

    /// Whether this is the first to ask for a door of the pool at the worker.
    pub(crate) fn note_door(&self, pool: PoolId, worker: usize) -> bool {
        self.crew.book().doors.insert((pool, worker))
    }

    /// The workers at which the pool has doors; it has none any more.
    pub(crate) fn forget_doors(&self, pool: PoolId) -> Vec<usize> {
        let mut book = self.crew.book();
        let (gone, stay) = std::mem::take(&mut book.doors).into_iter().partition(|at| at.0 == pool);
        book.doors = stay;
        let gone: BTreeSet<(PoolId, usize)> = gone;
        gone.into_iter().map(|(_, worker)| worker).collect()
    }

    pub(crate) fn note_held(&self, token: DeviceToken, pool: PoolId, handle: VolumeHandle) {
        self.crew.book().held.insert(token.0, (pool, handle));
    }

    pub(crate) fn forget_held(&self, token: DeviceToken) -> Option<(PoolId, VolumeHandle)> {
        self.crew.book().held.remove(&token.0)
    }

    /// Sends a message whose answer nobody waits for here, to whom it is about.
    pub(crate) fn tell(&self, message: Message) -> Result<(), EngineRefusal> {
        let of_pool = message.pool().map(|pool| self.home(pool));
        let worker = of_pool.or_else(|| message.token().map(worker_of)).unwrap_or(0);
        self.tell_to(worker, message)
    }

    /// The same, to a certain worker.
    pub(crate) fn tell_to(&self, worker: usize, message: Message) -> Result<(), EngineRefusal> {
        let inbox = {
            let hands = self.crew.hands();
            if hands.is_empty() {
                return Err(EngineRefusal::Stopping);
            }
            let missing = EngineRefusal::WorkerMissing { worker };
            hands.get(worker).map(|hand| hand.inbox.clone()).ok_or(missing)?
        };
        inbox.send_within(message, PATIENCE).map_err(|_| EngineRefusal::Stopping)
    }

    /// Sends a message and waits for its answer.
    pub(crate) fn ask<T>(
        &self,
        message: impl FnOnce(Answer<T>) -> Message,
    ) -> Result<T, EngineRefusal> {
        let (answer, answered) = bounded(1);
        self.tell(message(answer))?;
        answered.recv().map_err(|_| EngineRefusal::Stopping)?
    }

    /// The same, to a certain worker.
    pub(crate) fn ask_of<T>(
        &self,
        worker: usize,
        message: impl FnOnce(Answer<T>) -> Message,
    ) -> Result<T, EngineRefusal> {
        let (answer, answered) = bounded(1);
        self.tell_to(worker, message(answer))?;
        answered.recv().map_err(|_| EngineRefusal::Stopping)?
    }

    /// Asks every worker something that is never refused.
    pub(crate) fn look<T>(
        &self,
        message: impl Fn(Sender<Vec<T>>) -> Message,
    ) -> Result<Vec<T>, EngineRefusal> {
        let mut all = Vec::new();
        for worker in 0..self.count().max(1) {
            let (answer, answered) = bounded(1);
            self.tell_to(worker, message(answer))?;
            all.extend(answered.recv().map_err(|_| EngineRefusal::Stopping)?);
        }
        Ok(all)
    }

    /// Has a pool carry out one request and waits for its end.
    pub(crate) fn carry_out(
        &self,
        pool: PoolId,
        request: VolumeRequest,
    ) -> Result<(), EngineRefusal> {
        let (done, ended) = bounded(1);
        self.tell(Message::Submit { pool, tag: 0, request, done })?;
        let completion = ended.recv().map_err(|_| EngineRefusal::PoolMissing { pool })?;
        completion.result.map_err(EngineRefusal::Volume)
    }

    /// Asks a pool something and waits for the answer.
    pub(crate) fn question(
        &self,
        pool: PoolId,
        request: VolumeRequest,
    ) -> Result<VolumeAnswer, EngineRefusal> {
        let (done, ended) = bounded(1);
        self.tell(Message::Submit { pool, tag: 0, request, done })?;
        let completion = ended.recv().map_err(|_| EngineRefusal::PoolMissing { pool })?;
        completion.result?;
        completion.answer.map(|answer| *answer).ok_or(EngineRefusal::Stopping)
    }

    /// Has a pool start one request; its end comes to `done`.
    pub(crate) fn submit(
        &self,
        pool: PoolId,
        tag: u64,
        request: VolumeRequest,
        done: Sender<plinth_volume::VolumeCompletion>,
    ) -> Result<(), EngineRefusal> {
        self.tell(Message::Submit { pool, tag, request, done })
    }
}
