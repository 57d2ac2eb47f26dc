// SPDX-License-Identifier: Apache-2.0
//! Copies of packets' heads for somebody who wants to see them.
//!
//! Buffers are made when a capture begins and go round between the worker and whoever reads: the
//! worker allocates nothing and never waits; without a free buffer a packet is missed and counted.
//! Without a capture the price is one branch a burst.
//!
//! Verdicts are those of the switch: what a destination's full queue refuses afterwards is shown as
//! sent, and is in the drop counters only.

use crossbeam_channel::{Receiver, Sender, bounded};
use plinth_ids::{Moment, Prefix};
use plinth_vswitch::{BURST_MAX, DropReason, HEADERS_MAX, Packet, PortIndex, Verdict};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Buffers of one capture: 600 KiB.
const BUFFERS: usize = 2048;

/// Which packets are wanted. What is `None` is not asked about.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CaptureFilter {
    /// Packets that came in there or go out there.
    pub place: Option<PortIndex>,
    pub came_in: bool,
    pub goes_out: bool,
    /// At either end, outside or inside of a tunnel.
    pub address: Option<Prefix>,
    pub protocol: Option<u8>,
    pub number: Option<u16>,
    /// In a tunnel's header.
    pub vni: Option<u32>,
    pub is_dropped: bool,
}

/// How much is captured at most.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CaptureBounds {
    pub packets: u64,
    pub bytes: u64,
    /// From the start.
    pub time: Moment,
    /// Of each packet; at most [`HEADERS_MAX`].
    pub snap: usize,
}

/// One packet.
#[derive(Clone, Debug)]
pub struct Captured {
    /// Since the start of the capture.
    pub at: Moment,
    pub place: PortIndex,
    /// Whether it came in at the place, or was sent out there.
    pub came_in: bool,
    /// What was decided about it.
    pub verdict: Verdict,
    /// Of the whole packet.
    pub length: u32,
    copied: usize,
    bytes: [u8; HEADERS_MAX],
}

impl Captured {
    const EMPTY: Self = Self {
        at: Moment::ZERO,
        place: PortIndex::UPLINK,
        came_in: true,
        verdict: Verdict::Drop(DropReason::Truncated),
        length: 0,
        copied: 0,
        bytes: [0; HEADERS_MAX],
    };

    /// The first bytes of it.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.copied]
    }
}

/// The worker's end.
#[derive(Debug)]
pub struct Capture {
    filter: CaptureFilter,
    bounds: CaptureBounds,
    free: Receiver<Box<Captured>>,
    full: Sender<Box<Captured>>,
    missed: Arc<AtomicU64>,
    began: Option<Moment>,
    packets: u64,
    bytes: u64,
    /// Heads of the burst as they came in.
    before: Vec<([u8; HEADERS_MAX], usize)>,
}

/// The reader's end.
#[derive(Debug)]
pub struct CaptureReader {
    free: Sender<Box<Captured>>,
    full: Receiver<Box<Captured>>,
    missed: Arc<AtomicU64>,
}

impl CaptureReader {
    /// The next packet, if there is one.
    pub fn read<T>(&self, look: impl FnOnce(&Captured) -> T) -> Option<T> {
        let captured = self.full.try_recv().ok()?;
        let seen = look(&captured);
        // Its worker's end may be gone.
        let _ = self.free.try_send(captured);
        Some(seen)
    }

    /// Packets that found no free buffer.
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }
}

/// A capture's two ends.
pub fn capture(filter: CaptureFilter, bounds: CaptureBounds) -> (Capture, CaptureReader) {
    let (give_back, free) = bounded(BUFFERS);
    let (full, read) = bounded(BUFFERS);
    for _ in 0..BUFFERS {
        let _ = give_back.try_send(Box::new(Captured::EMPTY));
    }
    let missed = Arc::new(AtomicU64::new(0));
    let before = vec![([0; HEADERS_MAX], 0); BURST_MAX];
    let reader = CaptureReader { free: give_back, full: read, missed: Arc::clone(&missed) };
    let (began, packets, bytes) = (None, 0, 0);
    (Capture { filter, bounds, free, full, missed, began, packets, bytes, before }, reader)
}

impl Capture {
    /// Whether it takes nothing more.
    fn is_over(&self, now: Moment) -> bool {
        let Self { bounds, packets, bytes, .. } = self;
        let time = self.began.map_or(Moment::ZERO, |began| now.saturating_sub(began));
        *packets >= bounds.packets || *bytes >= bounds.bytes || time >= bounds.time
    }

    /// Before a burst is judged: its heads as they came in.
    #[cold]
    pub(crate) fn before(&mut self, now: Moment, packets: &[Packet]) {
        self.began.get_or_insert(now);
        if self.is_over(now) {
            return;
        }
        for ((bytes, length), packet) in self.before.iter_mut().zip(packets) {
            let head = packet.head();
            bytes[..head.len()].copy_from_slice(head);
            *length = head.len();
        }
    }

