// SPDX-License-Identifier: Apache-2.0
//! A disk between a fake driver and a worker.
#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

use plinth_backends::blk::{
    BlkClass, BlkDevice, BlkOperation, BlkOptions, BlkStatus, BlkTag, CopyError,
    DISCARD_SECTORS_MAX, REQUEST_BYTES_MAX,
};
use plinth_backends::fake::{FakeDisk, FakeGuest, STATUS_UNWRITTEN};
use plinth_guest_memory::{GuestAddress, Shrinkable};
use plinth_virtio::{Inflight, InflightQueue, Segment};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::Arc;

const CAPACITY: u64 = 4096;
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

fn class(is_read_only: bool, queues: u16) -> Arc<BlkClass> {
    let serial = *b"serial-of-a-disk\0\0\0\0";
    Arc::new(BlkClass::new(BlkOptions {
        capacity: CAPACITY,
        is_read_only,
        queues,
        serial,
        discard_unit: 64,
    }))
}

/// A guest with a started disk, and the worker's side.
fn disk(is_read_only: bool) -> (FakeDisk, BlkDevice) {
    let disk = FakeDisk::new(2, 64, 32 << 20);
    let mut device = BlkDevice::new(class(is_read_only, 2));
    for index in 0..2 {
        device.handle(disk.guest.start(index, 0, None));
    }
    (disk, device)
}

/// Carries out everything that waits on a disk in memory.
fn serve(device: &mut BlkDevice, image: &mut Vec<u8>) -> Vec<BlkOperation> {
    let mut requests = Vec::new();
    device.poll(&mut requests, 64);
    image.resize(usize::try_from(CAPACITY).unwrap() * 512, 0);
    let at = |sector: u64| usize::try_from(sector).unwrap() * 512;
    for request in &requests {
        match request.operation {
            BlkOperation::Read { sector, length } => {
                // In two steps, as a store with objects does.
                let (from, cut) = (at(sector), length / 3);
                device.copy_in(request.tag, 0, &image[from..from + cut as usize]).unwrap();
                device
                    .copy_in(request.tag, cut, &image[from + cut as usize..from + length as usize])
                    .unwrap();
            }
            BlkOperation::Write { sector, length } => {
                let (from, cut) = (at(sector), length / 3);
                device.copy_out(request.tag, 0, &mut image[from..from + cut as usize]).unwrap();
                device
                    .copy_out(
                        request.tag,
                        cut,
                        &mut image[from + cut as usize..from + length as usize],
                    )
                    .unwrap();
            }
            BlkOperation::Flush => {}
            BlkOperation::Discard { sector, sectors }
            | BlkOperation::WriteZeroes { sector, sectors, .. } => {
                image[at(sector)..at(sector + u64::from(sectors))].fill(0);
            }
        }
        assert!(device.complete(request.tag, BlkStatus::Ok));
    }
    device.flush();
    requests.into_iter().map(|request| request.operation).collect()
}

#[test]
fn what_was_written_is_read_back_through_any_segments() {
    let (mut disk, mut device) = disk(false);
    let mut image = Vec::new();
    let data: Vec<u8> = (0..20 * 512u32).map(|at| u8::try_from(at % 253).unwrap()).collect();
    disk.write(0, 100, &data);
    disk.flush(0);
    let operations = serve(&mut device, &mut image);
    assert_eq!(
        operations,
        [BlkOperation::Write { sector: 100, length: 10_240 }, BlkOperation::Flush]
    );
    assert_eq!(disk.poll(0).unwrap().status, OK);
    assert_eq!(disk.poll(0).unwrap().status, OK);
    disk.read(1, 101, 19 * 512);
    serve(&mut device, &mut image);
    let answer = disk.poll(1).unwrap();
    assert_eq!((answer.status, &answer.data[..]), (OK, &data[512..]));
    let counters = device.counters();
    assert_eq!((counters.writes, counters.written_bytes, counters.flushes), (1, 10_240, 1));
    assert_eq!((counters.reads, counters.read_bytes), (1, 9728));
}

