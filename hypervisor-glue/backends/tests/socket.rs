// SPDX-License-Identifier: Apache-2.0
//! A served disk, driven over its socket by the `vhost` crate's frontend.
#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]
#![allow(dead_code, reason = "the support module serves several tests")]

mod support;

use plinth_backends::fake::FakeDisk;
use plinth_backends::{Device, DeviceOptions, DeviceToken, ServeError, Shrinkable, WorkerLink};
use plinth_guest_memory::{GuestAddress, OwnMemory};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::{Backend, CAPACITY, Client, Folder, RING_SIZE, answer, image, region, wait_for};
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use vhost::{VhostBackend, VringConfigData};

fn fake_disk() -> FakeDisk {
    FakeDisk::new(2, RING_SIZE, 32 << 20)
}

/// Writes and reads back on both queues.
fn check_io(disk: &mut FakeDisk, seed: u8) {
    for queue in 0..2 {
        let data = vec![seed + u8::try_from(queue).unwrap(); 3 * 512];
        disk.write(queue, 10 * u64::from(queue), &data);
        assert_eq!(answer(disk, queue).status, 0);
        disk.read(queue, 10 * u64::from(queue), 3 * 512);
        assert_eq!(answer(disk, queue).data, data);
    }
}

#[test]
fn a_disk_is_served_from_the_first_message_to_the_last() {
    let folder = Folder::new("served");
    let socket = folder.0.join("blk.sock");
    let backend = Backend::start(&socket, &image());
    let mut disk = fake_disk();
    let mut client = Client::connect(&socket);
    let (_, config) =
        client.frontend.get_config(0, 60, VhostUserConfigFlags::empty(), &[0; 60]).unwrap();
    assert_eq!(config[..8], CAPACITY.to_le_bytes());
    client.set_memory(&disk);
    client.set_inflight(&mut None);
    client.start(&disk);
    check_io(&mut disk, 1);
    let status = backend.device().status();
    assert!(status.is_connected);
    assert_eq!((status.queues_running, status.connections, status.failures), (2, 1, 0));
    // Stopped in order, each ring says where it stands: four requests were asked on each.
    assert_eq!(client.frontend.get_vring_base(0).unwrap(), 2);
    assert_eq!(client.frontend.get_vring_base(1).unwrap(), 2);
    assert_eq!(backend.device().status().queues_running, 0);
    disk.read(0, 0, 512);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(disk.poll(0), None, "a stopped ring is not touched");
}

#[test]
fn a_base_is_answered_only_after_the_open_requests_are() {
    let folder = Folder::new("base");
    let socket = folder.0.join("blk.sock");
    let backend = Backend::start(&socket, &image());
    let mut disk = fake_disk();
    let mut client = Client::connect(&socket);
    client.set_memory(&disk);
    client.start(&disk);
    backend.is_held.store(true, Ordering::Relaxed);
    disk.read(0, 0, 512);
    wait_for("the request", || (backend.open_requests.load(Ordering::Relaxed) == 1).then_some(()));
    let held = backend.is_held.clone();
    let opener = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        held.store(false, Ordering::Relaxed);
    });
    assert_eq!(client.frontend.get_vring_base(0).unwrap(), 1);
    assert_eq!(disk.poll(0).unwrap().status, 0, "the answer was there before the base");
    opener.join().unwrap();
}

#[test]
fn a_frontend_that_comes_back_goes_on() {
    let folder = Folder::new("reconnect");
    let socket = folder.0.join("blk.sock");
    let backend = Backend::start(&socket, &image());
    let mut disk = fake_disk();
    let mut kept = None;
    for seed in 0..5 {
        let mut client = Client::connect(&socket);
        client.set_memory(&disk);
        client.set_inflight(&mut kept);
        client.start(&disk);
        check_io(&mut disk, 10 * seed);
        drop(client);
        wait_for("the end of the connection", || {
            (!backend.device().status().is_connected).then_some(())
        });
        assert_eq!(backend.device().status().queues_running, 0);
    }
    assert_eq!(backend.device().status().connections, 5);
    assert_eq!(backend.device().status().failures, 0);
}

