// SPDX-License-Identifier: Apache-2.0
//! Serves one device on a socket, to try a frontend by hand:
//!
//! ```text
//! serve blk SOCKET MEBIBYTES    a disk in memory; a line `grow MEBIBYTES` on stdin makes it larger
//! serve net SOCKET              a NIC that sends every frame back, addresses exchanged
//! ```
//!
//! Ends with its stdin. Naps between looks at the rings, where a real worker arms the kicks.

use plinth_backends::blk::{BlkClass, BlkDevice, BlkOperation, BlkOptions, BlkStatus, SECTOR_SIZE};
use plinth_backends::net::{NetClass, NetDevice, NetOptions, OutboundBurst};
use plinth_backends::{Device, DeviceOptions, DeviceToken, QueueEvent, Shrinkable, WorkerLink};
use std::io::BufRead;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Between two looks at rings that had nothing.
const NAP: std::time::Duration = std::time::Duration::from_micros(100);

static IS_OVER: AtomicBool = AtomicBool::new(false);

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let parts: Vec<&str> = arguments[1..].iter().map(String::as_str).collect();
    match parts[..] {
        ["blk", socket, mebibytes] => serve_blk(socket, mebibytes.parse().expect("a number")),
        ["net", socket] => serve_net(socket),
        _ => panic!("usage: serve blk SOCKET MEBIBYTES | serve net SOCKET"),
    }
}

fn link() -> (WorkerLink, crossbeam_channel::Receiver<QueueEvent>) {
    let (sender, events) = crossbeam_channel::bounded(64);
    (WorkerLink::new(sender, Arc::new(|| {})), events)
}

fn options(socket: &str) -> DeviceOptions {
    DeviceOptions { socket: socket.into(), token: DeviceToken(1), shrinkable: Shrinkable::Refuse }
}

fn serve_blk(socket: &str, mebibytes: u64) {
    let sectors = |mebibytes: u64| mebibytes * 1024 * 1024 / SECTOR_SIZE;
    let class = Arc::new(BlkClass::new(BlkOptions {
        capacity: sectors(mebibytes),
        is_read_only: false,
        queues: 4,
        serial: *b"plinth-example-disk\0",
        discard_unit: 64,
    }));
    let (link, events) = link();
    let server = Device::serve(options(socket), class.clone(), link).expect("the socket is free");
    let polled = class.clone();
    let worker = std::thread::spawn(move || poll_blk(BlkDevice::new(polled), &events));
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("stdin can be read");
        if let Some(mebibytes) = line.strip_prefix("grow ") {
            class.grow(sectors(mebibytes.parse().expect("a number")));
            server.announce_config_change();
        }
        eprintln!("{:?}", server.status());
    }
    eprintln!("{:?}", server.status());
    server.stop();
    IS_OVER.store(true, Ordering::Relaxed);
    eprintln!("{:?}", worker.join().expect("the worker does not panic"));
}

fn poll_blk(
    mut device: BlkDevice,
    events: &crossbeam_channel::Receiver<QueueEvent>,
) -> plinth_backends::blk::BlkCounters {
    let mut disk: Vec<u8> = Vec::new();
    let mut requests = Vec::new();
    let mut buffer = Vec::new();
    while !IS_OVER.load(Ordering::Relaxed) {
        while let Ok(event) = events.try_recv() {
            eprintln!("{event:?}");
            device.handle(event.change);
        }
        while device.take_kick_change().is_some() {}
        requests.clear();
        device.poll(&mut requests, 64);
        for request in &requests {
            let status = serve_request(&mut device, request, &mut disk, &mut buffer);
            device.complete(request.tag, status);
        }
        device.flush();
        if requests.is_empty() {
            std::thread::sleep(NAP);
        }
    }
    device.counters()
}

