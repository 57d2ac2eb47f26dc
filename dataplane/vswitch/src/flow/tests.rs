// SPDX-License-Identifier: Apache-2.0
//! The flow table and its connections, against books that are kept beside them.

use super::connection::{Connection, Direction, Link, Tracked};
use super::table::{Action, FlowTable, Found, Hashed, NoRoom, Slot, WAYS, Way, tag_of};
use super::tcp::{Segment, Tcp};
use super::{Expected, FlowKey, FlowKind, Ingress};
use crate::{Limits, PortIndex, Timeouts};
use plinth_ids::{Moment, Vni};
use plinth_wire::TcpHeader;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

const LIMITS: Limits = Limits {
    ports: 4,
    addresses_per_nic: 1,
    remotes: 1,
    next_hops: 1,
    flows: 64,
    flows_per_port: 24,
    flow_idle: Duration::from_millis(1000),
    fragments: 8,
    icmp_errors_per_second: 1,
    questions_per_second: 1000,
    external_addresses: 1,
    balancers: crate::BalancerLimits { backends: 4, ..crate::BalancerLimits::DEFAULT },
    timeouts: Timeouts::DEFAULT,
    vpc: crate::VpcLimits::DEFAULT,
};

const EXPECTED: Expected = Expected { words: [1, 2] };

impl FlowTable {
    /// The books: shares and the count of live entries are those of the table, every entry stands
    /// in one of its two buckets, and connections and entries know each other.
    pub(crate) fn check(&self) {
        let mut shares = vec![0; self.shares.len()];
        let (mut live, mut linked) = (0, 0);
        for (bucket, way) in (0..self.buckets.len()).flat_map(|b| (0..WAYS).map(move |w| (b, w))) {
            let tag = self.buckets[bucket].tags[way];
            if tag == 0 {
                continue;
            }
            let slot = Slot::of(bucket, way);
            let entry = self.entry(slot);
            let hash = self.hash(&entry.key);
            let (first, second) = self.places(hash);
            assert_eq!(tag, tag_of(hash), "the tag is the key's");
            assert!(bucket == first || bucket == second, "an entry stands in its buckets");
            if let Some((connection, direction)) = entry.link.get() {
                let found = self.connection(connection).entry(direction);
                assert_eq!(found, Some(slot), "a connection knows its entries");
                let is_first = direction == Direction::Forward
                    || self.connection(connection).entry(direction.other()).is_none();
                linked += u32::from(is_first);
            }
            live += 1;
            shares[entry.owner.get()] += 1;
        }
        assert_eq!(live, self.live, "live entries are counted");
        assert_eq!(shares[..], self.shares[..], "every entry is in its owner's share");
        assert_eq!(linked, self.live_connections(), "every connection has an entry");
    }
}

fn ingress(place: u16) -> Ingress {
    Ingress { place, incarnation: 0, vni: Vni::new(7).unwrap() }
}

fn key(number: u32) -> FlowKey {
    let mut key = FlowKey::new(FlowKind::Ipv4, 17);
    let [a, b, c, d] = number.to_be_bytes();
    key.set_ports(u16::from_be_bytes([c, d]), u16::from_be_bytes([a, b]));
    key.set_ingress(ingress(1));
    key
}

fn deliver(to: u16) -> Way {
    Way { action: Action::Deliver(PortIndex(to)), route: None, edit: Link::NONE }
}

fn keep(
    table: &mut FlowTable,
    now: Moment,
    number: u32,
    to: u16,
    owner: u16,
) -> Result<Slot, NoRoom> {
    let flow = table.hashed(key(number));
    table.keep(now, &flow, EXPECTED, deliver(to), PortIndex(owner))
}

fn find(table: &FlowTable, key: &FlowKey) -> Found {
    let hash = table.hash(key);
    table.find(table.touch(hash).0, hash, key, EXPECTED)
}

fn datagrams(table: &FlowTable) -> Connection {
    Connection::new(Tracked::Datagrams, Tcp::NONE, table.generation(), 0)
}

/// Both flows of the connection that begins with `number`'s.
fn pair(table: &FlowTable, number: u32) -> [Hashed; 2] {
    let there = key(number);
    let back = there.answer(ingress(2)).unwrap();
    [table.hashed(there), table.hashed(back)]
}

fn open(table: &mut FlowTable, now: Moment, number: u32, owner: u16) -> Result<(), NoRoom> {
    let flows = pair(table, number);
    let connection = datagrams(table);
    table.open(now, &flows, PortIndex(owner), connection, None).map(drop)
}

