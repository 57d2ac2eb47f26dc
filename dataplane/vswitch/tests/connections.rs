// SPDX-License-Identifier: Apache-2.0
//! Stories of connections through security groups.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod support;

use plinth_ids::{Epoch, GroupId, PortId};
use plinth_switch_api::{Direction, Priority, Rule, RuleProtocol, SecurityGroup, SwitchConfig};
use plinth_vswitch::{DropReason, PortIndex};
use plinth_wire::{PROTOCOL_TCP, PROTOCOL_UDP, TcpHeader};
use std::time::Duration;
use support::frames::{self, Segment};
use support::*;

const SYN: u8 = TcpHeader::SYN;
const ACK: u8 = TcpHeader::ACK;
const FIN: u8 = TcpHeader::FIN;
const RST: u8 = TcpHeader::RST;

const CLIENT: u8 = 1;
const SERVER: u8 = 2;

fn group(id: u32, rules: Vec<Rule>) -> SecurityGroup {
    SecurityGroup { id: GroupId(id), name: format!("group-{id}").parse().unwrap(), rules }
}

/// [`two_vpcs`], where NIC 1 of VPC 100 may begin anything and accept nothing, and NIC 2 may begin
/// nothing and accepts HTTP, DNS and pings. NICs 1 and 2 of VPC 200 are not filtered.
fn filtered() -> SwitchConfig {
    let mut config = two_vpcs();
    config.security_groups = vec![
        group(1, vec![allow(Direction::Outbound, RuleProtocol::Any, None)]),
        group(
            2,
            vec![
                allow(Direction::Inbound, RuleProtocol::Tcp, Some((80, 80))),
                allow(Direction::Inbound, RuleProtocol::Udp, Some((53, 53))),
                allow(Direction::Inbound, RuleProtocol::Icmp, None),
            ],
        ),
    ];
    config.ports[0].security_groups = Some(vec![GroupId(1)]);
    config.ports[1].security_groups = Some(vec![GroupId(2)]);
    config
}

struct Story {
    rig: Rig,
    config: SwitchConfig,
}

impl Story {
    fn new() -> Self {
        Self::of(filtered())
    }

    fn of(config: SwitchConfig) -> Self {
        Self { rig: Rig::resolved(&config), config }
    }

    /// A datagram from one NIC of VPC 100 to another.
    fn datagram(&mut self, from: u8, to: u8, ports: (u16, u16)) -> Outcome {
        let frame = frames::udp((mac(from), mac(to)), (v4(from), v4(to)), ports, &[1; 20]);
        self.rig.send(self.rig.index(from.into()), frame)
    }

    fn tcp(&mut self, from: u8, to: u8, ports: (u16, u16), segment: Segment) -> Outcome {
        let frame = frames::tcp((mac(from), mac(to)), (v4(from), v4(to)), ports, segment);
        self.rig.once(self.rig.index(from.into()), frame)
    }

    /// A segment from the client's port 1000 to the server's port 80, or back.
    fn segment(&mut self, from: u8, segment: Segment) -> Result<(), DropReason> {
        let outcome = if from == CLIENT {
            self.tcp(CLIENT, SERVER, (1000, 80), segment)
        } else {
            self.tcp(SERVER, CLIENT, (80, 1000), segment)
        };
        passed(&outcome)
    }

    /// SYN, SYN with ACK, ACK, from 100 and 500.
    fn shake_hands(&mut self) {
        self.segment(CLIENT, seg(SYN, 100, 0)).unwrap();
        self.segment(SERVER, seg(SYN | ACK, 500, 101)).unwrap();
        self.segment(CLIENT, seg(ACK, 101, 501)).unwrap();
    }

    fn apply(&mut self, change: impl FnOnce(&mut SwitchConfig)) {
        self.config.epoch = Epoch(self.config.epoch.0 + 1);
        change(&mut self.config);
        self.rig.switch.apply(self.rig.now, &self.config).unwrap();
    }

    fn wait(&mut self, seconds: u64) {
        for _ in 0..seconds * 2 {
            self.rig.now += Duration::from_millis(500);
            self.rig.said();
        }
    }

