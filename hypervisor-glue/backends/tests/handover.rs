// SPDX-License-Identifier: Apache-2.0
//! A served disk that goes from one backend to the next while its frontend stays connected.
#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]
#![allow(dead_code, reason = "the support module serves several tests")]

mod support;

use plinth_backends::fake::FakeDisk;
use plinth_backends::{HandOverLine, HandedDevice};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use support::{Backend, Client, Folder, RING_SIZE, answer, image, wait_for};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;

const PATIENCE: Duration = Duration::from_secs(10);

/// As two processes do it: out of one backend, over a line, into another.
fn send(handed: &HandedDevice) -> HandedDevice {
    let (one, two) = UnixStream::pair().unwrap();
    let (old, new) =
        (HandOverLine::new(one, PATIENCE).unwrap(), HandOverLine::new(two, PATIENCE).unwrap());
    let (bytes, descriptors) = handed.emit();
    old.send(&bytes, &descriptors).unwrap();
    let (bytes, descriptors) = new.receive().unwrap();
    HandedDevice::parse(&bytes, descriptors).unwrap()
}

/// Gives up the old backend as a process does that ends after the other serves.
fn hand_over(backend: &mut Backend) -> HandedDevice {
    let device = backend.device.take().unwrap();
    device.begin_hand_over();
    let handed = device.finish_hand_over(PATIENCE).unwrap();
    let sent = send(&handed);
    backend.kill();
    sent
}

#[test]
fn a_guest_goes_on_through_many_hand_overs_and_is_never_disconnected() {
    let folder = Folder::new("handover");
    let socket = folder.0.join("blk.sock");
    let image = image();
    let mut disk = FakeDisk::new(2, RING_SIZE, 32 << 20);
    let mut backend = Backend::start(&socket, &image);
    let mut client = Client::connect(&socket);
    client.set_memory(&disk);
    client.set_inflight(&mut None);
    client.start(&disk);
    for round in 0..20_u8 {
        for sector in 0..8 {
            disk.write(0, sector, &[round; 512]);
            disk.read(1, 100, 512);
        }
        // Requests are under way, taken and not taken, while the device goes over.
        let handed = hand_over(&mut backend);
        assert!(handed.is_connected());
        disk.write(0, 8, &[round; 512]);
        backend = Backend::take_over(&image, 2, handed);
        let running = backend.device().status().queues_running;
        assert_eq!(running, 2, "the worker has been sent the rings when the device is there");
        for _ in 0..9 {
            assert_eq!(answer(&mut disk, 0).status, 0);
        }
        for _ in 0..8 {
            assert_eq!(answer(&mut disk, 1).status, 0);
        }
        assert_eq!((disk.poll(0), disk.poll(1)), (None, None), "each is answered once");
        assert_eq!(backend.resubmitted.load(Ordering::Relaxed), 0, "nothing was left open");
        assert!(image.lock().unwrap()[..9 * 512].iter().all(|byte| *byte == round));
        assert_eq!(backend.device().status().failures, 0);
    }
    // The protocol goes on where it was agreed, answers and all.
    let (_, config) =
        client.frontend.get_config(0, 60, VhostUserConfigFlags::empty(), &[0; 60]).unwrap();
    assert_eq!(config[..8], support::CAPACITY.to_le_bytes());
    assert_eq!(client.frontend.get_vring_base(0).unwrap(), 20 * 9);
    // And the socket still takes connections.
    drop(client);
    let again = Client::connect(&socket);
    again.set_memory(&disk);
}

#[test]
fn a_device_with_open_requests_stays_and_goes_on() {
    let folder = Folder::new("handover-held");
    let socket = folder.0.join("blk.sock");
    let image = image();
    let mut disk = FakeDisk::new(2, RING_SIZE, 32 << 20);
    let mut backend = Backend::start(&socket, &image);
    let mut client = Client::connect(&socket);
    client.set_memory(&disk);
    client.start(&disk);
    backend.is_held.store(true, Ordering::Relaxed);
    disk.write(0, 3, &[7; 512]);
    let open = || (backend.open_requests.load(Ordering::Relaxed) == 1).then_some(());
    wait_for("the request", open);
    let device = backend.device.take().unwrap();
    device.begin_hand_over();
    let begun = Instant::now();
    let device = device.finish_hand_over(Duration::from_millis(50)).unwrap_err();
    assert!(begun.elapsed() >= Duration::from_millis(50));
    backend.device = Some(device);
    backend.is_held.store(false, Ordering::Relaxed);
    assert_eq!(answer(&mut disk, 0).status, 0);
    disk.read(1, 3, 512);
    assert_eq!(answer(&mut disk, 1).data, [7; 512], "it serves as before");
    // Called off once, it can be asked again.
    let handed = hand_over(&mut backend);
    let backend = Backend::take_over(&image, 2, handed);
    disk.read(0, 3, 512);
    assert_eq!(answer(&mut disk, 0).data, [7; 512]);
    drop(backend);
}

#[test]
fn who_handed_over_can_take_the_device_back() {
    let folder = Folder::new("handover-back");
    let socket = folder.0.join("blk.sock");
    let image = image();
    let mut disk = FakeDisk::new(2, RING_SIZE, 32 << 20);
    let mut backend = Backend::start(&socket, &image);
    let mut client = Client::connect(&socket);
    client.set_memory(&disk);
    client.start(&disk);
    let device = backend.device.take().unwrap();
    device.begin_hand_over();
    let kept = device.finish_hand_over(PATIENCE).unwrap();
    // The other process got its copies, and died.
    drop(send(&kept));
    backend.kill();
    let backend = Backend::take_over(&image, 2, kept);
    disk.write(0, 3, &[9; 512]);
    assert_eq!(answer(&mut disk, 0).status, 0);
    assert!(backend.device().status().is_connected);
}

#[test]
fn a_connection_that_does_not_fit_the_new_device_is_closed_and_comes_again() {
    let folder = Folder::new("handover-shape");
    let socket = folder.0.join("blk.sock");
    let image = image();
    let mut disk = FakeDisk::new(2, RING_SIZE, 32 << 20);
    let mut backend = Backend::start(&socket, &image);
    let mut client = Client::connect(&socket);
    client.set_memory(&disk);
    client.start(&disk);
    let handed = hand_over(&mut backend);
    let mut narrow = Backend::take_over(&image, 1, handed);
    let failure = wait_for("the refusal", || narrow.device().status().last_failure);
    assert!(failure.contains("2 rings was handed over for a device of 1"), "{failure}");
    assert!(client.frontend.get_features().is_err(), "the connection is closed");
    let handed = hand_over(&mut narrow);
    assert!(!handed.is_connected());
    let _backend = Backend::take_over(&image, 2, handed);
    let mut client = Client::connect(&socket);
    client.set_memory(&disk);
    client.start(&disk);
    disk.write(0, 3, &[5; 512]);
    assert_eq!(answer(&mut disk, 0).status, 0);
}
