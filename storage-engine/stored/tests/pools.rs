// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]
//! Pools and their faults: each stays with the pool that has it.

mod support;

use plinth_ids::{DiskId, Epoch, PoolId, VolumeId};
use plinth_store_api::{Answer, Durability, Pool, StoreConfig, Verb};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use support::guest::{DATA_MAX, Guest, IO_ERROR, Io, OK};
use support::pattern::bytes;
use support::{Daemon, Folder, MIB, PATIENCE, POOL, VOLUME, attachment, config, serving, wait_for};

const OTHER: PoolId = PoolId(2);

fn pool(id: PoolId, device: &Path) -> Pool {
    Pool::of_one(id, device, Durability::Flush)
}

/// A configuration of two pools and no attachments.
fn two_pools(epoch: u64, folder: &Folder) -> StoreConfig {
    let mut config = config(epoch, &folder.path("pool"), &[]);
    config.pools.push(pool(OTHER, &folder.path("other")));
    config
}

fn format(daemon: &Daemon, id: PoolId, device: &Path, overwrite: bool) -> Result<Answer, String> {
    let verb = Verb::PoolFormat {
        id,
        disk: DiskId::FIRST,
        device: device.into(),
        size: Some(64 * MIB),
        overwrite,
    };
    daemon.call(verb).map_err(|refusal| refusal.code)
}

#[test]
fn a_corrupted_superblock_is_one_pools_fault_and_named() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder);
    format(&daemon, POOL, &folder.path("pool"), false).unwrap();
    format(&daemon, OTHER, &folder.path("other"), false).unwrap();
    let file = File::options().write(true).open(folder.path("pool")).unwrap();
    // Wherever the copies of the superblock are: the first megabyte and the last.
    for at in [0, 63 * MIB] {
        file.write_all_at(&bytes(1, 1 << 20), at).unwrap();
    }
    daemon.apply(two_pools(1, &folder));
    let pools = daemon.pools();
    let fault = pools[0].fault.as_ref().expect("a corrupted pool has a fault");
    assert!(fault.contains("superblock"), "{fault}");
    assert_eq!((pools[1].id, &pools[1].fault), (OTHER, &None));
    assert!(pools[1].capacity > 32 * MIB, "{:?}", pools[1]);
    let refusal = daemon.create(VOLUME, MIB).unwrap_err();
    assert_eq!(refusal.code, "pool-missing", "{}", refusal.text);
}

#[test]
fn a_device_of_another_pool_is_a_fault() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder);
    format(&daemon, OTHER, &folder.path("pool"), false).unwrap();
    daemon.apply(config(1, &folder.path("pool"), &[]));
    let fault = daemon.pools()[0].fault.clone().unwrap();
    assert!(fault.contains("pool-2"), "{fault}");
}

#[test]
fn a_pool_whose_device_comes_late_comes_into_service_by_itself() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder);
    format(&daemon, POOL, &folder.path("pool"), false).unwrap();
    fs::rename(folder.path("pool"), folder.path("away")).unwrap();
    daemon.apply(config(1, &folder.path("pool"), &[]));
    let fault = daemon.pools()[0].fault.clone().unwrap();
    assert!(fault.contains("does not exist"), "{fault}");
    fs::rename(folder.path("away"), folder.path("pool")).unwrap();
    wait_for("the pool", || daemon.pools()[0].fault.is_none().then_some(()));
}

#[test]
fn a_device_has_one_daemon() {
    let folder = Folder::new();
    let first = serving(&folder, 64 * MIB, MIB, 1);
    let elsewhere = Folder::new();
    let second = Daemon::start(&elsewhere);
    second.apply(config(1, &folder.path("pool"), &[]));
    let fault = second.pools()[0].fault.clone().unwrap();
    assert!(fault.contains("in use"), "{fault}");
    let refused = format(&second, POOL, &folder.path("pool"), true);
    assert_eq!(refused, Err("device-in-use".to_owned()));
    // The first has not noticed; and when it is gone, the second takes over.
    let mut guest = Guest::boot(&folder.path("blk.sock"), 1);
    assert_eq!(guest.write(0, &bytes(1, 4096)), OK);
    guest.flush();
    drop(guest);
    first.kill();
    wait_for("the second", || second.pools()[0].fault.is_none().then_some(()));
    assert_eq!(second.volumes()[0].volume, VOLUME);
}

#[test]
fn a_pool_is_not_formatted_over_by_accident() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder);
    let path = folder.path("pool");
    format(&daemon, POOL, &path, false).unwrap();
    daemon.apply(config(1, &path, &[]));
    daemon.create(VOLUME, MIB).unwrap();
    assert_eq!(format(&daemon, POOL, &path, true), Err("device-in-use".to_owned()));
    daemon.apply(StoreConfig { pools: Vec::new(), ..config(2, &path, &[]) });
    assert_eq!(format(&daemon, POOL, &path, false), Err("pool-there".to_owned()));
    format(&daemon, POOL, &path, true).unwrap();
    daemon.apply(config(3, &path, &[]));
    assert!(daemon.volumes().is_empty());
}

