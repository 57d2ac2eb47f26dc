// SPDX-License-Identifier: Apache-2.0
//! Both sides of a ring against each other, and against a list of what was sent.
#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

use plinth_guest_memory::Shrinkable;
use plinth_guest_memory::{GuestAddress, OwnMemory};
use plinth_virtio::{
    Chain, DeviceQueue, DriverQueue, Inflight, QueueLayout, RingFeatures, Segment, copy_in,
    copy_out,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};

const SIZE: u16 = 16;
const MEMORY: u64 = 256 * 1024;
/// Buffers begin here: a slot of 1 KiB for each descriptor, tables behind them.
const BUFFERS: u64 = 0x1000;
const TABLES: u64 = 0x2_0000;

struct Pair {
    own: OwnMemory,
    layout: QueueLayout,
    features: RingFeatures,
    driver: DriverQueue,
    device: DeviceQueue,
}

fn pair(features: RingFeatures) -> Pair {
    let own = OwnMemory::new(GuestAddress(0), MEMORY).unwrap();
    let layout = QueueLayout::contiguous(SIZE, GuestAddress(0));
    let driver = DriverQueue::new(own.memory.clone(), &layout, features).unwrap();
    let device = DeviceQueue::new(own.memory.clone(), &layout, features, 0, None).unwrap();
    Pair { own, layout, features, driver, device }
}

fn segment(slot: u64, length: u32) -> Segment {
    Segment { address: GuestAddress(BUFFERS + 1024 * slot), length }
}

#[derive(Clone, Debug)]
enum Step {
    /// Add a chain of so many readable and writable segments, indirect or not.
    Add {
        readable: u8,
        writable: u8,
        is_indirect: bool,
    },
    Publish,
    Pop,
    /// Give back the n-th taken chain, counted round.
    Push(usize),
    PublishUsed,
    Poll,
    ArmKicks,
    ArmCalls,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..3u8, 0..3u8, any::<bool>()).prop_map(|(readable, writable, is_indirect)| {
            Step::Add { readable, writable, is_indirect }
        }),
        2 => Just(Step::Publish),
        3 => Just(Step::Pop),
        3 => any::<usize>().prop_map(Step::Push),
        2 => Just(Step::PublishUsed),
        3 => Just(Step::Poll),
        1 => Just(Step::ArmKicks),
        1 => Just(Step::ArmCalls),
    ]
}

/// What the test knows of the ring, in lists that have no indexes to get wrong.
#[derive(Default)]
struct Model {
    added: VecDeque<(u16, Vec<Segment>, Vec<Segment>)>,
    visible: VecDeque<(u16, Vec<Segment>, Vec<Segment>)>,
    taken: Vec<u16>,
    given: VecDeque<(u16, u32)>,
    used: VecDeque<(u16, u32)>,
    /// Whether somebody sleeps and has not been told of what came since.
    device_sleeps: bool,
    driver_sleeps: bool,
    chains: u64,
}

#[expect(clippy::too_many_lines, reason = "one arm for each kind of step")]
fn run(features: RingFeatures, steps: Vec<Step>) -> Result<Model, TestCaseError> {
    let mut pair = pair(features);
    let mut model = Model::default();
    let mut chain = Chain::new();
    for step in steps {
        match step {
            Step::Add { readable, writable, is_indirect } => {
                let slot = model.chains % 16 * 4;
                let readable: Vec<_> =
                    (0..u64::from(readable)).map(|at| segment(slot + at, 100)).collect();
                let writable: Vec<_> =
                    (0..u64::from(writable)).map(|at| segment(64 + slot + at, 200)).collect();
                let free = pair.driver.free_count();
                let is_indirect = is_indirect && features.indirect;
                let result = if is_indirect {
                    let table = GuestAddress(TABLES + 64 * (model.chains % 512));
                    pair.driver.add_indirect(table, &readable, &writable)
                } else {
                    pair.driver.add(&readable, &writable)
                };
                let wanted = if is_indirect { 1 } else { readable.len() + writable.len() };
                let fits =
                    !(readable.is_empty() && writable.is_empty()) && wanted <= usize::from(free);
                prop_assert_eq!(result.is_ok(), fits);
                if let Ok(head) = result {
                    model.added.push_back((head, readable, writable));
                    model.chains += 1;
                }
            }
            Step::Publish => {
                let has_news = !model.added.is_empty();
                let is_kicked = pair.driver.publish();
                model.visible.append(&mut model.added);
                prop_assert!(has_news || !is_kicked, "a kick for nothing");
                if model.device_sleeps && has_news {
                    prop_assert!(is_kicked, "the device sleeps on: a lost wake-up");
                }
                model.device_sleeps &= !is_kicked;
            }
            Step::Pop => {
                let popped = pair.device.pop(&mut chain).unwrap();
                let expected = model.visible.pop_front();
                prop_assert_eq!(popped, expected.is_some());
                if let Some((head, readable, writable)) = expected {
                    prop_assert_eq!(chain.head(), head);
                    prop_assert_eq!(chain.readable(), &readable[..]);
                    prop_assert_eq!(chain.writable(), &writable[..]);
                    model.taken.push(head);
                }
            }
            Step::Push(pick) if !model.taken.is_empty() => {
                let head = model.taken.swap_remove(pick % model.taken.len());
                let length = u32::from(head) * 3;
                pair.device.push(head, length);
                model.given.push_back((head, length));
            }
            Step::Push(_) => {}
            Step::PublishUsed => {
                let has_news = !model.given.is_empty();
                let is_called = pair.device.publish();
                model.used.append(&mut model.given);
                prop_assert!(has_news || !is_called, "a call for nothing");
                if model.driver_sleeps && has_news {
                    prop_assert!(is_called, "the driver sleeps on: a lost wake-up");
                }
                model.driver_sleeps &= !is_called;
            }
            Step::Poll => {
                let used = pair.driver.poll().unwrap().map(|used| (used.head, used.length));
                prop_assert_eq!(used, model.used.pop_front());
            }
            Step::ArmKicks => {
                let has_work = pair.device.arm_kicks().unwrap();
                prop_assert_eq!(has_work, !model.visible.is_empty());
                model.device_sleeps = !has_work;
            }
            Step::ArmCalls => {
                let has_work = pair.driver.arm_calls();
                prop_assert_eq!(has_work, !model.used.is_empty());
                model.driver_sleeps = !has_work;
            }
        }
        prop_assert_eq!(usize::from(pair.device.taken_count()), model.taken.len());
    }
    Ok(model)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn both_sides_agree_with_the_lists(
        event_index: bool,
        indirect: bool,
        steps in prop::collection::vec(step(), 1..400),
    ) {
        run(RingFeatures { event_index, indirect, ..RingFeatures::default() }, steps)?;
    }
}

