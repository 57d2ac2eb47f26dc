// SPDX-License-Identifier: Apache-2.0
//! Packed rings, and in-order use of both layouts: both sides over random steps against lists
//! that have no laps to get wrong, and a device that is killed.
#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

use plinth_guest_memory::{GuestAddress, OwnMemory};
use plinth_virtio::{
    Chain, ChainFault, DeviceQueue, DriverQueue, PopFault, QueueError, QueueLayout, RingFault,
    RingFeatures, Segment,
};
use proptest::prelude::*;
use std::collections::VecDeque;

const SIZE: u16 = 16;
const BUFFERS: u64 = 0x1000;
const TABLES: u64 = 0x2_0000;
const PACKED: RingFeatures =
    RingFeatures { event_index: false, indirect: true, packed: true, in_order: false };

struct Pair {
    own: OwnMemory,
    layout: QueueLayout,
    features: RingFeatures,
    driver: DriverQueue,
    device: DeviceQueue,
}

fn pair(features: RingFeatures) -> Pair {
    let own = OwnMemory::new(GuestAddress(0), 256 * 1024).unwrap();
    let layout = QueueLayout::contiguous(SIZE, GuestAddress(0));
    let driver = DriverQueue::new(own.memory.clone(), &layout, features).unwrap();
    let base = if features.packed { 0x8000 } else { 0 };
    let device = DeviceQueue::new(own.memory.clone(), &layout, features, base, None).unwrap();
    Pair { own, layout, features, driver, device }
}

fn segment(slot: u64, length: u32) -> Segment {
    Segment { address: GuestAddress(BUFFERS + 1024 * slot), length }
}

#[derive(Clone, Debug)]
enum Step {
    Add {
        readable: u8,
        writable: u8,
        is_indirect: bool,
    },
    Publish,
    Pop,
    /// Give back the n-th taken chain, with something written or not.
    Push(usize, bool),
    /// Put the newest taken chain back.
    Rewind,
    /// Fill the next chain, if it is one plain buffer.
    Fill,
    PublishUsed,
    Poll,
    ArmKicks,
    ArmCalls,
    /// The device's process is killed and another one begins.
    Die,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..3u8, 0..3u8, any::<bool>()).prop_map(|(readable, writable, is_indirect)| {
            Step::Add { readable, writable, is_indirect }
        }),
        3 => Just(Step::Publish),
        5 => Just(Step::Pop),
        4 => any::<(usize, bool)>().prop_map(|(pick, is_written)| Step::Push(pick, is_written)),
        1 => Just(Step::Rewind),
        2 => Just(Step::Fill),
        3 => Just(Step::PublishUsed),
        4 => Just(Step::Poll),
        1 => Just(Step::ArmKicks),
        1 => Just(Step::ArmCalls),
        1 => Just(Step::Die),
    ]
}

#[derive(Clone, Debug)]
struct Request {
    /// As the driver names it.
    name: u16,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    is_indirect: bool,
}

/// A request that the device has, and what was written to it when that is over.
#[derive(Clone, Debug)]
struct Held {
    request: Request,
    head: u16,
    written: Option<u32>,
}

#[derive(Default)]
struct Model {
    added: VecDeque<Request>,
    visible: VecDeque<Request>,
    held: VecDeque<Held>,
    /// Given back and shown.
    used: VecDeque<(u16, u32)>,
    device_sleeps: bool,
    driver_sleeps: bool,
    chains: u64,
}