/// Flows that differ in little, as those of a scan do, fill buckets no worse than random ones
/// would: of a table filled to 3 of 8, hardly a key finds both its buckets full.
#[test]
fn flows_in_sequence_spread_over_the_buckets() {
    for seed in 0..20 {
        let limits = Limits { flows: 1 << 16, flows_per_port: 1 << 16, ..LIMITS };
        let mut table = FlowTable::new(&limits, seed);
        for number in 0..25_000 {
            let _ = keep(&mut table, Moment::ZERO, number * 3, 1, 1);
        }
        let refused = 25_000 - table.live();
        assert!(refused < 20, "seed {seed}: {refused} of 25000 flows found no room");
    }
}

#[derive(Clone, Debug)]
enum Op {
    Keep { key: u32, action: u16, owner: u16 },
    Open { key: u32, owner: u16 },
    Answer(u32),
    Find(u32),
    Wait(u16),
    NewConfiguration,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..40u32, any::<u16>(), 1..4u16)
            .prop_map(|(key, action, owner)| Op::Keep { key, action, owner }),
        6 => (100..140u32, 1..4u16).prop_map(|(key, owner)| Op::Open { key, owner }),
        4 => (100..140u32).prop_map(Op::Answer),
        8 => (0..40u32).prop_map(Op::Find),
        3 => (0..400u16).prop_map(Op::Wait),
        1 => Just(Op::NewConfiguration),
    ]
}

proptest! {
    /// Against books that never forget: what the table finds is right, and it has forgotten
    /// nothing that it had to keep, which is every connection that was answered.
    #[test]
    fn agrees_with_the_books(ops in prop::collection::vec(op(), 1..400)) {
        let mut table = FlowTable::new(&LIMITS, 3);
        // By key: the action of the plain entries, and when answered connections were last used.
        let mut plain: BTreeMap<u32, u16> = BTreeMap::new();
        let mut answered: BTreeMap<u32, Moment> = BTreeMap::new();
        let mut now = Moment::ZERO;
        for op in ops {
            match op {
                Op::Keep { key: number, action, owner } => {
                    if let Ok(slot) = keep(&mut table, now, number, action, owner) {
                        prop_assert_eq!(table.entry(slot).action, deliver(action).action);
                        plain.insert(number, action);
                    }
                }
                Op::Open { key: number, owner } => {
                    let there = pair(&table, number)[0];
                    if table.locate(there.hash, &there.key).is_none() {
                        let _ = open(&mut table, now, number, owner);
                    }
                }
                Op::Answer(number) => {
                    let [there, back] = pair(&table, number);
                    let found = table.locate(back.hash, &back.key);
                    let known = answered.get(&number).copied();
                    let Some(slot) = found else {
                        let is_over = known.is_none_or(|used| now - used >= LIMITS.timeouts.datagrams);
                        prop_assert!(is_over, "answered connection {} is lost", number);
                        prop_assert!(table.locate(there.hash, &there.key).is_none());
                        answered.remove(&number);
                        continue;
                    };
                    let (connection, direction) = table.entry(slot).link.get().unwrap();
                    prop_assert_eq!(direction, Direction::Back);
                    table.connection_mut(connection).is_answered = true;
                    table.renew(now, slot, EXPECTED, deliver(1));
                    prop_assert_eq!(find(&table, &back.key), Found::Fresh(slot));
                    answered.insert(number, now);
                }
                Op::Find(number) => match find(&table, &key(number)) {
                    Found::Fresh(slot) => {
                        let action = plain.get(&number).copied();
                        prop_assert_eq!(Some(table.entry(slot).action), action.map(|to| deliver(to).action));
                    }
                    Found::Stale(_) => prop_assert!(!plain.contains_key(&number)),
                    Found::Nothing => {}
                },
                Op::Wait(milliseconds) => {
                    now += Duration::from_millis(milliseconds.into());
                    table.age(now);
                }
                Op::NewConfiguration => {
                    table.next_generation();
                    plain.clear();
                }
            }
            table.check();
        }
    }
}

#[test]
fn a_share_is_given_back_when_its_entries_age() {
    let mut table = FlowTable::new(&LIMITS, 3);
    for number in 0..24 {
        keep(&mut table, Moment::ZERO, number, 2, 1).unwrap();
    }
    assert_eq!(keep(&mut table, Moment::ZERO, 99, 2, 1), Err(NoRoom::ShareUsed));
    let later = table.deadline().unwrap() + LIMITS.flow_idle;
    table.age(later);
    assert_eq!((table.live(), table.deadline()), (0, None));
    keep(&mut table, later, 99, 2, 1).unwrap();
    table.check();
}

