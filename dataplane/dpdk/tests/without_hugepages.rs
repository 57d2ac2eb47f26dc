// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "the helper functions of a test are test code too")]
//! DPDK on ordinary pages and virtual devices: what every machine can run, without root.
//!
//! DPDK starts once a process, so this file's tests share one environment and no other file's
//! tests may be in the same program.

use plinth_dpdk::{
    DeviceName, Eal, EalConfig, EalError, EthDev, EthOptions, Mbuf, Memory, Mempool, OpenError,
};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// The process's environment, started by whichever test comes first.
fn eal() -> Eal {
    static EAL: OnceLock<Eal> = OnceLock::new();
    *EAL.get_or_init(|| {
        let before = plinth_rt::allowed_cpus().unwrap();
        let config = EalConfig { memory_mb: 64, use_hugepages: false, single_file: false };
        let eal = Eal::init(&config).unwrap();
        assert_eq!(plinth_rt::allowed_cpus().unwrap(), before, "DPDK pinned its caller");
        eal
    })
}

/// Lets one test at a time at DPDK's memory: one of them takes all there is, and gives it back.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    // A test that failed while it had the turn says so itself.
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A pool of the test's own, so that its books can be checked.
fn pool() -> Mempool {
    Mempool::new(eal(), 511, 2048).unwrap()
}

fn name(text: &str) -> DeviceName {
    text.parse().unwrap()
}

#[test]
fn ordinary_pages_are_said_to_be_ordinary_and_no_file_is_left() {
    let _turn = turn();
    assert_eq!(eal().memory(), Memory::OrdinaryPages);
    let ours = format!("plinth-{}", std::process::id());
    for folder in ["/var/run/dpdk", "/tmp/dpdk"] {
        assert!(!std::path::Path::new(folder).join(&ours).exists(), "{folder}/{ours} is left");
    }
}

#[test]
fn a_second_start_is_refused() {
    let _turn = turn();
    eal();
    assert!(matches!(Eal::init(&EalConfig::default()), Err(EalError::StartedBefore)));
}

#[test]
fn a_buffer_grows_at_both_ends_up_to_its_room() {
    let _turn = turn();
    let mut mbuf = pool().take().unwrap();
    assert!(mbuf.is_empty());
    mbuf.append(3).unwrap().copy_from_slice(b"def");
    mbuf.prepend(3).unwrap().copy_from_slice(b"abc");
    assert_eq!(mbuf.data(), b"abcdef");
    assert!(mbuf.append(mbuf.tailroom() + 1).is_none());
    assert!(mbuf.prepend(mbuf.headroom() + 1).is_none());
    assert!(mbuf.append(usize::MAX).is_none() && mbuf.prepend(usize::MAX).is_none());
    assert_eq!(mbuf.data(), b"abcdef");
    assert!(mbuf.trim_front(2) && !mbuf.trim_front(5));
    mbuf.truncate(100);
    mbuf.truncate(3);
    assert_eq!(mbuf.data(), b"cde");
    mbuf.append(mbuf.tailroom()).unwrap().fill(0xaa);
    // Three bytes of headroom were taken and two given back.
    assert_eq!((mbuf.tailroom(), mbuf.len()), (0, 2048 + 3 - 2));
}

#[test]
fn a_dropped_buffer_goes_back_and_an_empty_pool_says_so() {
    let _turn = turn();
    let pool = Mempool::new(eal(), 63, 256).unwrap();
    let mut held = Vec::new();
    while let Some(mbuf) = pool.take() {
        held.push(mbuf);
    }
    assert_eq!((held.len(), pool.available()), (63, 0));
    assert!(!pool.take_burst(1, &mut held));
    held.truncate(31);
    assert!(pool.take_burst(32, &mut held));
    assert!(!pool.take_burst(1, &mut held));
    drop(held);
    assert_eq!(pool.available(), 63);
}

#[test]
fn a_pool_that_does_not_fit_names_the_remedy() {
    let _turn = turn();
    let error = Mempool::new(eal(), 1 << 20, 9000).unwrap_err();
    assert!(error.to_string().contains("more memory"), "{error}");
}

