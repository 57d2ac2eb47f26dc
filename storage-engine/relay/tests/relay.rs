// SPDX-License-Identifier: Apache-2.0
//! The laws of a relay, over a store that answers when it is told to.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use plinth_ids::{Moment, PoolId};
use plinth_relay::{DEPTH, RelayHost, RelayStore, relay};
use plinth_rt::{Bell, CountingAllocator, allocations};
use plinth_store::{
    DiskError, IoBuffer, Level, ObjectId, ObjectKey, ObjectStore, PgId, ReadOnlyReason,
    StoreAnswer, StoreCapacity, StoreCompletion, StoreRefusal, StoreRequest, StoreState, StoreTag,
};
use std::collections::VecDeque;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Takes `room` requests and answers them in order, `pace` a round. A read's buffer comes back
/// with the object's number in it.
struct Slow {
    room: usize,
    pace: usize,
    waiting: VecDeque<(StoreTag, StoreRequest)>,
    state: StoreState,
    taken: u64,
}

impl Slow {
    fn new(room: usize, pace: usize) -> Self {
        let waiting = VecDeque::with_capacity(room);
        Self { room, pace, waiting, state: StoreState::Writable, taken: 0 }
    }
}

impl ObjectStore for Slow {
    fn submit(&mut self, tag: StoreTag, request: StoreRequest) -> Result<(), StoreRequest> {
        if self.room() == 0 {
            return Err(request);
        }
        self.taken += 1;
        self.waiting.push_back((tag, request));
        Ok(())
    }

    fn poll(&mut self, _: Moment, into: &mut Vec<StoreCompletion>) -> bool {
        for _ in 0..self.pace {
            let Some((tag, request)) = self.waiting.pop_front() else { break };
            into.push(match request {
                StoreRequest::Read { key, mut buffer, .. } => {
                    buffer.as_bytes_mut()[..16].copy_from_slice(&key.object.0.to_le_bytes());
                    let result = Ok(StoreAnswer::Read);
                    StoreCompletion { tag, buffer: Some(buffer), result }
                }
                _ => StoreCompletion { tag, buffer: None, result: Ok(StoreAnswer::Flushed) },
            });
        }
        false
    }

