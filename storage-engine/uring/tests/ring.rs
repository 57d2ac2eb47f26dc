// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]
#![allow(unsafe_code, reason = "asks poll(2) about the descriptor, as a worker would")]
//! The ring against real files, on the disk's file system and on tmpfs.

use bytemuck::{Pod, Zeroable};
use plinth_uring::{
    Access, Batch, Completion, DirectFile, FileKind, OpenError, Operation, OperationError, Options,
    Ring, SetupError,
};
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const PAGE: usize = 4096;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

fn pages(count: usize, fill: u8) -> Vec<Page> {
    vec![Page([fill; PAGE]); count]
}

/// A file of a test's own, removed on drop.
struct Scratch(PathBuf);

impl Scratch {
    fn new(folder: &Path, size: u64) -> Self {
        // Only makes names differ within this process; publishes nothing.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("plinth-uring-{}-{number}", std::process::id()));
        File::create_new(&path).unwrap().set_len(size).unwrap();
        Self(path)
    }

    fn ring(&self, depth: u32) -> Ring<Page> {
        let file = DirectFile::open(&self.0, Access::ReadWrite).unwrap();
        Ring::new(file, Options { depth, ..Options::default() }).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _gone_already = fs::remove_file(&self.0);
    }
}

/// The folders that every test of reading and writing runs in.
fn folders() -> Vec<PathBuf> {
    let mut folders = vec![std::env::temp_dir()];
    let tmpfs = PathBuf::from("/dev/shm");
    if tmpfs.is_dir() {
        folders.push(tmpfs);
    }
    folders
}

/// Submits and reaps until `count` operations have completed.
fn finish(ring: &mut Ring<Page>, count: usize) -> Vec<Completion<Page>> {
    let mut completions = Vec::new();
    for _ in 0..10_000 {
        ring.wait(Duration::from_secs(1)).unwrap();
        ring.reap(&mut completions);
        if completions.len() >= count {
            return completions;
        }
    }
    panic!("{} of {count} operations completed", completions.len());
}

fn push(ring: &mut Ring<Page>, tag: u64, operation: Operation<Page>) {
    assert!(ring.push(tag, operation).is_ok(), "the ring has room");
}

#[test]
fn what_was_written_is_read_back() {
    for folder in folders() {
        let scratch = Scratch::new(&folder, 64 * PAGE as u64);
        let mut ring = scratch.ring(16);
        for at in 0..16 {
            let buffer = pages(1, at);
            let at = u64::from(at) * PAGE as u64;
            push(&mut ring, at, Operation::Write { at, buffer, length: PAGE });
        }
        assert_eq!(ring.in_flight(), 16);
        assert!(finish(&mut ring, 16).iter().all(|done| done.result.is_ok()));
        push(&mut ring, 1, Operation::Flush);
        assert!(finish(&mut ring, 1)[0].result.is_ok());
        push(&mut ring, 7, Operation::Read { at: 0, buffer: pages(16, 0xff), length: 16 * PAGE });
        let done = finish(&mut ring, 1).remove(0);
        assert_eq!((done.tag, done.result.is_ok()), (7, true));
        for (at, page) in done.buffer.unwrap().0.iter().enumerate() {
            assert!(page.0.iter().all(|&byte| usize::from(byte) == at));
        }
    }
}

#[test]
fn a_part_of_a_buffer_is_transferred_and_no_more() {
    for folder in folders() {
        let scratch = Scratch::new(&folder, 8 * PAGE as u64);
        let mut ring = scratch.ring(4);
        push(&mut ring, 0, Operation::Read { at: 0, buffer: pages(2, 0xee), length: PAGE });
        let buffer = finish(&mut ring, 1).remove(0).buffer.unwrap().0;
        assert_eq!((buffer[0].0[0], buffer[1].0[0]), (0, 0xee));
    }
}

