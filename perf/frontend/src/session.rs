// SPDX-License-Identifier: Apache-2.0
//! One connection to a backend, from the first message to the last.

use crate::memory::Memory;
use plinth_virtio::RingPlan;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, io};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
    VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VringConfigData};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// VIRTIO_F_VERSION_1: without it the device is a legacy one, which we do not speak.
const VERSION_1: u64 = 1 << 32;
/// VIRTIO_RING_F_EVENT_IDX.
const EVENT_IDX: u64 = 1 << 29;

/// How long the backend may take to answer one message.
const ANSWER: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("no backend at {path}", path = path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("{step} failed")]
    Protocol { step: &'static str, source: vhost::Error },
    #[error("the backend does not offer {what}")]
    Missing { what: &'static str },
    #[error("the backend has {offered} queues, {wanted} are wanted")]
    TooFewQueues { offered: u64, wanted: u16 },
    #[error("no event descriptor")]
    Event { source: io::Error },
}

impl SessionError {
    /// Whether trying again later may help: the backend is down, or went down meanwhile.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Protocol { .. })
    }
}

/// What a client wants of a backend.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    pub queues: u16,
    /// Virtio features of the device type that are taken where offered.
    pub features: u64,
    /// Whether to use EVENT_IDX where offered.
    pub event_idx: bool,
}

/// The in-flight region, made by the backend, kept by us for its next life.
pub struct Inflight {
    description: VhostUserInflight,
    file: File,
}

impl fmt::Debug for Inflight {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (queues, size) = (self.description.num_queues, self.description.mmap_size);
        write!(out, "Inflight({queues} queues in {size} bytes of {:?})", self.file)
    }
}

/// The two event descriptors of one ring.
#[derive(Debug)]
struct RingEvents {
    kick: EventFd,
    call: EventFd,
}

/// A live connection. Dropped, the backend stops its rings.
pub struct Session {
    frontend: Frontend,
    stream: UnixStream,
    hangup: Epoll,
    features: u64,
    protocol: VhostUserProtocolFeatures,
    queues_offered: u64,
    events: Vec<RingEvents>,
}

impl fmt::Debug for Session {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Session")
            .field("features", &self.features)
            .field("protocol", &self.protocol)
            .field("queues_offered", &self.queues_offered)
            .finish_non_exhaustive()
    }
}

const fn at(step: &'static str) -> impl Fn(vhost::Error) -> SessionError {
    move |source| SessionError::Protocol { step, source }
}

impl Session {
    /// Connects once and negotiates; the rings are not started.
    ///
    /// # Errors
    /// When nobody listens, or what does lacks what is needed.
    pub fn connect(path: &Path, wish: &Wish) -> Result<Self, SessionError> {
        let refused = |source| SessionError::Connect { path: path.to_owned(), source };
        let stream = UnixStream::connect(path).map_err(refused)?;
        Self::negotiate(stream, wish).map_err(|error| match error {
            SessionError::Event { source } => refused(source),
            other => other,
        })
    }

    /// The same over a connection that is there already.
    ///
    /// # Errors
    /// As [`Session::connect`].
    pub fn negotiate(stream: UnixStream, wish: &Wish) -> Result<Self, SessionError> {
        let event = |source| SessionError::Event { source };
        stream.set_read_timeout(Some(ANSWER)).map_err(event)?;
        stream.set_write_timeout(Some(ANSWER)).map_err(event)?;
        let watched = stream.try_clone().map_err(event)?;
        let hangup = Epoll::new().map_err(event)?;
        let interest = EpollEvent::new(EventSet::READ_HANG_UP | EventSet::HANG_UP, 0);
        hangup.ctl(ControlOperation::Add, watched.as_raw_fd(), interest).map_err(event)?;

        let mut frontend = Frontend::from_stream(stream, u64::from(wish.queues.max(2)));
        let offered = frontend.get_features().map_err(at("GET_FEATURES"))?;
        let protocol_bit = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        if offered & protocol_bit == 0 {
            return Err(SessionError::Missing { what: "protocol features" });
        }
        if offered & VERSION_1 == 0 {
            return Err(SessionError::Missing { what: "VIRTIO_F_VERSION_1" });
        }
        let known = frontend.get_protocol_features().map_err(at("GET_PROTOCOL_FEATURES"))?;
        let protocol = known
            & (VhostUserProtocolFeatures::MQ
                | VhostUserProtocolFeatures::REPLY_ACK
                | VhostUserProtocolFeatures::CONFIG
                | VhostUserProtocolFeatures::INFLIGHT_SHMFD);
        frontend.set_protocol_features(protocol).map_err(at("SET_PROTOCOL_FEATURES"))?;
        let queues_offered = if protocol.contains(VhostUserProtocolFeatures::MQ) {
            frontend.get_queue_num().map_err(at("GET_QUEUE_NUM"))?
        } else {
            1
        };
        frontend.set_owner().map_err(at("SET_OWNER"))?;
        let wanted =
            wish.features | VERSION_1 | protocol_bit | if wish.event_idx { EVENT_IDX } else { 0 };
        let features = offered & wanted;
        frontend.set_features(features).map_err(at("SET_FEATURES"))?;
        Ok(Self {
            frontend,
            stream: watched,
            hangup,
            features,
            protocol,
            queues_offered,
            events: Vec::new(),
        })
    }