#[test]
fn requests_of_a_killed_backend_are_carried_out_once_by_the_next() {
    let folder = Folder::new("killed");
    let socket = folder.0.join("blk.sock");
    let image = image();
    let mut disk = fake_disk();
    let mut kept = None;
    for round in 0..4u8 {
        let mut backend = Backend::start(&socket, &image);
        let mut client = Client::connect(&socket);
        client.set_memory(&disk);
        client.set_inflight(&mut kept);
        client.start(&disk);
        if round > 0 {
            // The five of the round before, exactly once each.
            for _ in 0..5 {
                assert_eq!(answer(&mut disk, 0).status, 0);
            }
            assert_eq!(backend.resubmitted.load(Ordering::Relaxed), 5);
            assert_eq!(image.lock().unwrap()[512], round - 1);
        }
        assert_eq!((disk.pending_count(), disk.poll(0)), (0, None));
        check_io(&mut disk, round + 100);
        backend.is_held.store(true, Ordering::Relaxed);
        for sector in 1..6 {
            disk.write(0, sector, &[round; 512]);
        }
        wait_for("the requests", || {
            (backend.open_requests.load(Ordering::Relaxed) == 5).then_some(())
        });
        backend.kill();
        assert_eq!(disk.pending_count(), 5);
    }
}

#[test]
fn a_second_frontend_is_turned_away_and_the_first_not_disturbed() {
    let folder = Folder::new("second");
    let socket = folder.0.join("blk.sock");
    let backend = Backend::start(&socket, &image());
    let mut disk = fake_disk();
    let mut client = Client::connect(&socket);
    client.set_memory(&disk);
    client.start(&disk);
    let mut second = UnixStream::connect(&socket).unwrap();
    assert_eq!(second.read(&mut [0; 1]).unwrap(), 0, "the second is closed at once");
    assert_eq!(backend.device().status().refused, 1);
    check_io(&mut disk, 1);
}