    fn states(&self) -> Vec<String> {
        let flows = self.rig.switch.flows(self.rig.now, 100);
        let mut states: Vec<String> = flows
            .iter()
            .filter_map(|flow| {
                Some(format!("{} {}", flow.direction.as_ref()?, flow.state.as_ref()?))
            })
            .collect();
        states.sort();
        states
    }
}

fn seg(flags: u8, sequence: u32, acknowledgment: u32) -> Segment {
    Segment { flags, sequence, acknowledgment, window: 1000, length: 0 }
}

fn data(sequence: u32, acknowledgment: u32, length: usize) -> Segment {
    Segment { length, ..seg(ACK, sequence, acknowledgment) }
}

fn passed(outcome: &Outcome) -> Result<(), DropReason> {
    match outcome {
        Outcome::Sent { .. } => Ok(()),
        Outcome::Absorbed | Outcome::Asked => panic!("it is not for the switch"),
        Outcome::Dropped(reason) => Err(*reason),
    }
}

#[test]
fn what_the_rules_allow_is_answered_and_nothing_else() {
    let mut story = Story::new();
    assert!(passed(&story.datagram(CLIENT, SERVER, (1000, 53))).is_ok());
    assert!(passed(&story.datagram(SERVER, CLIENT, (53, 1000))).is_ok(), "the answer");
    let denied = Err(DropReason::SecurityGroupDenied);
    assert_eq!(passed(&story.datagram(SERVER, CLIENT, (53, 1001))), denied, "not asked for");
    assert_eq!(passed(&story.datagram(SERVER, CLIENT, (54, 1000))), denied);
    assert_eq!(passed(&story.datagram(CLIENT, SERVER, (1000, 54))), denied, "not served");
    assert_eq!(story.rig.switch.connection_count(), 1);
    assert_eq!(story.rig.switch.flow_count(), 2);
    story.rig.check_books(4);
}

#[test]
fn a_port_that_is_not_filtered_needs_no_connection() {
    let mut story = Story::of(two_vpcs());
    assert!(passed(&story.datagram(CLIENT, SERVER, (1, 2))).is_ok());
    assert!(passed(&story.tcp(CLIENT, SERVER, (1, 2), seg(ACK, 1, 1))).is_ok());
    assert_eq!(story.rig.switch.connection_count(), 0);
}

#[test]
fn a_group_without_rules_denies_everything() {
    let mut config = filtered();
    config.ports[0].security_groups = Some(Vec::new());
    let mut story = Story::of(config);
    let denied = Err(DropReason::SecurityGroupDenied);
    assert_eq!(passed(&story.datagram(CLIENT, SERVER, (1000, 53))), denied);
}

#[test]
fn pings_are_answered_by_their_number() {
    let mut story = Story::new();
    let (there, back) = ((mac(1), mac(2)), (mac(2), mac(1)));
    let request = frames::ping(there, (v4(1), v4(2)), b"ping");
    let reply = frames::ipv4(back, (v4(2), v4(1)), 1, &frames::icmp(0, b"ping"));
    let (client, server) = (story.rig.index(1), story.rig.index(2));
    let unrelated = Outcome::Dropped(DropReason::IcmpUnrelated);
    assert_eq!(story.rig.send(server, reply.clone()), unrelated, "nobody asked");
    story.rig.send(client, request).sent();
    story.rig.send(server, reply.clone()).sent();
    let mut other = reply;
    other[39] ^= 1;
    assert_eq!(story.rig.send(server, other), unrelated, "another ping's number");
}

