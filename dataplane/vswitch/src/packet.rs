// SPDX-License-Identifier: Apache-2.0
//! One packet on its way through the machine: a private copy of its headers, what the source said
//! about it, and, afterwards, what is to be sent.
//!
//! The payload is never here. The driver copies the first bytes of a frame in, the machine decides
//! on the copy and edits it, and the driver builds the outgoing frame from [`Packet::head`] and
//! the [`Packet::tail`] of the incoming frame. A guest that changes its buffer
//! while we look changes its payload only: headers are sent as they were judged.
//!
//! ```text
//!   incoming frame   [ headers ........ | payload ............................ ]
//!                       │ copied in       │
//!   Packet           [ headroom | copy ]  │ tail
//!                        │ edited         │
//!   outgoing frame   [ head ........... | payload ............................ ]
//! ```

use crate::DropReason;
use plinth_wire::checksum::{PartialChecksum, RxChecksum};
use plinth_wire::{Segmentation, TUNNEL_OVERHEAD};
use std::ops::Range;

/// The most bytes of a frame that are copied and looked at.
pub const HEADERS_MAX: usize = HEADERS as usize;

/// Room in front of the copy for outer headers: 50 bytes of VXLAN tunnel, rounded up.
const HEADROOM: u32 = 64;
/// [`HEADERS_MAX`], in the type in which lengths are kept.
const HEADERS: u32 = 256;
const BUFFER: usize = (HEADROOM + HEADERS) as usize;

/// The most packets that one call of `Switch::process` takes.
pub const BURST_MAX: usize = 32;

/// A port's place in the switch's tables. Stable while the port is configured; given to another
/// port afterwards.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PortIndex(pub(crate) u16);

impl PortIndex {
    /// The port to the underlay. It exists in every switch, configured or not.
    pub const UPLINK: Self = Self(0);

    /// For tables of the driver's own that run beside the switch's: less than
    /// `Limits::ports + 1`.
    pub const fn get(self) -> usize {
        self.0 as usize
    }
}

/// What the source said about a frame besides its bytes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Offload {
    /// From a guest: the checksum that it left to us (virtio's `VIRTIO_NET_HDR_F_NEEDS_CSUM`).
    /// The machine checks it; it is not to be trusted before.
    pub partial: Option<PartialChecksum>,
    /// From the wire: what the device, or `plinth_wire::checksum::rx_checksum`, says of the outer
    /// UDP checksum.
    pub udp: RxChecksum,
}

/// What is to be done with a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// Send [`Packet::head`] and the incoming frame's [`Packet::tail`] to this port. It may be the
    /// port that the packet came from: then it is an answer.
    Send(PortIndex),
    /// It was for the switch itself, which took notice. Nothing is to be sent.
    Absorbed,
    /// A guest's question that is answered beside the worker: the whole incoming frame is to be
    /// handed there, as it was judged: [`Packet::head`] and [`Packet::tail`].
    Ask,
    Drop(DropReason),
}

/// One packet of a burst. The driver keeps an array of them and uses it for every burst.
#[derive(Clone)]
pub struct Packet {
    buffer: [u8; BUFFER],
    /// The outgoing headers, or before the verdict the incoming ones: `buffer[start..end]`.
    start: u32,
    end: u32,
    /// The frame's bytes from `tail_start` to `tail_end` follow the headers.
    tail_start: u32,
    tail_end: u32,
    /// Of the incoming frame.
    length: u32,
    port: PortIndex,
    offload: Offload,
    /// How the packet is to be cut: as its sender asked for it, and once it was judged, so that it
    /// can be done.
    segmentation: Option<Segmentation>,
    verdict: Verdict,
}

impl Packet {
    /// A slot for a packet, with none in it.
    pub const fn empty() -> Self {
        Self {
            buffer: [0; BUFFER],
            start: HEADROOM,
            end: HEADROOM,
            tail_start: 0,
            tail_end: 0,
            length: 0,
            port: PortIndex::UPLINK,
            offload: Offload { partial: None, udp: RxChecksum::Unknown },
            segmentation: None,
            verdict: Verdict::Drop(DropReason::Truncated),
        }
    }

    /// Begins a packet of `length` bytes that came in at `port`, and gives the place for the copy
    /// of its first bytes: the whole frame, or [`HEADERS_MAX`] bytes of a longer one. The caller
    /// fills all of it.
    pub fn load(&mut self, port: PortIndex, length: u32, offload: Offload) -> &mut [u8] {
        let copied = HEADERS.min(length);
        self.start = HEADROOM;
        self.end = HEADROOM + copied;
        self.tail_start = copied;
        self.tail_end = length;
        self.length = length;
        self.port = port;
        self.offload = offload;
        self.segmentation = None;
        self.verdict = Verdict::Drop(DropReason::Truncated);
        self.head_mut()
    }

    /// Says, after [`Self::load`], that the sender leaves it to the switch to cut the packet into
    /// TCP segments of `size` bytes. The machine checks that; nothing else of what a guest says
    /// about its segments is believed, so nothing else is asked for.
    pub fn ask_segmentation(&mut self, size: u16, is_ipv6: bool, has_ecn: bool) {
        let (network, transport, headers) = (NETWORK, 0, 0);
        self.segmentation =
            Some(Segmentation { size, is_ipv6, has_ecn, network, transport, headers });
    }

