// SPDX-License-Identifier: Apache-2.0
//! The documented order, rule by rule, and against a slow model that sorts what matches.

use super::*;
use plinth_ids::Prefix;
use plinth_switch_api::RuleProtocol;
use proptest::prelude::*;
use std::cmp::Reverse;
use std::net::{Ipv4Addr, Ipv6Addr};

const TCP: u8 = 6;
const ICMP: u8 = 1;

fn group(id: u32, rules: Vec<Rule>) -> SecurityGroup {
    SecurityGroup { id: GroupId(id), name: format!("group-{id}").parse().unwrap(), rules }
}

fn prefix(text: &str) -> RulePeer {
    RulePeer::Prefix(text.parse().unwrap())
}

const fn allow(peer: RulePeer) -> Rule {
    Rule {
        direction: Direction::Inbound,
        priority: Priority::Mid,
        verdict: RuleVerdict::Allow,
        protocol: RuleProtocol::Tcp,
        ports: None,
        icmp: None,
        peer,
    }
}

const fn deny(peer: RulePeer) -> Rule {
    Rule { verdict: RuleVerdict::Deny, ..allow(peer) }
}

const fn tcp(peer: Ipv4Addr, port: u16) -> Question {
    Question {
        direction: Direction::Inbound,
        protocol: TCP,
        port: Some(port),
        peer: IpAddr::V4(peer),
        peer_groups: GroupSet(0),
    }
}

const NEAR: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 7);

/// Which of the rules of one group decides, by its place, and what.
fn decides(rules: &[Rule], question: &Question) -> (Option<u16>, bool) {
    let mut builder = SecurityBuilder::new(&[group(1, rules.to_vec())]);
    let set = builder.intern(&[GroupId(1)]);
    let ruling = builder.finish().judge(set, question);
    (ruling.rule.map(|rule| rule.index), ruling.is_allowed)
}

#[test]
fn nothing_is_allowed_that_no_rule_allows() {
    assert_eq!(decides(&[], &tcp(NEAR, 80)), (None, false));
    let outbound = Rule { direction: Direction::Outbound, ..allow(RulePeer::Any) };
    assert_eq!(decides(&[outbound], &tcp(NEAR, 80)), (None, false));
    let udp = Question { protocol: 17, ..tcp(NEAR, 80) };
    assert_eq!(decides(&[allow(RulePeer::Any)], &udp), (None, false));
    assert_eq!(decides(&[allow(RulePeer::Any)], &tcp(NEAR, 80)), (Some(0), true));
}

#[test]
fn priority_comes_before_everything() {
    let specific = deny(prefix("10.0.0.7/32"));
    let high = Rule { priority: Priority::High, ..allow(RulePeer::Any) };
    let low = Rule { priority: Priority::Low, ports: Some((80, 80)), ..specific };
    assert_eq!(decides(&[low, specific, high], &tcp(NEAR, 80)), (Some(2), true));
    assert_eq!(decides(&[low, specific], &tcp(NEAR, 80)), (Some(1), false));
}

#[test]
fn the_longer_prefix_comes_before_the_narrower_ports() {
    let wide = Rule { ports: Some((80, 80)), ..deny(prefix("10.0.0.0/8")) };
    let near = allow(prefix("10.0.0.0/24"));
    assert_eq!(decides(&[wide, near], &tcp(NEAR, 80)), (Some(1), true));
    assert_eq!(decides(&[wide, near], &tcp(Ipv4Addr::new(10, 9, 0, 1), 80)), (Some(0), false));
}

#[test]
fn narrower_ports_come_before_a_named_protocol_and_deny_before_allow() {
    let range = Rule { ports: Some((1, 100)), ..deny(RulePeer::Any) };
    let one = Rule { ports: Some((80, 80)), ..allow(RulePeer::Any) };
    assert_eq!(decides(&[range, one], &tcp(NEAR, 80)), (Some(1), true));
    assert_eq!(decides(&[range, one], &tcp(NEAR, 81)), (Some(0), false));
    let any = Rule { protocol: RuleProtocol::Any, ..deny(RulePeer::Any) };
    assert_eq!(decides(&[any, allow(RulePeer::Any)], &tcp(NEAR, 80)), (Some(1), true));
    let both = [allow(RulePeer::Any), deny(RulePeer::Any)];
    assert_eq!(decides(&both, &tcp(NEAR, 80)), (Some(1), false));
}

#[test]
fn any_peer_is_a_prefix_of_no_length_and_a_group_one_of_full_length() {
    let rules = [allow(RulePeer::Any), deny(prefix("0.0.0.0/0"))];
    assert_eq!(decides(&rules, &tcp(NEAR, 80)), (Some(1), false), "equal, so deny comes first");
    let rules = [deny(prefix("10.0.0.0/31")), allow(RulePeer::Group(GroupId(9)))];
    let mut builder = SecurityBuilder::new(&[group(1, rules.to_vec())]);
    let (set, friends) = (builder.intern(&[GroupId(1)]), builder.intern(&[GroupId(9)]));
    let tables = builder.finish();
    let stranger = tcp(Ipv4Addr::new(10, 0, 0, 1), 80);
    assert!(!tables.judge(set, &stranger).is_allowed);
    let friend = Question { peer_groups: friends, ..stranger };
    assert!(tables.judge(set, &friend).is_allowed, "a group counts as one host");
}