#[test]
fn tcp_is_followed_from_the_first_segment_to_the_last() {
    let mut story = Story::new();
    let none = Err(DropReason::TcpNoConnection);
    assert_eq!(story.segment(CLIENT, seg(ACK, 101, 501)), none);
    assert_eq!(story.segment(CLIENT, seg(SYN | ACK, 101, 501)), none);
    assert_eq!(story.segment(CLIENT, seg(RST, 101, 501)), none);
    assert_eq!(story.segment(SERVER, seg(SYN, 100, 0)), Err(DropReason::SecurityGroupDenied));
    story.segment(CLIENT, seg(SYN, 100, 0)).unwrap();
    assert_eq!(story.states(), ["forward syn-sent"]);
    story.segment(SERVER, seg(SYN | ACK, 500, 101)).unwrap();
    story.segment(CLIENT, seg(ACK, 101, 501)).unwrap();
    assert_eq!(story.states(), ["back established", "forward established"]);
    story.segment(CLIENT, data(101, 501, 300)).unwrap();
    story.segment(SERVER, data(501, 401, 900)).unwrap();
    story.segment(CLIENT, seg(FIN | ACK, 401, 1401)).unwrap();
    assert_eq!(story.states(), ["back half-closed", "forward half-closed"]);
    story.segment(SERVER, data(1401, 402, 100)).unwrap();
    story.segment(SERVER, seg(FIN | ACK, 1501, 402)).unwrap();
    assert_eq!(story.states(), ["back closing", "forward closing"]);
    story.segment(CLIENT, seg(ACK, 402, 1502)).unwrap();
    assert_eq!(story.states(), ["back closed", "forward closed"]);
    // The client takes the port again, and the server may not.
    assert_eq!(story.segment(SERVER, seg(SYN, 9000, 0)), Err(DropReason::SecurityGroupDenied));
    story.segment(CLIENT, seg(SYN, 7000, 0)).unwrap();
    assert_eq!(story.states(), ["forward syn-sent"]);
    story.rig.check_books(4);
}

#[test]
fn segments_out_of_the_window_are_dropped() {
    let mut story = Story::new();
    story.shake_hands();
    let out = Err(DropReason::TcpOutOfWindow);
    let far = 1_000_000;
    assert_eq!(story.segment(CLIENT, data(101 + far, 501, 10)), out, "ahead of the room");
    assert_eq!(story.segment(CLIENT, data(101_u32.wrapping_sub(far), 501, 10)), out, "long ago");
    assert_eq!(story.segment(SERVER, data(501, 102, 10)), out, "acknowledges what was not sent");
    assert_eq!(story.segment(SERVER, data(501, 101_u32.wrapping_sub(far), 10)), out);
    assert_eq!(story.segment(SERVER, seg(RST, 501 + far, 0)), out, "a guessed reset");
    assert_eq!(story.segment(SERVER, seg(SYN, 501, 0)), out, "the server does not begin here");
    let nonsense = Err(DropReason::TcpFlagsInvalid);
    assert_eq!(story.segment(CLIENT, seg(SYN | FIN, 101, 501)), nonsense);
    assert_eq!(story.segment(CLIENT, seg(0, 101, 501)), nonsense);
    assert_eq!(
        passed(&story.tcp(CLIENT, SERVER, (2, 80), seg(SYN | RST, 1, 1))),
        nonsense,
        "nor can a connection begin so"
    );
    // None of them changed anything.
    story.segment(CLIENT, data(101, 501, 10)).unwrap();
    story.segment(SERVER, data(501, 111, 10)).unwrap();
    story.segment(SERVER, seg(RST, 511, 0)).unwrap();
    assert_eq!(story.states(), ["back reset", "forward reset"]);
}

#[test]
fn a_client_that_forgot_its_connection_gets_another_one() {
    let mut story = Story::new();
    story.shake_hands();
    // It begins anew; the server asks what that is, and the client resets the old one.
    story.segment(CLIENT, seg(SYN, 40_000, 0)).unwrap();
    story.segment(SERVER, seg(ACK, 501, 101)).unwrap();
    story.segment(CLIENT, seg(RST, 101, 0)).unwrap();
    story.segment(CLIENT, seg(SYN, 40_000, 0)).unwrap();
    story.segment(SERVER, seg(SYN | ACK, 800, 40_001)).unwrap();
    story.segment(CLIENT, seg(ACK, 40_001, 801)).unwrap();
    assert_eq!(story.states(), ["back established", "forward established"]);
}