#[test]
fn discards_and_zeroes_carry_their_flags() {
    let (mut disk, mut device) = disk(false);
    disk.discard(0, 64, 128, 0);
    disk.write_zeroes(0, 64, 128, 1);
    disk.write_zeroes(0, 4095, 1, 0);
    let operations = serve(&mut device, &mut Vec::new());
    let zeroes =
        |sector, sectors, may_unmap| BlkOperation::WriteZeroes { sector, sectors, may_unmap };
    let discard = BlkOperation::Discard { sector: 64, sectors: 128 };
    assert_eq!(operations, [discard, zeroes(64, 128, true), zeroes(4095, 1, false)]);
    assert_eq!((device.counters().discards, device.counters().zeroings), (1, 2));
}

#[test]
fn the_disk_tells_its_serial_without_asking_the_caller() {
    let (mut disk, mut device) = disk(false);
    disk.identify(0);
    assert_eq!(serve(&mut device, &mut Vec::new()), []);
    let answer = disk.poll(0).unwrap();
    assert_eq!((answer.status, &answer.data[..]), (OK, &b"serial-of-a-disk\0\0\0\0"[..]));
}

#[test]
fn bad_requests_are_answered_without_the_caller_and_harm_nothing() {
    let (mut disk, mut device) = disk(false);
    let mut expected = Vec::new();
    let mut ask = |head, status| expected.push((head, status));
    ask(disk.read(0, CAPACITY, 512), IO_ERROR);
    ask(disk.read(0, CAPACITY - 1, 1024), IO_ERROR);
    ask(disk.read(0, u64::MAX, 512), IO_ERROR);
    ask(disk.read(0, 0, 513), IO_ERROR);
    ask(disk.read(0, 0, 0), IO_ERROR);
    ask(disk.write(0, 0, &[1; 100]), IO_ERROR);
    ask(disk.write(0, CAPACITY, &[1; 512]), IO_ERROR);
    ask(disk.discard(0, 0, 0, 0), IO_ERROR);
    ask(disk.discard(0, CAPACITY, 1, 0), IO_ERROR);
    ask(disk.discard(0, 0, DISCARD_SECTORS_MAX + 1, 0), IO_ERROR);
    ask(disk.discard(0, 0, 1, 1), UNSUPPORTED);
    ask(disk.write_zeroes(0, 0, 1, 2), UNSUPPORTED);
    ask(disk.submit(0, 11, 0, &[0; 32], 0, 1), IO_ERROR);
    ask(disk.submit(0, 0, 0, &[1; 512], 512, 1), IO_ERROR);
    ask(disk.submit(0, 99, 0, &[], 0, 1), UNSUPPORTED);
    ask(disk.submit(0, 8, 0, &[], 0, 1), IO_ERROR);
    assert_eq!(serve(&mut device, &mut Vec::new()), []);
    for (head, status) in &expected {
        let answer = disk.poll(0).unwrap();
        assert_eq!((answer.head, answer.status), (*head, *status));
    }
    let counters = device.counters();
    assert_eq!(counters.refused + counters.unsupported, expected.len() as u64);
    assert_eq!((counters.unsupported, counters.queues_broken), (3, 0));
}

#[test]
fn a_request_that_is_too_long_is_refused_before_anybody_makes_room_for_it() {
    let (mut disk, mut device) = disk(false);
    let long = REQUEST_BYTES_MAX + 512;
    disk.submit(0, 0, 0, &[], long, 2);
    assert_eq!(serve(&mut device, &mut Vec::new()), []);
    assert_eq!(disk.poll(0).unwrap().status, IO_ERROR);
}

#[test]
fn a_read_only_disk_refuses_every_change() {
    let (mut disk, mut device) = disk(true);
    disk.write(0, 0, &[1; 512]);
    disk.discard(0, 0, 1, 0);
    disk.write_zeroes(0, 0, 1, 0);
    disk.read(0, 0, 512);
    assert_eq!(serve(&mut device, &mut Vec::new()).len(), 1);
    let statuses: Vec<_> = (0..4).map(|_| disk.poll(0).unwrap().status).collect();
    assert_eq!(statuses, [IO_ERROR, IO_ERROR, IO_ERROR, OK]);
}

