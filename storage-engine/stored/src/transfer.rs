// SPDX-License-Identifier: Apache-2.0
//! Filling a volume from a raw file, and writing one to a raw file.
//!
//! Runs on the thread of the connection that asked, a few pieces at a time through the worker's
//! ordinary door, so that guests are served in between. Holes and runs of zeros are not written,
//! in either direction.

use crate::message::{EngineRefusal, Held, Message};
use crate::worker::WorkerPort;
use crossbeam_channel::{Receiver, Sender, unbounded};
use plinth_ids::{PoolId, VolumeId};
use plinth_store::IoBuffer;
use plinth_uring::next_data;
use plinth_volume::{VolumeCompletion, VolumeHandle, VolumeRequest};
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bytes moved at once. Divides an object, so that no piece crosses the end of one.
pub(crate) const PIECE: u64 = 1 << 20;

/// Pieces under way: enough to keep a disk busy, too few to be noticed by guests.
const WINDOW: usize = 4;

/// What is all zeros in steps of this stays a hole: the store's unit.
const HOLE: usize = 32 << 10;

const SECTOR: u64 = 512;

#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferError {
    #[error("the volume refused")]
    Engine(#[from] EngineRefusal),
    #[error("{path:?} cannot be read")]
    Source { path: PathBuf, source: io::Error },
    #[error("{path:?} is not an absolute path")]
    Relative { path: PathBuf },
    #[error("{path:?} has {length} bytes, the volume {size}: grow the volume first")]
    TooLarge { path: PathBuf, length: u64, size: u64 },
    #[error("{path:?} exists: choose a name that is free")]
    Exists { path: PathBuf },
    #[error("{path:?} cannot be written")]
    Target { path: PathBuf, source: io::Error },
}

/// Fills a volume. Durable when this returns.
pub(crate) fn import(
    port: &WorkerPort,
    pool: PoolId,
    volume: VolumeId,
    source: &Path,
) -> Result<(), TransferError> {
    absolute(source)?;
    let fault = |error| TransferError::Source { path: source.into(), source: error };
    let file = File::open(source).map_err(fault)?;
    let length = length_of(&file).map_err(fault)?;
    let mut transfer = Transfer::hold(port, pool, volume)?;
    let size = transfer.held.status.size;
    if length.next_multiple_of(SECTOR) > size {
        return Err(TransferError::TooLarge { path: source.into(), length, size });
    }
    if transfer.held.status.written > 0 {
        let volume = transfer.held.handle;
        transfer.finish(VolumeRequest::Zero { volume, offset: 0, length: size })?;
    }
    let mut from = 0;
    while let Some(run) = next_data(&file, from).map_err(fault)? {
        from = run.end;
        // Whole holes' worth around the run; what is read beside it is zeros or data anyway.
        let mut at = run.start - run.start % HOLE as u64;
        while at < run.end.min(length) {
            let end = (at - at % PIECE + PIECE).min(length);
            let mut piece = vec![0; usize_of((end - at).next_multiple_of(SECTOR))];
            file.read_exact_at(&mut piece[..usize_of(end - at)], at).map_err(fault)?;
            for data in data_runs(&piece) {
                transfer.write(at + data.start as u64, &piece[data])?;
            }
            at = end;
        }
    }
    transfer.drain(0)?;
    let volume = transfer.held.handle;
    transfer.finish(VolumeRequest::Flush { volume })
}

/// Writes a volume to a new file. Durable when this returns; no file is left when it fails.
pub(crate) fn export(
    port: &WorkerPort,
    pool: PoolId,
    volume: VolumeId,
    target: &Path,
) -> Result<(), TransferError> {
    absolute(target)?;
    let transfer = Transfer::hold(port, pool, volume)?;
    let file = create_target(target)?;
    let outcome = export_to(transfer, &file, target);
    if outcome.is_err() {
        // The error that is told is the first one.
        let _ = fs::remove_file(target);
    }
    outcome
}

/// A new file that only we can read.
pub(crate) fn create_target(target: &Path) -> Result<File, TransferError> {
    let file = File::options().write(true).create_new(true).mode(0o600).open(target);
    file.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => TransferError::Exists { path: target.into() },
        _ => TransferError::Target { path: target.into(), source: error },
    })
}

fn export_to(mut transfer: Transfer<'_>, file: &File, target: &Path) -> Result<(), TransferError> {
    let fault = |source| TransferError::Target { path: target.into(), source };
    let size = transfer.held.status.size;
    file.set_len(size).map_err(fault)?;
    let mut at = 0;
    while at < size || transfer.under_way > 0 {
        while at < size && transfer.under_way < WINDOW {
            let length = (size - at).min(PIECE);
            transfer.read(at, length)?;
            at += length;
        }
        let (offset, piece) = transfer.next_read()?;
        for data in data_runs(&piece) {
            file.write_all_at(&piece[data.clone()], offset + data.start as u64).map_err(fault)?;
        }
    }
    file.sync_all().map_err(fault)?;
    let folder = target.parent().ok_or_else(|| fault(io::ErrorKind::InvalidInput.into()))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(fault)
}

pub(crate) fn absolute(path: &Path) -> Result<(), TransferError> {
    if path.is_absolute() { Ok(()) } else { Err(TransferError::Relative { path: path.into() }) }
}

/// The length of a file or block device.
fn length_of(mut file: &File) -> io::Result<u64> {
    io::Seek::seek(&mut file, io::SeekFrom::End(0))
}

pub(crate) fn usize_of(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a piece fits memory")
}