#[expect(clippy::too_many_lines, reason = "one arm for each kind of step")]
fn run(features: RingFeatures, steps: Vec<Step>) -> Result<(), TestCaseError> {
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
                let is_indirect = is_indirect && features.indirect;
                let table = GuestAddress(TABLES + 64 * (model.chains % 512));
                let wanted = if is_indirect { 1 } else { readable.len() + writable.len() };
                let fits = !(readable.is_empty() && writable.is_empty())
                    && wanted <= usize::from(pair.driver.free_count());
                let result = if is_indirect {
                    pair.driver.add_indirect(table, &readable, &writable)
                } else {
                    pair.driver.add(&readable, &writable)
                };
                prop_assert_eq!(result.is_ok(), fits);
                if let Ok(name) = result {
                    model.added.push_back(Request { name, readable, writable, is_indirect });
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
                pair.device.fetch_ahead(4, 64, plinth_guest_memory::Access::Read);
                let popped = pair.device.pop(&mut chain).unwrap();
                prop_assert_eq!(popped, !model.visible.is_empty());
                if let Some(request) = model.visible.pop_front() {
                    prop_assert_eq!(chain.readable(), &request.readable[..]);
                    prop_assert_eq!(chain.writable(), &request.writable[..]);
                    let head = chain.head();
                    model.held.push_back(Held { request, head, written: None });
                }
            }
            Step::Push(pick, is_written) => {
                let mut open: Vec<_> =
                    model.held.iter_mut().filter(|held| held.written.is_none()).collect();
                if open.is_empty() {
                    continue;
                }
                let pick = pick % open.len();
                let held = &mut *open[pick];
                let written = if is_written { 7 + u32::from(held.head) } else { 0 };
                pair.device.push(held.head, written);
                held.written = Some(written);
            }
            Step::Rewind => {
                if model.held.back().is_some_and(|held| held.written.is_none()) {
                    let held = model.held.pop_back().unwrap();
                    pair.device.rewind(&[held.head]);
                    model.visible.push_front(held.request);
                }
            }
            Step::Fill => {
                let request = model.visible.front();
                let is_plain = request.is_some_and(|request| {
                    let Request { readable, writable, is_indirect, .. } = request;
                    readable.is_empty() && writable.len() == 1 && !is_indirect
                });
                let mut calls = 0;
                let is_filled = pair.device.fill_next(50, |window| {
                    window.copy_in(0, &[1; 50]);
                    calls += 1;
                });
                // A split ring looks for news in `pop` only, and keeps an order there.
                prop_assert!(is_plain || !is_filled, "only a plain buffer is filled");
                prop_assert!(!features.packed || is_filled == is_plain);
                prop_assert_eq!(calls, u32::from(is_filled));
                if is_filled {
                    let request = model.visible.pop_front().unwrap();
                    // It has no name that could be given back.
                    model.held.push_back(Held { request, head: u16::MAX, written: Some(50) });
                }
            }
            Step::PublishUsed => {
                let mut has_news = false;
                let is_called = pair.device.publish();
                while let Some(Held { request, written: Some(written), .. }) = model.held.front() {
                    model.used.push_back((request.name, *written));
                    model.held.pop_front();
                    has_news = true;
                }
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
            Step::Die => {
                // What was not shown was not given back: it comes again, in its order. The base is
                // one of long ago, as QEMU's is, where the ring itself says better.
                if !features.packed || features.in_order {
                    continue;
                }
                let memory = pair.own.memory.clone();
                pair.device =
                    DeviceQueue::new(memory, &pair.layout, pair.features, 0x8000, None).unwrap();
                for held in model.held.drain(..).rev() {
                    model.visible.push_front(held.request);
                }
                // Nobody knows what the one before had asked for.
                pair.device.disarm_kicks();
                model.device_sleeps = false;
            }
        }
        let open = model.held.iter().filter(|held| held.written.is_none()).count();
        prop_assert_eq!(usize::from(pair.device.taken_count()), open);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(800))]
    #[test]
    fn both_sides_agree_with_the_lists(
        event_index: bool,
        indirect: bool,
        in_order: bool,
        steps in prop::collection::vec(step(), 1..500),
    ) {
        run(RingFeatures { event_index, indirect, packed: true, in_order }, steps)?;
    }

    #[test]
    fn a_split_ring_used_in_order_agrees_with_them_too(
        event_index: bool,
        indirect: bool,
        steps in prop::collection::vec(step(), 1..500),
    ) {
        run(RingFeatures { event_index, indirect, packed: false, in_order: true }, steps)?;
    }
}