#[test]
fn requests_without_a_status_byte_end_their_queue_and_no_other() {
    let (mut disk, mut device) = disk(false);
    let place = Segment { address: disk.guest.allocate(512), length: 512 };
    disk.queues[0].add(&[place], &[]).unwrap();
    disk.queues[0].publish();
    disk.read(0, 0, 512);
    disk.read(1, 0, 512);
    assert_eq!(serve(&mut device, &mut Vec::new()).len(), 1, "the other queue goes on");
    assert_eq!(device.counters().queues_broken, 1);
    let outside = Segment { address: GuestAddress(0), length: 16 };
    disk.queues[1].add(&[outside], &[place]).unwrap();
    disk.queues[1].publish();
    assert_eq!(serve(&mut device, &mut Vec::new()), []);
    assert_eq!(device.counters().queues_broken, 2);
    assert!(!device.is_up());
    // Taken back and started again, the queue is as good as new.
    let (change, answer) = FakeGuest::stop(0);
    device.handle(change);
    let state = answer.try_recv().unwrap();
    device.handle(disk.guest.start(0, state.next_available, None));
    assert_eq!(serve(&mut device, &mut Vec::new()).len(), 1, "the read behind the bad one");
}

#[test]
fn data_cannot_be_copied_beside_a_request() {
    let (mut disk, mut device) = disk(false);
    disk.read(0, 0, 512);
    disk.write(0, 0, &[3; 512]);
    let mut requests = Vec::new();
    assert_eq!(device.poll(&mut requests, 64), 2);
    let (read, write) = (requests[0].tag, requests[1].tag);
    let mut buffer = [0; 512];
    assert_eq!(device.copy_in(read, 1, &buffer), Err(CopyError::OutsideData));
    assert_eq!(device.copy_in(read, u32::MAX, &buffer), Err(CopyError::OutsideData));
    assert_eq!(device.copy_out(read, 0, &mut buffer), Err(CopyError::OutsideData));
    assert_eq!(device.copy_in(write, 0, &buffer), Err(CopyError::OutsideData));
    assert_eq!(device.copy_out(write, 1, &mut buffer), Err(CopyError::OutsideData));
    assert_eq!(device.zero_in(read, 500, 13), Err(CopyError::OutsideData));
    assert_eq!(device.zero_in(read, 0, 512), Ok(()));
    assert_eq!(device.copy_out(BlkTag(u64::MAX), 0, &mut buffer), Err(CopyError::NotOpen));
    assert!(device.complete(read, BlkStatus::IoError));
    assert!(!device.complete(read, BlkStatus::Ok), "it is answered once");
    assert_eq!(device.copy_in(read, 0, &buffer), Err(CopyError::NotOpen));
    device.flush();
    assert_eq!(disk.poll(0).unwrap().status, IO_ERROR);
    assert_eq!(device.counters().failed, 1);
    assert_eq!(device.open_requests(), 1);
}

#[test]
fn a_late_tag_is_not_taken_for_the_request_that_has_its_place_now() {
    let (mut disk, mut device) = disk(false);
    let mut requests = Vec::new();
    disk.read(0, 0, 512);
    device.poll(&mut requests, 1);
    let old = requests.pop().unwrap().tag;
    device.complete(old, BlkStatus::Ok);
    device.flush();
    let head = disk.poll(0).unwrap().head;
    assert_eq!(disk.read(0, 0, 512), head, "the driver takes the same place again");
    device.poll(&mut requests, 1);
    assert!(!device.complete(old, BlkStatus::Ok));
    assert!(device.complete(requests[0].tag, BlkStatus::Ok));
}

#[test]
fn a_grown_disk_takes_requests_up_to_its_new_end() {
    let class = class(false, 1);
    let mut disk = FakeDisk::new(1, 64, 1 << 20);
    let mut device = BlkDevice::new(class.clone());
    device.handle(disk.guest.start(0, 0, None));
    let mut requests = Vec::new();
    disk.read(0, CAPACITY, 512);
    assert_eq!(device.poll(&mut requests, 8), 0);
    class.grow(CAPACITY + 1);
    disk.read(0, CAPACITY, 512);
    assert_eq!(device.poll(&mut requests, 8), 1);
    device.complete(requests[0].tag, BlkStatus::Ok);
}