    /// The virtio features in force.
    #[must_use]
    pub const fn features(&self) -> u64 {
        self.features
    }

    #[must_use]
    pub const fn has_event_idx(&self) -> bool {
        self.features & EVENT_IDX != 0
    }

    /// Whether the backend keeps requests in flight across its own death.
    #[must_use]
    pub const fn has_inflight(&self) -> bool {
        self.protocol.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD)
    }

    /// What the backend answered to GET_QUEUE_NUM, 1 where it cannot say. For net a queue is a
    /// pair in some backends and a ring in others, so the caller judges.
    #[must_use]
    pub const fn queues_offered(&self) -> u64 {
        self.queues_offered
    }

    /// The first `length` bytes of the device's configuration space.
    ///
    /// # Errors
    /// When the backend has none or answers wrongly.
    pub fn config(&mut self, length: u32) -> Result<Vec<u8>, SessionError> {
        if !self.protocol.contains(VhostUserProtocolFeatures::CONFIG) {
            return Err(SessionError::Missing { what: "the configuration space" });
        }
        let blank = vec![0; usize::try_from(length).unwrap_or(0)];
        let (_, payload) = self
            .frontend
            .get_config(0, length, VhostUserConfigFlags::WRITABLE, &blank)
            .map_err(at("GET_CONFIG"))?;
        Ok(payload)
    }

    /// Shares `memory`, hands over the in-flight region of an earlier life or makes a new one,
    /// and starts `rings` in their order.
    ///
    /// # Errors
    /// When the backend refuses a step or goes away.
    pub fn start(
        &mut self,
        memory: &Memory,
        rings: &[RingPlan],
        inflight: &mut Option<Inflight>,
    ) -> Result<(), SessionError> {
        if self.has_inflight() {
            self.share_inflight(rings, inflight)?;
        }
        if self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        self.frontend.set_mem_table(&memory.table()).map_err(at("SET_MEM_TABLE"))?;
        self.events.clear();
        for (index, ring) in rings.iter().enumerate() {
            let events = self.start_ring(memory, index, ring)?;
            self.events.push(events);
        }
        for index in 0..rings.len() {
            self.frontend.set_vring_enable(index, true).map_err(at("SET_VRING_ENABLE"))?;
        }
        Ok(())
    }

    fn share_inflight(
        &mut self,
        rings: &[RingPlan],
        inflight: &mut Option<Inflight>,
    ) -> Result<(), SessionError> {
        let size = rings.iter().map(|ring| ring.layout.size).max().unwrap_or(0);
        if inflight.is_none() {
            let count = u16::try_from(rings.len()).unwrap_or(u16::MAX);
            let wanted = VhostUserInflight::new(0, 0, count, size);
            let (description, file) =
                self.frontend.get_inflight_fd(&wanted).map_err(at("GET_INFLIGHT_FD"))?;
            *inflight = Some(Inflight { description, file });
        }
        if let Some(region) = inflight {
            self.frontend
                .set_inflight_fd(&region.description, region.file.as_raw_fd())
                .map_err(at("SET_INFLIGHT_FD"))?;
        }
        Ok(())
    }

    fn start_ring(
        &mut self,
        memory: &Memory,
        index: usize,
        ring: &RingPlan,
    ) -> Result<RingEvents, SessionError> {
        let event = |source| SessionError::Event { source };
        let kick = EventFd::new(EFD_NONBLOCK).map_err(event)?;
        let call = EventFd::new(EFD_NONBLOCK).map_err(event)?;
        let frontend = &self.frontend;
        frontend.set_vring_num(index, ring.layout.size).map_err(at("SET_VRING_NUM"))?;
        frontend.set_vring_base(index, ring.base).map_err(at("SET_VRING_BASE"))?;
        let places = VringConfigData {
            queue_max_size: ring.layout.size,
            queue_size: ring.layout.size,
            flags: 0,
            desc_table_addr: memory.frontend_address(ring.layout.descriptors),
            used_ring_addr: memory.frontend_address(ring.layout.used),
            avail_ring_addr: memory.frontend_address(ring.layout.available),
            log_addr: None,
        };
        frontend.set_vring_addr(index, &places).map_err(at("SET_VRING_ADDR"))?;
        frontend.set_vring_call(index, &call).map_err(at("SET_VRING_CALL"))?;
        frontend.set_vring_kick(index, &kick).map_err(at("SET_VRING_KICK"))?;
        Ok(RingEvents { kick, call })
    }

    /// Tells the backend that ring `index` has something to do.
    pub fn kick(&self, index: usize) {
        if let Some(events) = self.events.get(index) {
            // A full counter is a kick that was not seen yet, so nothing is lost.
            let _ = events.kick.write(1);
        }
    }

    /// The descriptor that becomes readable when ring `index` has used buffers.
    ///
    /// # Panics
    /// If the ring was not started.
    #[must_use]
    pub fn call(&self, index: usize) -> &EventFd {
        &self.events[index].call
    }

    /// Whether the backend has closed the connection. One system call.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        let mut events = [EpollEvent::default()];
        matches!(self.hangup.wait(0, &mut events), Ok(count) if count > 0)
    }

    /// The connection, to be watched together with other descriptors.
    #[must_use]
    pub const fn stream(&self) -> &UnixStream {
        &self.stream
    }
}
