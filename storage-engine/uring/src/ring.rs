// SPDX-License-Identifier: Apache-2.0
//! The ring: operations in, completions out.

use crate::error::{OperationError, SetupError};
use crate::file::{DirectFile, FileKind};
use crate::slots::Slots;
use bytemuck::Pod;
use io_uring::{IoUring, opcode, squeue, types};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// The most operations a ring may hold: the kernel's own limit of submission entries.
const DEPTH_MAX: u32 = 32_768;

/// How often an operation that the kernel could not start (`EAGAIN`) or that was interrupted is
/// given to it again before its caller hears of it.
const RETRIES_MAX: u8 = 16;

/// How long a dropped ring waits for the kernel before it leaks what is still lent to it.
const DROP_WAIT: Duration = Duration::from_secs(10);

/// The file's place in the ring's table of registered files.
const FILE: types::Fixed = types::Fixed(0);

/// Who starts an operation and who notices its end.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Mode {
    /// The worker submits; the device interrupts.
    #[default]
    Worker,
    /// A kernel thread submits, sleeping after the given idle time. It costs a CPU.
    KernelThread { idle: Duration },
    /// The worker submits and asks the device for completions: NVMe with poll queues only.
    DevicePoll,
}

#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Operations that can be under way, 1 to 32768.
    pub depth: u32,
    pub mode: Mode,
}

impl Default for Options {
    fn default() -> Self {
        Self { depth: 256, mode: Mode::Worker }
    }
}

/// So many operations, or operations that move so many bytes: whichever is reached first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Batch {
    pub operations: usize,
    pub bytes: usize,
}

/// What the ring is asked to do. The buffer's first `length` bytes are transferred.
///
/// `T` sets the alignment: with `O_DIRECT` it must be that of the file's logical sector at least.
#[derive(Debug)]
pub enum Operation<T> {
    Read {
        at: u64,
        buffer: Vec<T>,
        length: usize,
    },
    Write {
        at: u64,
        buffer: Vec<T>,
        length: usize,
    },
    /// Makes writes that completed before this was pushed durable, with the metadata that is
    /// needed to read them back.
    Flush,
    /// Gives space back; what is read there afterwards is zero, or the old bytes where the device
    /// cannot discard.
    Discard {
        at: u64,
        length: u64,
    },
}

/// One finished operation.
#[derive(Debug)]
pub struct Completion<T> {
    pub tag: u64,
    /// The buffer of a read or write, given back, and the length that was asked for.
    pub buffer: Option<(Vec<T>, usize)>,
    pub result: Result<(), OperationError>,
}

/// An operation that was given up by [`Ring::abandon`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Abandoned {
    pub tag: u64,
    /// Bytes of the buffer that is lost with it; `None` for a flush or discard.
    pub buffer_size: Option<usize>,
}

#[derive(Debug)]
struct InFlight<T> {
    tag: u64,
    operation: Operation<T>,
    /// Bytes that earlier, short, transfers moved.
    done: usize,
    retries: u8,
}

/// An io_uring with one file.
///
/// One thread submits and reaps. The ring may move to another while nothing is with the kernel:
/// the kernel ties a ring to the thread that first submits, so the next one gets a fresh one at
/// its first [`Ring::submit`]. Moved with operations under way it is of no more use: `submit`
/// fails, and drop leaks their buffers.
pub struct Ring<T: Pod> {
    // Declared before the file: closing the ring ends what uses the file.
    ring: IoUring,
    slots: Slots<InFlight<T>>,
    file: DirectFile,
    event: OwnedFd,
    options: Options,
    is_enabled: bool,
    /// Whether the file is a device that takes discards as commands, as far as is known. A hole
    /// in a device is its other way, which some do not have.
    has_command: bool,
    /// How often the kernel was called for operations.
    calls: u64,
    /// Slots whose operation must be given to the kernel again.
    again: Vec<u32>,
}

impl<T: Pod> std::fmt::Debug for Ring<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("file", &self.file)
            .field("options", &self.options)
            .field("in_flight", &self.slots.taken())
            .finish_non_exhaustive()
    }
}

