// SPDX-License-Identifier: Apache-2.0
//! Checks of backends against guests that are made here: what is asked, when, and what comes of
//! answers, silence, lies and lack of room.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use plinth_answers::{CheckFrame, Checks, Opinions, wanted_checks};
use plinth_ids::{Epoch, MacAddress, Moment, PortId, Vni};
use plinth_switch_api::*;
use plinth_wire::{EthernetHeader, Ipv4Header, PROTOCOL_TCP, TcpHeader, pseudo_header_ipv4};
use std::net::Ipv4Addr;
use std::time::Duration;

const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const GUEST_MAC: MacAddress = MacAddress([2, 0x50, 0, 0, 0, 2]);
const ROUTER_MAC: MacAddress = MacAddress([2, 0x52, 0, 0, 0, 5]);

const fn ms(milliseconds: u64) -> Moment {
    Duration::from_millis(milliseconds)
}

fn config(kind: CheckKind) -> SwitchConfig {
    let vni = Vni::new(5).unwrap();
    let backend = |last: u8| Backend {
        address: [10, 0, 0, last].into(),
        port: 8080,
        weight: 10,
        state: BackendState::Active,
    };
    let check =
        HealthCheck { kind, port: None, interval_ms: 1000, timeout_ms: 400, rise: 2, fall: 2 };
    let listener = |first| Listener {
        protocol: ForwardProtocol::Tcp,
        ports: (first, first),
        scheduler: Scheduler::RoundRobin,
        stickiness: None,
        check: Some(check.clone()),
        // Nobody here has the second.
        backends: vec![backend(2), backend(9)],
    };
    SwitchConfig {
        ports: vec![GuestPort {
            id: PortId(2),
            name: "web".parse().unwrap(),
            vni,
            mac: GUEST_MAC,
            addresses: vec![GUEST.into()],
            socket: "/run/x".into(),
            mtu: 1450,
            queue_pairs: 1,
            subnet: Some("a".parse().unwrap()),
            security_groups: Some(Vec::new()),
            allowed: Vec::new(),
            limits: PortLimits::NONE,
        }],
        vpcs: vec![Vpc {
            name: "blue".parse().unwrap(),
            vni,
            router_mac: ROUTER_MAC,
            subnets: vec![Subnet {
                name: "a".parse().unwrap(),
                prefixes: vec![SubnetPrefix {
                    prefix: "10.0.0.0/24".parse().unwrap(),
                    gateway: ROUTER.into(),
                }],
            }],
            routes: Vec::new(),
        }],
        balancers: vec![Balancer {
            name: "web".parse().unwrap(),
            vni,
            address: [10, 0, 0, 100].into(),
            line: None,
            listeners: vec![listener(80), listener(443)],
        }],
        ..SwitchConfig::empty(Epoch(1))
    }
}

/// Checks of one guest, whose first begins within a second.
struct Bench {
    checks: Checks,
    now: Moment,
}

impl Bench {
    fn new(kind: CheckKind) -> Self {
        let mut checks = Checks::new(7);
        checks.set(ms(0), wanted_checks(&config(kind)));
        checks.take_news();
        Self { checks, now: ms(0) }
    }

    /// Goes to the next deadline.
    fn step(&mut self) -> Vec<CheckFrame> {
        self.now = self.checks.deadline().unwrap().max(self.now);
        self.checks.tick(self.now);
        self.said()
    }

    fn said(&mut self) -> Vec<CheckFrame> {
        std::iter::from_fn(|| self.checks.next_frame()).collect()
    }

    fn begun(&mut self) -> Asked {
        let [frame] = &self.step()[..] else { panic!("one frame") };
        asked(frame)
    }

    fn answer(&mut self, asked: &Asked, flags: u8, sequence: u32, payload: &[u8]) -> bool {
        let acknowledged = asked.sequence.wrapping_add(asked.length);
        let frame = segment(asked.local, flags, (sequence, acknowledged), payload);
        self.checks.hear(PortId(2), &frame)
    }

    fn fitness(&mut self) -> Option<Fitness> {
        let news: Opinions = self.checks.take_news()?;
        assert_eq!(news.len(), 1, "two listeners share a check, and one backend is not here");
        news.into_values().next()
    }
}

struct Asked {
    local: u16,
    flags: u8,
    sequence: u32,
    /// What it takes of sequence space.
    length: u32,
    payload: Vec<u8>,
}

