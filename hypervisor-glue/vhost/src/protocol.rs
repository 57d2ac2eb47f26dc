// SPDX-License-Identifier: Apache-2.0
//! What each message of a frontend does. One `Protocol` is one connection.

use crate::DeviceOptions;
use crate::event::{DeviceClass, QueueChange, QueueEvent, StartedQueue, StopTicket, WorkerLink};
use crate::handover::{HandedRecord, HandedRing, HandedState};
use crate::ring::{RequestError, Ring, used_index};
use crate::server::Shared;
use crossbeam_channel::RecvTimeoutError;
use plinth_guest_memory::{GuestAddress, GuestMemory, REGIONS_MAX, RegionSpec};
use plinth_virtio::{DeviceQueue, Inflight, Notifier, QUEUE_SIZE_MAX, RingFeatures};
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Error as VhostError, GpuBackend, Result as VhostResult, VhostUserBackendReqHandlerMut,
    VhostUserVirtioFeatures,
};
use virtio_bindings::virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// How long a worker may take over giving a queue back before that is reported. It is waited for
/// without end: an answer to the frontend while the worker has the ring would be a lie.
const GIVE_BACK_PATIENCE: Duration = Duration::from_secs(5);

const EVENT_INDEX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const INDIRECT: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
const PACKED: u64 = 1 << VIRTIO_F_RING_PACKED;
const IN_ORDER: u64 = 1 << VIRTIO_F_IN_ORDER;
const PROTOCOL: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// One connection: what the frontend has said so far.
#[derive(Debug)]
pub(crate) struct Protocol {
    options: DeviceOptions,
    class: Arc<dyn DeviceClass>,
    worker: WorkerLink,
    shared: Arc<Shared>,
    features: u64,
    protocol_features: u64,
    memory: Arc<GuestMemory>,
    /// What `memory` was mapped from, for a process that comes after this one.
    regions: Vec<(RegionSpec, File)>,
    inflight: Option<Inflight>,
    /// The file of `inflight`, for the same.
    record: Option<HandedRecord>,
    rings: Vec<Ring>,
}

impl Protocol {
    pub(crate) fn new(
        options: DeviceOptions,
        class: Arc<dyn DeviceClass>,
        worker: WorkerLink,
        shared: Arc<Shared>,
    ) -> Self {
        let rings = (0..class.queue_count()).map(|_| Ring::default()).collect();
        let memory = Arc::new(GuestMemory::default());
        Self {
            options,
            class,
            worker,
            shared,
            features: 0,
            protocol_features: 0,
            memory,
            regions: Vec::new(),
            inflight: None,
            record: None,
            rings,
        }
    }

    /// Goes on where another process has handed its connection over. No ring runs yet:
    /// [`Protocol::resume`] starts them.
    pub(crate) fn adopt(&mut self, handed: HandedState) -> Result<(), RequestError> {
        check_handed_features(handed.features, self.offered())?;
        let HandedState { features, protocol_features, regions, record, rings } = handed;
        if rings.len() != self.rings.len() {
            let (found, wanted) = (rings.len(), self.rings.len());
            return Err(RequestError::HandedRings { found, wanted });
        }
        (self.features, self.protocol_features) = (features, protocol_features);
        let shrinkable = self.options.shrinkable;
        let mut memory = GuestMemory::default();
        for (spec, file) in &regions {
            memory = memory
                .with_region(*spec, file, shrinkable)
                .map_err(|source| RequestError::Memory { source })?;
        }
        self.memory = Arc::new(memory);
        self.regions = regions;
        if let Some(record) = record {
            self.inflight = Some(self.open_record(&record)?);
            self.record = Some(record);
        }
        for (own, handed) in self.rings.iter_mut().zip(rings) {
            let HandedRing { size, addresses, base, kick, call, error, is_started, is_enabled } =
                handed;
            let running = None;
            *own =
                Ring { size, addresses, base, kick, call, error, is_started, is_enabled, running };
        }
        Ok(())
    }

    /// Hands to the worker every ring that the frontend has started.
    pub(crate) fn resume(&mut self) -> Result<(), RequestError> {
        self.start_all()
    }