    /// After a burst was judged, and before it is put out.
    #[cold]
    pub(crate) fn after(&mut self, now: Moment, packets: &[Packet]) {
        if self.is_over(now) {
            return;
        }
        for (nth, packet) in packets.iter().enumerate() {
            let verdict = packet.verdict();
            if self.filter.is_dropped && !matches!(verdict, Verdict::Drop(_)) {
                continue;
            }
            let CaptureFilter { place, came_in, goes_out, .. } = self.filter;
            let is_here = |at| place.is_none_or(|place| place == at);
            let (bytes, length) = self.before[nth];
            if came_in && is_here(packet.port()) {
                let of = (packet.port(), true, packet.length());
                self.keep(now, of, verdict, &bytes[..length]);
            }
            if let Verdict::Send(to) = verdict
                && goes_out
                && is_here(to)
            {
                self.keep(now, (to, false, packet.output_length()), verdict, packet.head());
            }
        }
    }

    fn keep(
        &mut self,
        now: Moment,
        (place, came_in, length): (PortIndex, bool, u32),
        verdict: Verdict,
        head: &[u8],
    ) {
        if self.is_over(now) || !self.filter.matches(head) {
            return;
        }
        let Ok(mut captured) = self.free.try_recv() else {
            self.missed.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let copied = head.len().min(self.bounds.snap).min(HEADERS_MAX);
        captured.at = now.saturating_sub(self.began.unwrap_or(now));
        (captured.place, captured.came_in, captured.verdict) = (place, came_in, verdict);
        (captured.length, captured.copied) = (length, copied);
        captured.bytes[..copied].copy_from_slice(&head[..copied]);
        self.packets += 1;
        self.bytes += copied as u64;
        // There are as many places as buffers.
        let _ = self.full.try_send(captured);
    }
}

/// Bytes of VXLAN's outer headers without options.
const TUNNEL: usize = 50;

impl CaptureFilter {
    /// Whether a frame is wanted: as it is, or what it carries through a tunnel.
    fn matches(&self, frame: &[u8]) -> bool {
        let vni = tunnel_of(frame);
        if self.vni.is_some() && self.vni != vni {
            return false;
        }
        self.matches_plain(frame)
            || vni.is_some() && self.matches_plain(frame.get(TUNNEL..).unwrap_or_default())
    }

    fn matches_plain(&self, frame: &[u8]) -> bool {
        if self.address.is_none() && self.protocol.is_none() && self.number.is_none() {
            return true;
        }
        let Some(seen) = Seen::read(frame) else { return false };
        self.protocol.is_none_or(|protocol| protocol == seen.protocol)
            && self.address.is_none_or(|prefix| seen.ends.iter().any(|end| prefix.contains(*end)))
            && self
                .number
                .is_none_or(|number| seen.numbers.is_some_and(|all| all.contains(&number)))
    }
}

fn be16(frame: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]))
}

/// The VNI of a frame of VXLAN over IPv4 without options.
fn tunnel_of(frame: &[u8]) -> Option<u32> {
    let is_tunnel = be16(frame, 12)? == 0x0800
        && *frame.get(14)? == 0x45
        && *frame.get(23)? == 17
        && be16(frame, 36)? == 4789;
    let [a, b, c] = *frame.get(46..49)?.first_chunk()?;
    is_tunnel.then(|| u32::from_be_bytes([0, a, b, c]))
}

/// What a filter asks about.
struct Seen {
    protocol: u8,
    ends: [IpAddr; 2],
    numbers: Option<[u16; 2]>,
}

impl Seen {
    /// IPv4, and IPv6 without extension headers.
    fn read(frame: &[u8]) -> Option<Self> {
        let (protocol, ends, upper): (u8, [IpAddr; 2], usize) = match be16(frame, 12)? {
            0x0800 => {
                let address =
                    |at: usize| Some(<[u8; 4]>::try_from(frame.get(at..at + 4)?).ok()?.into());
                let upper = 14 + usize::from(*frame.get(14)? & 15) * 4;
                (*frame.get(23)?, [address(26)?, address(30)?], upper)
            }
            0x86dd => {
                let address =
                    |at: usize| Some(<[u8; 16]>::try_from(frame.get(at..at + 16)?).ok()?.into());
                (*frame.get(20)?, [address(22)?, address(38)?], 54)
            }
            _ => return None,
        };
        let numbers = match protocol {
            6 | 17 => be16(frame, upper).zip(be16(frame, upper + 2)).map(|(a, b)| [a, b]),
            _ => None,
        };
        Some(Self { protocol, ends, numbers })
    }
}