    fn room(&self) -> usize {
        self.room - self.waiting.len()
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    fn state(&self) -> StoreState {
        self.state
    }

    fn capacity(&self) -> StoreCapacity {
        let (used, level) = (self.taken, Level::Ok);
        StoreCapacity { total: 1, used, shared: 0, objects: 0, objects_max: 0, level }
    }

    fn take_buffer(&mut self, length: usize) -> IoBuffer {
        IoBuffer::zeroed(length)
    }

    fn put_buffer(&mut self, _: IoBuffer) {}
}

fn pair(room: usize, pace: usize) -> (RelayStore, RelayHost<Slow>) {
    relay(Slow::new(room, pace), Bell::new().unwrap(), Bell::new().unwrap())
}

fn read(object: u64, buffer: IoBuffer) -> StoreRequest {
    let object = ObjectId(object.into());
    let key = ObjectKey { pool: PoolId(1), pg: PgId(0), object, snapshot: 0 };
    StoreRequest::Read { key, offset: 0, length: 4096, buffer }
}

fn object_in(buffer: &IoBuffer) -> u64 {
    u64::from_le_bytes(buffer.as_bytes()[..8].try_into().unwrap())
}

/// Polls both ends until as many answers have come.
fn collect(
    near: &mut RelayStore,
    host: &mut RelayHost<Slow>,
    count: usize,
) -> Vec<StoreCompletion> {
    let mut ended = Vec::new();
    for _ in 0..100_000 {
        near.poll(Moment::ZERO, &mut ended);
        host.poll(Moment::ZERO);
        near.poll(Moment::ZERO, &mut ended);
        if ended.len() >= count {
            break;
        }
    }
    assert_eq!(ended.len(), count);
    ended
}

#[test]
fn a_full_ring_gives_requests_back_and_loses_none() {
    let (mut near, mut host) = pair(8, 3);
    let (mut next, mut expected) = (0, 0);
    let mut held = None;
    let mut refusals = 0;
    for round in 0..2000 {
        // More than there is room for, again and again.
        for _ in 0..5 {
            let request = held.take().unwrap_or_else(|| {
                next += 1;
                read(next - 1, IoBuffer::zeroed(4096))
            });
            let StoreRequest::Read { key, .. } = &request else { unreachable!() };
            let tag = StoreTag(u64::try_from(key.object.0).unwrap() + 100);
            if let Err(request) = near.submit(tag, request) {
                refusals += 1;
                held = Some(request);
            }
        }
        assert!(near.under_way() <= 8 && near.room() == 8 - near.under_way());
        let mut ended = Vec::new();
        near.poll(Moment::ZERO, &mut ended);
        if round % 3 != 0 {
            host.poll(Moment::ZERO);
        }
        for completion in ended {
            assert_eq!(completion.tag, StoreTag(expected + 100));
            assert_eq!(object_in(&completion.buffer.unwrap()), expected);
            expected += 1;
        }
    }
    let left = near.under_way();
    let rest = collect(&mut near, &mut host, left);
    expected += rest.len() as u64;
    assert!(refusals > 1000, "{refusals}");
    assert_eq!(expected + u64::from(held.is_some()), next);
    assert!(near.is_idle());
}

#[test]
fn what_the_store_is_like_is_known_before_the_answers_of_its_round() {
    let (mut near, mut host) = pair(4, 4);
    assert_eq!(near.capacity().used, 0);
    near.submit(StoreTag(1), read(1, IoBuffer::zeroed(4096))).unwrap();
    let mut ended = Vec::new();
    near.poll(Moment::ZERO, &mut ended);
    let broken = StoreState::ReadOnly(ReadOnlyReason::Journal(DiskError::Device { errno: 5 }));
    host.store_mut().state = broken;
    host.poll(Moment::ZERO);
    assert_eq!(near.state(), StoreState::Writable);
    near.poll(Moment::ZERO, &mut ended);
    assert_eq!((near.state(), near.capacity().used, ended.len()), (broken, 1, 1));
}

#[test]
fn news_never_takes_the_place_of_an_answer() {
    let (mut near, mut host) = pair(4, 1);
    for object in 0..4 {
        near.submit(StoreTag(object), read(object, IoBuffer::zeroed(4096))).unwrap();
    }
    let mut ended = Vec::new();
    near.poll(Moment::ZERO, &mut ended);
    // The store changes every round, and nobody listens.
    for round in 0..100 {
        let errno = round;
        host.store_mut().state =
            StoreState::ReadOnly(ReadOnlyReason::Data(DiskError::Device { errno }));
        host.poll(Moment::ZERO);
    }
    assert_eq!(collect(&mut near, &mut host, 4).len(), 4);
    let last = StoreState::ReadOnly(ReadOnlyReason::Data(DiskError::Device { errno: 99 }));
    assert_eq!(near.state(), last);
}

#[test]
fn requests_of_an_owner_that_is_gone_are_answered() {
    let (mut near, mut host) = pair(8, 1);
    for object in 0..6 {
        near.submit(StoreTag(object), read(object, IoBuffer::zeroed(4096))).unwrap();
    }
    let mut ended = Vec::new();
    near.poll(Moment::ZERO, &mut ended);
    host.poll(Moment::ZERO);
    host.poll(Moment::ZERO);
    drop(host);
    while near.under_way() > 0 {
        near.poll(Moment::ZERO, &mut ended);
    }
    let is_read = |completion: &StoreCompletion| completion.result == Ok(StoreAnswer::Read);
    let is_refused =
        |completion: &StoreCompletion| completion.result == Err(StoreRefusal::ReadOnly);
    assert!(ended[..2].iter().all(is_read) && ended[2..].iter().all(is_refused), "{ended:?}");
    assert_eq!(ended.len(), 6);
    assert_ne!(near.state(), StoreState::Writable);
}

#[test]
fn a_store_comes_back_as_it_was_when_nothing_is_under_way() {
    let (mut near, mut host) = pair(8, 8);
    near.submit(StoreTag(1), StoreRequest::Flush).unwrap();
    collect(&mut near, &mut host, 1);
    assert!(!host.is_abandoned());
    drop(near);
    assert!(host.is_abandoned());
    assert_eq!(host.into_store().taken, 1);
}

#[test]
fn a_request_allocates_nothing_and_its_buffer_is_not_copied() {
    let (mut near, mut host) = pair(DEPTH, DEPTH);
    let mut buffers: Vec<_> = (0..64).map(|_| IoBuffer::zeroed(4096)).collect();
    let mut addresses: Vec<_> = buffers.iter().map(|buffer| buffer.address().addr()).collect();
    let mut ended = Vec::with_capacity(64);
    let mut round = |counted: &mut u64| {
        let before = allocations();
        for (object, buffer) in (0..).zip(buffers.drain(..)) {
            near.submit(StoreTag(object), read(object, buffer)).unwrap();
        }
        near.poll(Moment::ZERO, &mut ended);
        host.poll(Moment::ZERO);
        near.poll(Moment::ZERO, &mut ended);
        buffers.extend(ended.drain(..).map(|completion| completion.buffer.unwrap()));
        *counted = allocations() - before;
    };
    let mut counted = 0;
    for _ in 0..100 {
        round(&mut counted);
    }
    assert_eq!(counted, 0);
    let mut found: Vec<_> = buffers.iter().map(|buffer| buffer.address().addr()).collect();
    addresses.sort_unstable();
    found.sort_unstable();
    assert_eq!(addresses, found);
}