    /// Takes every ring back and gives away all that the frontend has said and brought.
    pub(crate) fn hand_over(&mut self) -> HandedState {
        self.take_back_all();
        let rings = std::mem::take(&mut self.rings);
        let handed = |ring: Ring| {
            let Ring { size, addresses, base, kick, call, error, is_started, is_enabled, .. } =
                ring;
            HandedRing { size, addresses, base, kick, call, error, is_started, is_enabled }
        };
        HandedState {
            features: self.features,
            protocol_features: self.protocol_features,
            regions: std::mem::take(&mut self.regions),
            record: self.record.take(),
            rings: rings.into_iter().map(handed).collect(),
        }
    }

    fn open_record(&self, record: &HandedRecord) -> Result<Inflight, RequestError> {
        let HandedRecord { file, offset, length, queues, size } = record;
        Inflight::open(file, *offset, *length, *queues, *size, self.options.shrinkable)
            .map_err(|source| RequestError::Inflight { source })
    }

    /// Whether rings are enabled by message. Before that was agreed, they are when started.
    pub(crate) const fn has_enable(&self) -> bool {
        self.features & PROTOCOL != 0
    }

    const fn is_packed(&self) -> bool {
        self.features & PACKED != 0
    }

    pub(crate) const fn has_reply_ack(&self) -> bool {
        self.protocol_features & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0
    }

    fn offered(&self) -> u64 {
        let packed = if self.class.takes_packed() { PACKED | IN_ORDER } else { 0 };
        self.class.features() | 1 << VIRTIO_F_VERSION_1 | EVENT_INDEX | INDIRECT | PROTOCOL | packed
    }

    fn count(&self) -> u16 {
        u16::try_from(self.rings.len()).expect("the class counts its rings in a u16")
    }

    fn ring(&mut self, index: u32) -> Result<(u16, &mut Ring), RequestError> {
        let count = self.count();
        let no_such_ring = RequestError::NoSuchRing { index, count };
        let short = u16::try_from(index).ok().filter(|short| *short < count).ok_or(no_such_ring)?;
        Ok((short, &mut self.rings[usize::from(short)]))
    }

    /// Hands a ring to the worker, if the frontend has started and enabled it.
    fn start(&mut self, index: u16) -> Result<(), RequestError> {
        let ring = &self.rings[usize::from(index)];
        let is_wanted = ring.is_started && (ring.is_enabled || !self.has_enable());
        if !is_wanted || ring.running.is_some() {
            return Ok(());
        }
        let layout = ring.layout(index, &self.memory)?;
        let record = match &self.inflight {
            Some(inflight) => {
                Some(inflight.queue(index).map_err(|source| RequestError::Inflight { source })?)
            }
            None => None,
        };
        let features = RingFeatures {
            event_index: self.features & EVENT_INDEX != 0,
            indirect: self.features & INDIRECT != 0,
            packed: self.is_packed(),
            in_order: self.features & IN_ORDER != 0,
        };
        let queue = DeviceQueue::new(self.memory.clone(), &layout, features, ring.base, record)
            .map_err(|source| RequestError::Ring { index, source })?;
        let kick = match &ring.kick {
            Some(kick) => Some(
                kick.try_clone().map_err(|source| RequestError::Descriptor { index, source })?,
            ),
            None => None,
        };
        let call = Ring::notifier(index, ring.call.as_ref())?;
        let error = Ring::notifier(index, ring.error.as_ref())?;
        let features = self.features;
        let started = StartedQueue { index, queue, kick, call, error, features };
        if self.send(QueueChange::Start(Box::new(started))) {
            self.rings[usize::from(index)].running = Some(layout);
            self.shared.status().queues_running += 1;
        }
        Ok(())
    }

    fn start_all(&mut self) -> Result<(), RequestError> {
        (0..self.count()).try_for_each(|index| self.start(index))
    }

    /// Takes a ring back from the worker, which never touches it again, and notes where it
    /// stands.
    fn take_back(&mut self, index: u16) {
        let Some(layout) = self.rings[usize::from(index)].running.take() else { return };
        self.shared.status().queues_running -= 1;
        let (ticket, answer) = StopTicket::new(index);
        let mut is_gone = !self.send(QueueChange::Stop(ticket));
        let mut base = None;
        while !is_gone && base.is_none() {
            match answer.recv_timeout(GIVE_BACK_PATIENCE) {
                Ok(state) => base = Some(state.next_available),
                Err(RecvTimeoutError::Disconnected) => is_gone = true,
                Err(RecvTimeoutError::Timeout) => tracing::error!(
                    socket = %self.options.socket.display(), queue = index,
                    "the worker has not given a queue back; the guest waits"
                ),
            }
        }
        // A worker that is gone has dropped the queue. What it had not given back it had, as far
        // as the driver can see, not taken.
        // A packed ring says it itself when it is started again.
        let is_packed = self.is_packed();
        let base = base.or_else(|| used_index(&layout, &self.memory).filter(|_| !is_packed));
        if let Some(base) = base {
            self.rings[usize::from(index)].base = base;
        }
    }