#[test]
fn indexes_wrap_many_times_without_a_trace() {
    for event_index in [false, true] {
        let mut pair =
            pair(RingFeatures { event_index, indirect: false, ..RingFeatures::default() });
        let mut chain = Chain::new();
        let (mut kicks, mut calls) = (0, 0);
        for round in 0..70_000u32 {
            let has_work = pair.device.arm_kicks().unwrap();
            assert!(!has_work);
            pair.driver.add(&[segment(u64::from(round % 60), 8)], &[]).unwrap();
            kicks += u32::from(pair.driver.publish());
            assert!(!pair.driver.arm_calls());
            assert!(pair.device.pop(&mut chain).unwrap());
            assert!(!pair.device.pop(&mut chain).unwrap());
            pair.device.push(chain.head(), round);
            calls += u32::from(pair.device.publish());
            assert_eq!(pair.driver.poll().unwrap().unwrap().length, round);
            assert_eq!(pair.driver.poll().unwrap(), None);
        }
        assert_eq!((kicks, calls), (70_000, 70_000), "each side was asleep each time");
    }
}

#[test]
fn a_polling_device_is_not_kicked_and_a_polling_driver_not_called() {
    let mut pair = pair(RingFeatures::default());
    let mut chain = Chain::new();
    pair.device.disarm_kicks();
    pair.driver.disarm_calls();
    let mut calls = 0;
    for _ in 0..100 {
        pair.driver.add(&[segment(0, 8)], &[]).unwrap();
        assert!(!pair.driver.publish());
        assert!(pair.device.pop(&mut chain).unwrap());
        pair.device.push(chain.head(), 0);
        calls += u32::from(pair.device.publish());
        pair.driver.poll().unwrap().unwrap();
    }
    assert_eq!(calls, 1, "the first call after a start goes out whatever the flags say");
}

#[test]
fn bytes_go_both_ways_through_several_segments() {
    let mut pair =
        pair(RingFeatures { event_index: false, indirect: true, ..RingFeatures::default() });
    let memory = pair.own.memory.clone();
    let readable = [segment(0, 10), segment(1, 5), segment(2, 20)];
    let writable = [segment(3, 7), segment(4, 30)];
    let sent: Vec<u8> = (0..35).collect();
    assert_eq!(copy_in(&memory, &readable, 0, &sent), Ok(true));
    pair.driver.add_indirect(GuestAddress(TABLES), &readable, &writable).unwrap();
    pair.driver.publish();
    let mut chain = Chain::new();
    assert!(pair.device.pop(&mut chain).unwrap());
    assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (35, 37));
    let mut got = [0; 12];
    assert_eq!(copy_out(&memory, chain.readable(), 8, &mut got), Ok(true));
    assert_eq!(got[..], sent[8..20]);
    assert_eq!(copy_out(&memory, chain.readable(), 24, &mut got), Ok(false), "they end before");
    assert_eq!(copy_in(&memory, chain.writable(), 5, b"wide"), Ok(true));
    let mut back = [0; 4];
    assert_eq!(copy_out(&memory, &writable, 5, &mut back), Ok(true));
    assert_eq!(&back, b"wide");
    assert_eq!(copy_in(&memory, chain.writable(), 34, b"wide"), Ok(false), "they end before");
}

