// SPDX-License-Identifier: Apache-2.0
//! Messages with descriptors between two of our processes, over a unix stream socket.
//!
//! A message is a head of 8 bytes (length of the body, number of descriptors, both 32-bit little
//! endian), to which the descriptors are attached, and the body.

use super::HandOverError;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

const HEAD: usize = 8;
/// The longest body that is taken. A device of 16 rings and 64 regions has some 10 KiB.
const BODY_MAX: usize = 1 << 20;
/// What the kernel lets through with one message (SCM_MAX_FD).
const DESCRIPTORS_MAX: usize = 253;

/// One end of the line between the process that hands over and the one that takes over.
#[derive(Debug)]
pub struct HandOverLine {
    stream: UnixStream,
}

impl HandOverLine {
    /// A line over a connected socket. A message that does not come, or is not taken, within
    /// `patience` is an error.
    ///
    /// # Errors
    /// When the socket takes no time limit.
    pub fn new(stream: UnixStream, patience: Duration) -> Result<Self, HandOverError> {
        let line = |source| HandOverError::Line { source };
        stream.set_nonblocking(false).map_err(line)?;
        stream.set_read_timeout(Some(patience)).map_err(line)?;
        stream.set_write_timeout(Some(patience)).map_err(line)?;
        Ok(Self { stream })
    }

    pub const fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// # Errors
    /// `TooLong`, or what the socket says.
    pub fn send(&self, body: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), HandOverError> {
        let (length, count) = (body.len(), descriptors.len());
        if length > BODY_MAX || count > DESCRIPTORS_MAX {
            return Err(HandOverError::TooLong { length, descriptors: count });
        }
        let mut head = [0; HEAD];
        let word =
            |value: usize| u32::try_from(value).expect("the limits are far below").to_le_bytes();
        head[..4].copy_from_slice(&word(length));
        head[4..].copy_from_slice(&word(count));
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if count > 0 {
            let is_in = control.push(SendAncillaryMessage::ScmRights(descriptors));
            assert!(is_in, "the space is as large as the limit above");
        }
        let sent = again(|| {
            sendmsg(&self.stream, &[IoSlice::new(&head)], &mut control, SendFlags::NOSIGNAL)
        });
        let sent = sent.map_err(|errno| ended_or(errno.into()))?;
        // A head of 8 bytes fits an empty socket's buffer or none of it; the rest of a short one
        // carries no descriptors.
        (&self.stream).write_all(&head[sent..]).map_err(ended_or)?;
        (&self.stream).write_all(body).map_err(ended_or)
    }

    /// The next message: its body and its descriptors.
    ///
    /// # Errors
    /// `Ended` when the other side is gone, `TooLong` for what nobody of ours would send.
    pub fn receive(&self) -> Result<(Vec<u8>, Vec<OwnedFd>), HandOverError> {
        let mut head = [0; HEAD];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = again(|| {
            let into = &mut [IoSliceMut::new(&mut head)];
            recvmsg(&self.stream, into, &mut control, RecvFlags::CMSG_CLOEXEC)
        });
        let got = got.map_err(|errno| ended_or(errno.into()))?.bytes;
        if got == 0 {
            return Err(HandOverError::Ended);
        }
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        (&self.stream).read_exact(&mut head[got..]).map_err(ended_or)?;
        let word = |at: usize| {
            let word = head[at..].first_chunk().expect("the head has two words");
            usize::try_from(u32::from_le_bytes(*word)).unwrap_or(usize::MAX)
        };
        let (length, count) = (word(0), word(4));
        if length > BODY_MAX || count != descriptors.len() {
            return Err(HandOverError::TooLong { length, descriptors: count });
        }
        let mut body = vec![0; length];
        (&self.stream).read_exact(&mut body).map_err(ended_or)?;
        Ok((body, descriptors))
    }
}

/// Repeats a call that a signal has interrupted. A socket with a time limit is interrupted also
/// by signals that nobody handles, such as a stop and its end.
fn again<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            outcome => return outcome,
        }
    }
}

fn ended_or(source: io::Error) -> HandOverError {
    match source.kind() {
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset => HandOverError::Ended,
        _ => HandOverError::Line { source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    const PATIENCE: Duration = Duration::from_millis(200);

    fn pair() -> (HandOverLine, HandOverLine) {
        let (one, two) = UnixStream::pair().unwrap();
        (HandOverLine::new(one, PATIENCE).unwrap(), HandOverLine::new(two, PATIENCE).unwrap())
    }

    #[test]
    fn messages_come_in_order_each_with_its_own_descriptors() {
        let (old, new) = pair();
        let file = File::open("/dev/null").unwrap();
        old.send(b"one", &[file.as_fd(), file.as_fd()]).unwrap();
        old.send(b"", &[]).unwrap();
        old.send(&[7; 3000], &[file.as_fd()]).unwrap();
        let (body, descriptors) = new.receive().unwrap();
        assert_eq!((body.as_slice(), descriptors.len()), (b"one".as_slice(), 2));
        assert_eq!(new.receive().unwrap().0, b"");
        let (body, descriptors) = new.receive().unwrap();
        assert_eq!((body.len(), descriptors.len()), (3000, 1));
        drop(old);
        assert!(matches!(new.receive().unwrap_err(), HandOverError::Ended));
    }

    #[test]
    fn silence_and_nonsense_are_errors() {
        let (old, new) = pair();
        assert!(matches!(new.receive().unwrap_err(), HandOverError::Line { .. }), "silence");
        (&old.stream).write_all(&[0xff; 8]).unwrap();
        assert!(matches!(new.receive().unwrap_err(), HandOverError::TooLong { .. }));
        let (old, new) = pair();
        (&old.stream).write_all(&[1, 0, 0, 0, 1, 0, 0, 0, 9]).unwrap();
        let refused = new.receive().unwrap_err();
        assert!(matches!(refused, HandOverError::TooLong { descriptors: 1, .. }), "{refused}");
        let body = vec![0; BODY_MAX + 1];
        assert!(matches!(old.send(&body, &[]).unwrap_err(), HandOverError::TooLong { .. }));
    }
}