    /// Takes every ring back. After it, nobody has the guest's memory but `self`.
    pub(crate) fn take_back_all(&mut self) {
        (0..self.count()).for_each(|index| self.take_back(index));
    }

    fn send(&self, change: QueueChange) -> bool {
        let is_sent = self.worker.send(QueueEvent { device: self.options.token, change });
        if !is_sent {
            tracing::error!(
                socket = %self.options.socket.display(),
                "the worker of the device is gone; its queues stand still"
            );
        }
        is_sent
    }

    /// Changes what all rings stand on, while the worker has none of them.
    fn exchange<T>(
        &mut self,
        change: impl FnOnce(&mut Self) -> Result<T, RequestError>,
    ) -> VhostResult<T> {
        self.take_back_all();
        let result = change(self);
        result.and_then(|value| self.start_all().map(|()| value)).map_err(failure)
    }

    /// Changes one ring while the worker does not have it.
    fn exchange_ring(
        &mut self,
        index: u32,
        change: impl FnOnce(u16, &mut Ring) -> Result<(), RequestError>,
    ) -> VhostResult<()> {
        let (short, _) = self.ring(index).map_err(failure)?;
        self.take_back(short);
        let result = change(short, &mut self.rings[usize::from(short)]);
        result.and_then(|()| self.start(short)).map_err(failure)
    }
}

/// Our error inside of the crate's. The crate answers "no" where the frontend asked for an
/// answer, and gives the error to whoever called it, who ends the connection.
fn failure(error: RequestError) -> VhostError {
    VhostError::ReqHandlerError(std::io::Error::other(error))
}

/// Where a ring stands, from SET_VRING_BASE. Of a packed ring the upper half is where the device
/// gives back: the same place, because a ring is taken back when all of it was given back, or 0
/// from frontends that leave it out.
fn parse_base(base: u32, is_packed: bool) -> Option<u16> {
    let (used, available) = (base >> 16, base & 0xFFFF);
    let is_known = used == 0 || is_packed && used == available;
    u16::try_from(available).ok().filter(|_| is_known)
}

fn not_offered<T>(what: &'static str) -> VhostResult<T> {
    Err(failure(RequestError::NotOffered { what }))
}

/// What the predecessor agreed on with a driver must be known here: a ring in another layout would
/// be read wrongly.
fn check_handed_features(handed: u64, offered: u64) -> Result<(), RequestError> {
    match handed & !offered {
        0 => Ok(()),
        unknown => Err(RequestError::HandedFeatures { unknown }),
    }
}

fn region(guest: u64, length: u64, frontend: u64, offset: u64) -> RegionSpec {
    RegionSpec { guest: GuestAddress(guest), length, frontend, offset }
}

impl VhostUserBackendReqHandlerMut for Protocol {
    fn set_owner(&mut self) -> VhostResult<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> VhostResult<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> VhostResult<()> {
        self.take_back_all();
        self.rings.iter_mut().for_each(|ring| *ring = Ring::default());
        self.features = 0;
        Ok(())
    }

    fn get_features(&mut self) -> VhostResult<u64> {
        Ok(self.offered())
    }

    fn set_features(&mut self, features: u64) -> VhostResult<()> {
        if features & !self.offered() != 0 {
            return Err(failure(RequestError::FeaturesNotOffered { features }));
        }
        if features == self.features {
            return Ok(());
        }
        self.exchange(|protocol| {
            protocol.features = features;
            Ok(())
        })
    }

