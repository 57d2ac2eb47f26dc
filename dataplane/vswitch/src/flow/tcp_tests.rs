// SPDX-License-Identifier: Apache-2.0
//! What a TCP connection may do and what it may not, without a switch around it.

use super::tcp::{Followed, Segment, Tcp, TcpState};
use crate::DropReason;
use plinth_wire::TcpHeader;
use proptest::prelude::*;

const SYN: u8 = TcpHeader::SYN;
const ACK: u8 = TcpHeader::ACK;
const FIN: u8 = TcpHeader::FIN;
const RST: u8 = TcpHeader::RST;
const OUT: Result<Followed, DropReason> = Err(DropReason::TcpOutOfWindow);
const FINE: Result<Followed, DropReason> = Ok(Followed::Accepted);

fn seg(flags: u8, sequence: u32, acknowledgment: u32) -> Segment {
    Segment { sequence, acknowledgment, window: 1000, flags, length: 0, scale: None }
}

fn data(sequence: u32, acknowledgment: u32, length: u32) -> Segment {
    Segment { length, ..seg(ACK, sequence, acknowledgment) }
}

fn established() -> Tcp {
    let mut tcp = Tcp::opened(&seg(SYN, 100, 0));
    assert_eq!(tcp.follow(1, &seg(SYN | ACK, 500, 101)), FINE);
    assert_eq!(tcp.follow(0, &seg(ACK, 101, 501)), FINE);
    assert_eq!(tcp.state, TcpState::Established);
    tcp
}

#[test]
fn both_sides_may_open_at_once() {
    let mut tcp = Tcp::opened(&seg(SYN, 100, 0));
    assert_eq!(tcp.follow(1, &seg(SYN, 500, 0)), FINE);
    assert_eq!(tcp.state, TcpState::Crossed);
    assert_eq!(tcp.follow(0, &seg(SYN | ACK, 100, 501)), FINE);
    assert_eq!(tcp.follow(1, &seg(SYN | ACK, 500, 101)), FINE);
    assert_eq!(tcp.state, TcpState::Established);
    assert_eq!(tcp.follow(1, &data(501, 101, 100)), FINE);
    assert_eq!(tcp.follow(0, &data(101, 601, 100)), FINE);
}

#[test]
fn windows_are_scaled_when_both_said_so() {
    let open = |first, second| {
        let mut tcp = Tcp::opened(&Segment { scale: first, ..seg(SYN, 100, 0) });
        let answer = Segment { scale: second, ..seg(SYN | ACK, 500, 101) };
        assert_eq!(tcp.follow(1, &answer), FINE);
        assert_eq!(tcp.follow(0, &seg(ACK, 101, 501)), FINE);
        // The server's window of 1000 << 7 begins to count with its next segment.
        assert_eq!(tcp.follow(1, &seg(ACK, 501, 101)), FINE);
        tcp.follow(0, &data(101 + 100_000, 501, 1000))
    };
    assert_eq!(open(Some(7), Some(7)), FINE);
    assert_eq!(open(Some(7), None), OUT);
    assert_eq!(open(None, Some(7)), OUT);
}

#[test]
fn a_second_answer_may_bring_the_scale_that_the_first_left_out() {
    let mut tcp = Tcp::opened(&Segment { scale: Some(7), ..seg(SYN, 100, 0) });
    assert_eq!(tcp.follow(1, &seg(SYN | ACK, 500, 101)), FINE);
    let again = Segment { scale: Some(7), ..seg(SYN | ACK, 500, 101) };
    assert_eq!(tcp.follow(1, &again), FINE);
    assert_eq!(tcp.follow(0, &seg(ACK, 101, 501)), FINE);
    assert_eq!(tcp.follow(1, &data(501 + 100_000, 101, 1000)), FINE, "within 1000 << 7");
}

#[test]
fn a_syn_is_answered_by_who_has_seen_it() {
    let mut tcp = Tcp::opened(&seg(SYN, 100, 0));
    assert_eq!(tcp.follow(1, &seg(SYN | ACK, 500, 102)), OUT, "more than was sent");
    assert_eq!(tcp.follow(0, &seg(SYN | ACK, 500, 101)), OUT, "the opener does not answer");
    assert_eq!(tcp.follow(0, &seg(ACK, 101, 501)), OUT, "nothing to acknowledge");
    assert_eq!(tcp.follow(1, &seg(RST | ACK, 0, 100)), OUT, "a guess");
    assert_eq!(tcp.follow(1, &seg(RST, 0, 101)), OUT, "proves nothing");
    assert_eq!(tcp.state, TcpState::Opening);
    // Sent again, with another number; the answer is to the later one.
    assert_eq!(tcp.follow(0, &seg(SYN, 9100, 0)), FINE);
    assert_eq!(tcp.follow(1, &seg(RST | ACK, 0, 9101)), FINE);
    assert_eq!(tcp.state, TcpState::Reset);
    assert_eq!(tcp.follow(1, &seg(RST | ACK, 0, 9101)), FINE, "sent twice");
    assert_eq!(tcp.follow(0, &seg(SYN, 1, 0)), Ok(Followed::Reopens));
}

#[test]
fn a_peer_that_does_not_know_the_connection_may_say_so() {
    let mut tcp = Tcp::opened(&seg(SYN, 100, 0));
    assert_eq!(tcp.follow(1, &seg(ACK, 77, 4242)), FINE, "a question about an older connection");
    assert_eq!(tcp.state, TcpState::Opening, "which changes nothing");
    assert_eq!(tcp.follow(0, &seg(RST, 4242, 0)), OUT);
    assert_eq!(tcp.follow(0, &seg(RST, 101, 0)), FINE);
}