#[test]
fn connections_that_nobody_uses_are_forgotten_by_their_state() {
    let mut story = Story::new();
    story.shake_hands();
    story.datagram(CLIENT, SERVER, (1, 53)).sent();
    story.datagram(CLIENT, SERVER, (2, 53)).sent();
    story.datagram(SERVER, CLIENT, (53, 2)).sent();
    assert_eq!(story.rig.switch.connection_count(), 3);
    story.wait(65);
    assert_eq!(story.rig.switch.connection_count(), 2, "one was never answered");
    story.wait(160);
    assert_eq!(story.rig.switch.connection_count(), 1);
    story.segment(SERVER, data(501, 101, 10)).unwrap();
    let denied = Err(DropReason::SecurityGroupDenied);
    assert_eq!(passed(&story.datagram(SERVER, CLIENT, (53, 2))), denied, "it is too late");
}

#[test]
fn a_changed_rule_ends_what_it_allowed() {
    let mut story = Story::new();
    story.shake_hands();
    story.datagram(CLIENT, SERVER, (1, 53)).sent();
    story.datagram(SERVER, CLIENT, (53, 1)).sent();
    // Another rule: everything goes on, in both directions.
    story.apply(|config| config.security_groups[0].rules[0].priority = Priority::High);
    story.segment(SERVER, data(501, 101, 10)).unwrap();
    story.datagram(CLIENT, SERVER, (1, 53)).sent();
    // The one that counts: judged in the direction in which they were begun.
    story.apply(|config| config.security_groups[1].rules.truncate(1));
    story.segment(SERVER, data(511, 101, 10)).unwrap();
    let denied = Err(DropReason::SecurityGroupDenied);
    assert_eq!(passed(&story.datagram(SERVER, CLIENT, (53, 1))), denied, "not even the answers");
    assert_eq!(story.rig.switch.connection_count(), 1);
    story.apply(|config| config.security_groups[1].rules.clear());
    assert_eq!(story.segment(CLIENT, data(101, 521, 10)), denied);
    assert_eq!(story.rig.switch.connection_count(), 0);
    // Allowed again, it is a connection that nobody knows.
    story.apply(|config| config.security_groups[1] = filtered().security_groups[1].clone());
    assert_eq!(story.segment(CLIENT, data(101, 521, 10)), Err(DropReason::TcpNoConnection));
}

#[test]
fn a_port_that_is_no_longer_filtered_forgets_its_connections() {
    let mut story = Story::new();
    story.shake_hands();
    story.apply(|config| {
        config.ports[0].security_groups = None;
        config.ports[1].security_groups = None;
    });
    story.segment(CLIENT, seg(ACK, 999_999, 1)).unwrap();
    story.segment(SERVER, seg(ACK, 999_999, 1)).unwrap();
    assert_eq!(story.rig.switch.connection_count(), 0);
}

/// A port's place is given on; what the former tenant had allowed is not.
#[test]
fn a_new_port_in_an_old_place_inherits_no_connection() {
    let mut story = Story::new();
    story.datagram(CLIENT, SERVER, (1000, 53)).sent();
    let place = story.rig.index(1);
    story.apply(|config| {
        let mut other = port(9, 100, 1);
        other.security_groups = Some(vec![GroupId(1)]);
        config.ports[0] = other;
    });
    assert_eq!(story.rig.index(9), place);
    let frame = frames::udp((mac(2), mac(1)), (v4(2), v4(1)), (53, 1000), b"late");
    let server = story.rig.index(2);
    // The answer was judged with the connection of a port that is gone.
    let outcome = story.rig.once(server, frame);
    let Outcome::Dropped(reason) = outcome else {
        panic!("the new port never asked: {outcome:?}");
    };
    assert_eq!(reason, DropReason::SecurityGroupDenied);
}

#[test]
fn the_middle_of_a_connection_is_picked_up_after_a_start() {
    let mut story = Story::new();
    let until = story.rig.now + Duration::from_secs(10);
    story.rig.switch.begin_grace(until);
    // The server speaks first: the rules allow the other direction, which is the connection's.
    story.segment(SERVER, data(5000, 300, 100)).unwrap();
    story.segment(CLIENT, data(300, 5100, 100)).unwrap();
    assert_eq!(story.states(), ["back picked-up", "forward picked-up"]);
    assert_eq!(
        passed(&story.tcp(SERVER, CLIENT, (81, 7), data(1, 1, 1))),
        Err(DropReason::SecurityGroupDenied),
        "the rules allow neither direction"
    );
    assert_eq!(
        passed(&story.tcp(CLIENT, SERVER, (8, 80), seg(RST, 1, 1))),
        Err(DropReason::TcpNoConnection),
        "a reset continues nothing"
    );
    story.rig.now = until;
    let late = passed(&story.tcp(CLIENT, SERVER, (9, 80), data(1, 1, 1)));
    assert_eq!(late, Err(DropReason::TcpNoConnection));
    story.segment(SERVER, data(5100, 400, 100)).unwrap();
    story.segment(SERVER, seg(RST, 1, 0)).unwrap();
}