#[test]
fn laps_wrap_many_times_without_a_trace() {
    for event_index in [false, true] {
        let mut pair = pair(RingFeatures { event_index, ..PACKED });
        let mut chain = Chain::new();
        let (mut kicks, mut calls) = (0, 0);
        for round in 0..70_000u32 {
            assert!(!pair.device.arm_kicks().unwrap());
            let slot = u64::from(round % 60);
            pair.driver.add(&[segment(slot, 8)], &[segment(slot + 1, 8)]).unwrap();
            if round % 3 == 0 {
                pair.driver.add(&[segment(slot, 8)], &[]).unwrap();
            }
            kicks += u32::from(pair.driver.publish());
            assert!(!pair.driver.arm_calls());
            while pair.device.pop(&mut chain).unwrap() {
                pair.device.push(chain.head(), round);
            }
            calls += u32::from(pair.device.publish());
            while let Some(used) = pair.driver.poll().unwrap() {
                assert_eq!(used.length, round);
            }
            assert_eq!(pair.driver.free_count(), SIZE);
        }
        assert_eq!((kicks, calls), (70_000, 70_000), "each side was asleep each time");
    }
}

#[test]
fn a_burst_used_in_order_is_one_descriptor() {
    let mut pair = pair(RingFeatures { in_order: true, ..PACKED });
    let mut chain = Chain::new();
    for slot in 0..8 {
        pair.driver.add(&[segment(slot, 8)], &[]).unwrap();
    }
    pair.driver.publish();
    let flags = |pair: &Pair, slot: u64| {
        let mut bytes = [0; 2];
        pair.own.memory.copy_out(GuestAddress(16 * slot + 14), &mut bytes).unwrap();
        u16::from_le_bytes(bytes)
    };
    while pair.device.pop(&mut chain).unwrap() {
        pair.device.push(chain.head(), 0);
    }
    pair.device.publish();
    assert_eq!(flags(&pair, 0), 0x8080, "used in the first lap");
    for slot in 1..8 {
        assert_eq!(flags(&pair, slot), 0x0080, "slot {slot} is not written");
    }
    for _ in 0..8 {
        assert!(pair.driver.poll().unwrap().is_some());
    }
    assert_eq!(pair.driver.poll().unwrap(), None);
}

/// Writes a descriptor as a hostile driver may.
fn put(pair: &Pair, slot: u64, address: u64, length: u32, flags: u16) {
    let rest = u64::from(length) | u64::from(flags) << 48 | 0xABCD << 32;
    let memory = &pair.own.memory;
    memory.copy_in(GuestAddress(16 * slot), &address.to_le_bytes()).unwrap();
    memory.copy_in(GuestAddress(16 * slot + 8), &rest.to_le_bytes()).unwrap();
}

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const AVAILABLE: u16 = 1 << 7;

#[test]
fn a_chain_without_end_breaks_the_ring_after_one_lap_at_most() {
    let mut pair = pair(PACKED);
    for slot in 0..u64::from(SIZE) {
        put(&pair, slot, BUFFERS, 8, AVAILABLE | NEXT);
    }
    let fault = pair.device.pop(&mut Chain::new()).unwrap_err();
    let source = RingFault::ChainWithoutEnd { head: 0, room: SIZE };
    assert_eq!(fault, PopFault::Ring { source });
}

#[test]
fn a_chain_does_not_run_into_slots_that_the_device_has() {
    let mut pair = pair(PACKED);
    put(&pair, 0, BUFFERS, 8, AVAILABLE);
    let mut chain = Chain::new();
    assert!(pair.device.pop(&mut chain).unwrap());
    for slot in 0..u64::from(SIZE) {
        put(&pair, slot, BUFFERS, 8, AVAILABLE | NEXT);
    }
    let fault = pair.device.pop(&mut chain).unwrap_err();
    let source = RingFault::ChainWithoutEnd { head: 1, room: SIZE - 1 };
    assert_eq!(fault, PopFault::Ring { source });
}