#[test]
fn resets_must_be_in_the_window() {
    for (sequence, expected) in [(501, FINE), (1501, FINE), (1502, OUT), (u32::MAX - 499, OUT)] {
        let mut tcp = established();
        assert_eq!(tcp.follow(1, &seg(RST, sequence, 0)), expected, "{sequence}");
    }
}

#[test]
fn a_closed_window_may_be_probed() {
    let mut tcp = established();
    let full = Segment { window: 0, ..seg(ACK, 501, 1101) };
    assert_eq!(tcp.follow(0, &data(101, 501, 1000)), FINE);
    assert_eq!(tcp.follow(1, &full), FINE);
    assert_eq!(tcp.follow(0, &data(1101, 501, 1)), FINE, "one byte");
    assert_eq!(tcp.follow(1, &full), FINE);
    assert_eq!(tcp.follow(0, &seg(ACK, 1100, 501)), FINE, "a keepalive");
    assert_eq!(tcp.follow(0, &data(3000, 501, 1)), OUT);
}

#[test]
fn numbers_wrap_round() {
    let mut tcp = Tcp::opened(&seg(SYN, u32::MAX - 5, 0));
    assert_eq!(tcp.follow(1, &seg(SYN | ACK, u32::MAX, u32::MAX - 4)), FINE);
    assert_eq!(tcp.follow(0, &data(u32::MAX - 4, 0, 100)), FINE);
    assert_eq!(tcp.follow(1, &data(0, 95, 100)), FINE);
    assert_eq!(tcp.follow(0, &data(95, 100, 100)), FINE);
    assert_eq!(tcp.follow(0, &data(0_u32.wrapping_sub(100_000), 100, 100)), OUT);
}

#[test]
fn flags_that_no_stack_sets_are_nonsense() {
    for flags in [0, FIN, SYN | FIN, SYN | RST, SYN | FIN | ACK, SYN | RST | ACK, 8, FIN | 8 | 32] {
        let mut tcp = established();
        let before = tcp;
        let segment = seg(flags, 101, 501);
        assert_eq!(tcp.follow(0, &segment), Err(DropReason::TcpFlagsInvalid), "{flags:#x}");
        assert_eq!(tcp, before);
    }
}

/// One end of a connection that keeps to the rules, as far as the tracker can see.
#[derive(Clone, Copy, Debug)]
struct End {
    next: u32,
    /// Behind what it has received in order.
    received: u32,
    /// What it may send at most.
    room: u32,
}

proptest! {
    /// Whatever a network loses, repeats and overtakes of a connection whose ends keep to the
    /// rules, every segment that arrives is accepted.
    #[test]
    fn what_ends_that_keep_the_rules_send_is_accepted(
        starts: (u32, u32),
        steps in prop::collection::vec((0..2usize, 0..1400u32, 0..6u8), 1..300),
    ) {
        let window = 1000u16;
        let mut tcp = Tcp::opened(&seg(SYN, starts.0, 0));
        let first = starts.0.wrapping_add(1);
        let second = starts.1.wrapping_add(1);
        prop_assert_eq!(tcp.follow(1, &seg(SYN | ACK, starts.1, first)), FINE);
        prop_assert_eq!(tcp.follow(0, &seg(ACK, first, second)), FINE);
        let mut ends = [
            End { next: first, received: second, room: first.wrapping_add(window.into()) },
            End { next: second, received: first, room: second.wrapping_add(window.into()) },
        ];
        let mut held: Option<(usize, Segment)> = None;
        for (from, length, fate) in steps {
            let end = ends[from];
            let length = length.min(end.room.wrapping_sub(end.next));
            let segment = data(end.next, end.received, length);
            ends[from].next = end.next.wrapping_add(length);
            // An answer that is held back is overtaken by others, up to a window of them.
            if let Some((other, old)) = held.take() {
                prop_assert_eq!(tcp.follow(other, &old), FINE, "overtaken: {:?}", old);
            }
            match fate {
                0 => held = Some((from, segment)),
                // Lost before us: it is sent again from where the receiver is.
                1 => ends[from].next = ends[1 - from].received,
                _ => {
                    prop_assert_eq!(tcp.follow(from, &segment), FINE, "{:?}", segment);
                    // Lost behind us, or received and acknowledged.
                    if fate == 2 {
                        ends[from].next = ends[1 - from].received;
                    } else if segment.sequence == ends[1 - from].received {
                        ends[1 - from].received = segment.sequence.wrapping_add(length);
                        ends[from].room =
                            ends[1 - from].received.wrapping_add(window.into());
                        let acknowledged = seg(ACK, ends[1 - from].next, ends[1 - from].received);
                        prop_assert_eq!(tcp.follow(1 - from, &acknowledged), FINE);
                    }
                }
            }
        }
    }

    /// A guess hits the window as seldom as the window is small.
    #[test]
    fn a_guess_is_refused(sequence: u32, acknowledgment: u32, length in 0..1400u32) {
        let mut tcp = established();
        let segment = data(sequence, acknowledgment, length);
        let is_near = sequence.wrapping_sub(101).wrapping_add(3000) < 6000
            && acknowledgment.wrapping_sub(501).wrapping_add(70_000) < 140_000;
        if !is_near {
            prop_assert_eq!(tcp.follow(0, &segment), OUT);
            prop_assert_eq!(tcp, established());
        }
    }
}

/// Found by the fuzz target of guests' frames: the second of two equal segments was refused.
#[test]
fn a_side_that_never_spoke_gets_no_window_from_its_peer() {
    let mut tcp = Tcp::opened(&seg(SYN, 100, 0));
    assert_eq!(tcp.follow(1, &seg(RST | ACK, 500, 101)), FINE);
    for _ in 0..2 {
        assert_eq!(tcp.follow(0, &seg(FIN | ACK, 101, 501)), FINE);
    }
}
