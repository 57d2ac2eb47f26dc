// SPDX-License-Identifier: Apache-2.0
//! The way from management threads to the worker, and the worker's start.

use crate::engine::Engine;
use crate::message::{Answer, EngineRefusal, Message};
use crossbeam_channel::{Sender, bounded};
use plinth_backends::WorkerLink;
use plinth_ids::PoolId;
use plinth_metrics::Metrics;
use plinth_rt::{InboxSender, SpawnError, Worker, WorkerConfig, inbox};
use plinth_volume::{VolumeAnswer, VolumeRequest};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Messages that may wait for the worker.
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

/// Asks the worker. Clones ask the same one.
#[derive(Clone, Debug)]
pub(crate) struct WorkerPort {
    inbox: InboxSender<Message>,
}

/// Starts the worker. The link is for the threads of devices.
pub(crate) fn start(
    config: WorkerConfig,
    instruments: Instruments,
) -> Result<(Worker, WorkerPort, WorkerLink), StartError> {
    let (sender, receiver) = inbox(INBOX).map_err(|source| StartError::Inbox { source })?;
    let (events, event_receiver) = bounded(EVENTS);
    let worker = Worker::spawn(config, move || Engine::new(receiver, event_receiver, instruments))
        .map_err(|source| StartError::Spawn { source })?;
    let waker = sender.clone();
    let link = WorkerLink::new(events, Arc::new(move || waker.wake()));
    Ok((worker, WorkerPort { inbox: sender }, link))
}

impl WorkerPort {
    /// Sends a message whose answer nobody waits for here.
    pub(crate) fn tell(&self, message: Message) -> Result<(), EngineRefusal> {
        self.inbox.send_within(message, PATIENCE).map_err(|_| EngineRefusal::Stopping)
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

    /// Asks something that is never refused.
    pub(crate) fn look<T>(
        &self,
        message: impl FnOnce(Sender<T>) -> Message,
    ) -> Result<T, EngineRefusal> {
        let (answer, answered) = bounded(1);
        self.tell(message(answer))?;
        answered.recv().map_err(|_| EngineRefusal::Stopping)
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