fn asked(frame: &CheckFrame) -> Asked {
    assert_eq!((frame.port, frame.mac), (PortId(2), GUEST_MAC));
    let (ethernet, bytes) = EthernetHeader::parse(&frame.frame).unwrap();
    assert_eq!((ethernet.source(), ethernet.destination()), (ROUTER_MAC, GUEST_MAC));
    let ip = Ipv4Header::parse(bytes, bytes.len()).unwrap();
    assert_eq!((ip.header.source(), ip.header.destination()), (ROUTER, GUEST));
    let upper = &bytes[ip.header_length..ip.length];
    let sum = pseudo_header_ipv4(ROUTER, GUEST, PROTOCOL_TCP, upper.len().try_into().unwrap());
    assert_eq!(sum.with(upper).checksum(), 0, "its checksum is right");
    let tcp = TcpHeader::parse(upper).unwrap();
    assert_eq!(tcp.destination_port(), 8080);
    assert!(tcp.source_port() >= CHECK_PORT_FIRST);
    let payload = upper[tcp.header_length()..].to_vec();
    let length = u32::try_from(payload.len()).unwrap() + u32::from(tcp.flags() & 3 != 0);
    let (flags, sequence) = (tcp.flags(), tcp.sequence());
    Asked { local: tcp.source_port(), flags, sequence, length, payload }
}

fn segment(to: u16, flags: u8, numbers: (u32, u32), payload: &[u8]) -> Vec<u8> {
    let header = TcpHeader::new(8080, to, numbers.0, flags).acknowledging(numbers.1, 1000);
    let length = Ipv4Header::LENGTH + 20 + payload.len();
    let ip = Ipv4Header::new(GUEST, ROUTER, PROTOCOL_TCP, length.try_into().unwrap());
    let mut frame =
        bytemuck::bytes_of(&EthernetHeader::new(ROUTER_MAC, GUEST_MAC, 0x0800)).to_vec();
    frame.extend_from_slice(bytemuck::bytes_of(&ip));
    frame.extend_from_slice(bytemuck::bytes_of(&header));
    frame.extend_from_slice(payload);
    frame
}

const SYN: u8 = 2;
const RST: u8 = 4;
const SYN_ACK: u8 = 18;
const ACK: u8 = 16;
const RST_ACK: u8 = 20;

#[test]
fn a_port_that_takes_connections_is_fit_and_left_in_peace() {
    let mut bench = Bench::new(CheckKind::Tcp);
    let first = bench.begun();
    assert_eq!(first.flags, SYN);
    assert!(bench.now < ms(1000), "within an interval");
    assert!(bench.answer(&first, SYN_ACK, 900, &[]));
    let [farewell] = &bench.said()[..] else { panic!("one frame") };
    assert_eq!(asked(farewell).flags & RST, RST);
    assert_eq!(bench.fitness(), Some(Fitness::Fit));
    let began = bench.now;
    bench.begun();
    assert_eq!(bench.now, began + ms(1000), "an interval after the one before");
}

#[test]
fn silence_and_refusal_are_failures() {
    for refuses in [true, false] {
        let mut bench = Bench::new(CheckKind::Tcp);
        for number in 0..2 {
            assert_eq!(bench.fitness(), None, "before failure {number}");
            let asked = bench.begun();
            if refuses {
                assert!(bench.answer(&asked, RST_ACK, 0, &[]));
                assert_eq!(bench.said().len(), 0, "who refused is not told to go away");
            } else {
                let began = bench.now;
                assert_eq!(bench.step().len(), 1, "a late one is ended");
                assert_eq!(bench.now, began + ms(400));
            }
        }
        assert_eq!(bench.fitness(), Some(Fitness::Unfit));
        for _ in 0..2 {
            assert_eq!(bench.fitness(), None);
            let asked = bench.begun();
            bench.answer(&asked, SYN_ACK, 900, &[]);
            bench.said();
        }
        assert_eq!(bench.fitness(), Some(Fitness::Fit));
    }
}