#[test]
fn a_driver_that_offers_more_slots_than_there_are_gets_one_lap() {
    let mut pair = pair(PACKED);
    let mut chain = Chain::new();
    for slot in 0..u64::from(SIZE) {
        put(&pair, slot, BUFFERS, 8, AVAILABLE);
    }
    for _ in 0..SIZE {
        assert!(pair.device.pop(&mut chain).unwrap());
    }
    // Now as if the next lap were there already.
    for slot in 0..u64::from(SIZE) {
        put(&pair, slot, BUFFERS, 8, 1 << 15);
    }
    assert!(!pair.device.pop(&mut chain).unwrap(), "all slots are the device's");
    assert!(!pair.device.fill_next(8, |_| ()));
    assert_eq!(pair.device.available_count().unwrap(), 0);
}

/// Address, length and flags of a chain's descriptors, and what is wrong with it.
type Case<'a> = (&'a [(u64, u32, u16)], ChainFault);

#[test]
fn every_fault_of_a_chain_has_a_name_and_the_next_chain_is_found() {
    let cases: [Case<'_>; 6] = [
        (&[(BUFFERS, 0, 0)], ChainFault::ZeroLength),
        (&[(1 << 40, 8, NEXT), (BUFFERS, 8, 0)], ChainFault::OutsideMemory),
        (&[(BUFFERS, 8, WRITE | NEXT), (BUFFERS, 8, 0)], ChainFault::ReadableBehindWritable),
        (&[(TABLES, 17, INDIRECT)], ChainFault::IndirectLength),
        (&[(TABLES, 16, INDIRECT | NEXT), (BUFFERS, 8, 0)], ChainFault::IndirectWithNext),
        (&[(TABLES + 0x100, 16, INDIRECT)], ChainFault::IndirectInIndirect),
    ];
    for (descriptors, wanted) in cases {
        let mut pair = pair(PACKED);
        let nested = u128::from(BUFFERS) | 8 << 64 | u128::from(INDIRECT) << 112;
        pair.own.memory.copy_in(GuestAddress(TABLES + 0x100), &nested.to_le_bytes()).unwrap();
        let mut slot = 0;
        for (address, length, flags) in descriptors {
            put(&pair, slot, *address, *length, AVAILABLE | flags);
            slot += 1;
        }
        put(&pair, slot, BUFFERS + 64, 8, AVAILABLE);
        let mut chain = Chain::new();
        let fault = pair.device.pop(&mut chain).unwrap_err();
        assert_eq!(fault, PopFault::Chain { head: 0, source: wanted });
        assert!(pair.device.pop(&mut chain).unwrap(), "after {wanted}");
        assert_eq!(u64::from(chain.head()), slot);
        pair.device.push(chain.head(), 0);
        pair.device.publish();
        let mut id = [0; 2];
        pair.own.memory.copy_out(GuestAddress(16 * slot + 12), &mut id).unwrap();
        pair.device.push(0, 0);
        pair.device.publish();
        assert_eq!(pair.device.taken_count(), 0);
    }
}

#[test]
fn an_indirect_table_without_the_feature_is_refused() {
    let mut pair = pair(RingFeatures { indirect: false, ..PACKED });
    put(&pair, 0, TABLES, 16, AVAILABLE | INDIRECT);
    let fault = pair.device.pop(&mut Chain::new()).unwrap_err();
    let source = ChainFault::IndirectNotNegotiated;
    assert_eq!(fault, PopFault::Chain { head: 0, source });
}

#[test]
fn a_ring_that_stands_outside_of_itself_is_refused() {
    let own = OwnMemory::new(GuestAddress(0), 64 * 1024).unwrap();
    let layout = QueueLayout::contiguous(SIZE, GuestAddress(0));
    let features = RingFeatures { in_order: true, ..PACKED };
    let refused = DeviceQueue::new(own.memory.clone(), &layout, features, 0x8000 | SIZE, None);
    assert!(matches!(refused, Err(QueueError::Slot { slot: SIZE, size: SIZE })));
}