impl<T: Pod> Ring<T> {
    /// Makes a ring over `file`. Nothing runs before the first [`Ring::submit`].
    pub fn new(file: DirectFile, options: Options) -> Result<Self, SetupError> {
        let depth = options.depth;
        if depth == 0 || depth > DEPTH_MAX {
            return Err(SetupError::Depth { depth, max: DEPTH_MAX });
        }
        let event = eventfd().map_err(|source| SetupError::Other { depth, source })?;
        let (ring, is_enabled) = build(options, &file, &event)
            .map_err(|source| SetupError::from_setup(depth, source))?;
        let slots = Slots::new(depth);
        let again = Vec::with_capacity(depth as usize);
        let has_command = file.kind() == FileKind::BlockDevice;
        Ok(Self { ring, slots, file, event, options, is_enabled, has_command, calls: 0, again })
    }

    pub const fn file(&self) -> &DirectFile {
        &self.file
    }

    /// How often `io_uring_enter` was called in all.
    pub const fn system_calls(&self) -> u64 {
        self.calls
    }

    /// Operations pushed and not yet reaped.
    pub fn in_flight(&self) -> usize {
        self.slots.taken()
    }

    /// Whether [`Ring::push`] would be refused.
    pub fn is_full(&self) -> bool {
        self.slots.is_full()
    }

    /// Queues an operation. It is given back when `depth` operations are under way already.
    ///
    /// # Panics
    /// If `length` is more than the buffer has, or more than 2 GiB - 4 KiB, what Linux transfers
    /// at once.
    pub fn push(&mut self, tag: u64, operation: Operation<T>) -> Result<(), Operation<T>> {
        if let Operation::Read { buffer, length, .. } | Operation::Write { buffer, length, .. } =
            &operation
        {
            let bytes = size_of_val::<[T]>(buffer);
            assert!(*length <= bytes, "{length} bytes do not fit a buffer of {bytes}");
            assert!(*length <= 0x7fff_f000, "{length} bytes are more than one transfer");
        }
        let in_flight = InFlight { tag, operation, done: 0, retries: 0 };
        let slot = self.slots.take(in_flight).map_err(|refused| refused.operation)?;
        self.queue(slot);
        Ok(())
    }

    /// Writes the submission entry of a taken slot.
    fn queue(&mut self, slot: u32) {
        let in_flight = self.slots.at(slot).expect("the caller has just taken or kept this slot");
        let entry = entry_of(in_flight, self.has_command).user_data(u64::from(slot));
        // SAFETY: what the entry points to must stay until its completion. It is the heap part of
        // a buffer that the slot owns; the slot is released only in `reap`, when the completion
        // was seen, or leaked in `drop`. Moving the `Vec` or the slots does not move its heap
        // part, and no reference to it exists meanwhile. The length is within it (`push`).
        let queued = unsafe { self.ring.submission().push(&entry) };
        queued.expect("the submission queue has as many entries as there are slots");
    }

