// SPDX-License-Identifier: Apache-2.0
//! The way from management threads to the worker, and the worker's start.

use crossbeam_channel::{Sender, bounded};
use plinth_backends::WorkerLink;
use plinth_dpdk::Eal;
use plinth_ids::Moment;
use plinth_ports::{
    Answer, AnsweringPort, Capture, DataPath, Discarded, HandedStep, Message, Question, Scanned,
    WakeWorker, asking,
};
use plinth_rt::{InboxSender, SpawnError, Worker, WorkerConfig, inbox};
use plinth_vswitch::{FlowCopy, FlowFilter, HandedPlace, Limits, TakeOverError, TakenConnections};
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Messages that may wait for the worker.
const INBOX: usize = 64;

/// Queues that may wait to be taken over.
const EVENTS: usize = 256;

/// Bytes of the connections that one step writes down, at most.
const HANDED_STEP: usize = 128 * 1024;

/// How long a message may wait for room, and its answer for the worker. The worker takes some
/// each round, and a round is far below a millisecond.
const PATIENCE: Duration = Duration::from_secs(4);

#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("no descriptor is left for the worker's inbox or for questions of guests")]
    Inbox { source: io::Error },
    #[error("the worker cannot be started")]
    Spawn { source: SpawnError },
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the worker has not answered for {} s; restart plinth-switchd", PATIENCE.as_secs())]
pub(crate) struct WorkerSilent;

/// Asks the worker. Clones ask the same one.
#[derive(Clone, Debug)]
pub(crate) struct WorkerPort {
    inbox: InboxSender<Message>,
}

/// A worker that runs, and the ways to it.
pub(crate) struct Started {
    pub(crate) worker: Worker,
    pub(crate) port: WorkerPort,
    /// For the threads of devices.
    pub(crate) link: WorkerLink,
    /// For the thread that answers guests.
    pub(crate) answering: AnsweringPort,
}

/// Starts the worker.
pub(crate) fn start(config: WorkerConfig, eal: Eal, limits: Limits) -> Result<Started, StartError> {
    let (sender, receiver) = inbox(INBOX).map_err(|source| StartError::Inbox { source })?;
    let (events, event_receiver) = bounded(EVENTS);
    // Guests must not know the flow table's seed; std draws one from the system for its maps.
    let seed = RandomState::new().build_hasher().finish();
    let waker = sender.clone();
    let wake = WakeWorker(Arc::new(move || waker.wake()));
    let (own, answering) = asking(wake).map_err(|source| StartError::Inbox { source })?;
    let worker = Worker::spawn(config, move || {
        // Without a cache of its own the thread is slower and just as right.
        let registration = eal.register_thread().ok();
        DataPath::new(receiver, event_receiver, limits, seed, registration).with_asking(own)
    })
    .map_err(|source| StartError::Spawn { source })?;
    let waker = sender.clone();
    let link = WorkerLink::new(events, Arc::new(move || waker.wake()));
    Ok(Started { worker, port: WorkerPort { inbox: sender }, link, answering })
}

impl WorkerPort {
    /// Sends a message that has no answer.
    pub(crate) fn tell(&self, message: Message) -> Result<(), WorkerSilent> {
        self.inbox.send_within(message, PATIENCE).map_err(|_| WorkerSilent)
    }

    /// Sends a message and waits for what the worker no longer needs. Whoever gets it drops it.
    pub(crate) fn change(
        &self,
        message: impl FnOnce(Sender<Discarded>) -> Message,
    ) -> Result<Discarded, WorkerSilent> {
        let (answer, answered) = bounded(1);
        self.tell(message(answer))?;
        answered.recv_timeout(PATIENCE).map_err(|_| WorkerSilent)
    }

    /// One step through the flow table.
    pub(crate) fn scan(
        &self,
        from: u32,
        filter: FlowFilter,
        rows: Vec<FlowCopy>,
    ) -> Result<Scanned, WorkerSilent> {
        let (answer, answered) = bounded(1);
        self.tell(Message::ScanFlows { from, filter, rows, answer })?;
        answered.recv_timeout(PATIENCE).map_err(|_| WorkerSilent)
    }

    /// Has the worker show packets to a capture, or to none. The one before comes back.
    pub(crate) fn capture(
        &self,
        capture: Option<Box<Capture>>,
    ) -> Result<Option<Box<Capture>>, WorkerSilent> {
        let (answer, answered) = bounded(1);
        self.tell(Message::Capture { capture, answer })?;
        answered.recv_timeout(PATIENCE).map_err(|_| WorkerSilent)
    }

    /// One step of writing connections down for the next process.
    pub(crate) fn hand_over(
        &self,
        from: usize,
        since: Option<Moment>,
    ) -> Result<HandedStep, WorkerSilent> {
        let (answer, answered) = bounded(1);
        // So that the worker allocates nothing, but where a bucket goes over the edge.
        let bytes = Vec::with_capacity(HANDED_STEP);
        self.tell(Message::HandOver { from, since, bytes, answer })?;
        answered.recv_timeout(PATIENCE).map_err(|_| WorkerSilent)
    }

    pub(crate) fn take_over(
        &self,
        places: &Arc<[HandedPlace]>,
        bytes: Vec<u8>,
    ) -> Result<Result<TakenConnections, TakeOverError>, WorkerSilent> {
        let (answer, answered) = bounded(1);
        self.tell(Message::TakeOver { places: Arc::clone(places), bytes, answer })?;
        answered.recv_timeout(PATIENCE).map_err(|_| WorkerSilent)
    }

    pub(crate) fn ask(&self, question: Question) -> Result<Answer, WorkerSilent> {
        let (answer, answered) = bounded(1);
        self.tell(Message::Ask { question, answer })?;
        answered.recv_timeout(PATIENCE).map_err(|_| WorkerSilent)
    }
}