#[test]
fn errors_about_a_connection_pass_and_others_do_not() {
    let mut story = Story::new();
    let asked = frames::udp((mac(1), mac(2)), (v4(1), v4(2)), (1000, 53), b"query");
    let (client, server) = (story.rig.index(1), story.rig.index(2));
    let error = frames::unreachable((mac(2), mac(1)), (v4(2), v4(1)), &asked);
    let unrelated = Outcome::Dropped(DropReason::IcmpUnrelated);
    assert_eq!(story.rig.send(server, error.clone()), unrelated, "nothing was asked");
    story.rig.send(client, asked.clone()).sent();
    assert_eq!(story.rig.send(server, error.clone()).sent(), (client, error.clone()));
    let mut other = error.clone();
    other[14 + 20 + 8 + 20 + 1] ^= 1;
    assert_eq!(story.rig.send(server, other), unrelated, "about another flow");
    let mut of_another = error.clone();
    of_another[14 + 20 + 8 + 15] = 77;
    assert_eq!(story.rig.send(server, of_another), unrelated, "about somebody else's packet");
    // The server has another connection, and tells the client of it.
    let elsewhere = frames::udp((mac(3), mac(2)), (v4(3), v4(2)), (9, 53), b"query");
    let outer = frames::vxlan((NEAR_MAC, OUR_MAC), (NEAR_VTEP, OUR_VTEP), vni(100), &elsewhere);
    story.rig.send(PortIndex::UPLINK, outer).sent();
    let misdirected = frames::unreachable((mac(2), mac(1)), (v4(2), v4(1)), &elsewhere);
    assert_eq!(story.rig.send(server, misdirected), unrelated);
    let mut short = error;
    short.truncate(14 + 20 + 8 + 24);
    short[17] = 52;
    assert_eq!(story.rig.send(server, short.clone()).sent().0, client, "ports are enough");
    short.truncate(14 + 20 + 8 + 23);
    short[17] = 51;
    assert_eq!(story.rig.send(server, short), unrelated);
    // The rules that allowed the connection have gone, and with them the errors about it.
    let spoofed = frames::unreachable((mac(2), mac(1)), (v4(3), v4(1)), &asked);
    let refused = Outcome::Dropped(DropReason::SourceAddressSpoofed);
    assert_eq!(story.rig.send(server, spoofed), refused);
    story.apply(|config| config.security_groups[1].rules.clear());
    let error = frames::unreachable((mac(2), mac(1)), (v4(2), v4(1)), &asked);
    let outcome = story.rig.once(server, error);
    assert_eq!(outcome, Outcome::Dropped(DropReason::SecurityGroupDenied));
}

/// A packet of 64 bytes from the client's port 1000 to `port`, cut in two.
fn pieces(number: u16, port: u16, protocol: u8) -> [Vec<u8>; 2] {
    let upper = if protocol == PROTOCOL_UDP {
        frames::datagram((1000, port), &[7; 56])
    } else {
        let header = TcpHeader::new(1000, port, 100, SYN);
        [bytemuck::bytes_of(&header), &[7; 44]].concat()
    };
    let piece = |start: usize, bytes: &[u8], more: u16| {
        let mut frame = frames::ipv4((mac(1), mac(2)), (v4(1), v4(2)), protocol, bytes);
        let place = u16::try_from(start / 8).unwrap() | more;
        frame[18..20].copy_from_slice(&number.to_be_bytes());
        frame[20..22].copy_from_slice(&place.to_be_bytes());
        frame
    };
    [piece(0, &upper[..32], 0x2000), piece(32, &upper[32..], 0)]
}