#[test]
fn a_packet_without_ports_matches_rules_for_all_ports_only() {
    let piece = Question { port: None, ..tcp(NEAR, 0) };
    let some = Rule { ports: Some((0, 65_534)), ..allow(RulePeer::Any) };
    assert_eq!(decides(&[some], &piece), (None, false));
    let all = Rule { ports: Some((0, 65_535)), ..allow(RulePeer::Any) };
    assert_eq!(decides(&[all], &piece), (Some(0), true));
}

#[test]
fn icmp_is_told_apart_by_type_and_code() {
    let icmp = |kind: u8, code: u8| Question {
        protocol: ICMP,
        port: Some(u16::from_be_bytes([kind, code])),
        ..tcp(NEAR, 0)
    };
    let of = |icmp| Rule { protocol: RuleProtocol::Icmp, icmp, ..allow(RulePeer::Any) };
    let echo = of(Some((8, None)));
    assert!(decides(&[echo], &icmp(8, 0)).1 && decides(&[echo], &icmp(8, 255)).1);
    assert!(!decides(&[echo], &icmp(9, 0)).1 && !decides(&[echo], &icmp(7, 255)).1);
    let exact = of(Some((3, Some(4))));
    assert!(decides(&[exact], &icmp(3, 4)).1 && !decides(&[exact], &icmp(3, 3)).1);
    assert!(decides(&[of(None)], &icmp(0, 0)).1);
}

#[test]
fn equal_sets_are_one_and_groups_without_rules_deny() {
    let mut builder = SecurityBuilder::new(&[group(2, vec![allow(RulePeer::Any)])]);
    let one = builder.intern(&[GroupId(7), GroupId(2)]);
    assert_eq!(builder.intern(&[GroupId(2), GroupId(7)]), one);
    assert_eq!(builder.intern(&[]), GroupSet(0));
    let foreign = builder.intern(&[GroupId(7)]);
    assert_ne!(foreign, one);
    let tables = builder.finish();
    assert!(tables.judge(one, &tcp(NEAR, 1)).is_allowed);
    assert!(!tables.judge(foreign, &tcp(NEAR, 1)).is_allowed);
    assert!(!tables.judge(GroupSet(0), &tcp(NEAR, 1)).is_allowed);
    assert_eq!(tables.name_of(GroupId(2)).map(Name::as_str), Some("group-2"));
}

// ---- the slow model -------------------------------------------------------------------------

/// The documented order, word for word: what is first decides.
fn order(rule: &Rule, peer: IpAddr) -> impl Ord + use<> {
    let priority = match rule.priority {
        Priority::High => 0,
        Priority::Mid => 1,
        Priority::Low => 2,
    };
    let peer_length = match rule.peer {
        RulePeer::Any => 0,
        RulePeer::Prefix(prefix) => prefix.length(),
        RulePeer::Group(_) => Prefix::host(peer).length(),
    };
    let ports = match (rule.ports, rule.icmp) {
        (Some((first, last)), _) => u32::from(last) - u32::from(first) + 1,
        (None, Some((_, Some(_)))) => 1,
        (None, Some((_, None))) => 256,
        (None, None) => 65_536,
    };
    let is_any = rule.protocol == RuleProtocol::Any;
    (priority, Reverse(peer_length), ports, is_any, rule.verdict == RuleVerdict::Allow)
}

fn matches(rule: &Rule, question: &Question, peer_groups: &[GroupId]) -> bool {
    let is_peer = match rule.peer {
        RulePeer::Any => true,
        RulePeer::Prefix(prefix) => prefix.contains(question.peer),
        RulePeer::Group(group) => peer_groups.contains(&group),
    };
    let is_protocol = match rule.protocol {
        RuleProtocol::Any => true,
        RuleProtocol::Tcp => question.protocol == 6,
        RuleProtocol::Udp => question.protocol == 17,
        RuleProtocol::Icmp => question.protocol == 1,
        RuleProtocol::Icmpv6 => question.protocol == 58,
        RuleProtocol::Number(number) => question.protocol == number,
    };
    let is_port = match (rule.ports, question.port) {
        (None | Some((0, 65_535)), _) => true,
        (Some((first, last)), Some(port)) => (first..=last).contains(&port),
        (Some(_), None) => false,
    };
    let is_type = match (rule.icmp, question.port.map(u16::to_be_bytes)) {
        (None, _) => true,
        (Some((kind, code)), Some([found, found_code])) => {
            kind == found && code.is_none_or(|code| code == found_code)
        }
        (Some(_), None) => false,
    };
    rule.direction == question.direction && is_peer && is_protocol && is_port && is_type
}