#[test]
fn a_full_batch_leaves_the_rest_for_the_next() {
    let scratch = Scratch::new(&std::env::temp_dir(), 8 * PAGE as u64);
    let mut ring = scratch.ring(8);
    for tag in 0..8 {
        let length = PAGE << u32::from(tag > 4);
        push(&mut ring, tag, Operation::Read { at: 0, buffer: pages(2, 0), length });
    }
    // Until all of them have ended, so that a batch is cut by its limits and by nothing else.
    for _ in 0..10_000 {
        ring.wait(Duration::from_secs(1)).unwrap();
        std::thread::sleep(Duration::from_millis(1));
        ring.submit().unwrap();
        if ring.delivered() == 8 {
            break;
        }
    }
    let mut reap = |operations, bytes| {
        let mut reaped = Vec::new();
        let count = ring.reap_batch(&mut reaped, Batch { operations, bytes });
        assert_eq!(count, reaped.len());
        (count, ring.has_work())
    };
    assert_eq!(reap(3, usize::MAX), (3, true), "so many operations");
    assert_eq!(reap(0, usize::MAX), (0, true));
    assert!(
        (1..=2).contains(&reap(9, 2 * PAGE).0),
        "so many bytes, which no operation here is without"
    );
    assert!(!reap(9, usize::MAX).1, "nothing is left");
    assert_eq!(ring.in_flight(), 0);
}

#[test]
fn a_full_ring_gives_the_operation_back() {
    let scratch = Scratch::new(&std::env::temp_dir(), 8 * PAGE as u64);
    let mut ring = scratch.ring(2);
    for tag in 0..2 {
        push(&mut ring, tag, Operation::Read { at: 0, buffer: pages(1, 0), length: PAGE });
    }
    assert!(ring.is_full());
    let refused = ring.push(2, Operation::Read { at: 0, buffer: pages(3, 0), length: PAGE });
    let Err(Operation::Read { buffer, .. }) = refused else { panic!("taken") };
    assert_eq!(buffer.len(), 3);
    finish(&mut ring, 2);
    assert!(!ring.is_full());
}

#[test]
fn a_discarded_range_reads_as_zeroes() {
    for folder in folders() {
        let scratch = Scratch::new(&folder, 0);
        fs::write(&scratch.0, vec![1; 64 * PAGE]).unwrap();
        let mut ring = scratch.ring(4);
        let (at, length) = (8 * PAGE as u64, 32 * PAGE as u64);
        push(&mut ring, 0, Operation::Discard { at, length });
        assert!(finish(&mut ring, 1)[0].result.is_ok());
        push(&mut ring, 0, Operation::Read { at: 0, buffer: pages(64, 0), length: 64 * PAGE });
        let buffer = finish(&mut ring, 1).remove(0).buffer.unwrap().0;
        let kept: Vec<_> = buffer.iter().map(|page| page.0[PAGE - 1]).collect();
        let expected: Vec<_> = (0..64).map(|at| u8::from(!(8..40).contains(&at))).collect();
        assert_eq!(kept, expected);
    }
}

#[test]
fn a_file_cut_under_the_ring_is_an_error_of_that_read_only() {
    for folder in folders() {
        let scratch = Scratch::new(&folder, 8 * PAGE as u64);
        let mut ring = scratch.ring(4);
        OpenOptions::new().write(true).open(&scratch.0).unwrap().set_len(PAGE as u64).unwrap();
        let at = 4 * PAGE as u64;
        push(&mut ring, 1, Operation::Read { at, buffer: pages(1, 0), length: PAGE });
        push(&mut ring, 2, Operation::Read { at: 0, buffer: pages(1, 0), length: PAGE });
        push(&mut ring, 3, Operation::Read { at: 0, buffer: pages(2, 0), length: 2 * PAGE });
        for done in finish(&mut ring, 3) {
            let expected = match done.tag {
                1 => Err(OperationError::Short { moved: 0, wanted: PAGE }),
                2 => Ok(()),
                _ => Err(OperationError::Short { moved: PAGE, wanted: 2 * PAGE }),
            };
            assert_eq!(done.result, expected, "operation {}", done.tag);
            assert!(done.buffer.is_some(), "an operation that failed gives its buffer back too");
        }
    }
}