#[test]
fn a_full_pool_refuses_writes_and_recovers_when_space_is_given_back() {
    let folder = Folder::new();
    let _daemon = serving(&folder, 32 * MIB, 64 * MIB, 1);
    let mut guest = Guest::boot(&folder.path("blk.sock"), 1);
    let step = (DATA_MAX / 512) as u64;
    let filled = (0..256).take_while(|at| guest.write(at * step, &bytes(*at, DATA_MAX)) == OK);
    let filled = filled.count() as u64;
    assert!((32..128).contains(&filled), "{filled} writes of {DATA_MAX} bytes went in");
    assert_eq!(guest.run(&Io::Flush).status, OK);
    for at in 0..filled {
        assert!(guest.read(at * step, DATA_MAX) == bytes(at, DATA_MAX), "write {at}");
    }
    let discard = Io::Discard { sector: 0, sectors: u32::try_from(8 * step).unwrap() };
    assert_eq!(guest.run(&discard).status, OK);
    guest.flush();
    wait_for("room", || (guest.write(0, &bytes(7, DATA_MAX)) == OK).then_some(()));
    assert!(guest.read(0, DATA_MAX) == bytes(7, DATA_MAX));
}

#[test]
fn an_attached_volume_is_not_deleted() {
    let folder = Folder::new();
    let daemon = serving(&folder, 64 * MIB, MIB, 1);
    let delete = || daemon.call(Verb::VolumeDelete { pool: POOL, volume: VOLUME, wipe: false });
    assert_eq!(delete().unwrap_err().code, "volume-attached");
    assert_eq!(daemon.volumes()[0].attached, Some(folder.path("blk.sock")));
    daemon.apply(config(3, &folder.path("pool"), &[]));
    assert_eq!(daemon.volumes()[0].attached, None);
    assert_eq!(delete(), Ok(Answer::Done));
    wait_for("the volume's end", || daemon.volumes().is_empty().then_some(()));
}

/// How often these eight bytes begin a sector of the pool's file.
fn marked(folder: &Folder, mark: &[u8; 8]) -> usize {
    let bytes = fs::read(folder.path("pool")).unwrap();
    bytes.chunks_exact(512).filter(|sector| sector[..8] == *mark).count()
}

#[test]
fn a_wiped_volume_is_nowhere_in_the_pools_file_also_if_the_store_is_killed_amid_it() {
    let folder = Folder::new();
    let mut daemon = serving(&folder, 128 * MIB, 64 * MIB, 1);
    let mut guest = Guest::boot(&folder.path("blk.sock"), 1);
    let (secret, other) = (b"secrets.", b"anothers");
    for object in 0..15_u64 {
        let sector = object * 8192;
        assert_eq!(guest.write(sector, &secret.repeat(DATA_MAX / 8)), OK);
        // A part of a block, which goes through the journal.
        assert_eq!(guest.write(sector + 3, &secret.repeat(64)), OK);
    }
    guest.flush();
    drop(guest);
    let device = folder.path("pool");
    // Nothing is discarded: what is gone is gone because it was overwritten.
    let mut config = config(3, &device, &[]);
    config.pools[0].discards = false;
    daemon.apply(StoreConfig { pools: Vec::new(), ..config.clone() });
    config.epoch = Epoch(4);
    daemon.apply(config.clone());
    assert!(marked(&folder, secret) >= 15 * DATA_MAX / 512);
    let wipe = Verb::VolumeDelete { pool: POOL, volume: VOLUME, wipe: true };
    assert_eq!(daemon.call(wipe.clone()), Ok(Answer::Done));
    assert_eq!(daemon.volumes(), []);
    let wipes = daemon.pools()[0].wipes.clone();
    assert_eq!((wipes[0].volume, wipes[0].total), (VOLUME, 15), "{wipes:?}");
    daemon = Daemon::start_after_kill(&mut daemon, &folder);
    wait_for("the pool", || daemon.pools()[0].fault.is_none().then_some(()));
    // Another volume is made meanwhile, and goes the ordinary way.
    daemon.create(VolumeId(8), 8 * MIB).unwrap();
    config.epoch = Epoch(5);
    config.attachments = vec![attachment(VolumeId(8), &folder.path("blk.sock"), 1)];
    daemon.apply(config.clone());
    let mut guest = Guest::boot(&folder.path("blk.sock"), 1);
    assert_eq!(guest.write(0, &other.repeat(DATA_MAX / 8)), OK);
    guest.flush();
    drop(guest);
    wait_for("the end of the wipe", || daemon.pools()[0].wipes.is_empty().then_some(()));
    assert_eq!(marked(&folder, secret), 0);
    config.epoch = Epoch(6);
    config.attachments.clear();
    daemon.apply(config);
    let delete = Verb::VolumeDelete { pool: POOL, volume: VolumeId(8), wipe: false };
    assert_eq!(daemon.call(delete), Ok(Answer::Done));
    wait_for("its space", || (daemon.pools()[0].used == 0).then_some(()));
    assert!(marked(&folder, other) > 0, "an ordinary delete leaves the bytes");
}