    /// Gives what is queued to the kernel and fetches what it wants to deliver. At most one
    /// system call; none when there is nothing for it to do.
    ///
    /// # Errors
    /// That of `io_uring_enter`. What was queued stays queued and may be submitted again; after
    /// an error other than lack of memory the ring is of no more use.
    pub fn submit(&mut self) -> io::Result<()> {
        while let Some(slot) = self.again.pop() {
            self.queue(slot);
        }
        if !self.polls_device() && !self.is_owed_a_call() {
            return Ok(());
        }
        self.enable()?;
        self.calls += 1;
        match self.ring.submit() {
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) && self.is_all_queued() => {
                self.renew()?;
                self.enable()?;
                self.ring.submit().map(|_| ())
            }
            // Interrupted, or the completion queue must be reaped first: the next round does it.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Ties the ring to this thread, if it is not tied to one.
    fn enable(&mut self) -> io::Result<()> {
        if !self.is_enabled {
            self.ring.submitter().register_enable_rings()?;
            self.is_enabled = true;
        }
        Ok(())
    }

    /// Whether the kernel has nothing of ours: all that is under way is still in the queue.
    fn is_all_queued(&mut self) -> bool {
        self.ring.submission().len() == self.slots.taken() && self.ring.completion().is_empty()
    }

    /// Goes on with a fresh ring, for a thread that the old one is not tied to.
    fn renew(&mut self) -> io::Result<()> {
        assert!(self.is_all_queued(), "the kernel keeps what it has of the old ring");
        (self.ring, self.is_enabled) = build(self.options, &self.file, &self.event)?;
        self.again.clear();
        for slot in self.slots.numbers() {
            self.queue(slot);
        }
        Ok(())
    }

    /// Takes the completions that the kernel has delivered, without a system call, appends them
    /// to `completions` and returns how many they were.
    ///
    /// An operation that must go on (short transfer, `EAGAIN`) does so at the next
    /// [`Ring::submit`].
    pub fn reap(&mut self, completions: &mut Vec<Completion<T>>) -> usize {
        self.reap_batch(completions, Batch { operations: usize::MAX, bytes: usize::MAX })
    }

    /// The same, but stops as soon as `batch` is full: the rest stays delivered for the next call,
    /// and [`Ring::has_work`] says so.
    pub fn reap_batch(&mut self, completions: &mut Vec<Completion<T>>, batch: Batch) -> usize {
        let before = completions.len();
        let mut bytes = 0;
        let mut delivered = self.ring.completion();
        while completions.len() - before < batch.operations
            && bytes < batch.bytes
            && let Some(entry) = delivered.next()
        {
            let Ok(slot) = u32::try_from(entry.user_data()) else { continue };
            // A completion for a slot that is not taken would be a bug of the kernel's; nothing
            // is owed to anybody for it.
            let Some(in_flight) = self.slots.at(slot) else { continue };
            if is_unknown_command(in_flight, self.file.kind(), entry.result()) {
                // The kernel is older than the command: a hole is tried, for good.
                self.has_command = false;
                in_flight.retries += 1;
                self.again.push(slot);
                continue;
            }
            match judge(in_flight, entry.result()) {
                Verdict::Again => self.again.push(slot),
                Verdict::Done(result) => {
                    let finished = self.slots.release(slot).expect("it was taken just above");
                    let buffer = match finished.operation {
                        Operation::Read { buffer, length, .. }
                        | Operation::Write { buffer, length, .. } => {
                            bytes += length;
                            Some((buffer, length))
                        }
                        Operation::Flush | Operation::Discard { .. } => None,
                    };
                    completions.push(Completion { tag: finished.tag, buffer, result });
                }
            }
        }
        completions.len() - before
    }

    /// Completions that the kernel has delivered and that were not reaped.
    pub fn delivered(&mut self) -> usize {
        self.ring.completion().len()
    }

    /// Whether a round has work: something queued to submit, or something to reap.
    pub fn has_work(&mut self) -> bool {
        self.is_owed_a_call() || !self.again.is_empty() || !self.ring.completion().is_empty()
    }

    /// Sleeps until a completion can be reaped or `timeout` has passed. For tools and shutdown;
    /// a worker sleeps on [`AsFd`] instead.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        self.submit()?;
        if self.slots.taken() == 0 || !self.ring.completion().is_empty() || !self.again.is_empty() {
            return Ok(());
        }
        self.calls += 1;
        let timespec = types::Timespec::from(timeout);
        let arguments = types::SubmitArgs::new().timespec(&timespec);
        match self.ring.submitter().submit_with_args(1, &arguments) {
            Err(error)
                if !matches!(
                    error.raw_os_error(),
                    Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY)
                ) =>
            {
                Err(error)
            }
            _ => Ok(()),
        }
    }

    /// Whether the kernel has entries to take or completions that it delivers only when called.
    fn is_owed_a_call(&mut self) -> bool {
        let queue = self.ring.submission();
        !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
    }

    /// Gives up everything that is under way, after an error of [`Ring::submit`] that does not
    /// pass. The buffers are leaked, because the kernel may have some of them. The ring stays
    /// full for ever.
    pub fn abandon(&mut self) -> Vec<Abandoned> {
        let abandoned = self.slots.all().map(|in_flight| Abandoned {
            tag: in_flight.tag,
            buffer_size: match &in_flight.operation {
                Operation::Read { buffer, .. } | Operation::Write { buffer, .. } => {
                    Some(size_of_val::<[T]>(buffer))
                }
                Operation::Flush | Operation::Discard { .. } => None,
            },
        });
        let abandoned = abandoned.collect();
        self.again.clear();
        self.slots.leak();
        abandoned
    }

    fn polls_device(&self) -> bool {
        self.ring.params().is_setup_iopoll() && self.slots.taken() > 0
    }
}