    fn set_mem_table(
        &mut self,
        table: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> VhostResult<Option<Vec<u64>>> {
        let specs = table.iter().map(|entry| {
            region(entry.guest_phys_addr, entry.memory_size, entry.user_addr, entry.mmap_offset)
        });
        let table: Vec<(RegionSpec, File)> = specs.zip(files).collect();
        let shrinkable = self.options.shrinkable;
        self.exchange(|protocol| {
            // The old table goes first: a guest with much memory is not mapped twice.
            protocol.memory = Arc::new(GuestMemory::default());
            protocol.regions.clear();
            let mut memory = GuestMemory::default();
            for (spec, file) in &table {
                memory = memory
                    .with_region(*spec, file, shrinkable)
                    .map_err(|source| RequestError::Memory { source })?;
            }
            protocol.memory = Arc::new(memory);
            protocol.regions = table;
            Ok(None)
        })
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> VhostResult<()> {
        self.exchange_ring(index, |_, ring| {
            ring.size = u16::try_from(num)
                .ok()
                .filter(|size| size.is_power_of_two() && *size <= QUEUE_SIZE_MAX)
                .ok_or(RequestError::RingSize { size: num })?;
            Ok(())
        })
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> VhostResult<()> {
        self.exchange_ring(index, |_, ring| {
            ring.addresses = Some([descriptor, available, used]);
            Ok(())
        })
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> VhostResult<()> {
        let is_packed = self.is_packed();
        self.exchange_ring(index, |_, ring| {
            ring.base = parse_base(base, is_packed).ok_or(RequestError::RingBase { base })?;
            Ok(())
        })
    }

    fn get_vring_base(&mut self, index: u32) -> VhostResult<VhostUserVringState> {
        let (short, _) = self.ring(index).map_err(failure)?;
        self.take_back(short);
        let ring = &mut self.rings[usize::from(short)];
        ring.is_started = false;
        ring.kick = None;
        let base = u32::from(ring.base);
        let used = if self.features & PACKED != 0 { base << 16 } else { 0 };
        Ok(VhostUserVringState::new(index, base | used))
    }

    fn set_vring_kick(&mut self, index: u8, kick: Option<File>) -> VhostResult<()> {
        self.exchange_ring(u32::from(index), |index, ring| {
            if let Some(file) = &kick {
                Notifier::check(file).map_err(|source| RequestError::Eventfd { index, source })?;
            }
            ring.kick = kick;
            ring.is_started = true;
            Ok(())
        })
    }

    fn set_vring_call(&mut self, index: u8, call: Option<File>) -> VhostResult<()> {
        let (index, ring) = self.ring(u32::from(index)).map_err(failure)?;
        let notifier = Ring::notifier(index, call.as_ref()).map_err(failure)?;
        ring.call = call;
        if ring.running.is_some() {
            self.send(QueueChange::Call { index, call: notifier });
        }
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, error: Option<File>) -> VhostResult<()> {
        self.exchange_ring(u32::from(index), |index, ring| {
            Ring::notifier(index, error.as_ref())?;
            ring.error = error;
            Ok(())
        })
    }

    fn get_protocol_features(&mut self) -> VhostResult<VhostUserProtocolFeatures> {
        let mut features = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RESET_DEVICE;
        if self.class.offers_config() {
            // The channel to the frontend is for announcing that the space has changed. Memory
            // slots are not for NICs: QEMU adds each region once for every queue pair.
            features |= VhostUserProtocolFeatures::CONFIG
                | VhostUserProtocolFeatures::BACKEND_REQ
                | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        }
        if self.class.keeps_inflight() {
            features |= VhostUserProtocolFeatures::INFLIGHT_SHMFD;
        }
        Ok(features)
    }

    fn set_protocol_features(&mut self, features: u64) -> VhostResult<()> {
        let offered = self.get_protocol_features()?.bits();
        if features & !offered != 0 {
            return Err(failure(RequestError::FeaturesNotOffered { features }));
        }
        self.protocol_features = features;
        Ok(())
    }

    fn get_queue_num(&mut self) -> VhostResult<u64> {
        Ok(u64::from(self.count()))
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> VhostResult<()> {
        let (short, ring) = self.ring(index).map_err(failure)?;
        ring.is_enabled = enable;
        if enable {
            return self.start(short).map_err(failure);
        }
        self.take_back(short);
        Ok(())
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> VhostResult<Vec<u8>> {
        // The crate has checked that offset and size lie inside of 4 KiB.
        let mut bytes = vec![0; size as usize];
        self.class.read_config(offset as usize, &mut bytes);
        Ok(bytes)
    }

    fn set_config(
        &mut self,
        offset: u32,
        bytes: &[u8],
        _flags: VhostUserConfigFlags,
    ) -> VhostResult<()> {
        // A driver that writes where it may not is no reason to end its connection.
        if let Err(err) = self.class.write_config(offset as usize, bytes) {
            let error = RequestError::Config { source: err };
            tracing::debug!(socket = %self.options.socket.display(), err = %error, "refused");
        }
        Ok(())
    }

    fn get_inflight_fd(
        &mut self,
        inflight: &VhostUserInflight,
    ) -> VhostResult<(VhostUserInflight, File)> {
        let (queues, size) = self.inflight_shape(inflight).map_err(failure)?;
        let file = Inflight::create(queues, size)
            .map_err(|source| failure(RequestError::Inflight { source }))?;
        let bytes = Inflight::bytes(queues, size);
        Ok((VhostUserInflight::new(bytes, 0, queues, size), file))
    }

    fn set_inflight_fd(&mut self, inflight: &VhostUserInflight, file: File) -> VhostResult<()> {
        let (queues, size) = self.inflight_shape(inflight).map_err(failure)?;
        let (offset, length) = (inflight.mmap_offset, inflight.mmap_size);
        self.exchange(|protocol| {
            let record = HandedRecord { file, offset, length, queues, size };
            protocol.inflight = Some(protocol.open_record(&record)?);
            protocol.record = Some(record);
            Ok(())
        })
    }

    fn get_max_mem_slots(&mut self) -> VhostResult<u64> {
        Ok(REGIONS_MAX as u64)
    }

    fn add_mem_region(
        &mut self,
        entry: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy_listening: Option<bool>,
    ) -> VhostResult<Option<u64>> {
        let spec =
            region(entry.guest_phys_addr, entry.memory_size, entry.user_addr, entry.mmap_offset);
        let shrinkable = self.options.shrinkable;
        self.exchange(|protocol| {
            let memory = protocol.memory.with_region(spec, &file, shrinkable);
            protocol.memory = Arc::new(memory.map_err(|source| RequestError::Memory { source })?);
            protocol.regions.push((spec, file));
            Ok(None)
        })
    }

    fn remove_mem_region(&mut self, entry: &VhostUserSingleMemoryRegion) -> VhostResult<()> {
        let (guest, length) = (GuestAddress(entry.guest_phys_addr), entry.memory_size);
        let frontend = entry.user_addr;
        self.exchange(|protocol| {
            let memory = protocol.memory.without_region(guest, length, frontend);
            protocol.memory = Arc::new(memory.map_err(|source| RequestError::Memory { source })?);
            protocol.regions.retain(|(spec, _)| {
                (spec.guest, spec.length, spec.frontend) != (guest, length, frontend)
            });
            Ok(())
        })
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> VhostResult<()> {
        not_offered("GPU_SET_SOCKET")
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> VhostResult<File> {
        not_offered("SHARED_OBJECT")
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> VhostResult<Option<File>> {
        not_offered("DEVICE_STATE")
    }

    fn check_device_state(&mut self) -> VhostResult<()> {
        not_offered("DEVICE_STATE")
    }

    fn get_shmem_config(&mut self) -> VhostResult<VhostUserShMemConfig> {
        not_offered("SHMEM")
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> VhostResult<()> {
        not_offered("LOG_SHMFD")
    }
}

impl Protocol {
    fn inflight_shape(&self, inflight: &VhostUserInflight) -> Result<(u16, u16), RequestError> {
        let (queues, size) = (inflight.num_queues, inflight.queue_size);
        if queues == 0 || queues > self.count() || size == 0 || size > QUEUE_SIZE_MAX {
            return Err(RequestError::InflightShape { queues, size });
        }
        Ok((queues, size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_ring_stands_at_one_place_for_both_directions() {
        assert_eq!(parse_base(7, false), Some(7));
        assert_eq!(parse_base(0x1_0007, false), None);
        assert_eq!(parse_base(0x8000, true), Some(0x8000), "frontends that leave it out");
        assert_eq!(parse_base(0x8007_8007, true), Some(0x8007));
        assert_eq!(parse_base(0x8006_8007, true), None, "something would be in flight");
    }
    #[test]
    fn handed_features_that_are_not_offered_are_refused() {
        let offered = 1 << VIRTIO_F_VERSION_1 | EVENT_INDEX;
        assert!(check_handed_features(offered, offered).is_ok());
        assert!(check_handed_features(0, offered).is_ok());
        let refused = check_handed_features(offered | PACKED, offered);
        assert!(matches!(refused, Err(RequestError::HandedFeatures { unknown: PACKED })));
    }
}