/// The parts of a piece that have anything but zeros, in steps of [`HOLE`].
fn data_runs(piece: &[u8]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (number, step) in piece.chunks(HOLE).enumerate() {
        let (start, end) = (number * HOLE, number * HOLE + step.len());
        if is_zero(step) {
            continue;
        }
        match runs.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => runs.push(start..end),
        }
    }
    runs
}

/// Sixteen bytes at a time; a loop over bytes with an early end is not vectorised.
fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_le_bytes(*word) == 0) && rest.iter().all(|&byte| byte == 0)
}

/// A held volume and the requests under way for it. Released on drop.
pub(crate) struct Transfer<'a> {
    port: &'a WorkerPort,
    pool: PoolId,
    held: Held,
    done: Sender<VolumeCompletion>,
    ended: Receiver<VolumeCompletion>,
    under_way: usize,
}

impl<'a> Transfer<'a> {
    pub(crate) fn hold(
        port: &'a WorkerPort,
        pool: PoolId,
        volume: VolumeId,
    ) -> Result<Self, EngineRefusal> {
        let held = port.ask(|answer| Message::Hold { pool, volume, answer })?;
        Ok(Self::over(port, pool, held))
    }

    /// Takes over what is held.
    pub(crate) fn over(port: &'a WorkerPort, pool: PoolId, held: Held) -> Self {
        // Never longer than what is under way.
        let (done, ended) = unbounded();
        Self { port, pool, held, done, ended, under_way: 0 }
    }

    pub(crate) const fn port(&self) -> &'a WorkerPort {
        self.port
    }

    pub(crate) const fn pool(&self) -> PoolId {
        self.pool
    }

    pub(crate) fn size(&self) -> u64 {
        self.held.status.size
    }

    /// Bytes that the volume had when it was held.
    pub(crate) fn written(&self) -> u64 {
        self.held.status.written
    }

    pub(crate) fn is_clone(&self) -> bool {
        self.held.status.parent.is_some()
    }

    /// Reads one piece and waits for it.
    pub(crate) fn read_now(&mut self, offset: u64, length: u64) -> Result<Vec<u8>, EngineRefusal> {
        let skew = offset % 4096;
        self.read(offset - skew, length + skew)?;
        let completion = self.end_one()?;
        let buffer = completion.buffer.ok_or(EngineRefusal::Stopping)?;
        Ok(buffer.as_bytes()[usize_of(skew)..][..usize_of(length)].to_vec())
    }

    pub(crate) fn handle(&self) -> VolumeHandle {
        self.held.handle
    }

    fn start(&mut self, tag: u64, request: VolumeRequest) -> Result<(), EngineRefusal> {
        self.port.submit(self.pool, tag, request, self.done.clone())?;
        self.under_way += 1;
        Ok(())
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), EngineRefusal> {
        self.drain(WINDOW - 1)?;
        let skew = usize_of(offset % 4096);
        let mut buffer = IoBuffer::zeroed((skew + data.len()).next_multiple_of(4096));
        buffer.as_bytes_mut()[skew..][..data.len()].copy_from_slice(data);
        let length = u32::try_from(data.len()).expect("a piece is a megabyte");
        let volume = self.handle();
        self.start(offset, VolumeRequest::Write { volume, offset, length, buffer })
    }

    fn read(&mut self, offset: u64, length: u64) -> Result<(), EngineRefusal> {
        let buffer = IoBuffer::zeroed(usize_of(length.next_multiple_of(4096)));
        let length = u32::try_from(length).expect("a piece is a megabyte");
        let volume = self.handle();
        self.start(offset, VolumeRequest::Read { volume, offset, length, buffer })
    }

    /// Where the next finished read was, and its bytes.
    fn next_read(&mut self) -> Result<(u64, Vec<u8>), EngineRefusal> {
        let completion = self.end_one()?;
        let offset = completion.tag.0;
        let length = usize_of((self.held.status.size - offset).min(PIECE));
        let buffer = completion.buffer.ok_or(EngineRefusal::Stopping)?;
        Ok((offset, buffer.as_bytes()[..length].to_vec()))
    }

    /// Waits until at most `left` requests are under way.
    pub(crate) fn drain(&mut self, left: usize) -> Result<(), EngineRefusal> {
        while self.under_way > left {
            self.end_one()?;
        }
        Ok(())
    }

    pub(crate) fn finish(&mut self, request: VolumeRequest) -> Result<(), TransferError> {
        self.start(0, request)?;
        Ok(self.drain(0)?)
    }

    fn end_one(&mut self) -> Result<VolumeCompletion, EngineRefusal> {
        // `done` is ours, so the channel does not close; the worker drops what it does not carry
        // out only when its pool is gone, which a held volume prevents, or when it stops.
        let completion = self.ended.recv_timeout(PATIENCE).map_err(|_| EngineRefusal::Stopping)?;
        self.under_way -= 1;
        completion.result?;
        Ok(completion)
    }
}

/// How long one piece may take: far longer than a disk that works.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(120);

impl Drop for Transfer<'_> {
    fn drop(&mut self) {
        let (pool, handle) = (self.pool, self.held.handle);
        // A worker that stops lets go of everything by itself.
        let _ = self.port.tell(Message::Release { pool, handle });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_zero_is_a_run() {
        let mut piece = vec![0; 6 * HOLE + 512];
        assert!(data_runs(&piece).is_empty());
        piece[HOLE] = 1;
        piece[3 * HOLE - 1] = 1;
        piece[6 * HOLE + 511] = 1;
        assert_eq!(data_runs(&piece), [HOLE..3 * HOLE, 6 * HOLE..6 * HOLE + 512]);
    }
}