#[test]
fn nonsense_ends_its_connection_and_nothing_else() {
    let folder = Folder::new("nonsense");
    let [bad, good] = ["bad.sock", "good.sock"].map(|name| folder.0.join(name));
    let backends = [&bad, &good].map(|socket| Backend::start(socket, &image()));
    let mut disk = fake_disk();
    let mut client = Client::connect(&good);
    client.set_memory(&disk);
    client.start(&disk);
    let messages: [&[u8]; 4] = [
        // A request that does not exist; a wrong version; a size past the limit; half a header
        // and the end.
        &[0xFF, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        &[1, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0],
        &[1, 0, 0, 0, 1, 0, 0, 0, 0xFF, 0xFF, 0, 0],
        &[1, 0, 0, 0, 1, 0],
    ];
    for (count, message) in (1..).zip(messages) {
        let mut stream = UnixStream::connect(&bad).unwrap();
        stream.write_all(message).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
        wait_for("the failure", || (backends[0].device().status().failures == count).then_some(()));
        assert!(backends[0].device().status().last_failure.is_some());
    }
    check_io(&mut disk, 3);
    // The bad one's device is ready for a frontend that behaves.
    let mut other = fake_disk();
    let mut client = Client::connect(&bad);
    client.set_memory(&other);
    client.start(&other);
    check_io(&mut other, 5);
    assert_eq!(backends[1].device().status().failures, 0);
}

/// Carries out `ask` on a new connection and gives the error that the backend noted.
fn refusal(ask: impl FnOnce(&mut Client, &FakeDisk)) -> String {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let folder = Folder::new(&format!("refusal-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
    let socket = folder.0.join("blk.sock");
    let backend = Backend::start(&socket, &image());
    let disk = fake_disk();
    let mut client = Client::connect(&socket);
    ask(&mut client, &disk);
    wait_for("the failure", || backend.device().status().last_failure)
}

#[test]
fn every_refusal_names_its_reason() {
    let text = refusal(|client, _| {
        let _ = client.frontend.set_features(u64::MAX);
    });
    assert!(text.contains("not offered"), "{text}");
    let text = refusal(|client, _| {
        let _ = client.frontend.set_vring_num(0, 100);
    });
    assert!(text.contains("a ring of 100 entries"), "{text}");
    let text = refusal(|client, disk| {
        client.set_memory(disk);
        let kick = client.kicks[0].try_clone().unwrap();
        let _ = client.frontend.set_vring_enable(0, true);
        let _ = client.frontend.set_vring_kick(0, &kick);
    });
    assert!(text.contains("ring 0 was started before"), "{text}");
    let text = refusal(|client, disk| {
        client.set_memory(disk);
        let nowhere = VringConfigData {
            queue_max_size: 64,
            queue_size: 64,
            flags: 0,
            desc_table_addr: 0x1000,
            used_ring_addr: 0x2000,
            avail_ring_addr: 0x3000,
            log_addr: None,
        };
        client.frontend.set_vring_num(1, 64).unwrap();
        client.frontend.set_vring_addr(1, &nowhere).unwrap();
        client.frontend.set_vring_enable(1, true).unwrap();
        let _ = client.frontend.set_vring_kick(1, &client.kicks[1]);
    });
    assert!(text.contains("the descriptor table at 0x1000 is in no region"), "{text}");
    let text = refusal(|client, disk| {
        let mut short = region(&disk.guest.own.spec, &disk.guest.own.file);
        short.memory_size *= 2;
        let _ = client.frontend.set_mem_table(&[short]);
    });
    assert!(text.contains("the file has"), "{text}");
    let text = refusal(|client, _| {
        let shape = vhost::vhost_user::message::VhostUserInflight::new(0, 0, 9, 64);
        let _ = client.frontend.get_inflight_fd(&shape);
    });
    assert!(text.contains("an in-flight region for 9 rings"), "{text}");
    let text = refusal(|client, disk| {
        let mut far = region(&disk.guest.own.spec, &disk.guest.own.file);
        far.guest_phys_addr += 0x1000_0000;
        let _ = client.frontend.remove_mem_region(&far);
    });
    assert!(text.contains("no region at"), "{text}");
}

#[test]
fn memory_that_its_owner_can_shrink_is_refused() {
    let file = std::env::temp_dir().join(format!("plinth-loose-{}", std::process::id()));
    let loose = std::fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&file)
        .unwrap();
    std::fs::remove_file(&file).unwrap();
    loose.set_len(32 << 20).unwrap();
    let text = refusal(|client, disk| {
        let mut entry = region(&disk.guest.own.spec, &loose);
        entry.mmap_handle = loose.as_raw_fd();
        let _ = client.frontend.set_mem_table(&[entry]);
    });
    assert!(text.contains("memory-backend-memfd"), "{text}");
}

#[test]
fn memory_may_change_under_traffic() {
    let folder = Folder::new("memory");
    let socket = folder.0.join("blk.sock");
    let backend = Backend::start(&socket, &image());
    let mut disk = fake_disk();
    let mut client = Client::connect(&socket);
    client.set_memory(&disk);
    client.set_inflight(&mut None);
    client.start(&disk);
    let extra = OwnMemory::new(GuestAddress(0x4000_0000), 1 << 20).unwrap();
    for round in 0..60u8 {
        // Requests are under way while the table changes: none is lost, none is torn.
        let data = vec![round; 8 * 512];
        for sector in [0, 8, 16] {
            disk.write(0, sector, &data);
        }
        match round % 3 {
            0 => client.set_memory(&disk),
            1 => client
                .frontend
                .add_mem_region(&region(&extra.spec, &extra.file))
                .unwrap()
                .map_or((), drop),
            _ => client.frontend.remove_mem_region(&region(&extra.spec, &extra.file)).unwrap(),
        }
        disk.read(0, 4, 16 * 512);
        for _ in 0..4 {
            assert_eq!(answer(&mut disk, 0).status, 0);
        }
        disk.read(1, 4, 16 * 512);
        assert_eq!(answer(&mut disk, 1).data, vec![round; 16 * 512]);
    }
    assert_eq!(backend.device().status().failures, 0);
}

#[test]
fn memory_that_was_replaced_is_not_touched_any_more() {
    let folder = Folder::new("replaced");
    let socket = folder.0.join("blk.sock");
    let _backend = Backend::start(&socket, &image());
    let mut disk = fake_disk();
    let client = &mut Client::connect(&socket);
    client.set_memory(&disk);
    client.start(&disk);
    check_io(&mut disk, 1);
    // The same guest in another file, as after a move; the driver goes on in the old one.
    let spec = disk.guest.own.spec;
    let other = OwnMemory::new(spec.guest, spec.length).unwrap();
    let copy_all = |disk: &FakeDisk| {
        let length = usize::try_from(spec.length).unwrap();
        disk.guest.own.memory.copy_between(spec.guest, &other.memory, spec.guest, length).unwrap();
    };
    copy_all(&disk);
    client.frontend.set_mem_table(&[region(&other.spec, &other.file)]).unwrap();
    disk.read(0, 0, 512);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(disk.poll(0), None, "nobody looks at the old memory");
    copy_all(&disk);
    let used = GuestAddress(disk.guest.layouts[0].used.0 + 2);
    wait_for("the answer in the new memory", || {
        (other.memory.u16_at(used).unwrap().load(Ordering::Acquire) == 3).then_some(())
    });
    assert_eq!(disk.poll(0), None, "and nobody writes to it");
}

#[test]
fn a_ring_is_disabled_and_enabled_and_reset() {
    let folder = Folder::new("enable");
    let socket = folder.0.join("blk.sock");
    let backend = Backend::start(&socket, &image());
    let mut disk = fake_disk();
    let mut client = Client::connect(&socket);
    client.set_memory(&disk);
    client.start(&disk);
    check_io(&mut disk, 1);
    client.frontend.set_vring_enable(0, false).unwrap();
    disk.read(0, 0, 512);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(disk.poll(0), None);
    client.frontend.set_vring_enable(0, true).unwrap();
    assert_eq!(answer(&mut disk, 0).status, 0, "it goes on where it stood");
    client.frontend.reset_device().unwrap();
    assert_eq!(backend.device().status().queues_running, 0);
}

#[test]
fn a_growing_disk_is_announced_to_the_frontend() {
    let folder = Folder::new("grow");
    let socket = folder.0.join("blk.sock");
    let backend = Backend::start(&socket, &image());
    let mut client = Client::connect(&socket);
    // Without a channel nothing can be said, and nothing breaks.
    backend.device().announce_config_change();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    client.frontend.set_backend_request_fd(&theirs).unwrap();
    drop(theirs);
    backend.class.grow(CAPACITY * 2);
    backend.device().announce_config_change();
    let mut message = [0; 12];
    ours.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    ours.read_exact(&mut message).unwrap();
    assert_eq!(message, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    let (_, config) =
        client.frontend.get_config(0, 8, VhostUserConfigFlags::empty(), &[0; 8]).unwrap();
    assert_eq!(config, (CAPACITY * 2).to_le_bytes());
}

#[test]
fn the_socket_file_is_replaced_when_stale_and_refused_when_not() {
    let folder = Folder::new("stale");
    let socket = folder.0.join("blk.sock");
    // A dead process leaves its socket behind.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    let backend = Backend::start(&socket, &image());
    let (sender, _events) = crossbeam_channel::bounded(1);
    let link = WorkerLink::new(sender, Arc::new(|| {}));
    let serve = |socket: &std::path::Path| {
        let options = DeviceOptions {
            socket: socket.to_path_buf(),
            token: DeviceToken(1),
            shrinkable: Shrinkable::Refuse,
        };
        Device::serve(options, backend.class.clone(), link.clone()).unwrap_err()
    };
    assert!(matches!(serve(&socket), ServeError::InUse { .. }));
    let file = folder.0.join("file");
    std::fs::write(&file, b"precious").unwrap();
    assert!(matches!(serve(&file), ServeError::NotASocket { .. }));
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    let missing = folder.0.join("no").join("such.sock");
    assert!(matches!(serve(&missing), ServeError::Listen { .. }));
    drop(backend);
    assert!(!socket.exists(), "a device takes its socket with it");
}

#[test]
fn a_device_stops_in_the_middle_of_a_message() {
    let folder = Folder::new("stuck");
    let socket = folder.0.join("blk.sock");
    let mut backend = Backend::start(&socket, &image());
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.write_all(&[1, 0, 0, 0, 1]).unwrap();
    wait_for("the connection", || backend.device().status().is_connected.then_some(()));
    backend.device = None;
    assert!(!socket.exists());
}
