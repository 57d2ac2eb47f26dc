// SPDX-License-Identifier: Apache-2.0
//! A guest's NIC over vhost-user.

use crate::Delivery;
use crate::port::{counts, reason};
use plinth_backends::net::{
    ChecksumRequest, Inbound, NetDevice, Offload, OutboundBurst, Payload, SegmentRequest,
};
use plinth_backends::{DeviceToken, QueueChange};
use plinth_switch_api::DropCount;
use plinth_vswitch::DropReason;
use plinth_wire::Segmentation;
use std::os::fd::BorrowedFd;

/// The worker's side of one NIC: its rings, and which of its queue pairs run.
#[derive(Debug)]
pub struct GuestPort {
    token: DeviceToken,
    device: NetDevice,
    /// Pairs of which both rings run, lowest first.
    running: Vec<u16>,
    /// One segment of a packet that is cut here; reused.
    segment: Vec<u8>,
}

/// A segment's frame, at most: the longest MTU and its Ethernet header.
const SEGMENT_MAX: usize = 65_535 + 14;

impl GuestPort {
    /// `token` is the one of the device's events.
    pub fn new(token: DeviceToken, queue_pairs: u16) -> Self {
        let running = Vec::with_capacity(usize::from(queue_pairs));
        let segment = Vec::with_capacity(SEGMENT_MAX);
        Self { token, device: NetDevice::new(queue_pairs), running, segment }
    }

    pub const fn token(&self) -> DeviceToken {
        self.token
    }

    /// Takes an event of the device's thread. No burst may be outstanding.
    pub(crate) fn handle(&mut self, change: QueueChange) {
        self.device.handle(change);
        self.running.clear();
        self.running.extend(self.device.pairs_running());
    }

    /// Lets go of descriptors that went with their queues. Whether any came or went.
    pub(crate) fn settle(&mut self) -> bool {
        let mut is_changed = false;
        while self.device.take_kick_change().is_some() {
            is_changed = true;
        }
        is_changed
    }

    pub(crate) fn pair_count(&self) -> usize {
        self.running.len()
    }

    /// Takes up to `most` packets from the `nth` running pair.
    #[inline]
    pub(crate) fn receive(&mut self, nth: usize, most: usize, burst: &mut OutboundBurst) -> usize {
        self.running.get(nth).map_or(0, |&pair| self.device.receive_up_to(pair, most, burst))
    }

    #[inline]
    pub(crate) fn release(&mut self, burst: &mut OutboundBurst) {
        self.device.release(burst);
    }

    #[inline]
    pub(crate) fn deliver(&mut self, delivery: &Delivery<'_>) -> Result<(), DropReason> {
        let pair = match self.running[..] {
            [] => return Err(DropReason::PortDown),
            [pair] => pair,
            ref pairs => pairs[steer(delivery.head) % pairs.len()],
        };
        if delivery.segmentation.is_some() {
            return self.deliver_long(pair, delivery);
        }
        let Inbound { head, payload, offload } = inbound(delivery);
        self.device.deliver(pair, head, payload, offload).map_err(reason)
    }

    /// A packet that is to be cut: uncut to a guest that takes it so, else cut here. When the queue
    /// is full in the middle, what was delivered stays, and TCP sends the rest again.
    fn deliver_long(&mut self, pair: u16, delivery: &Delivery<'_>) -> Result<(), DropReason> {
        let Inbound { head, payload, offload } = inbound(delivery);
        if offload.segments.is_none_or(|request| self.device.takes_segments(pair, request)) {
            return self.device.deliver(pair, head, payload, offload).map_err(reason);
        }
        let segments = delivery.segments().ok_or(DropReason::PortBufferInvalid)?;
        for nth in 0..segments.count() {
            self.segment.clear();
            self.segment.resize(segments.headers() + segments.payload(nth).len(), 0);
            delivery.cut(&segments, nth, &mut self.segment);
            let frame = Payload::bytes(&self.segment);
            self.device.deliver(pair, &[], frame, Offload::default()).map_err(reason)?;
        }
        Ok(())
    }