/// An eventfd that the kernel writes to when there is something to fetch or reap. To be watched
/// edge-triggered and not read. The same for the ring's whole life.
///
/// Not the ring's own descriptor: who sleeps on that is not woken by work that is deferred to the
/// next call (seen on Linux 6.18, `the_sleep_on_a_ring_is_woken`).
impl<T: Pod> AsFd for Ring<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl<T: Pod> Drop for Ring<T> {
    fn drop(&mut self) {
        let deadline = Instant::now() + DROP_WAIT;
        let mut completions = Vec::new();
        while self.slots.taken() > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.wait(left).is_err() {
                self.slots.leak();
                return;
            }
            self.reap(&mut completions);
            completions.clear();
        }
        // The kernel takes a closed ring down later, on a thread of its own, and holds registered
        // files until then. The next owner must not have to wait for that. An error leaves just
        // that: the locks go a little later.
        let _later = self.ring.submitter().unregister_files();
        let _later = self.file.file.unlock();
    }
}

/// Makes the ring, with the cheapest way of completion that the kernel knows. The second value is
/// whether it runs already.
fn build(options: Options, file: &DirectFile, event: &OwnedFd) -> io::Result<(IoUring, bool)> {
    let (ring, is_enabled) = build_empty(options)?;
    ring.submitter().register_eventfd(event.as_raw_fd())?;
    ring.submitter().register_files(&[file.file.as_raw_fd()])?;
    Ok((ring, is_enabled))
}

fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: takes and gives integers only.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, was made just above, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn build_empty(options: Options) -> io::Result<(IoUring, bool)> {
    let mut builder = IoUring::builder();
    // Completions are at most one an operation under way, so that the queue never overflows.
    builder.setup_cqsize(options.depth.next_power_of_two() * 2);
    match options.mode {
        Mode::KernelThread { idle } => {
            builder.setup_sqpoll(u32::try_from(idle.as_millis()).unwrap_or(u32::MAX));
            return Ok((builder.build(options.depth)?, true));
        }
        Mode::DevicePoll => {
            builder.setup_iopoll();
        }
        Mode::Worker => {}
    }
    let plain = builder.clone();
    // The kernel finishes operations inside our own calls instead of interrupting the worker
    // (Linux 6.1). The ring starts disabled so that the first submitter, not the thread that
    // makes it, is the one the kernel ties it to.
    builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_r_disabled();
    match builder.build(options.depth) {
        Ok(ring) => Ok((ring, false)),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            Ok((plain.build(options.depth)?, true))
        }
        Err(error) => Err(error),
    }
}

fn entry_of<T: Pod>(in_flight: &mut InFlight<T>, is_command: bool) -> squeue::Entry {
    let done = in_flight.done;
    let rest = |length: usize| u32::try_from(length - done).expect("checked in push");
    match &mut in_flight.operation {
        Operation::Read { at, buffer, length } => {
            let target = buffer.as_mut_ptr().cast::<u8>().wrapping_add(done);
            opcode::Read::new(FILE, target, rest(*length)).offset(*at + done as u64).build()
        }
        Operation::Write { at, buffer, length } => {
            let source = buffer.as_ptr().cast::<u8>().wrapping_add(done);
            opcode::Write::new(FILE, source, rest(*length)).offset(*at + done as u64).build()
        }
        Operation::Flush => opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build(),
        Operation::Discard { at, length } if is_command => {
            // The range goes where other operations have their address and its second word.
            let mut command = [0; 16];
            command[..8].copy_from_slice(&length.to_ne_bytes());
            opcode::UringCmd16::new(FILE, BLOCK_DISCARD).addr(Some(*at)).cmd(command).build()
        }
        Operation::Discard { at, length } => opcode::Fallocate::new(FILE, *length)
            .offset(*at)
            .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
            .build(),
    }
}