#[test]
fn a_clone_has_its_sources_bytes_and_its_own_life() {
    let folder = Folder::new();
    let daemon = serving(&folder, 64 * MIB, 8 * MIB, 1);
    let (device, socket) = (folder.path("pool"), folder.path("blk.sock"));
    let mut guest = Guest::boot(&socket, 1);
    assert_eq!(guest.write(8192, &bytes(1, 8192)), OK);
    guest.flush();
    drop(guest);
    let clone = VolumeId(9);
    let verb = Verb::VolumeClone {
        pool: POOL,
        source: VOLUME,
        snapshot: None,
        volume: clone,
        name: "clone".parse().unwrap(),
        size: 8 * MIB,
    };
    daemon.apply(config(3, &device, &[]));
    assert!(matches!(daemon.call(verb), Ok(Answer::Volume(_))));
    let clones = folder.path("clone.sock");
    let both = [attachment(VOLUME, &socket, 1), attachment(clone, &clones, 1)];
    daemon.apply(config(4, &device, &both));
    let (mut first, mut second) = (Guest::boot(&socket, 1), Guest::boot(&clones, 1));
    assert!(second.read(8192, 8192) == bytes(1, 8192));
    assert_eq!(second.write(8192, &bytes(2, 4096)), OK);
    assert_eq!(first.write(8200, &bytes(3, 4096)), OK);
    assert!(second.read(8192, 4096) == bytes(2, 4096));
    assert!(second.read(8200, 4096) == bytes(1, 8192)[4096..]);
    assert!(first.read(8192, 4096) == bytes(1, 8192)[..4096]);
}

/// The bytes of one block are found in the pool's file and one of them is flipped, behind the
/// store's back.
#[test]
fn a_flipped_byte_is_an_error_of_its_block_only_and_counted() {
    let folder = Folder::new();
    let daemon = serving(&folder, 64 * MIB, 8 * MIB, 1);
    let socket = folder.path("blk.sock");
    let mut guest = Guest::boot(&socket, 1);
    for block in 0..16 {
        assert_eq!(guest.write(block * 8, &bytes(100 + block, 4096)), OK);
    }
    guest.flush();
    drop(guest);
    daemon.stop();
    let file = File::options().read(true).write(true).open(folder.path("pool")).unwrap();
    let mut whole = vec![0; usize::try_from(64 * MIB).unwrap()];
    file.read_exact_at(&mut whole, 0).unwrap();
    let wanted = bytes(105, 4096);
    let places: Vec<_> =
        (0..whole.len()).step_by(512).filter(|&at| whole[at..].starts_with(&wanted)).collect();
    assert!(!places.is_empty(), "the block is nowhere in the file");
    for at in places {
        let at = at + 1234;
        file.write_all_at(&[whole[at] ^ 1], at as u64).unwrap();
    }
    let daemon = Daemon::start(&folder);
    let mut guest = Guest::boot(&socket, 1);
    assert_eq!(guest.run(&Io::Read { sector: 40, length: 4096 }).status, IO_ERROR);
    for block in (0..16).filter(|&block| block != 5) {
        assert!(guest.read(block * 8, 4096) == bytes(100 + block, 4096), "block {block}");
    }
    assert_eq!(daemon.pools()[0].checksum_errors, 1);
    assert_eq!(daemon.status().attachments[0].errors, 1);
    // Written whole it is good again.
    assert_eq!(guest.write(40, &bytes(7, 4096)), OK);
    assert!(guest.read(40, 4096) == bytes(7, 4096));
}

#[test]
fn it_starts_into_service_with_the_last_configuration() {
    let folder = Folder::new();
    let daemon = serving(&folder, 64 * MIB, MIB, 1);
    let socket = folder.path("blk.sock");
    let mut guest = Guest::boot(&socket, 1);
    assert_eq!(guest.write(3, &bytes(1, 4096)), OK);
    guest.flush();
    drop(guest);
    assert_eq!(daemon.stop(), Some(0));
    assert!(!socket.exists(), "an orderly stop removes the sockets");
    assert!(!folder.path("stored.sock").exists());
    // Nobody tells it anything.
    let daemon = Daemon::start(&folder);
    let mut guest = Guest::boot(&socket, 1);
    assert!(guest.read(3, 4096) == bytes(1, 4096));
    assert_eq!(daemon.status().epoch, Some(Epoch(2)));
}

