// SPDX-License-Identifier: Apache-2.0
//! Questions of guests on their way to the thread that answers, and answers on their way back.
//!
//! ```text
//!   worker ── asked ──▶ thread          worker ◀── said ── thread
//!          ◀─ spare ───                        ── blank ──▶
//! ```
//!
//! Two sets of buffers go round, one each way, all made at the start: the worker allocates
//! nothing and never waits. Without a spare buffer a question is dropped and counted, without a
//! blank one an answer is: whoever asked asks again.

use crossbeam_channel::{Receiver, Sender, bounded};
use plinth_ids::{MacAddress, PortId, Vni};
use plinth_rt::Waker;
use plinth_vswitch::Origin;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// Buffers each way: 512 KiB.
pub const QUESTIONS_MAX: usize = 256;

/// The longest question and the longest answer. No message that is looked at is longer than a
/// frame of 1500 bytes, but for those that no client of these protocols sends.
pub const QUESTION_LENGTH_MAX: usize = 2048;

/// Answers that the worker puts out in one round.
pub(crate) const ANSWERS_ROUND: usize = 16;

/// A frame and whose it is.
#[derive(Debug)]
pub struct Slip {
    origin: Origin,
    length: usize,
    bytes: [u8; QUESTION_LENGTH_MAX],
}

impl Slip {
    fn empty() -> Box<Self> {
        let nobody = Vni::new(0).expect("0 fits 24 bits");
        let origin = Origin::unasked(PortId(0), nobody, MacAddress::default());
        Box::new(Self { origin, length: 0, bytes: [0; QUESTION_LENGTH_MAX] })
    }

    pub fn frame(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    pub const fn origin(&self) -> Origin {
        self.origin
    }
}

/// The worker's end.
#[derive(Debug)]
pub struct AskingPort {
    asked: Sender<Box<Slip>>,
    spare: Receiver<Box<Slip>>,
    said: Receiver<Box<Slip>>,
    blank: Sender<Box<Slip>>,
    waker: Waker,
    /// Whether something was asked since the thread was woken.
    is_due: bool,
}

/// The thread's end.
#[derive(Debug)]
pub struct AnsweringPort {
    asked: Receiver<Box<Slip>>,
    spare: Sender<Box<Slip>>,
    said: Sender<Box<Slip>>,
    blank: Receiver<Box<Slip>>,
    waker: Waker,
    wake_worker: WakeWorker,
}

/// How the thread wakes the worker: the waker of its inbox.
#[derive(Clone)]
pub struct WakeWorker(pub Arc<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for WakeWorker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WakeWorker")
    }
}

/// An answer did not fit a buffer, or none was left.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("an answer is lost: the worker has not taken those before, or it is too long")]
pub struct AnswerLost;

/// Makes both ends and their buffers.
///
/// # Errors
/// When the process has no descriptor left.
pub fn asking(wake_worker: WakeWorker) -> io::Result<(AskingPort, AnsweringPort)> {
    let (asked, questions) = bounded(QUESTIONS_MAX);
    let (said, answers) = bounded(QUESTIONS_MAX);
    let (spares, spare) = bounded(QUESTIONS_MAX);
    let (blanks, blank) = bounded(QUESTIONS_MAX);
    for _ in 0..QUESTIONS_MAX {
        // There is room: both channels were made above for as many.
        let _ = spares.try_send(Slip::empty());
        let _ = blanks.try_send(Slip::empty());
    }
    let waker = Waker::new()?;
    let worker = AskingPort {
        asked,
        spare,
        said: answers,
        blank: blanks,
        waker: waker.clone(),
        is_due: false,
    };
    let thread = AnsweringPort { asked: questions, spare: spares, said, blank, waker, wake_worker };
    Ok((worker, thread))
}

impl AskingPort {
    /// Hands a question of `length` bytes on, which `fill` writes. `false` when there is no buffer
    /// for it.
    #[must_use]
    pub(crate) fn ask(
        &mut self,
        origin: Origin,
        length: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> bool {
        if length > QUESTION_LENGTH_MAX {
            return false;
        }
        let Ok(mut slip) = self.spare.try_recv() else { return false };
        slip.origin = origin;
        slip.length = length;
        fill(&mut slip.bytes[..length]);
        // As many buffers as places: there is room while the thread lives.
        self.is_due = true;
        self.asked.try_send(slip).is_ok()
    }

    /// Wakes the thread if anything was asked. Once a round.
    pub(crate) fn flush(&mut self) {
        if std::mem::take(&mut self.is_due) {
            self.waker.wake();
        }
    }

    /// The next answer, to be given back with [`Self::give_back`].
    pub(crate) fn next_answer(&self) -> Option<Box<Slip>> {
        self.said.try_recv().ok()
    }

    pub(crate) fn give_back(&self, slip: Box<Slip>) {
        // As many buffers as places.
        let _ = self.blank.try_send(slip);
    }
}

impl AnsweringPort {
    /// The next question, and whose it is.
    pub fn take(&self) -> Option<Question<'_>> {
        let slip = self.asked.try_recv().ok()?;
        Some(Question { port: self, slip: Some(slip) })
    }

    /// Sends an answer, or something that nobody asked for.
    ///
    /// # Errors
    /// When it cannot be sent; nothing waits for room.
    pub fn say(&self, origin: Origin, frame: &[u8]) -> Result<(), AnswerLost> {
        if frame.len() > QUESTION_LENGTH_MAX {
            return Err(AnswerLost);
        }
        let mut slip = self.blank.try_recv().map_err(|_| AnswerLost)?;
        slip.origin = origin;
        slip.length = frame.len();
        slip.bytes[..frame.len()].copy_from_slice(frame);
        self.said.try_send(slip).map_err(|_| AnswerLost)?;
        (self.wake_worker.0)();
        Ok(())
    }

    /// Ends the thread's sleep, from any thread.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

impl AsFd for AnsweringPort {
    /// Becomes readable, edge by edge, when something was asked.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.waker.as_fd()
    }
}

/// A question, whose buffer goes back when it is dropped.
#[derive(Debug)]
pub struct Question<'a> {
    port: &'a AnsweringPort,
    slip: Option<Box<Slip>>,
}

impl std::ops::Deref for Question<'_> {
    type Target = Slip;

    fn deref(&self) -> &Slip {
        self.slip.as_deref().expect("it is taken by the drop only")
    }
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        if let Some(slip) = self.slip.take() {
            // As many buffers as places.
            let _ = self.port.spare.try_send(slip);
        }
    }
}
