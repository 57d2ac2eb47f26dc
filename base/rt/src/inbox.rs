// SPDX-License-Identifier: Apache-2.0
//! The way into a worker: a bounded channel whose sender wakes it.

use crate::Waker;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// The worker's end. Its descriptor belongs into [`crate::Poller::watch`].
#[derive(Debug)]
pub struct Inbox<T> {
    receiver: Receiver<T>,
    waker: Waker,
}

/// The other threads' end. Clones send to the same worker.
#[derive(Debug)]
pub struct InboxSender<T> {
    sender: Sender<T>,
    waker: Waker,
}

/// The message comes back, because it may own something.
#[derive(Debug, thiserror::Error)]
pub enum SendError<T> {
    #[error("the worker's inbox is full: it has not taken a message for too long")]
    Full(T),
    #[error("the worker has stopped")]
    Stopped(T),
}

/// Makes an inbox for at most `capacity` messages.
///
/// # Errors
/// When the process has no descriptor left.
pub fn inbox<T>(capacity: usize) -> io::Result<(InboxSender<T>, Inbox<T>)> {
    let waker = Waker::new()?;
    let (sender, receiver) = bounded(capacity);
    Ok((InboxSender { sender, waker: waker.clone() }, Inbox { receiver, waker }))
}

impl<T> Inbox<T> {
    /// The oldest message, if there is one. Never waits.
    pub fn take(&self) -> Option<T> {
        self.receiver.try_recv().ok()
    }

    pub fn is_empty(&self) -> bool {
        self.receiver.is_empty()
    }
}

impl<T> AsFd for Inbox<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.waker.as_fd()
    }
}

impl<T> InboxSender<T> {
    /// Sends and wakes. Refused at once when the inbox is full.
    pub fn try_send(&self, message: T) -> Result<(), SendError<T>> {
        match self.sender.try_send(message) {
            Ok(()) => {
                // After the message is in: the worker looks into the inbox after it wakes.
                self.waker.wake();
                Ok(())
            }
            Err(TrySendError::Full(message)) => Err(SendError::Full(message)),
            Err(TrySendError::Disconnected(message)) => Err(SendError::Stopped(message)),
        }
    }

    /// Sends and wakes; waits for room, but not longer than `limit`.
    pub fn send_within(&self, message: T, limit: Duration) -> Result<(), SendError<T>> {
        use crossbeam_channel::SendTimeoutError;
        match self.sender.send_timeout(message, limit) {
            Ok(()) => {
                self.waker.wake();
                Ok(())
            }
            Err(SendTimeoutError::Timeout(message)) => Err(SendError::Full(message)),
            Err(SendTimeoutError::Disconnected(message)) => Err(SendError::Stopped(message)),
        }
    }

    /// Wakes the worker that reads this inbox without sending anything.
    pub fn wake(&self) {
        self.waker.wake();
    }
}

// Written out, because a derive would ask for `T: Clone`.
impl<T> Clone for InboxSender<T> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), waker: self.waker.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_inbox_gives_the_message_back() {
        let (sender, inbox) = inbox(1).unwrap();
        sender.try_send(1).unwrap();
        assert!(matches!(sender.try_send(2), Err(SendError::Full(2))));
        assert_eq!(inbox.take(), Some(1));
        sender.try_send(3).unwrap();
        assert_eq!((inbox.take(), inbox.take()), (Some(3), None));
    }

    #[test]
    fn an_inbox_without_reader_gives_the_message_back() {
        let (sender, inbox) = inbox(1).unwrap();
        drop(inbox);
        assert!(matches!(sender.try_send(1), Err(SendError::Stopped(1))));
    }
}