#[test]
fn a_status_says_whether_a_server_is_fit() {
    let stories: [(&[&str], Fitness); 6] = [
        (&["HTTP/1.1 200 OK\r\n"], Fitness::Fit),
        (&["HT", "TP/1.0 30", "2 Found"], Fitness::Fit),
        (&["HTTP/1.1 500 Oops\r\n"], Fitness::Unfit),
        (&["HTTP/1.1 404 No\r\n"], Fitness::Unfit),
        (&["HTTP/1.1 2x0 OK\r\n"], Fitness::Unfit),
        (&["SSH-2.0-OpenSSH_9"], Fitness::Unfit),
    ];
    for (pieces, expected) in stories {
        let mut bench = Bench::new(CheckKind::Http { path: "/health".to_owned() });
        for _ in 0..2 {
            let syn = bench.begun();
            assert!(bench.answer(&syn, SYN_ACK, 900, &[]));
            let [frame] = &bench.said()[..] else { panic!("the request") };
            let request = asked(frame);
            assert!(request.payload.starts_with(b"GET /health HTTP/1.1\r\nHost: 10.0.0.2\r\n"));
            let mut sequence = 901;
            for piece in pieces {
                // A piece that comes twice counts once.
                bench.answer(&request, ACK, sequence, piece.as_bytes());
                bench.answer(&request, ACK, sequence, piece.as_bytes());
                sequence += u32::try_from(piece.len()).unwrap();
            }
            let last = asked(bench.said().last().unwrap());
            assert_eq!(last.flags & RST, RST, "{pieces:?}");
        }
        assert_eq!(bench.fitness(), Some(expected), "{pieces:?}");
    }
}

#[test]
fn what_was_not_asked_for_means_nothing() {
    let mut bench = Bench::new(CheckKind::Tcp);
    let asked = bench.begun();
    let other = Asked { sequence: asked.sequence.wrapping_add(1), payload: Vec::new(), ..asked };
    // The number that it acknowledges was never sent.
    assert!(bench.answer(&other, SYN_ACK, 900, &[]));
    let elsewhere = Asked { local: other.local ^ 1, payload: Vec::new(), ..other };
    assert!(!bench.answer(&elsewhere, SYN_ACK, 900, &[]));
    let stranger = segment(other.local, SYN_ACK, (900, other.sequence), &[]);
    assert!(!bench.checks.hear(PortId(3), &stranger), "of another port");
    assert!(!bench.checks.hear(PortId(2), b"no frame"));
    assert_eq!(bench.fitness(), None);
}

#[test]
fn lack_of_room_is_no_failure() {
    let mut bench = Bench::new(CheckKind::Tcp);
    for _ in 0..10 {
        let [frame] = &bench.step()[..] else { panic!("one frame") };
        bench.checks.unsaid(bench.now, frame);
    }
    assert_eq!(bench.fitness(), None);
}

#[test]
fn a_configuration_that_changes_nothing_disturbs_no_check() {
    let mut bench = Bench::new(CheckKind::Tcp);
    let first = bench.begun();
    bench.checks.set(bench.now, wanted_checks(&config(CheckKind::Tcp)));
    bench.checks.take_news();
    assert!(bench.answer(&first, SYN_ACK, 900, &[]), "the one under way goes on");
    assert_eq!(bench.fitness(), Some(Fitness::Fit));
    bench.checks.set(bench.now, wanted_checks(&config(CheckKind::Tcp)));
    assert_eq!(bench.fitness(), Some(Fitness::Fit), "what is thought stays");
    // Another guest that has the address begins anew.
    let mut changed = config(CheckKind::Tcp);
    changed.ports[0].mac = MacAddress([2, 0x50, 0, 0, 0, 3]);
    bench.checks.set(bench.now, wanted_checks(&changed));
    assert_eq!(bench.fitness(), Some(Fitness::Unknown));
    bench.checks.set(bench.now, Vec::new());
    assert_eq!(bench.checks.take_news(), Some(Opinions::new()));
    assert_eq!(bench.checks.deadline(), None);
}

#[test]
fn pings_are_answered_by_their_number() {
    let mut bench = Bench::new(CheckKind::Icmp);
    for expected in [Some(Fitness::Fit), None] {
        let [frame] = &bench.step()[..] else { panic!("one frame") };
        let mut echo = frame.frame.clone();
        let icmp = EthernetHeader::LENGTH + Ipv4Header::LENGTH;
        assert_eq!(echo[icmp], 8);
        assert!(plinth_wire::checksum::is_right(&echo[icmp..]));
        let reversed = Ipv4Header::new(GUEST, ROUTER, 1, 28);
        echo[EthernetHeader::LENGTH..icmp].copy_from_slice(bytemuck::bytes_of(&reversed));
        echo[icmp] = 0;
        let mut wrong = echo.clone();
        wrong[icmp + 7] ^= 1;
        assert!(bench.checks.hear(PortId(2), &wrong));
        assert_eq!(bench.fitness(), None, "of another question");
        assert!(bench.checks.hear(PortId(2), &echo));
        assert_eq!(bench.fitness(), expected);
    }
}