#[test]
fn an_attachment_without_its_volume_waits_for_it() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder);
    let (device, socket) = (folder.path("pool"), folder.path("blk.sock"));
    daemon.format(&device, 64 * MIB);
    daemon.apply(config(1, &device, &[attachment(VOLUME, &socket, 1)]));
    let fault = daemon.status().attachments[0].fault.clone().unwrap();
    assert!(fault.contains("no such volume"), "{fault}");
    daemon.create(VOLUME, MIB).unwrap();
    let mut guest = Guest::boot(&socket, 1);
    assert_eq!(guest.write(0, &bytes(1, 4096)), OK);
    assert_eq!(daemon.status().attachments[0].fault, None);
}

#[test]
fn an_older_configuration_and_half_understood_lines_change_nothing() {
    let folder = Folder::new();
    let daemon = serving(&folder, 64 * MIB, MIB, 1);
    let device = folder.path("pool");
    let refusal = daemon.call(Verb::Apply(config(1, &device, &[]))).unwrap_err();
    assert_eq!(refusal.code, "config-old");
    let mut stream = BufReader::new(UnixStream::connect(folder.path("stored.sock")).unwrap());
    stream.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
    for (line, code) in [
        ("nonsense", "not-a-request"),
        (r#"{"id":1,"verb":{"volumes":{"pool":1,"color":2}}}"#, "not-a-request"),
        (r#"{"id":1,"verb":{"volumes":{"pool":9}}}"#, "pool-missing"),
    ] {
        stream.get_mut().write_all(format!("{line}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_line(&mut answer).unwrap();
        assert!(answer.contains(code), "{line}: {answer}");
    }
    let mut guest = Guest::boot(&folder.path("blk.sock"), 1);
    assert_eq!(guest.write(0, &bytes(1, 4096)), OK);
}

#[test]
fn a_memory_disk_serves_and_forgets() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder);
    let socket = folder.path("blk.sock");
    daemon.apply(config(1, Path::new("memory:64MiB"), &[]));
    daemon.create(VOLUME, 16 * MIB).unwrap();
    let attached = config(2, Path::new("memory:64MiB"), &[attachment(VOLUME, &socket, 2)]);
    daemon.apply(attached);
    let mut guest = Guest::boot(&socket, 2);
    for block in 0..64 {
        assert_eq!(guest.write(block * 8, &bytes(block, 4096)), OK);
    }
    guest.flush();
    for block in 0..64 {
        assert!(guest.read(block * 8, 4096) == bytes(block, 4096));
    }
    drop(guest);
    daemon.kill();
    let daemon = Daemon::start(&folder);
    wait_for("the empty pool", || daemon.pools()[0].fault.is_none().then_some(()));
    assert!(daemon.volumes().is_empty());
}

/// A file system with less room than the pool's sparse file says, unmounted on drop.
struct SmallTmpfs(std::path::PathBuf);

impl SmallTmpfs {
    fn mount(path: &Path) -> Option<Self> {
        fs::create_dir(path).unwrap();
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=24m", "plinth-test"])
            .arg(path)
            .output();
        mount.is_ok_and(|output| output.status.success()).then(|| Self(path.into()))
    }
}

impl Drop for SmallTmpfs {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_device_that_refuses_writes_leaves_its_pool_read_only_with_the_reason() {
    let folder = Folder::new();
    let Some(small) = SmallTmpfs::mount(&folder.path("small")) else {
        println!("skipped: no right to mount a tmpfs");
        return;
    };
    let daemon = Daemon::start(&folder);
    let (device, socket) = (small.0.join("pool"), folder.path("blk.sock"));
    daemon.format(&device, 128 * MIB);
    daemon.apply(config(1, &device, &[]));
    daemon.create(VOLUME, 64 * MIB).unwrap();
    daemon.apply(config(2, &device, &[attachment(VOLUME, &socket, 1)]));
    let mut guest = Guest::boot(&socket, 1);
    assert_eq!(guest.write(0, &bytes(1, 4096)), OK);
    let step = (DATA_MAX / 512) as u64;
    let written = (1..200).take_while(|at| guest.write(at * step, &bytes(*at, DATA_MAX)) == OK);
    assert!(written.count() < 100, "the device had room");
    let fault = daemon.pools()[0].fault.clone().unwrap();
    assert!(fault.contains("read-only") && fault.contains("errno 28"), "{fault}");
    assert!(guest.read(0, 4096) == bytes(1, 4096), "reads go on");
    drop(guest);
    assert_eq!(daemon.stop(), Some(0), "and it ends in order");
}