#[test]
fn a_write_that_the_file_refuses_fails_with_the_reason() {
    let scratch = Scratch::new(&std::env::temp_dir(), 8 * PAGE as u64);
    let file = DirectFile::open(&scratch.0, Access::ReadOnly).unwrap();
    let mut ring = Ring::new(file, Options::default()).unwrap();
    push(&mut ring, 0, Operation::Write { at: 0, buffer: pages(1, 1), length: PAGE });
    let result = finish(&mut ring, 1).remove(0).result;
    assert_eq!(result, Err(OperationError::Device { errno: libc::EBADF }));
}

#[test]
fn an_idle_ring_has_no_work_and_makes_no_call() {
    let scratch = Scratch::new(&std::env::temp_dir(), 8 * PAGE as u64);
    let mut ring = scratch.ring(4);
    ring.submit().unwrap();
    assert!(!ring.has_work());
    push(&mut ring, 0, Operation::Flush);
    assert!(ring.has_work());
    finish(&mut ring, 1);
    assert!(!ring.has_work());
}

#[test]
fn the_descriptor_is_readable_when_a_completion_waits() {
    for folder in folders() {
        let scratch = Scratch::new(&folder, 8 * PAGE as u64);
        let mut ring = scratch.ring(4);
        let readable = |ring: &Ring<Page>, timeout| {
            let mut poll =
                libc::pollfd { fd: ring.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one `pollfd` is given and it outlives the call.
            let count = unsafe { libc::poll(&raw mut poll, 1, timeout) };
            count == 1
        };
        push(&mut ring, 0, Operation::Read { at: 0, buffer: pages(1, 0), length: PAGE });
        assert!(!readable(&ring, 0), "nothing was submitted yet");
        ring.submit().unwrap();
        assert!(readable(&ring, 5000));
        assert!(ring.has_work());
        finish(&mut ring, 1);
    }
}

#[test]
fn a_dropped_ring_waits_for_what_is_under_way() {
    let scratch = Scratch::new(&std::env::temp_dir(), 64 * PAGE as u64);
    let mut ring = scratch.ring(64);
    for tag in 0..64 {
        let at = tag * PAGE as u64;
        push(&mut ring, tag, Operation::Write { at, buffer: pages(1, 9), length: PAGE });
    }
    ring.submit().unwrap();
    drop(ring);
    assert!(fs::read(&scratch.0).unwrap().iter().all(|&byte| byte == 9));
}

#[test]
fn an_idle_ring_moves_to_another_thread_with_what_is_queued() {
    let scratch = Scratch::new(&std::env::temp_dir(), 8 * PAGE as u64);
    let mut ring = scratch.ring(4);
    push(&mut ring, 0, Operation::Write { at: 0, buffer: pages(1, 5), length: PAGE });
    finish(&mut ring, 1);
    push(&mut ring, 7, Operation::Read { at: 0, buffer: pages(1, 0), length: PAGE });
    std::thread::spawn(move || {
        let done = finish(&mut ring, 1).remove(0);
        assert_eq!((done.tag, done.result), (7, Ok(())));
        assert_eq!(done.buffer.unwrap().0[0].0[17], 5);
    })
    .join()
    .unwrap();
}

#[test]
fn a_busy_ring_that_moves_is_abandoned_without_freeing_anything() {
    let scratch = Scratch::new(&std::env::temp_dir(), 8 * PAGE as u64);
    let mut ring = scratch.ring(4);
    push(&mut ring, 0, Operation::Read { at: 0, buffer: pages(1, 0), length: PAGE });
    ring.submit().unwrap();
    std::thread::spawn(move || {
        push(&mut ring, 1, Operation::Flush);
        assert_eq!(ring.submit().unwrap_err().raw_os_error(), Some(libc::EEXIST));
        let abandoned = ring.abandon();
        assert_eq!((abandoned[0].tag, abandoned[0].buffer_size), (0, Some(PAGE)));
        assert_eq!((abandoned[1].tag, abandoned[1].buffer_size), (1, None));
        assert!(ring.is_full() && ring.in_flight() == 0);
    })
    .join()
    .unwrap();
}

#[test]
fn one_file_has_one_owner() {
    let scratch = Scratch::new(&std::env::temp_dir(), PAGE as u64);
    let first = DirectFile::open(&scratch.0, Access::ReadWrite).unwrap();
    let second = DirectFile::open(&scratch.0, Access::ReadWrite);
    assert!(matches!(second, Err(OpenError::InUse { .. })));
    drop(first);
    assert!(DirectFile::open(&scratch.0, Access::ReadWrite).is_ok());
}

#[test]
fn a_file_tells_its_geometry() {
    for folder in folders() {
        let scratch = Scratch::new(&folder, 8 * PAGE as u64);
        let file = DirectFile::open(&scratch.0, Access::ReadWrite).unwrap();
        let geometry = file.geometry();
        assert_eq!((file.kind(), geometry.size), (FileKind::Regular, 8 * PAGE as u64));
        assert!(geometry.logical_sector.is_power_of_two());
        assert!((512..=4096).contains(&geometry.logical_sector), "{geometry:?}");
        assert!(geometry.physical_sector >= geometry.logical_sector);
    }
}

#[test]
fn what_is_no_disk_is_refused_by_name() {
    let refused = |path: &str| DirectFile::open(Path::new(path), Access::ReadWrite).unwrap_err();
    assert!(matches!(refused("/nowhere/pool"), OpenError::Missing { .. }));
    assert!(matches!(refused("/dev/null"), OpenError::Kind { .. }));
    assert!(matches!(
        refused("/proc/version"),
        OpenError::DirectRefused { .. } | OpenError::Open { .. }
    ));
    let scratch = Scratch::new(&std::env::temp_dir(), PAGE as u64);
    let depth = |depth| {
        let file = DirectFile::open(&scratch.0, Access::ReadWrite).unwrap();
        Ring::<Page>::new(file, Options { depth, ..Options::default() }).map(|_| ())
    };
    assert!(matches!(depth(0), Err(SetupError::Depth { .. })));
    assert!(matches!(depth(1 << 20), Err(SetupError::Depth { .. })));
}

/// A worker slept for ever beside a finished flush, and whoever opened the pool waited with it: the
/// kernel does not wake who sleeps on a ring whose completions are deferred to the next call. The
/// eventfd that stands in is written to.
#[test]
fn the_sleep_on_a_ring_is_woken() {
    let scratch = Scratch::new(&std::env::temp_dir(), 8 * PAGE as u64);
    for round in 0..2000 {
        let mut ring = scratch.ring(4);
        push(&mut ring, 0, Operation::Write { at: 0, buffer: pages(1, 1), length: PAGE });
        ring.submit().unwrap();
        // Sometimes before the sleep begins, sometimes while it does.
        for _ in 0..round % 64 * 50 {
            std::hint::spin_loop();
        }
        assert!(woken(&ring), "round {round}: asleep for two seconds");
        finish(&mut ring, 1);
    }
}

/// Sleeps as a worker does, edge-triggered, and says whether something woke it.
fn woken(ring: &Ring<Page>) -> bool {
    // SAFETY: no pointer is given.
    let epoll = unsafe { libc::epoll_create1(0) };
    let events = (libc::EPOLLIN | libc::EPOLLET).cast_unsigned();
    let mut event = libc::epoll_event { events, u64: 0 };
    let fd = ring.as_fd().as_raw_fd();
    // SAFETY: both descriptors are open and `event` outlives the call.
    assert_eq!(unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event) }, 0);
    // SAFETY: room for one event is given, which outlives the call.
    let count = unsafe { libc::epoll_wait(epoll, &raw mut event, 1, 2000) };
    // SAFETY: the descriptor is ours and nobody else has it.
    unsafe { libc::close(epoll) };
    // Interrupted is awake too: work of the ring was done in this thread's name.
    count != 0
}