#[test]
fn pieces_of_a_packet_have_the_fate_of_the_first() {
    let mut story = Story::new();
    let (client, server) = (story.rig.index(1), story.rig.index(2));
    let [first, second] = pieces(7, 53, PROTOCOL_UDP);
    let unmatched = Outcome::Dropped(DropReason::FragmentUnmatched);
    assert_eq!(story.rig.send(client, second.clone()), unmatched);
    assert_eq!(story.rig.send(client, first.clone()).sent(), (server, first));
    assert_eq!(story.rig.send(client, second.clone()).sent(), (server, second.clone()));
    assert_eq!(story.rig.switch.connection_count(), 1);
    // Another packet's pieces, whose first one was refused.
    let [first, second] = pieces(8, 54, PROTOCOL_UDP);
    let denied = Outcome::Dropped(DropReason::SecurityGroupDenied);
    assert_eq!(story.rig.send(client, first), denied);
    assert_eq!(story.rig.send(client, second), unmatched);
    story.rig.check_books(4);
}

#[test]
fn pieces_that_could_hide_something_are_dropped() {
    let mut story = Story::new();
    let client = story.rig.index(1);
    let invalid = Outcome::Dropped(DropReason::FragmentInvalid);
    let [first, second] = pieces(7, 80, PROTOCOL_TCP);
    story.rig.send(client, first.clone()).sent();
    story.rig.send(client, second.clone()).sent();
    for start in [1, 2] {
        let mut over_header = second.clone();
        over_header[21] = start;
        assert_eq!(story.rig.send(client, over_header), invalid, "over the TCP header");
    }
    let mut short = first;
    short.truncate(14 + 20 + 16);
    short[17] = 36;
    assert_eq!(story.rig.send(client, short), invalid, "too short for the TCP header");
    let mut short = pieces(9, 53, PROTOCOL_UDP)[0].clone();
    short.truncate(14 + 20 + 6);
    short[17] = 26;
    assert_eq!(story.rig.send(client, short), invalid);
    // Behind IPv6's fragment header, another header that hides the protocol.
    let chain = [&[60, 0, 0, 1, 0, 0, 0, 9][..], &[17, 0, 0, 0, 0, 0, 0, 0], &[0; 16]].concat();
    let hidden = frames::ipv6((mac(1), mac(2)), (v6(1), v6(2)), 44, &chain);
    assert_eq!(story.rig.send(client, hidden), invalid);
    let advertisement = [&[58, 0, 0, 1, 0, 0, 0, 9][..], &[136; 32]].concat();
    let control = frames::ipv6((mac(1), mac(2)), (v6(1), v6(2)), 44, &advertisement);
    assert_eq!(story.rig.send(client, control), invalid);
}

#[test]
fn from_the_wire_the_receivers_rules_decide() {
    let mut story = Story::new();
    let tunneled = |ports, from: u8, to: u8| {
        let inner = frames::udp((mac(from), mac(to)), (v4(from), v4(to)), ports, b"x");
        frames::vxlan((NEAR_MAC, OUR_MAC), (NEAR_VTEP, OUR_VTEP), vni(100), &inner)
    };
    let wire = PortIndex::UPLINK;
    story.rig.send(wire, tunneled((9, 53), 3, 2)).sent();
    let answer = frames::udp((mac(2), mac(3)), (v4(2), v4(3)), (53, 9), b"y");
    assert_eq!(story.rig.send(story.rig.index(2), answer).sent().0, wire);
    let denied = Outcome::Dropped(DropReason::SecurityGroupDenied);
    assert_eq!(story.rig.send(wire, tunneled((9, 53), 3, 1)), denied);
    // What the client asks of a remote comes back.
    let question = frames::udp((mac(1), mac(3)), (v4(1), v4(3)), (5, 6), b"q");
    story.rig.send(story.rig.index(1), question).sent();
    story.rig.send(wire, tunneled((6, 5), 3, 1)).sent();
    // The other VPC's NICs have the same addresses, and none of these connections.
    let inner = frames::udp((mac(3), mac(1)), (v4(3), v4(1)), (6, 5), b"x");
    let outer = frames::vxlan((NEAR_MAC, OUR_MAC), (NEAR_VTEP, OUR_VTEP), vni(200), &inner);
    assert_eq!(story.rig.send(wire, outer).sent().0, story.rig.index(3));
    assert_eq!(story.rig.switch.connection_count(), 2);
    story.rig.check_books(4);
}

