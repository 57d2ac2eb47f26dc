// SPDX-License-Identifier: Apache-2.0
//! A guest's virtio-blk driver and its QEMU, as far as the store can tell: shared memory, rings,
//! the vhost-user protocol, and the in-flight record that is kept over a reconnect.

use plinth_guest_memory::{GuestAddress, OwnMemory};
use plinth_virtio::{DriverQueue, Inflight, QueueLayout, RingFeatures, Segment};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Instant;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

/// Entries of each ring.
pub(crate) const RING: u16 = 128;

/// Data of one request at most.
pub(crate) const DATA_MAX: usize = 256 << 10;

/// Requests under way at most, over all queues.
const SLOTS: usize = 128;

const BASE: u64 = 1 << 30;
const RINGS: u64 = 1 << 20;
const HEADERS: u64 = 2 << 20;
const DATA: u64 = 4 << 20;

const VERSION_1: u64 = 1 << 32;
const PROTOCOL_FEATURES: u64 = 1 << 30;
const EVENT_INDEX: u64 = 1 << 29;
const INDIRECT: u64 = 1 << 28;

/// virtio-blk's request types (virtio 1.2, section 5.2.6).
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

pub(crate) const OK: u8 = 0;
pub(crate) const IO_ERROR: u8 = 1;

#[derive(Clone, Debug)]
pub(crate) enum Io {
    Read { sector: u64, length: usize },
    Write { sector: u64, data: Vec<u8> },
    Flush,
    Discard { sector: u64, sectors: u32 },
    WriteZeroes { sector: u64, sectors: u32, may_unmap: bool },
    Id,
}

/// One answered request.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) id: u64,
    pub(crate) status: u8,
    /// Of a read.
    pub(crate) data: Vec<u8>,
}

struct Queue {
    ring: DriverQueue,
    layout: QueueLayout,
    kick: EventFd,
    call: EventFd,
    /// By head: request id, slot and length of what it reads.
    open: BTreeMap<u16, (u64, usize, usize)>,
}

pub(crate) struct Guest {
    memory: OwnMemory,
    queues: Vec<Queue>,
    free: Vec<usize>,
    inflight: File,
    frontend: Option<Frontend>,
    features: u64,
    next_id: u64,
}

impl Guest {
    /// Boots with a disk of `queues` queues at `socket`.
    pub(crate) fn boot(socket: &Path, queues: u16) -> Self {
        let memory = OwnMemory::new(GuestAddress(BASE), DATA + (SLOTS * DATA_MAX) as u64).unwrap();
        let features =
            RingFeatures { event_index: true, indirect: true, ..RingFeatures::default() };
        let queue = |index: u16| {
            let base = GuestAddress(BASE + RINGS + u64::from(index) * 0x1_0000);
            let layout = QueueLayout::contiguous(RING, base);
            Queue {
                ring: DriverQueue::new(memory.memory.clone(), &layout, features).unwrap(),
                layout,
                kick: EventFd::new(0).unwrap(),
                call: EventFd::new(0).unwrap(),
                open: BTreeMap::new(),
            }
        };
        let queues: Vec<_> = (0..queues).map(queue).collect();
        let count = u16::try_from(queues.len()).unwrap();
        let mut guest = Self {
            memory,
            queues,
            free: (0..SLOTS).rev().collect(),
            inflight: Inflight::create(count, RING).unwrap(),
            frontend: None,
            features: 0,
            next_id: 0,
        };
        guest.connect(socket);
        guest
    }