#[test]
fn both_directions_of_a_connection_live_as_long_as_either_is_used() {
    let mut table = FlowTable::new(&LIMITS, 3);
    let mut now = Moment::ZERO;
    open(&mut table, now, 1, 1).unwrap();
    let [there, back] = pair(&table, 1);
    for _ in 0..100 {
        now += Duration::from_secs(29);
        table.age(now);
        let slot = table.locate(back.hash, &back.key).expect("it was used");
        table.renew(now, slot, EXPECTED, deliver(1));
    }
    assert!(table.locate(there.hash, &there.key).is_some(), "its twin is in use");
    now += LIMITS.timeouts.datagrams_one_way;
    table.age(now);
    assert_eq!((table.live(), table.live_connections()), (0, 0));
    table.check();
}

#[test]
fn beginnings_give_way_to_connections_and_established_ones_never() {
    let mut table = FlowTable::new(&Limits { flows_per_port: 1000, ..LIMITS }, 5);
    for number in 0..10 {
        open(&mut table, Moment::ZERO, number, 1).unwrap();
        let [_, back] = pair(&table, number);
        let slot = table.locate(back.hash, &back.key).unwrap();
        let (connection, _) = table.entry(slot).link.get().unwrap();
        table.connection_mut(connection).is_answered = true;
    }
    let opened = (1000..3000).filter(|&number| open(&mut table, Moment::ZERO, number, 1).is_ok());
    assert!(opened.count() > 1500, "new ones take the place of beginnings");
    for number in 0..10 {
        for flow in pair(&table, number) {
            assert!(table.locate(flow.hash, &flow.key).is_some(), "{number} was answered");
        }
    }
    table.check();
    // Decisions that can be made again do not take a connection's place, and give way to it.
    for number in 5000..6000 {
        let _ = keep(&mut table, Moment::ZERO, number, 1, 2);
    }
    let before = table.live_connections();
    assert!(before > 20, "{before}");
    table.check();
}

#[test]
fn who_has_used_its_share_takes_from_itself() {
    let mut table = FlowTable::new(&LIMITS, 5);
    for number in 0..12 {
        open(&mut table, Moment::ZERO, number, 1).unwrap();
    }
    keep(&mut table, Moment::ZERO, 77, 3, 2).unwrap();
    for number in 100..400 {
        let _ = open(&mut table, Moment::ZERO, number, 1);
        assert!(table.shares[1] <= LIMITS.flows_per_port);
    }
    assert!(matches!(find(&table, &key(77)), Found::Fresh(_)));
    table.check();
}

#[test]
fn a_side_that_moved_comes_in_elsewhere() {
    let mut table = FlowTable::new(&LIMITS, 5);
    open(&mut table, Moment::ZERO, 1, 1).unwrap();
    let [there, back] = pair(&table, 1);
    let slot = table.locate(there.hash, &there.key).unwrap();
    let (connection, _) = table.entry(slot).link.get().unwrap();
    let moved = table.hashed(there.key.answer(ingress(3)).unwrap());
    table.rebind(Moment::ZERO, connection, Direction::Back, &moved);
    assert!(table.locate(back.hash, &back.key).is_none());
    let found = table.locate(moved.hash, &moved.key).unwrap();
    assert_eq!(table.entry(found).link, Link::new(connection, Direction::Back));
    table.check();
    // Where both directions would have one key, nothing is bound.
    table.rebind(Moment::ZERO, connection, Direction::Back, &there);
    assert!(table.locate(there.hash, &there.key).is_some());
    table.check();
}

/// What a guest that knows the table, but not its secret, can do: keys of one bucket under
/// another secret are spread over all of them under this one.
#[test]
fn keys_chosen_for_one_secret_do_not_collide_under_another() {
    let limits = Limits { flows: 1 << 12, flows_per_port: 1 << 12, ..LIMITS };
    let (known, ours) = (FlowTable::new(&limits, 1), FlowTable::new(&limits, 2));
    let chosen: Vec<FlowKey> = (0..2_000_000)
        .map(key)
        .filter(|key| known.places(known.hash(key)).0 == 0)
        .take(2000)
        .collect();
    assert_eq!(chosen.len(), 2000);
    let mut hits = vec![0u32; 512];
    for key in &chosen {
        hits[ours.places(ours.hash(key)).0] += 1;
    }
    let fullest = hits.iter().max().unwrap();
    assert!(*fullest < 20, "{fullest} of 2000 keys in one of 512 buckets");
}

