// SPDX-License-Identifier: Apache-2.0
//! What a trace says is what the switch then does, and why.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod support;

use plinth_ids::{Epoch, GroupId, MacAddress};
use plinth_switch_api::{
    Direction, NextHop, Priority, Route, Rule, RulePeer, RuleProtocol, RuleVerdict, SecurityGroup,
    Subnet, SubnetPrefix, SwitchConfig, Vpc,
};
use plinth_vswitch::{
    DropReason, ImagineError, Imagined, Packet, PortIndex, Sender, Traced, Verdict, load_seen,
};
use plinth_wire::{PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, TcpHeader};
use proptest::prelude::*;
use std::net::{IpAddr, Ipv4Addr};
use support::generate::{self, Random};
use support::outside;
use support::*;

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn rule(direction: Direction, verdict: RuleVerdict, protocol: RuleProtocol) -> Rule {
    let (priority, ports, icmp, peer) = (Priority::Mid, None, None, RulePeer::Any);
    Rule { direction, priority, verdict, protocol, ports, icmp, peer }
}

fn any_rule(random: &mut Random) -> Rule {
    let protocol = random.pick(&[RuleProtocol::Any, RuleProtocol::Tcp, RuleProtocol::Udp]);
    let direction = random.pick(&[Direction::Inbound, Direction::Outbound]);
    let verdict = random.pick(&[RuleVerdict::Allow, RuleVerdict::Allow, RuleVerdict::Deny]);
    let has_ports = protocol != RuleProtocol::Any && random.percent(50);
    let peer = match random.below(3) {
        0 => RulePeer::Prefix(random.pick(&["10.0.0.0/24", "10.0.1.0/24"]).parse().unwrap()),
        1 => RulePeer::Group(GroupId(u32::try_from(1 + random.below(2)).unwrap())),
        _ => RulePeer::Any,
    };
    let ports = has_ports.then_some((53, 100));
    Rule { ports, peer, ..rule(direction, verdict, protocol) }
}

fn vpc(segment: u32, base: u8, routes: Vec<(&str, NextHop)>) -> Vpc {
    let subnet = |third: u8| Subnet {
        name: format!("subnet-{third}").parse().unwrap(),
        prefixes: vec![SubnetPrefix {
            prefix: format!("10.{base}.{third}.0/24").parse().unwrap(),
            gateway: Ipv4Addr::new(10, base, third, 254).into(),
        }],
    };
    let routes = routes.into_iter().map(|(destination, next_hop)| Route {
        destination: destination.parse().unwrap(),
        next_hop,
    });
    Vpc {
        vni: vni(segment),
        name: format!("vpc-{segment}").parse().unwrap(),
        router_mac: MacAddress([2, 0xee, 0, 0, 0, base]),
        subnets: vec![subnet(0), subnet(1)],
        routes: routes.collect(),
    }
}

/// VPC 100 with NICs 1 (10.0.0.1) and 2 (10.0.1.2) here and 3 (10.0.1.3) behind the near VTEP, its
/// peer 300 with NIC 6 (10.3.0.6). Groups 1 and 2 have the rules.
fn routed(rules: [Vec<Rule>; 2], members: impl Fn(u32) -> Option<Vec<GroupId>>) -> SwitchConfig {
    let mut config = two_vpcs();
    let nic = |id: u32, segment, number, address: &str| {
        let mut port = port(id, segment, number);
        port.addresses = vec![ip(address).into()];
        port.security_groups = members(id);
        port
    };
    config.ports =
        vec![nic(1, 100, 1, "10.0.0.1"), nic(2, 100, 2, "10.0.1.2"), nic(6, 300, 6, "10.3.0.6")];
    let mut far = remote(100, 3, NEAR_VTEP);
    far.addresses = vec![ip("10.0.1.3").into()];
    far.security_groups = members(3).unwrap_or_default();
    config.remotes = vec![far];
    config.vpcs = vec![
        vpc(
            100,
            0,
            vec![
                ("192.168.0.0/16", NextHop::Address(ip("10.0.1.2").into())),
                ("192.168.7.0/24", NextHop::Blackhole),
                ("192.168.8.0/24", NextHop::Address(ip("10.0.1.77").into())),
                ("10.3.0.0/24", NextHop::Peer(vni(300))),
            ],
        ),
        vpc(300, 3, vec![("10.0.0.0/16", NextHop::Peer(vni(100)))]),
    ];
    let mut ids = 1..;
    config.security_groups = rules
        .into_iter()
        .map(|rules| {
            let id = ids.next().unwrap();
            let name = format!("group-{id}").parse().unwrap();
            SecurityGroup { id: GroupId(id), name, rules }
        })
        .collect();
    config
}