    /// What QEMU does at the start, and again when the backend comes back.
    pub(crate) fn connect(&mut self, socket: &Path) {
        let count = self.queues.len();
        let mut frontend =
            super::wait_for("the disk's socket", || Frontend::connect(socket, count as u64).ok());
        frontend.set_owner().unwrap();
        let offered = frontend.get_features().unwrap();
        let wanted = VERSION_1 | PROTOCOL_FEATURES | EVENT_INDEX | INDIRECT;
        assert_eq!(offered & wanted, wanted, "features {offered:#x}");
        let protocol = frontend.get_protocol_features().unwrap();
        assert!(protocol.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD));
        let protocol = protocol
            & (VhostUserProtocolFeatures::MQ
                | VhostUserProtocolFeatures::REPLY_ACK
                | VhostUserProtocolFeatures::CONFIG
                | VhostUserProtocolFeatures::INFLIGHT_SHMFD);
        frontend.set_protocol_features(protocol).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        // Everything that is offered but the legacy barriers and the log.
        self.features = offered & !(1 << 26);
        frontend.set_features(self.features).unwrap();
        assert!(frontend.get_queue_num().unwrap() >= count as u64);
        let spec = self.memory.spec;
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: spec.guest.0,
            memory_size: spec.length,
            userspace_addr: spec.frontend,
            mmap_offset: spec.offset,
            mmap_handle: self.memory.file.as_raw_fd(),
        };
        frontend.set_mem_table(&[region]).unwrap();
        let queues = u16::try_from(count).unwrap();
        let record = VhostUserInflight::new(Inflight::bytes(queues, RING), 0, queues, RING);
        frontend.set_inflight_fd(&record, self.inflight.as_raw_fd()).unwrap();
        for index in 0..count {
            self.start_queue(&mut frontend, index);
        }
        self.frontend = Some(frontend);
        // What was published while nobody was there was kicked into the void.
        for queue in &self.queues {
            queue.kick.write(1).unwrap();
        }
    }

    fn start_queue(&self, frontend: &mut Frontend, index: usize) {
        let queue = &self.queues[index];
        let frontend_address = |guest: GuestAddress| guest.0 - BASE + self.memory.spec.frontend;
        let addresses = VringConfigData {
            queue_max_size: RING,
            queue_size: RING,
            flags: 0,
            desc_table_addr: frontend_address(queue.layout.descriptors),
            used_ring_addr: frontend_address(queue.layout.used),
            avail_ring_addr: frontend_address(queue.layout.available),
            log_addr: None,
        };
        frontend.set_vring_num(index, RING).unwrap();
        frontend.set_vring_base(index, queue.ring.next_used()).unwrap();
        frontend.set_vring_addr(index, &addresses).unwrap();
        frontend.set_vring_call(index, &queue.call).unwrap();
        frontend.set_vring_kick(index, &queue.kick).unwrap();
        frontend.set_vring_enable(index, true).unwrap();
    }

    /// Hangs up, as a QEMU that was killed.
    pub(crate) fn disconnect(&mut self) {
        self.frontend = None;
    }

    /// The disk's size in sectors, as its configuration space has it.
    pub(crate) fn capacity(&mut self) -> u64 {
        let frontend = self.frontend.as_mut().unwrap();
        let (_, bytes) =
            frontend.get_config(0, 60, VhostUserConfigFlags::empty(), &[0; 60]).unwrap();
        u64::from_le_bytes(bytes[..8].try_into().unwrap())
    }

    /// Whether another request can be submitted to a queue.
    pub(crate) fn has_room(&self, queue: usize) -> bool {
        !self.free.is_empty() && self.queues[queue].ring.free_count() >= 3
    }

    /// Requests that were not answered.
    pub(crate) fn open(&self) -> usize {
        self.queues.iter().map(|queue| queue.open.len()).sum()
    }

    /// Submits a request; its number comes back with the answer.
    pub(crate) fn submit(&mut self, queue: usize, io: &Io) -> u64 {
        let slot = self.free.pop().expect("has_room is asked before");
        let memory = &self.memory.memory;
        let header = GuestAddress(BASE + HEADERS + slot as u64 * 64);
        let status = GuestAddress(header.0 + 16);
        let data = GuestAddress(BASE + DATA + (slot * DATA_MAX) as u64);
        let (kind, sector, out, length_in) = match io {
            Io::Read { sector, length } => (IN, *sector, Vec::new(), *length),
            Io::Write { sector, data } => (OUT, *sector, data.clone(), 0),
            Io::Flush => (FLUSH, 0, Vec::new(), 0),
            Io::Discard { sector, sectors } => (DISCARD, 0, range(*sector, *sectors, 0), 0),
            Io::WriteZeroes { sector, sectors, may_unmap } => {
                (WRITE_ZEROES, 0, range(*sector, *sectors, u32::from(*may_unmap)), 0)
            }
            Io::Id => (GET_ID, 0, Vec::new(), 20),
        };
        assert!(out.len().max(length_in) <= DATA_MAX);
        let mut first = kind.to_le_bytes().to_vec();
        first.extend([0; 4]);
        first.extend(sector.to_le_bytes());
        memory.copy_in(header, &first).unwrap();
        memory.copy_in(status, &[0xff]).unwrap();
        let segment =
            |address, length: usize| Segment { address, length: u32::try_from(length).unwrap() };
        let mut readable = vec![segment(header, 16)];
        let mut writable = Vec::new();
        if !out.is_empty() {
            memory.copy_in(data, &out).unwrap();
            readable.push(segment(data, out.len()));
        }
        if length_in > 0 {
            memory.zero(data, length_in).unwrap();
            writable.push(segment(data, length_in));
        }
        writable.push(segment(status, 1));
        let id = self.next_id;
        self.next_id += 1;
        let queue = &mut self.queues[queue];
        let head = queue.ring.add(&readable, &writable).unwrap();
        queue.open.insert(head, (id, slot, length_in));
        if queue.ring.publish() {
            queue.kick.write(1).unwrap();
        }
        id
    }

    /// What was answered since the last call.
    pub(crate) fn poll(&mut self) -> Vec<Answered> {
        let mut answered = Vec::new();
        for queue in &mut self.queues {
            while let Some(used) = queue.ring.poll().unwrap() {
                let (id, slot, length) = queue.open.remove(&used.head).unwrap();
                let memory = &self.memory.memory;
                let status_at = GuestAddress(BASE + HEADERS + slot as u64 * 64 + 16);
                let mut status = [0];
                memory.copy_out(status_at, &mut status).unwrap();
                let mut data = vec![0; length];
                memory
                    .copy_out(GuestAddress(BASE + DATA + (slot * DATA_MAX) as u64), &mut data)
                    .unwrap();
                self.free.push(slot);
                answered.push(Answered { id, status: status[0], data });
            }
        }
        answered
    }

    /// Waits until at least one request is answered.
    pub(crate) fn wait(&mut self) -> Vec<Answered> {
        let started = Instant::now();
        loop {
            let answered = self.poll();
            if !answered.is_empty() {
                return answered;
            }
            assert!(started.elapsed() < super::PATIENCE, "{} requests unanswered", self.open());
            std::thread::yield_now();
        }
    }

    /// One request alone, on queue 0.
    pub(crate) fn run(&mut self, io: &Io) -> Answered {
        assert_eq!(self.open(), 0, "other requests are under way");
        self.submit(0, io);
        self.wait().remove(0)
    }

    pub(crate) fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        self.run(&Io::Write { sector, data: data.to_vec() }).status
    }

    pub(crate) fn read(&mut self, sector: u64, length: usize) -> Vec<u8> {
        let answered = self.run(&Io::Read { sector, length });
        assert_eq!(answered.status, OK, "a read of {length} bytes at {sector}");
        answered.data
    }

    pub(crate) fn flush(&mut self) {
        assert_eq!(self.run(&Io::Flush).status, OK);
    }
}

/// The payload of discard and write-zeroes.
fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut range = sector.to_le_bytes().to_vec();
    range.extend(sectors.to_le_bytes());
    range.extend(flags.to_le_bytes());
    range
}