fn serve_request(
    device: &mut BlkDevice,
    request: &plinth_backends::blk::BlkRequest,
    disk: &mut Vec<u8>,
    buffer: &mut Vec<u8>,
) -> BlkStatus {
    let mut range = |sector: u64, length: u64| {
        let start = usize::try_from(sector * SECTOR_SIZE).expect("the disk is in memory");
        let end = start + usize::try_from(length).expect("the disk is in memory");
        if disk.len() < end {
            disk.resize(end, 0);
        }
        start..end
    };
    let result = match request.operation {
        BlkOperation::Read { sector, length } => {
            let range = range(sector, u64::from(length));
            device.copy_in(request.tag, 0, &disk[range])
        }
        BlkOperation::Write { sector, length } => {
            let range = range(sector, u64::from(length));
            buffer.resize(range.len(), 0);
            let result = device.copy_out(request.tag, 0, buffer);
            disk[range].copy_from_slice(buffer);
            result
        }
        BlkOperation::Flush => Ok(()),
        BlkOperation::Discard { sector, sectors }
        | BlkOperation::WriteZeroes { sector, sectors, .. } => {
            let range = range(sector, u64::from(sectors) * SECTOR_SIZE);
            disk[range].fill(0);
            Ok(())
        }
    };
    if result.is_ok() { BlkStatus::Ok } else { BlkStatus::IoError }
}

fn serve_net(socket: &str) {
    let class = Arc::new(NetClass::new(NetOptions {
        mac: [0x02, 0, 0, 0, 0, 1],
        mtu: 1500,
        queue_pairs: 2,
    }));
    let (link, events) = link();
    let server = Device::serve(options(socket), class, link).expect("the socket is free");
    let worker = std::thread::spawn(move || poll_net(NetDevice::new(2), &events));
    for _ in std::io::stdin().lock().lines() {
        eprintln!("{:?}", server.status());
    }
    eprintln!("{:?}", server.status());
    server.stop();
    IS_OVER.store(true, Ordering::Relaxed);
    eprintln!("{:?}", worker.join().expect("the worker does not panic"));
}

fn poll_net(
    mut device: NetDevice,
    events: &crossbeam_channel::Receiver<QueueEvent>,
) -> plinth_backends::net::NetCounters {
    let mut burst = OutboundBurst::new();
    while !IS_OVER.load(Ordering::Relaxed) {
        while let Ok(event) = events.try_recv() {
            eprintln!("{event:?}");
            device.handle(event.change);
        }
        while device.take_kick_change().is_some() {}
        let mut is_idle = true;
        for pair in 0..2 {
            device.receive(pair, &mut burst);
            is_idle &= burst.is_empty();
            for packet in burst.iter() {
                let mut head = vec![0; packet.head_length()];
                packet.copy_head(&mut head);
                let (target, rest) = head.split_at_mut(6);
                target.swap_with_slice(&mut rest[..6]);
                answer_arp(&mut head);
                let payload = packet.payload(head.len());
                let _ = device.deliver(pair, &head, payload, packet.offload());
            }
            device.release(&mut burst);
        }
        device.flush();
        if is_idle {
            std::thread::sleep(NAP);
        }
    }
    device.counters()
}

/// Makes an ARP request its own answer, and a ping request to us likewise, so that a guest can
/// ping any address and hear it from the mirror.
fn answer_arp(frame: &mut [u8]) {
    if frame.len() >= 42 && frame[12..14] == [0x08, 0x06] && frame[21] == 1 {
        let asked: [u8; 4] = frame[38..42].try_into().expect("four bytes");
        frame[21] = 2;
        frame.copy_within(22..32, 32);
        frame[22..28].copy_from_slice(&[0x02, 0, 0, 0, 0, 1]);
        frame[28..32].copy_from_slice(&asked);
        frame[6..12].copy_from_slice(&[0x02, 0, 0, 0, 0, 1]);
    }
    let is_ping = frame.len() >= 42 && frame[12..14] == [0x08, 0x00] && frame[23] == 1;
    if is_ping && frame[34] == 8 {
        let (source, target) = frame[26..34].split_at_mut(4);
        source.swap_with_slice(target);
        frame[34] = 0;
        // The type was 8 in the high byte of its word, so the sum grows by 0x0800.
        let sum = u16::from_be_bytes([frame[36], frame[37]]);
        let (sum, carry) = sum.overflowing_add(0x0800);
        frame[36..38].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
    }
}