#[test]
fn packets_sent_into_a_ring_come_back_in_order_and_no_buffer_is_lost() {
    let _turn = turn();
    let pool = pool();
    let (device, mut queue) =
        EthDev::open(eal(), &name("net_ring0"), &pool, &EthOptions::default()).unwrap();
    assert!(device.link().is_up);
    let mut oversized = 0;
    let mut received: Vec<Mbuf> = Vec::with_capacity(32);
    for round in 0..100u32 {
        let mut sending = Vec::with_capacity(32);
        assert!(pool.take_burst(32, &mut sending));
        for (index, mbuf) in (0u32..).zip(&mut sending) {
            mbuf.append(60).unwrap()[..4].copy_from_slice(&(round * 32 + index).to_be_bytes());
        }
        while !sending.is_empty() {
            assert!(queue.send(&mut sending) > 0, "the ring is empty and takes a burst");
        }
        while received.len() < 32 {
            assert!(queue.receive(&mut received, &mut oversized) > 0, "what was sent is there");
        }
        for (index, mbuf) in (0u32..).zip(received.drain(..)) {
            assert_eq!(mbuf.data()[..4], (round * 32 + index).to_be_bytes());
            assert_eq!(mbuf.len(), 60);
        }
    }
    assert_eq!((device.stats().sent_packets, device.stats().received_packets), (3200, 3200));
    assert_eq!((pool.available(), oversized), (511, 0));
}

#[test]
fn what_a_full_device_does_not_take_stays_with_the_sender() {
    let _turn = turn();
    let pool = Mempool::new(eal(), 2047, 256).unwrap();
    let (_device, mut queue) =
        EthDev::open(eal(), &name("net_ring1"), &pool, &EthOptions::default()).unwrap();
    let mut sending = Vec::with_capacity(32);
    let mut sent = 0;
    loop {
        assert!(pool.take_burst(32, &mut sending));
        for mbuf in &mut sending {
            mbuf.append(60).unwrap();
        }
        let taken = queue.send(&mut sending);
        sent += taken;
        if !sending.is_empty() {
            assert_eq!(taken + sending.len(), 32);
            break;
        }
    }
    assert_eq!(pool.available() as usize, 2047 - sent - sending.len());
    drop(sending);
    let mut received = Vec::with_capacity(32);
    while queue.receive(&mut received, &mut 0) > 0 {
        sent -= received.len();
        received.clear();
    }
    assert_eq!((sent, pool.available()), (0, 2047));
}

#[test]
fn receiving_stops_at_the_room_that_the_caller_gave() {
    let _turn = turn();
    let (_device, mut queue) =
        EthDev::open(eal(), &name("net_null0"), &pool(), &EthOptions::default()).unwrap();
    let mut received = Vec::with_capacity(5);
    let capacity = received.capacity();
    assert_eq!(queue.receive(&mut received, &mut 0), capacity);
    assert_eq!(queue.receive(&mut received, &mut 0), 0);
    assert_eq!(received.capacity(), capacity);
}

#[test]
fn a_device_is_refused_twice_and_closed_with_its_last_owner() {
    let _turn = turn();
    let pool = pool();
    let open = || EthDev::open(eal(), &name("net_null1"), &pool, &EthOptions::default());
    let (device, queue) = open().unwrap();
    assert!(matches!(open(), Err(OpenError::OpenBefore { .. })));
    drop(device);
    assert!(matches!(open(), Err(OpenError::OpenBefore { .. })), "the queue is still there");
    // From another thread than the one that opened it, as a worker would.
    std::thread::spawn(move || drop(queue)).join().unwrap();
    open().unwrap();
}

#[test]
fn an_interface_that_is_missing_is_named_with_dpdks_own_words() {
    let _turn = turn();
    let missing = name("net_af_packet7,iface=plinth-none");
    let error = EthDev::open(eal(), &missing, &pool(), &EthOptions::default()).unwrap_err();
    let OpenError::Attach { device, log, .. } = &error else { panic!("{error}") };
    assert!(device.contains("plinth-none"), "{error}");
    assert!(!log.is_empty(), "DPDK says why: {error}");
}

#[test]
fn a_driver_that_does_not_exist_is_refused() {
    let _turn = turn();
    let none = name("net_nonesuch0");
    let error = EthDev::open(eal(), &none, &pool(), &EthOptions::default()).unwrap_err();
    assert!(matches!(error, OpenError::Attach { .. }), "{error}");
}

#[test]
fn what_a_registered_thread_left_in_its_cache_is_the_next_ones() {
    let _turn = turn();
    let pool = pool();
    let eal = eal();
    let take_all = move |count: usize| {
        let _registration = eal.register_thread().unwrap();
        let held: Vec<_> = std::iter::from_fn(|| pool.take()).take(count).collect();
        held.len()
    };
    for count in [32, 511, 511] {
        let taken = std::thread::spawn(move || take_all(count)).join().unwrap();
        assert_eq!(taken, count);
    }
}