/// All rules of the port's groups that match, sorted, and the first of them.
fn model(
    groups: &[SecurityGroup],
    own: &[GroupId],
    question: &Question,
    peer_groups: &[GroupId],
) -> bool {
    let rules = groups.iter().filter(|group| own.contains(&group.id));
    let mut found: Vec<&Rule> = rules
        .flat_map(|group| &group.rules)
        .filter(|rule| matches(rule, question, peer_groups))
        .collect();
    found.sort_by_key(|rule| order(rule, question.peer));
    found.first().is_some_and(|rule| rule.verdict == RuleVerdict::Allow)
}

fn peer_address() -> impl Strategy<Value = IpAddr> {
    (any::<bool>(), 0u8..4, 0u8..4).prop_map(|(is_v4, a, b)| {
        if is_v4 {
            Ipv4Addr::new(10, a, 0, b).into()
        } else {
            Ipv6Addr::new(0xfd00, a.into(), 0, 0, 0, 0, 0, b.into()).into()
        }
    })
}

fn rule_peer() -> impl Strategy<Value = RulePeer> {
    let lengths = (peer_address(), prop::sample::select(vec![0u8, 8, 14, 15, 16, 30, 31, 32]));
    prop_oneof![
        Just(RulePeer::Any),
        (1u32..5).prop_map(|group| RulePeer::Group(GroupId(group))),
        lengths.prop_map(|(address, length)| {
            let length = if address.is_ipv4() { length } else { length * 4 };
            RulePeer::Prefix(match Prefix::new(address, length) {
                Err(plinth_ids::PrefixError::HostBits { network, .. }) => {
                    Prefix::new(network, length).unwrap()
                }
                other => other.unwrap(),
            })
        }),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    let protocol = prop_oneof![
        Just(RuleProtocol::Any),
        Just(RuleProtocol::Tcp),
        Just(RuleProtocol::Tcp),
        Just(RuleProtocol::Udp),
        Just(RuleProtocol::Icmp),
        Just(RuleProtocol::Icmpv6),
        Just(RuleProtocol::Number(6)),
    ];
    let shape = (0u8..3, any::<bool>(), any::<bool>(), protocol, rule_peer());
    let range = prop::sample::select(vec![(0, 65_535), (80, 80), (79, 81), (80, 90), (1, 1024)]);
    let kind = (0u8..3, prop::option::of(0u8..2));
    (shape, prop::option::of(range), prop::option::of(kind)).prop_map(
        |((priority, is_inbound, is_allow, protocol, peer), ports, icmp)| Rule {
            direction: if is_inbound { Direction::Inbound } else { Direction::Outbound },
            priority: [Priority::High, Priority::Mid, Priority::Low][usize::from(priority)],
            verdict: if is_allow { RuleVerdict::Allow } else { RuleVerdict::Deny },
            protocol,
            ports: ports.filter(|_| matches!(protocol, RuleProtocol::Tcp | RuleProtocol::Udp)),
            icmp: icmp.filter(|_| matches!(protocol, RuleProtocol::Icmp | RuleProtocol::Icmpv6)),
            peer,
        },
    )
}

fn question() -> impl Strategy<Value = Question> {
    let protocol = prop::sample::select(vec![6u8, 6, 17, 1, 58, 47]);
    let port = prop::option::weighted(
        0.9,
        prop::sample::select(vec![80u16, 79, 81, 85, 0, 1, 256, 257, 512]),
    );
    (any::<bool>(), protocol, port, peer_address()).prop_map(
        |(is_inbound, protocol, port, peer)| Question {
            direction: if is_inbound { Direction::Inbound } else { Direction::Outbound },
            protocol,
            port,
            peer,
            peer_groups: GroupSet(0),
        },
    )
}

fn ids() -> impl Strategy<Value = Vec<GroupId>> {
    prop::collection::btree_set(1u32..5, 0..4)
        .prop_map(|set| set.into_iter().map(GroupId).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn the_compiled_rules_decide_as_the_slow_model(
        rules in prop::collection::vec(prop::collection::vec(rule(), 0..12), 3),
        questions in prop::collection::vec((question(), ids(), ids()), 24),
    ) {
        let groups: Vec<SecurityGroup> =
            (1..).zip(rules).map(|(id, rules)| group(id, rules)).collect();
        let mut builder = SecurityBuilder::new(&groups);
        let sets: Vec<(GroupSet, GroupSet)> =
            questions.iter().map(|(_, own, peer)| (builder.intern(own), builder.intern(peer))).collect();
        let tables = builder.finish();
        for ((question, own, peer), (set, peer_groups)) in questions.iter().zip(sets) {
            let asked = Question { peer_groups, ..*question };
            let expected = model(&groups, own, &asked, peer);
            prop_assert_eq!(tables.judge(set, &asked).is_allowed, expected, "{:?} {:?}", asked, own);
        }
    }
}