    /// Prepares for packets that will probably come.
    #[inline]
    pub(crate) fn expect(&mut self, count: usize, length: usize) {
        if let [pair] = self.running[..] {
            self.device.expect(pair, count, length);
        }
    }

    /// Puts several packets out, as [`Self::deliver`] does one.
    #[inline]
    pub(crate) fn deliver_burst<'a>(
        &mut self,
        count: usize,
        delivery: impl Fn(usize) -> Delivery<'a>,
        mut refused: impl FnMut(usize, DropReason),
    ) {
        let is_plain = (0..count).all(|nth| delivery(nth).segmentation.is_none());
        if let [pair] = self.running[..]
            && is_plain
        {
            self.device.deliver_burst(
                pair,
                count,
                |nth| inbound(&delivery(nth)),
                |nth, refusal| refused(nth, reason(refusal)),
            );
            return;
        }
        for nth in 0..count {
            if let Err(reason) = self.deliver(&delivery(nth)) {
                refused(nth, reason);
            }
        }
    }

    pub(crate) fn flush(&mut self) {
        self.device.flush();
    }

    pub(crate) fn is_up(&self) -> bool {
        self.device.is_up()
    }

    pub(crate) fn arm(&mut self) -> bool {
        // Chains that broke the ring's rules go back at the latest now: a round that finds nothing
        // else does not flush.
        self.device.flush();
        // Packets that are there already are found by the round that follows.
        let _ = self.device.arm_kicks();
        true
    }

    pub(crate) fn disarm(&mut self) {
        self.device.disarm_kicks();
    }

    pub(crate) fn watch(&self, watch: &mut dyn FnMut(BorrowedFd<'_>)) {
        self.device.watch_kicks(watch);
    }

    pub(crate) fn drops(&self) -> Vec<DropCount> {
        let counters = self.device.counters();
        counts(&[
            ("ring-chain-malformed", counters.drop_chain_malformed),
            ("ring-packet-too-short", counters.drop_too_short),
            ("ring-packet-too-long", counters.drop_too_long),
            ("ring-offload-invalid", counters.drop_offload_invalid),
        ])
    }
}

#[inline]
fn inbound<'a>(delivery: &Delivery<'a>) -> Inbound<'a> {
    let checksum = delivery
        .partial
        .map(|partial| ChecksumRequest { start: partial.start, offset: partial.offset });
    let segments = delivery.segmentation.map(|plan| {
        let Segmentation { size, is_ipv6, has_ecn, headers, .. } = plan;
        SegmentRequest { size, is_ipv6, has_ecn, headers }
    });
    let offload = Offload { checksum, is_verified: false, segments };
    Inbound { head: delivery.head, payload: delivery.payload, offload }
}

/// A number that is the same for all packets of a conversation, so that they stay in order: of
/// the bytes that hold addresses and ports in IPv4 without options and the end of the addresses
/// and the ports in IPv6. Where the bytes are something else the number is still a fair one.
#[inline]
fn steer(head: &[u8]) -> usize {
    const PLACE: std::ops::Range<usize> = 26..38;
    let bytes = head.get(PLACE).unwrap_or_default();
    let mut sum = 0u32;
    for word in bytes.as_chunks::<4>().0 {
        // FNV-1a a word at a time: short, and good enough to choose one of eight.
        sum = (sum ^ u32::from_le_bytes(*word)).wrapping_mul(16_777_619);
    }
    (sum >> 16) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_keeps_its_queue_and_conversations_spread() {
        let mut head = [0u8; 54];
        let mut used = [0; 4];
        for port in 0..64u8 {
            head[35] = port;
            let queue = steer(&head) % 4;
            // What changes from packet to packet of a conversation: id, checksum, sequence.
            for place in [18, 19, 24, 25, 40, 50] {
                head[place] = head[place].wrapping_add(port);
            }
            assert_eq!(steer(&head) % 4, queue);
            used[queue] += 1;
        }
        assert!(used.iter().all(|&count| count > 4), "{used:?}");
        assert_eq!(steer(&head[..20]), 0);
    }
}
