// SPDX-License-Identifier: Apache-2.0
//! A backend's disk as the engines see it: slots that carry one request each.

use super::options::Options;
use anyhow::{Context, Result, bail};
use plinth_frontend::{Buffer, Inflight, Memory, Session, SlotQueue, UsedSlot, Wish};
use plinth_guest_memory::GuestAddress;
use std::path::{Path, PathBuf};

/// virtio-blk features: FLUSH (9) and MQ (12).
const FEATURE_FLUSH: u64 = 1 << 9;
const FEATURE_MQ: u64 = 1 << 12;

const TYPE_READ: u32 = 0;
const TYPE_WRITE: u32 = 1;
const TYPE_FLUSH: u32 = 4;

/// Header and status of a slot on one cache line, as Linux's driver has them.
const HEADER: u64 = 16;
const STATUS_AT: u64 = 16;
const SLOT_HEAD: u64 = 64;
const STATUS_PENDING: u8 = 0xff;

/// So many completions ahead the line with the status is fetched.
const AHEAD: u16 = 4;

/// The part of the configuration space that every virtio-blk device has: capacity in sectors.
const CONFIG_LENGTH: u32 = 8;
const SECTOR: u64 = 512;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Request {
    Read { offset: u64 },
    Write { offset: u64 },
    Flush,
}

/// How the backend answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Status {
    Done,
    IoError,
    Unsupported,
    /// Not a status of the specification, or none was written.
    Unknown(u8),
}

/// A request that came back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completion {
    pub queue: usize,
    pub slot: u16,
    pub status: Status,
}

#[derive(Debug)]
struct Queue {
    ring: SlotQueue,
    /// Where header and status of slot 0 are; the others follow at `SLOT_HEAD`. Close together:
    /// at page distance they would all fall into the same few sets of a cache.
    heads: GuestAddress,
    /// Where the data of slot 0 is; the others follow at `stride`.
    data: GuestAddress,
    stride: u64,
    /// The type of the request whose chain stands in each slot.
    chains: Vec<Option<u32>>,
}

#[derive(Debug)]
pub(crate) struct Disk {
    options: Options,
    socket: PathBuf,
    wish: Wish,
    memory: Memory,
    session: Option<Session>,
    inflight: Option<Inflight>,
    queues: Vec<Queue>,
    capacity: u64,
    has_flush: bool,
}

impl Disk {
    /// Connects and starts the rings.
    pub(crate) fn connect(options: &Options, socket: &Path) -> Result<Self> {
        let wish =
            Wish { queues: options.queues, features: FEATURE_FLUSH | FEATURE_MQ, event_idx: true };
        // Data begins at a page, so that backends with O_DIRECT need no copy.
        let stride = u64::from(options.block_size).next_multiple_of(4096);
        let slots = u64::from(options.depth) * u64::from(options.queues);
        let rings = u64::from(options.queues) * (64 << 10);
        let mut memory = Memory::new(slots * (stride + SLOT_HEAD) + rings + (1 << 20))?;
        let size = (options.depth * 3).next_power_of_two().max(4);
        let mut queues = Vec::new();
        for _ in 0..options.queues {
            let ring = memory.ring(size, 3)?;
            let heads = memory.take(u64::from(options.depth) * SLOT_HEAD, 4096)?;
            let data = memory.take(u64::from(options.depth) * stride, 4096)?;
            let chains = vec![None; usize::from(options.depth)];
            queues.push(Queue { ring, heads, data, stride, chains });
        }
        let mut disk = Self {
            options: options.clone(),
            socket: socket.to_owned(),
            wish,
            memory,
            session: None,
            inflight: None,
            queues,
            capacity: 0,
            has_flush: false,
        };
        disk.try_open().with_context(|| format!("disk at {}", socket.display()))?;
        Ok(disk)
    }

    /// One try to connect, negotiate and start: the first, or after the backend went away.
    pub(crate) fn try_open(&mut self) -> Result<()> {
        self.session = None;
        let mut session = Session::connect(&self.socket, &self.wish)?;
        let queues = u64::from(self.options.queues);
        if session.queues_offered() < queues {
            bail!("--queues {queues}: the backend has {}", session.queues_offered());
        }
        let config = session.config(CONFIG_LENGTH)?;
        let Some(sectors) = config.first_chunk::<8>() else {
            bail!("the configuration space is too short for a capacity");
        };
        self.capacity = u64::from_le_bytes(*sectors).saturating_mul(SECTOR);
        self.has_flush = session.features() & FEATURE_FLUSH != 0;
        let (has_inflight, has_event_idx) = (session.has_inflight(), session.has_event_idx());
        let plans: Vec<_> = self
            .queues
            .iter_mut()
            .map(|queue| queue.ring.restart(has_inflight, has_event_idx))
            .collect();
        session.start(&self.memory, &plans, &mut self.inflight)?;
        for (index, queue) in self.queues.iter_mut().enumerate() {
            queue.ring.want_calls(false);
            // A backend that sleeps learns of what was offered before it lived.
            session.kick(index);
        }
        self.session = Some(session);
        Ok(())
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.session.as_ref().is_none_or(Session::is_lost)
    }