#[test]
fn a_reset_connection_goes_soon_and_an_established_one_late() {
    let syn = Segment {
        sequence: 1,
        acknowledgment: 0,
        window: 1000,
        flags: TcpHeader::SYN,
        length: 0,
        scale: None,
    };
    let lives = |segments: &[(usize, Segment)]| {
        let mut table = FlowTable::new(&LIMITS, 5);
        let flows = pair(&table, 1);
        let connection = Connection::new(Tracked::Tcp, Tcp::opened(&syn), 0, 0);
        let index = table.open(Moment::ZERO, &flows, PortIndex(1), connection, None).unwrap();
        for (from, segment) in segments {
            table.connection_mut(index).tcp.follow(*from, segment).unwrap();
        }
        let mut now = Moment::ZERO;
        while table.live() > 0 {
            now += Duration::from_secs(1);
            table.age(now);
        }
        now.as_secs()
    };
    let answer =
        Segment { sequence: 9, acknowledgment: 2, flags: TcpHeader::SYN | TcpHeader::ACK, ..syn };
    let third = Segment { sequence: 2, acknowledgment: 10, flags: TcpHeader::ACK, ..syn };
    let reset = Segment { sequence: 2, flags: TcpHeader::RST, ..third };
    assert_eq!(lives(&[]), 20);
    assert_eq!(lives(&[(1, answer)]), 20);
    assert_eq!(lives(&[(1, answer), (0, third)]), 3600);
    assert_eq!(lives(&[(1, answer), (0, third), (0, reset)]), 10);
}

/// Two keys that only the whole comparison tells apart: some 2^34 pairs have one on average.
fn twins(table: &FlowTable) -> (u32, u32) {
    let mut seen = BTreeMap::new();
    for number in 0..4_000_000 {
        let hash = table.hash(&key(number));
        if let Some(other) = seen.insert((tag_of(hash), table.places(hash)), number) {
            return (other, number);
        }
    }
    panic!("no two keys are alike");
}

#[test]
fn flows_that_only_their_keys_tell_apart_are_told_apart() {
    let mut table = FlowTable::new(&LIMITS, 11);
    let (one, other) = twins(&table);
    let kept = keep(&mut table, Moment::ZERO, one, 2, 1).unwrap();
    assert_eq!(find(&table, &key(one)), Found::Fresh(kept));
    assert_eq!(find(&table, &key(other)), Found::Nothing);
    let second = keep(&mut table, Moment::ZERO, other, 3, 1).unwrap();
    assert_ne!(kept, second);
    assert_eq!(find(&table, &key(one)), Found::Fresh(kept));
    assert_eq!(find(&table, &key(other)), Found::Fresh(second));
}

/// So that who begins a connection has the buckets of its answers close.
#[test]
fn answers_are_in_the_bucket_beside() {
    let table = FlowTable::new(&LIMITS, 11);
    let mut sides = [0u32; 2];
    for number in 0..2000u32 {
        let mut key =
            FlowKey::new(if number % 2 == 0 { FlowKind::Ipv4 } else { FlowKind::Ipv6 }, 6);
        let [a, b, c, d] = number.wrapping_mul(0x9e37_79b9).to_be_bytes();
        match number % 2 {
            0 => key.set_ipv4([10, a, b, 1, 10, c, d, 2]),
            _ => key.set_ipv6(&std::array::from_fn(|nth| {
                a.wrapping_mul(31) ^ b ^ u8::try_from(nth).unwrap()
            })),
        }
        key.set_ports(u16::from_be_bytes([a, c]), u16::from_be_bytes([b, d]));
        key.set_ingress(ingress(1));
        let back = key.answer(ingress(2)).unwrap();
        let (hash, answer) = (table.hash(&key), table.hash(&back));
        assert_eq!(hash ^ 1, answer, "{key}");
        let (places, others) = (table.places(hash), table.places(answer));
        assert_eq!((places.0 ^ 1, places.1 ^ 1), others, "{key}");
        assert_ne!(places.0, places.1, "{key}");
        sides[usize::from(hash & 1 == 1)] += 1;
    }
    assert!(sides.iter().all(|&side| side > 900), "{sides:?}");
}