#[test]
fn a_queue_that_is_asked_back_finishes_what_is_open_and_takes_no_more() {
    let (mut disk, mut device) = disk(false);
    let mut requests = Vec::new();
    disk.read(0, 0, 512);
    device.poll(&mut requests, 8);
    let (change, answer) = FakeGuest::stop(0);
    device.handle(change);
    disk.read(0, 1, 512);
    assert_eq!(device.poll(&mut Vec::new(), 8), 0);
    assert!(answer.try_recv().is_err());
    device.complete(requests[0].tag, BlkStatus::Ok);
    let state = answer.try_recv().unwrap();
    assert_eq!((state.next_available, state.next_used), (1, 1));
    assert_eq!(disk.poll(0).unwrap().status, OK, "shown before the answer, without a flush");
    assert_eq!(disk.poll(0), None, "the second one waits for whoever comes next");
}

#[test]
fn a_full_queue_does_not_starve_another() {
    let (mut disk, mut device) = disk(false);
    for _ in 0..20 {
        disk.read(0, 0, 512);
    }
    disk.read(1, 0, 512);
    let mut queues = BTreeSet::new();
    for _ in 0..2 {
        let mut requests = Vec::new();
        device.poll(&mut requests, 4);
        queues.extend(requests.iter().map(|request| request.queue));
    }
    assert_eq!(queues, BTreeSet::from([0, 1]));
}

fn record(file: &std::fs::File) -> InflightQueue {
    let length = Inflight::bytes(1, 64);
    Inflight::open(file, 0, length, 1, 64, Shrinkable::Refuse).unwrap().queue(0).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]
    /// A backend that dies with requests open, again and again: each is answered once.
    #[test]
    fn a_dead_backends_requests_are_answered_exactly_once(
        rounds in prop::collection::vec((0..12usize, 0..12usize, any::<u64>(), any::<bool>()), 1..20),
    ) {
        let mut disk = FakeDisk::new(1, 64, 16 << 20);
        let file = Inflight::create(1, 64).unwrap();
        let mut answered = 0;
        let mut asked = 0;
        let mut open_before: BTreeSet<u64> = BTreeSet::new();
        for (ask, finish, order, is_flushed) in rounds {
            // A new process each round.
            let mut device = BlkDevice::new(class(false, 1));
            device.handle(disk.guest.start(0, disk.queues[0].next_used(), Some(record(&file))));
            prop_assert_eq!(device.counters().resubmitted, open_before.len() as u64);
            for _ in 0..ask {
                if disk.queues[0].free_count() >= 2 {
                    disk.read(0, asked % CAPACITY, 512);
                    asked += 1;
                }
            }
            let mut requests = Vec::new();
            device.poll(&mut requests, 64);
            let sector = |request: &plinth_backends::blk::BlkRequest| match request.operation {
                BlkOperation::Read { sector, .. } => sector,
                _ => u64::MAX,
            };
            let first: BTreeSet<u64> = requests[..open_before.len()].iter().map(sector).collect();
            prop_assert_eq!(&first, &open_before, "the dead one's come first");
            // Finish some, in a strange order; without a flush they count as never finished.
            let mut left: Vec<_> = requests.iter().collect();
            let mut finished = Vec::new();
            for step in 0..finish.min(requests.len()) {
                let pick = usize::try_from(order.rotate_left(u32::try_from(step * 7).unwrap()) % left.len() as u64).unwrap();
                let request = left.remove(pick);
                prop_assert!(device.complete(request.tag, BlkStatus::Ok));
                finished.push(request);
            }
            if is_flushed {
                device.flush();
                finished.clear();
            }
            open_before = left.into_iter().chain(finished).map(sector).collect();
            while let Some(answer) = disk.poll(0) {
                prop_assert_eq!(answer.status, OK);
                answered += 1;
            }
            prop_assert_eq!(disk.pending_count(), open_before.len());
        }
        prop_assert_eq!(answered + open_before.len() as u64, asked);
    }
}

#[test]
fn an_unanswered_request_has_no_status() {
    let (mut disk, mut device) = disk(false);
    let head = disk.read(0, 0, 512);
    let mut requests = Vec::new();
    device.poll(&mut requests, 1);
    device.flush();
    assert_eq!(disk.poll(0), None);
    device.complete(requests[0].tag, BlkStatus::Unsupported);
    assert_eq!(disk.poll(0), None, "not before a flush");
    device.flush();
    let answer = disk.poll(0).unwrap();
    assert_eq!((answer.head, answer.status), (head, UNSUPPORTED));
    assert_ne!(answer.status, STATUS_UNWRITTEN);
}