fn generated(random: &mut Random) -> SwitchConfig {
    let rules = [0, 1].map(|_| (0..random.below(5)).map(|_| any_rule(random)).collect());
    let mut sets = Vec::new();
    for _ in 0..7 {
        let set = (1..=2).filter(|_| random.percent(50)).map(GroupId).collect();
        sets.push(random.percent(70).then_some(set));
    }
    routed(rules, |id| sets[id as usize % 7].clone())
}

const SYN: Imagined = Imagined {
    source: None,
    destination: IpAddr::V4(Ipv4Addr::new(10, 0, 1, 2)),
    protocol: PROTOCOL_TCP,
    source_port: 1000,
    destination_port: 80,
    tcp_flags: TcpHeader::SYN,
    time_to_live: 64,
    payload: 0,
};

fn any_packet(random: &mut Random) -> Imagined {
    let ends = ["10.0.0.1", "10.0.1.2", "10.0.1.3", "10.0.1.77", "10.3.0.6", "10.0.0.254"];
    let far = ["192.168.1.1", "192.168.7.1", "192.168.8.1", "8.8.8.8", "255.255.255.255"];
    let destination = if random.percent(70) { random.pick(&ends) } else { random.pick(&far) };
    let source = random.percent(60).then(|| ip(random.pick(&ends)).into());
    Imagined {
        source,
        destination: ip(destination).into(),
        protocol: random.pick(&[PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_ICMP, 47]),
        source_port: random.pick(&[1000, 2000]),
        destination_port: random.pick(&[53, 80, 443]),
        tcp_flags: random.pick(&[TcpHeader::SYN, TcpHeader::SYN, TcpHeader::ACK, 0xff]),
        time_to_live: random.pick(&[64, 64, 64, 2, 1, 0]),
        payload: random.pick(&[0, 0, 100, 1500, 2000]),
    }
}

fn sender(random: &mut Random, rig: &Rig) -> Sender {
    match random.below(5) {
        0 => Sender::Tunnel { vni: vni(100), vtep: NEAR_VTEP },
        1 => Sender::Tunnel { vni: vni(random.pick(&[200, 300])), vtep: FAR_VTEP },
        _ => Sender::Guest(rig.index(random.pick(&[1, 2, 6]))),
    }
}

/// A packet of the switch's own table of hashes: of a tunnel, the outer source port.
fn without_hash(mut frame: Vec<u8>, port: PortIndex) -> Vec<u8> {
    if port == PortIndex::UPLINK && frame[12..14] == [8, 0] && frame[23] == 17 {
        frame[34..36].fill(0);
    }
    frame
}