    /// How the outgoing frame is to be cut, if it is: by the driver, or by a receiver that takes
    /// packets of this kind uncut. [`Segments::new`](plinth_wire::Segments::new) takes it.
    #[inline]
    pub const fn segmentation(&self) -> Option<Segmentation> {
        self.segmentation
    }

    /// Where it came in.
    pub const fn port(&self) -> PortIndex {
        self.port
    }

    /// Of the incoming frame, in bytes.
    pub const fn length(&self) -> u32 {
        self.length
    }

    pub const fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// The first bytes of the outgoing frame.
    pub fn head(&self) -> &[u8] {
        &self.buffer[self.start as usize..self.end as usize]
    }

    /// Which bytes of the incoming frame follow [`Self::head`]. Empty when none do.
    pub const fn tail(&self) -> Range<usize> {
        self.tail_start as usize..self.tail_end as usize
    }

    /// Of the outgoing frame, in bytes.
    pub const fn output_length(&self) -> u32 {
        self.end - self.start + (self.tail_end - self.tail_start)
    }

    /// The checksum that is still to be filled in, counted from the first byte of the outgoing
    /// frame.
    ///
    /// A port whose peer takes partial checksums passes it on; towards the wire and other peers,
    /// `plinth_wire::checksum::complete` over the assembled frame fills it in.
    pub const fn partial_checksum(&self) -> Option<PartialChecksum> {
        self.offload.partial
    }
}

/// What the machine's stages do to a packet. Lengths and offsets are of the frame as it stands.
impl Packet {
    pub(crate) const fn set_verdict(&mut self, verdict: Verdict) {
        self.verdict = verdict;
    }

    pub(crate) const fn offload(&self) -> Offload {
        self.offload
    }

    /// What [`Self::ask_segmentation`] said, found to be possible, or `None` when the packet needs
    /// no cutting.
    pub(crate) const fn set_segmentation(&mut self, segmentation: Option<Segmentation>) {
        self.segmentation = segmentation;
    }

    /// The longest frame that this packet will be: its own length, or that of a segment of it.
    pub(crate) fn frame_length(&self) -> u32 {
        match self.segmentation {
            Some(Segmentation { size, headers, .. }) => {
                self.output_length().min(u32::from(headers) + u32::from(size))
            }
            None => self.output_length(),
        }
    }

    pub(crate) fn head_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start as usize..self.end as usize]
    }

    /// Takes `count` bytes off the front, at most those of the head.
    pub(crate) fn strip(&mut self, count: usize) {
        assert!(count <= self.head().len(), "only headers that were looked at are taken off");
        self.start += u32::try_from(count).expect("a head is short");
    }

    /// Cuts the frame to its first `length` bytes, at most what it has.
    pub(crate) fn truncate(&mut self, length: usize) {
        let length = u32::try_from(length).expect("a frame's length has 32 bits");
        let excess =
            self.output_length().checked_sub(length).expect("a frame is cut to less than it has");
        let of_tail = excess.min(self.tail_end - self.tail_start);
        self.tail_end -= of_tail;
        self.end -= excess - of_tail;
    }

    /// Makes room for outer headers in front, once, and gives it to be filled.
    pub(crate) fn push(&mut self) -> &mut [u8; TUNNEL_OVERHEAD] {
        self.start -= TUNNEL_LENGTH;
        if let Some(partial) = &mut self.offload.partial {
            partial.start += TUNNEL_START;
        }
        if let Some(segmentation) = &mut self.segmentation {
            segmentation.network += TUNNEL_START;
            segmentation.transport += TUNNEL_START;
            segmentation.headers += TUNNEL_START;
        }
        let room = self.buffer[self.start as usize..].first_chunk_mut();
        room.expect("the headroom holds one tunnel's headers")
    }

    /// Puts a frame of the switch's own in the packet's place.
    pub(crate) fn replace(&mut self, frame: &[u8]) {
        let length = u32::try_from(frame.len()).expect("the switch's own frames are short");
        self.start = HEADROOM;
        self.end = HEADROOM + length;
        self.tail_end = self.tail_start;
        self.offload.partial = None;
        self.segmentation = None;
        self.head_mut().copy_from_slice(frame);
    }
}

/// [`TUNNEL_OVERHEAD`], in the types in which lengths and checksum places are kept.
const TUNNEL_LENGTH: u32 = 50;
/// Where IP begins behind an Ethernet header without tags.
const NETWORK: u16 = 14;
const TUNNEL_START: u16 = 50;
const _: () = assert!(TUNNEL_LENGTH as usize == TUNNEL_OVERHEAD);
const _: () = assert!(TUNNEL_START as usize == TUNNEL_OVERHEAD);
const _: () = assert!(TUNNEL_LENGTH <= HEADROOM, "one tunnel's headers fit in front");

impl std::fmt::Debug for Packet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packet")
            .field("port", &self.port)
            .field("length", &self.length)
            .field("offload", &self.offload)
            .field("verdict", &self.verdict)
            .field("tail", &self.tail())
            .field("head", &self.head())
            .finish_non_exhaustive()
    }
}