#[test]
fn a_rewound_chain_comes_again() {
    let mut pair = pair(RingFeatures::default());
    let first = pair.driver.add(&[], &[segment(0, 8)]).unwrap();
    let second = pair.driver.add(&[], &[segment(1, 8)]).unwrap();
    pair.driver.publish();
    let mut chain = Chain::new();
    assert!(pair.device.pop(&mut chain).unwrap());
    assert!(pair.device.pop(&mut chain).unwrap());
    pair.device.rewind(&[first, second]);
    assert_eq!(pair.device.taken_count(), 0);
    for head in [first, second] {
        assert!(pair.device.pop(&mut chain).unwrap());
        assert_eq!(chain.head(), head);
    }
}

/// A device that dies at a random moment, again and again, over one record: every request is
/// given back exactly once, and those of a dead device come first and in order.
#[derive(Clone, Debug)]
enum Crash {
    Add,
    Pop,
    Push(usize),
    Publish,
    Poll,
    Die,
}

fn crash() -> impl Strategy<Value = Crash> {
    prop_oneof![
        4 => Just(Crash::Add),
        4 => Just(Crash::Pop),
        3 => any::<usize>().prop_map(Crash::Push),
        2 => Just(Crash::Publish),
        2 => Just(Crash::Poll),
        1 => Just(Crash::Die),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn a_device_that_dies_loses_no_request_and_repeats_none(
        steps in prop::collection::vec(crash(), 1..300),
    ) {
        let Pair { own, layout, features, mut driver, .. } =
            pair(RingFeatures { event_index: true, indirect: false, ..RingFeatures::default() });
        let file = Inflight::create(1, SIZE).unwrap();
        let open = |base| {
            let length = Inflight::bytes(1, SIZE);
            let record =
                Inflight::open(&file, 0, length, 1, SIZE, Shrinkable::Refuse).unwrap().queue(0).unwrap();
            DeviceQueue::new(own.memory.clone(), &layout, features, base, Some(record)).unwrap()
        };
        let mut device = open(0);
        // Requests by head, with a number of their own; taken ones in the order of taking.
        let mut waiting: VecDeque<u16> = VecDeque::new();
        let mut taken: Vec<u16> = Vec::new();
        let mut given: Vec<u16> = Vec::new();
        let mut open_requests: BTreeMap<u16, u32> = BTreeMap::new();
        let mut expected_first: VecDeque<u16> = VecDeque::new();
        let mut chain = Chain::new();
        for step in steps {
            match step {
                Crash::Add => {
                    if let Ok(head) = driver.add(&[segment(0, 8)], &[segment(1, 8)]) {
                        driver.publish();
                        waiting.push_back(head);
                        *open_requests.entry(head).or_insert(0) += 1;
                    }
                }
                Crash::Pop => {
                    let popped = device.pop(&mut chain).unwrap();
                    let expected = expected_first.pop_front().or_else(|| waiting.pop_front());
                    prop_assert_eq!(popped.then(|| chain.head()), expected);
                    taken.extend(expected);
                }
                Crash::Push(pick) if !taken.is_empty() => {
                    let head = taken.remove(pick % taken.len());
                    device.push(head, 0);
                    given.push(head);
                }
                Crash::Push(_) => {}
                Crash::Publish => {
                    device.publish();
                    given.clear();
                }
                Crash::Poll => {
                    while let Some(used) = driver.poll().unwrap() {
                        prop_assert_eq!(open_requests.remove(&used.head), Some(1));
                    }
                }
                Crash::Die => {
                    // What was not published was not given back, whatever its order was.
                    let mut left: Vec<u16> = taken.drain(..).chain(given.drain(..)).collect();
                    left.extend(expected_first.drain(..));
                    device = open(driver.next_used());
                    let mut found = Vec::new();
                    prop_assert_eq!(usize::from(device.leftover_count()), left.len());
                    while found.len() < left.len() {
                        prop_assert!(device.pop(&mut chain).unwrap());
                        found.push(chain.head());
                    }
                    let (mut one, mut other) = (found.clone(), left);
                    one.sort_unstable();
                    other.sort_unstable();
                    prop_assert_eq!(one, other);
                    // And it dies right then: nothing has changed, not even the order.
                    device = open(driver.next_used());
                    expected_first = found.into();
                }
            }
        }
        // The last device finishes everything.
        while device.pop(&mut chain).unwrap() {
            taken.push(chain.head());
        }
        for head in taken {
            device.push(head, 0);
        }
        device.publish();
        while let Some(used) = driver.poll().unwrap() {
            prop_assert_eq!(open_requests.remove(&used.head), Some(1));
        }
        prop_assert!(open_requests.is_empty(), "requests without an answer: {:?}", open_requests);
    }
}