#[test]
fn a_connection_goes_on_when_its_peer_moves() {
    let mut story = Story::new();
    story.datagram(CLIENT, 3, (5, 6)).sent();
    story.apply(|config| {
        config.remotes.retain(|remote| remote.mac != mac(3) || remote.vni != vni(100));
        config.ports.push(port(9, 100, 3));
    });
    assert_eq!(story.datagram(CLIENT, 3, (5, 6)).sent().0, story.rig.index(9));
    let answer = frames::udp((mac(3), mac(1)), (v4(3), v4(1)), (6, 5), b"x");
    story.rig.send(story.rig.index(9), answer).sent();
    assert_eq!(story.rig.switch.connection_count(), 1);
}

#[test]
fn a_full_table_keeps_what_is_established_and_refuses_the_new() {
    let limits = plinth_vswitch::Limits { flows: 64, flows_per_port: 1000, ..limits() };
    let config = filtered();
    let rig = Rig::with_limits(&config, limits);
    let mut story = Story { rig, config };
    let mut kept = Vec::new();
    for number in 0..400 {
        if passed(&story.datagram(CLIENT, SERVER, (number, 53))).is_ok() {
            story.datagram(SERVER, CLIENT, (53, number)).sent();
            kept.push(number);
        }
    }
    assert!((20..=32).contains(&kept.len()), "{}", kept.len());
    for &number in &kept {
        story.datagram(SERVER, CLIENT, (53, number)).sent();
    }
    let refused = (1000..1400)
        .map(|number| passed(&story.datagram(CLIENT, SERVER, (number, 53))))
        .filter(|outcome| *outcome == Err(DropReason::ConnectionTableFull));
    assert!(refused.count() > 300);
    let ports: Vec<_> = story.rig.switch.ports(|_| true);
    assert_eq!(ports[1].id, PortId(1));
    story.rig.check_books(4);
}

/// Half-open connections give way to each other; none that is established gives way.
#[test]
fn a_flood_of_beginnings_ends_nothing_that_has_begun() {
    let limits = plinth_vswitch::Limits { flows: 64, flows_per_port: 40, ..limits() };
    let config = filtered();
    let rig = Rig::with_limits(&config, limits);
    let mut story = Story { rig, config };
    story.shake_hands();
    for number in 2000..4000 {
        let _ = story.tcp(CLIENT, SERVER, (number, 80), seg(SYN, 1, 0));
    }
    story.segment(SERVER, data(501, 101, 100)).unwrap();
    story.segment(CLIENT, data(101, 601, 100)).unwrap();
    // And a new one still finds its place.
    let mut begun = 0;
    for number in 5000..5100 {
        begun +=
            u32::from(passed(&story.tcp(CLIENT, SERVER, (number, 80), seg(SYN, 1, 0))).is_ok());
    }
    assert!(begun > 80, "{begun}");
}

#[test]
fn the_list_of_flows_says_state_direction_and_age() {
    let mut story = Story::new();
    story.shake_hands();
    story.rig.now += Duration::from_secs(3);
    story.segment(CLIENT, data(101, 501, 10)).unwrap();
    let flows = story.rig.switch.flows(story.rig.now, 10);
    let lines: Vec<String> = flows
        .iter()
        .map(|flow| {
            let (state, direction) = (flow.state.as_deref(), flow.direction.as_deref());
            format!("{} {state:?} {direction:?} {} {}", flow.key, flow.age_ms, flow.idle_ms)
        })
        .collect();
    let mut sorted = lines.clone();
    sorted.sort();
    assert_eq!(
        sorted,
        [
            "tcp 10.0.0.1:1000 -> 10.0.0.2:80 Some(\"established\") Some(\"forward\") 3000 0",
            "tcp 10.0.0.2:80 -> 10.0.0.1:1000 Some(\"established\") Some(\"back\") 3000 3000",
        ]
    );
}