/// `BLOCK_URING_CMD_DISCARD` of linux/blkdev.h, `_IO(0x12, 0)`, since Linux 6.12.
const BLOCK_DISCARD: u32 = 0x1200;

/// Whether a discard that may have been a command was refused as one.
const fn is_unknown_command<T>(in_flight: &InFlight<T>, kind: FileKind, result: i32) -> bool {
    let is_discard = matches!(in_flight.operation, Operation::Discard { .. });
    let is_first = in_flight.retries == 0 && matches!(kind, FileKind::BlockDevice);
    let is_refused = matches!(result.wrapping_neg(), libc::EINVAL | libc::EOPNOTSUPP);
    is_discard && is_first && is_refused
}

enum Verdict {
    Done(Result<(), OperationError>),
    Again,
}

/// What a completion's result means for its operation.
fn judge<T>(in_flight: &mut InFlight<T>, result: i32) -> Verdict {
    if let Some(code) = result.checked_neg().filter(|&code| code > 0) {
        if matches!(code, libc::EAGAIN | libc::EINTR) && in_flight.retries < RETRIES_MAX {
            in_flight.retries += 1;
            return Verdict::Again;
        }
        // Space that cannot be given back is kept: a device without discard is no fault.
        let is_discard = matches!(in_flight.operation, Operation::Discard { .. });
        if is_discard && code == libc::EOPNOTSUPP {
            return Verdict::Done(Ok(()));
        }
        return Verdict::Done(Err(OperationError::Device { errno: code }));
    }
    let moved = usize::try_from(result).unwrap_or(0);
    let length = match in_flight.operation {
        Operation::Read { length, .. } | Operation::Write { length, .. } => length,
        Operation::Flush | Operation::Discard { .. } => return Verdict::Done(Ok(())),
    };
    if in_flight.done + moved >= length {
        return Verdict::Done(Ok(()));
    }
    // `O_DIRECT` can go on only from a sector; what is past the last whole one is done again.
    let whole = moved - moved % SECTOR;
    if whole == 0 {
        let moved = in_flight.done + moved;
        return Verdict::Done(Err(OperationError::Short { moved, wanted: length }));
    }
    in_flight.done += whole;
    Verdict::Again
}

/// The largest sector in use; a transfer is carried on from a multiple of it.
const SECTOR: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(length: usize) -> InFlight<u64> {
        let operation = Operation::Read { at: 0, buffer: Vec::new(), length };
        InFlight { tag: 0, operation, done: 0, retries: 0 }
    }

    #[test]
    fn a_short_transfer_goes_on_from_the_last_whole_sector() {
        let mut under_way = read(3 * SECTOR);
        let moved = i32::try_from(SECTOR + 100).unwrap();
        assert!(matches!(judge(&mut under_way, moved), Verdict::Again));
        assert_eq!(under_way.done, SECTOR);
        let moved = i32::try_from(2 * SECTOR).unwrap();
        assert!(matches!(judge(&mut under_way, moved), Verdict::Done(Ok(()))));
    }

    #[test]
    fn a_transfer_that_moves_nothing_ends_with_an_error() {
        let Verdict::Done(Err(error)) = judge(&mut read(SECTOR), 0) else { panic!("goes on") };
        assert_eq!(error, OperationError::Short { moved: 0, wanted: SECTOR });
    }

    #[test]
    fn what_is_busy_is_tried_again_but_not_for_ever() {
        let mut under_way = read(SECTOR);
        let tries =
            (0..100).take_while(|_| matches!(judge(&mut under_way, -libc::EAGAIN), Verdict::Again));
        assert_eq!(tries.count(), usize::from(RETRIES_MAX));
    }

    #[test]
    fn a_device_without_discard_is_no_fault() {
        let operation = Operation::<u64>::Discard { at: 0, length: 4096 };
        let mut discard = InFlight { tag: 0, operation, done: 0, retries: 0 };
        assert!(matches!(judge(&mut discard, -libc::EOPNOTSUPP), Verdict::Done(Ok(()))));
        assert!(matches!(judge(&mut discard, -libc::EIO), Verdict::Done(Err(_))));
    }
}