/// Does what was traced, and compares.
fn compare(rig: &mut Rig, incoming: &Incoming, traced: &Traced, packet: &Packet) {
    let outcome = rig.burst(std::slice::from_ref(incoming)).remove(0);
    let told = match traced.verdict {
        Verdict::Drop(reason) => Outcome::Dropped(reason),
        Verdict::Absorbed => Outcome::Absorbed,
        Verdict::Ask => Outcome::Asked,
        Verdict::Send(port) => {
            let tail = incoming.frame[packet.tail()].to_vec();
            let frame = without_hash([packet.head(), &tail].concat(), port);
            Outcome::Sent { port, frame, partial: packet.partial_checksum() }
        }
    };
    let done = match outcome {
        Outcome::Sent { port, frame, partial } => {
            Outcome::Sent { port, frame: without_hash(frame, port), partial }
        }
        other => other,
    };
    assert_eq!(told, done, "{:#?}", traced.steps);
    let (last, others) = traced.steps.split_last().unwrap();
    assert!(others.iter().all(|step| step.refused.is_none()), "{:#?}", traced.steps);
    // What a stage refuses is told as that stage's word.
    let is_judged = matches!(
        last.refused,
        Some(DropReason::SecurityGroupDenied | DropReason::TimeToLiveExceeded)
    );
    assert!(!is_judged || last.stage != "output", "{:#?}", traced.steps);
    match (traced.verdict, last.refused) {
        (Verdict::Drop(reason), said) => assert_eq!(said, Some(reason), "{:#?}", traced.steps),
        // Its sender is told.
        (Verdict::Send(to), Some(DropReason::TimeToLiveExceeded)) => assert_eq!(to, incoming.port),
        (_, said) => assert_eq!(said, None, "{:#?}", traced.steps),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_switch_does_to_a_packet_what_its_trace_said(seed: u64) {
        let mut random = Random(seed);
        let config = generated(&mut random);
        for _ in 0..20 {
            // A switch that remembers no flow, as a trace has none.
            let mut rig = Rig::new(&config);
            if random.percent(80) {
                rig.hear_next_hops();
            }
            let from = sender(&mut random, &rig);
            let scene = rig.switch.scene();
            let Ok(mut packet) = any_packet(&mut random).load(scene.snapshot(), from) else {
                continue;
            };
            let mut frame = packet.head().to_vec();
            frame.resize(packet.length() as usize, 0);
            let incoming = Incoming::new(packet.port(), frame);
            let traced = scene.trace(&mut packet);
            compare(&mut rig, &incoming, &traced, &packet);
        }
    }

    #[test]
    fn the_switch_does_to_a_frame_of_any_kind_what_its_trace_said(seed: u64) {
        let mut random = Random(seed);
        let config = generate::config(&mut random, 1);
        for _ in 0..20 {
            let mut rig = Rig::new(&config);
            let sent = generate::packet(&mut random, &config);
            let port = sent.port.map_or(PortIndex::UPLINK, |id| rig.index(id.0));
            let incoming = Incoming { port, frame: sent.frame, offload: sent.offload };
            let mut packet = Packet::empty();
            let length = u32::try_from(incoming.frame.len()).unwrap();
            let head = packet.load(port, length, incoming.offload);
            let copied = head.len();
            head.copy_from_slice(&incoming.frame[..copied]);
            let traced = rig.switch.scene().trace(&mut packet);
            compare(&mut rig, &incoming, &traced, &packet);
        }
    }
}

/// Stage and text of every step, with the reason of the last.
fn told(rig: &Rig, from: Sender, packet: &Imagined) -> (Vec<String>, Option<DropReason>) {
    let scene = rig.switch.scene();
    let traced = scene.trace(&mut packet.load(scene.snapshot(), from).unwrap());
    let lines = traced.steps.iter().map(|step| format!("{}: {}", step.stage, step.text)).collect();
    (lines, traced.steps.last().unwrap().refused)
}

/// Group 1 lets everything out and TCP in; group 2 has UDP refused by its second rule.
fn story() -> Rig {
    let out = rule(Direction::Outbound, RuleVerdict::Allow, RuleProtocol::Any);
    let tcp = rule(Direction::Inbound, RuleVerdict::Allow, RuleProtocol::Tcp);
    let udp = rule(Direction::Inbound, RuleVerdict::Deny, RuleProtocol::Udp);
    let config = routed([vec![out, tcp], vec![tcp, udp]], |id| match id {
        1 => Some(vec![GroupId(1)]),
        2 => Some(vec![GroupId(2)]),
        _ => None,
    });
    Rig::resolved(&config)
}

#[test]
fn a_connection_is_told_stage_by_stage() {
    let rig = story();
    let (lines, reason) = told(&rig, Sender::Guest(rig.index(1)), &SYN);
    assert_eq!(
        lines,
        [
            "ingress: port nic-1 of vpc vpc-100 (vni 100), 54 bytes",
            "parse: tcp 10.0.0.1:1000 > 10.0.1.2:80",
            &format!("source: {} 10.0.0.1 is the port's", mac(1)),
            "route: 10.0.1.0/24 of a subnet here",
            "forward: port nic-2 here",
            "rules out: port nic-1: allowed by rule 1 of group group-1",
            "rules in: port nic-2: allowed by rule 1 of group group-2",
            "output: port nic-2, 54 bytes",
        ]
    );
    assert_eq!(reason, None);
}

#[test]
fn the_rule_that_refuses_is_named() {
    let rig = story();
    let datagram = Imagined { protocol: PROTOCOL_UDP, ..SYN };
    let (lines, reason) = told(&rig, Sender::Guest(rig.index(1)), &datagram);
    assert_eq!(lines.last().unwrap(), "rules in: port nic-2: denied by rule 2 of group group-2");
    assert_eq!(reason, Some(DropReason::SecurityGroupDenied));
    let ping = Imagined { protocol: PROTOCOL_ICMP, ..SYN };
    let (lines, _) = told(&rig, Sender::Guest(rig.index(1)), &ping);
    assert_eq!(lines.last().unwrap(), "rules in: port nic-2: no rule allows it");
}

#[test]
fn the_route_that_leads_nowhere_is_named() {
    let rig = story();
    let to = |text: &str| Imagined { destination: ip(text).into(), ..SYN };
    let from = Sender::Guest(rig.index(1));
    let (lines, reason) = told(&rig, from, &to("192.168.7.9"));
    assert!(lines.contains(&"route: 192.168.7.0/24 nowhere".to_owned()), "{lines:?}");
    assert_eq!(reason, Some(DropReason::RouteBlackhole));
    let (lines, reason) = told(&rig, from, &to("192.168.8.9"));
    assert!(lines.contains(&"route: 192.168.8.0/24 by 10.0.1.77".to_owned()), "{lines:?}");
    assert_eq!(reason, Some(DropReason::RouteNextHopUnknown));
    let (lines, reason) = told(&rig, from, &to("8.8.8.8"));
    assert!(lines.contains(&"route: no route to 8.8.8.8".to_owned()), "{lines:?}");
    assert_eq!(reason, Some(DropReason::RouteUnknown));
}

#[test]
fn the_end_of_a_packets_life_is_told_where_it_comes() {
    let rig = story();
    let from = Sender::Guest(rig.index(1));
    let (lines, reason) = told(&rig, from, &Imagined { time_to_live: 1, ..SYN });
    assert_eq!(lines.last().unwrap(), "route: its time to live ends here");
    assert_eq!(reason, Some(DropReason::TimeToLiveExceeded));
}

#[test]
fn tunnels_are_told_of_in_both_directions() {
    let rig = story();
    let far = Imagined { destination: ip("10.0.1.3").into(), ..SYN };
    let (lines, reason) = told(&rig, Sender::Guest(rig.index(1)), &far);
    let hop = format!("next hop {NEAR_VTEP} at {NEAR_MAC}");
    let forward = format!("forward: tunnel to {NEAR_VTEP} with vni 100, {hop}");
    assert!(lines.contains(&forward), "{lines:?}");
    assert_eq!((lines.last().unwrap().as_str(), reason), ("output: uplink, 104 bytes", None));
    let back = Imagined { source: Some(ip("10.0.1.3").into()), ..SYN };
    let (lines, _) = told(&rig, Sender::Tunnel { vni: vni(100), vtep: NEAR_VTEP }, &back);
    assert_eq!(lines[1], format!("tunnel: from {NEAR_VTEP}, vpc vpc-100 (vni 100)"));
    let stranger = Sender::Tunnel { vni: vni(100), vtep: FAR_VTEP };
    assert_eq!(told(&rig, stranger, &back).1, Some(DropReason::VtepUnknown));
}

#[test]
fn what_the_underlay_does_not_know_yet_is_told() {
    let rig = Rig::new(&story().switch.snapshot().config().unwrap());
    let far = Imagined { destination: ip("10.0.1.3").into(), ..SYN };
    let (lines, reason) = told(&rig, Sender::Guest(rig.index(1)), &far);
    assert!(lines.iter().any(|line| line.ends_with("whose MAC is not known")), "{lines:?}");
    assert_eq!(reason, Some(DropReason::NextHopUnresolved));
}

/// What is said of a packet that was seen: `imagined` with `length` bytes, of which 256 are known.
fn told_amid(rig: &Rig, id: u32, imagined: &Imagined) -> (Vec<String>, Verdict) {
    let scene = rig.switch.scene();
    let from = rig.index(id);
    let seen = imagined.load(scene.snapshot(), Sender::Guest(from)).unwrap();
    let (head, length) = (seen.head().to_vec(), seen.length());
    let mut packet = load_seen(scene.snapshot(), from, &head, length).unwrap();
    let traced = scene.trace_amid(&mut packet);
    let lines = traced.steps.iter().map(|step| format!("{}: {}", step.stage, step.text)).collect();
    (lines, traced.verdict)
}

#[test]
fn a_packet_in_the_middle_passes_if_either_end_may_have_begun() {
    let rig = story();
    let to_first = Imagined { destination: ip("10.0.0.1").into(), ..SYN };
    let answer = Imagined { tcp_flags: TcpHeader::ACK, ..to_first };
    let (lines, verdict) = told_amid(&rig, 2, &answer);
    assert_eq!(verdict, Verdict::Send(rig.index(1)), "{lines:?}");
    let begun = "connection: taken for begun by the other end, whose rules allow it";
    assert!(lines.iter().any(|line| line == begun), "{lines:?}");
    let (_, verdict) = told_amid(&rig, 2, &to_first);
    assert_eq!(verdict, Verdict::Drop(DropReason::SecurityGroupDenied));
    let alone = told(
        &rig,
        Sender::Guest(rig.index(1)),
        &Imagined { destination: SYN.destination, ..answer },
    );
    assert_eq!(alone.1, Some(DropReason::TcpNoConnection), "one that is imagined begins nothing");
}

#[test]
fn a_long_packet_that_was_seen_is_one_to_be_cut() {
    let rig = story();
    let long = Imagined { tcp_flags: TcpHeader::ACK, payload: 6000, ..SYN };
    assert_eq!(told_amid(&rig, 1, &long).1, Verdict::Send(rig.index(2)));
    let datagram = Imagined { protocol: 47, ..long };
    assert_ne!(told_amid(&rig, 1, &datagram).1, Verdict::Send(rig.index(2)));
    let scene = rig.switch.scene();
    let short = load_seen(scene.snapshot(), rig.index(1), &[0; 60], 61).unwrap_err();
    assert_eq!(short, ImagineError::Short);
}

#[test]
fn the_address_outside_is_told() {
    let mut story = outside::Story::new();
    story.hear_next_hop();
    let out = Imagined { destination: outside::WEB.into(), ..SYN };
    let first = Sender::Guest(story.rig.index(1));
    let (lines, reason) = told(&story.rig, first, &out);
    let translate = format!("translate: goes as tcp {}:1000 > {}:80", outside::EIP, outside::WEB);
    assert!(lines.contains(&translate), "{lines:?}");
    assert!(lines.contains(&"route: 0.0.0.0/0 to the outside".to_owned()), "{lines:?}");
    assert_eq!(reason, None);
    let back =
        Imagined { source: Some(outside::WEB.into()), destination: outside::EIP.into(), ..SYN };
    let (lines, reason) = told(&story.rig, Sender::Outside, &back);
    assert_eq!((lines.last().unwrap().as_str(), reason), ("output: port nic-1, 54 bytes", None));
}

#[test]
fn a_packet_that_nobody_could_send_is_refused() {
    let rig = story();
    let scene = rig.switch.scene();
    let from = Sender::Guest(rig.index(1));
    let refused = |packet: Imagined, from| packet.load(scene.snapshot(), from).unwrap_err();
    let six = "fd00::1".parse().unwrap();
    assert_eq!(refused(Imagined { destination: six, ..SYN }, from), ImagineError::SourceMissing);
    assert_eq!(refused(Imagined { source: Some(six), ..SYN }, from), ImagineError::Families);
    assert_eq!(refused(Imagined { payload: 9001, ..SYN }, from), ImagineError::TooLong);
    assert_eq!(refused(SYN, Sender::Outside), ImagineError::SourceMissing);
    assert_eq!(refused(SYN, Sender::Guest(PortIndex::UPLINK)), ImagineError::PortGone);
    let bare = Rig::new(&SwitchConfig { underlay: None, ..SwitchConfig::empty(Epoch(1)) });
    let error = SYN.load(bare.switch.snapshot(), Sender::Outside).unwrap_err();
    assert_eq!(error, ImagineError::NoUnderlay);
}