    /// Bytes that the options let us use, whole requests.
    pub(crate) fn span(&self) -> u64 {
        let block = u64::from(self.options.block_size);
        let span = self.options.span.unwrap_or(u64::MAX).min(self.capacity);
        span - span % block
    }

    pub(crate) const fn has_flush(&self) -> bool {
        self.has_flush
    }

    pub(crate) fn has_inflight(&self) -> bool {
        self.session.as_ref().is_some_and(Session::has_inflight)
    }

    /// Puts a request into a slot that is not out; the backend sees it with the next publish.
    pub(crate) fn submit(&mut self, queue: usize, slot: u16, request: Request) {
        let block = self.options.block_size;
        let queue = &mut self.queues[queue];
        let head = queue.head(slot);
        let (kind, offset) = match request {
            Request::Read { offset } => (TYPE_READ, offset),
            Request::Write { offset } => (TYPE_WRITE, offset),
            Request::Flush => (TYPE_FLUSH, 0),
        };
        let mut header = [0; 17];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..16].copy_from_slice(&(offset / SECTOR).to_le_bytes());
        // A status that is not written is seen. In one copy: the line is the backend's.
        header[usize::try_from(STATUS_AT).expect("it is 16")] = STATUS_PENDING;
        self.memory.guest().copy_in(head, &header).expect("the slot was taken from this memory");
        if queue.chains[usize::from(slot)].replace(kind) == Some(kind) {
            queue.ring.offer(slot);
            return;
        }
        let status = GuestAddress(head.0 + STATUS_AT);
        let data = queue.data(slot);
        let header = Buffer { address: head, length: 16, is_writable: false };
        let status = Buffer { address: status, length: 1, is_writable: true };
        let is_writable = kind == TYPE_READ;
        let data = Buffer { address: data, length: block, is_writable };
        match request {
            Request::Flush => queue.ring.set_chain(slot, &[header, status]),
            _ => queue.ring.set_chain(slot, &[header, data, status]),
        }
        queue.ring.offer(slot);
    }

    /// Shows the backend what was submitted, and kicks it where it wants that.
    pub(crate) fn publish(&mut self) {
        for (index, queue) in self.queues.iter_mut().enumerate() {
            if queue.ring.publish()
                && let Some(session) = &self.session
            {
                session.kick(index);
            }
        }
    }

    /// The next completion of a queue, if there is one.
    pub(crate) fn take(&mut self, index: usize) -> Result<Option<Completion>> {
        let queue = &mut self.queues[index];
        if let Some(slot) = queue.ring.peek_used(AHEAD) {
            self.memory.guest().prefetch_to_write(queue.head(slot));
        }
        let Some(UsedSlot { slot, .. }) = queue.ring.take_used().context("the backend's ring")?
        else {
            return Ok(None);
        };
        // The next request writes its header to this line.
        self.memory.guest().prefetch_to_write(queue.head(slot));
        let mut byte = [0];
        let status = GuestAddress(queue.head(slot).0 + STATUS_AT);
        self.memory.guest().copy_out(status, &mut byte).expect("the slot is in this memory");
        let status = match byte[0] {
            0 => Status::Done,
            1 => Status::IoError,
            2 => Status::Unsupported,
            other => Status::Unknown(other),
        };
        Ok(Some(Completion { queue: index, slot, status }))
    }

    pub(crate) fn fill(&self, queue: usize, slot: u16, at: u64, bytes: &[u8]) {
        let address = GuestAddress(self.queues[queue].data(slot).0 + at);
        self.memory.guest().copy_in(address, bytes).expect("the slot is in this memory");
    }

    pub(crate) fn read(&self, queue: usize, slot: u16, at: u64, bytes: &mut [u8]) {
        let address = GuestAddress(self.queues[queue].data(slot).0 + at);
        self.memory.guest().copy_out(address, bytes).expect("the slot is in this memory");
    }
}

impl Queue {
    /// Where a slot's header is; the status follows.
    fn head(&self, slot: u16) -> GuestAddress {
        GuestAddress(self.heads.0 + u64::from(slot) * SLOT_HEAD)
    }

    fn data(&self, slot: u16) -> GuestAddress {
        GuestAddress(self.data.0 + u64::from(slot) * self.stride)
    }
}

const _: () = assert!(HEADER <= STATUS_AT && STATUS_AT < SLOT_HEAD);
