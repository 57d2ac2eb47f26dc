// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]
//! What only a disk on a real file can do or suffer. What it shares with the memory disk is in
//! `both.rs`.

mod support;

use plinth_disks::uring::{Mode, OpenError, UringDisk, UringDiskError};
use plinth_store::{
    Disk, DiskError, DiskRequest, DiskTag, FormatOptions, IoBuffer, MountError, ObjectId,
    ObjectKey, Store, StoreOptions, StoreRequest, StoreTag,
};
use std::fs::{self, File, OpenOptions};
use std::process::Command;
use std::time::{Duration, Instant};
use support::{Scratch, finish, write};

fn open(scratch: &Scratch) -> UringDisk {
    UringDisk::open(scratch.path(), Mode::Worker, 64).unwrap()
}

#[test]
fn a_file_cut_under_the_disk_fails_its_reads_and_nothing_else() {
    let scratch = Scratch::file(1 << 20);
    let mut disk = open(&scratch);
    write(&mut disk, 0, 4096, 1).unwrap();
    OpenOptions::new().write(true).open(scratch.path()).unwrap().set_len(4096).unwrap();
    let read = |offset| DiskRequest::Read { offset, buffer: IoBuffer::zeroed(4096) };
    disk.enqueue(DiskTag(1), read(65_536)).unwrap();
    let lost = finish(&mut disk, 1).remove(0);
    assert_eq!(lost.result, Err(DiskError::Short { moved: 0, wanted: 4096 }));
    assert!(lost.buffer.is_some());
    disk.enqueue(DiskTag(2), read(0)).unwrap();
    assert_eq!(finish(&mut disk, 1)[0].result, Ok(()));
}

#[test]
fn a_full_file_system_fails_the_write_with_its_errno() {
    let Some(tmpfs) = Tmpfs::mount("1m") else {
        println!("skipped: no right to mount a tmpfs");
        return;
    };
    let path = tmpfs.0.path().join("pool");
    File::create_new(&path).unwrap().set_len(8 << 20).unwrap();
    let mut disk = UringDisk::open(&path, Mode::Worker, 8).unwrap();
    let no_space = Err(DiskError::Device { errno: 28 });
    let results: Vec<_> = (0..16).map(|at| write(&mut disk, at * 131_072, 131_072, 7)).collect();
    assert_eq!(results.first(), Some(&Ok(())));
    assert!(results.contains(&no_space), "{results:?}");
    // What is given back can be written again.
    disk.enqueue(DiskTag(0), DiskRequest::Discard { offset: 0, length: 1 << 19 }).unwrap();
    assert_eq!(finish(&mut disk, 1)[0].result, Ok(()));
    assert_eq!(write(&mut disk, 0, 131_072, 7), Ok(()));
}

#[test]
fn a_discard_gives_the_files_space_back() {
    let scratch = Scratch::file(1 << 20);
    let mut disk = open(&scratch);
    write(&mut disk, 0, 1 << 20, 3).unwrap();
    let blocks = || std::os::unix::fs::MetadataExt::blocks(&fs::metadata(scratch.path()).unwrap());
    let before = blocks();
    disk.enqueue(DiskTag(0), DiskRequest::Discard { offset: 0, length: 1 << 19 }).unwrap();
    assert_eq!(finish(&mut disk, 1)[0].result, Ok(()));
    assert!(blocks() <= before / 2 + 16, "{} of {before} blocks are left", blocks());
}

#[test]
fn a_burst_goes_to_the_device_and_comes_back_in_portions() {
    let scratch = Scratch::file(1 << 20);
    let mut disk = open(&scratch);
    write(&mut disk, 0, 1 << 19, 9).unwrap();
    let calls = disk.system_calls();
    for tag in 0..16 {
        let read = DiskRequest::Read { offset: tag * 4096, buffer: IoBuffer::zeroed(4096) };
        disk.enqueue(DiskTag(tag), read).unwrap();
    }
    assert!(disk.system_calls() > calls, "the device has work before the burst is whole");
    let before = disk.system_calls();
    disk.enqueue(DiskTag(16), DiskRequest::Read { offset: 0, buffer: IoBuffer::zeroed(1 << 18) })
        .unwrap();
    assert!(disk.system_calls() > before, "so much is not held back for company");
    disk.submit();
    std::thread::sleep(Duration::from_millis(50));
    let (mut ended, mut rounds) = (Vec::new(), 0);
    while ended.len() < 17 {
        let before = ended.len();
        disk.complete(&mut ended);
        rounds += usize::from(ended.len() > before);
        assert!(ended.len() - before <= 4, "{} at once", ended.len() - before);
    }
    assert!(rounds >= 5 && ended.iter().all(|end| end.result == Ok(())));
}

#[test]
fn what_wakes_an_idle_device_is_not_kept_for_company() {
    let scratch = Scratch::file(1 << 20);
    let mut disk = open(&scratch);
    write(&mut disk, 0, 1 << 19, 9).unwrap();
    let read = |at| DiskRequest::Read { offset: at, buffer: IoBuffer::zeroed(4096) };
    let calls = disk.system_calls();
    disk.enqueue(DiskTag(0), read(0)).unwrap();
    assert_eq!(disk.system_calls(), calls + 1, "the device had nothing to do");
    for tag in 1..8 {
        disk.enqueue(DiskTag(tag), read(tag * 4096)).unwrap();
    }
    disk.submit();
    std::thread::sleep(Duration::from_millis(50));
    disk.submit();
    let mut ended = Vec::new();
    disk.complete(&mut ended);
    assert_eq!(ended.len(), 1, "who got the first answer can ask while the others are looked at");
    while ended.len() < 8 {
        disk.complete(&mut ended);
    }
}

#[test]
fn a_disk_has_one_owner() {
    let scratch = Scratch::file(1 << 20);
    let disk = open(&scratch);
    let second = UringDisk::open(scratch.path(), Mode::Worker, 64);
    assert!(matches!(second, Err(UringDiskError::Open(OpenError::InUse { .. }))));
    drop(disk);
    assert!(UringDisk::open(scratch.path(), Mode::Worker, 64).is_ok());
}

#[test]
fn a_disk_that_loses_its_ring_ends_every_request() {
    let scratch = Scratch::file(1 << 20);
    let mut disk = open(&scratch);
    let buffer = IoBuffer::zeroed(8192);
    disk.enqueue(DiskTag(1), DiskRequest::Read { offset: 0, buffer }).unwrap();
    disk.submit();
    // The kernel has tied the ring to this thread, so that another cannot submit: for the disk
    // that is a ring that fails for good.
    std::thread::spawn(move || {
        disk.enqueue(DiskTag(2), DiskRequest::Flush).unwrap();
        let lost = finish(&mut disk, 2);
        assert!(lost.iter().all(|end| end.result == Err(DiskError::Gone)));
        assert_eq!(lost[0].buffer.as_ref().map(IoBuffer::capacity), Some(8192));
        disk.enqueue(DiskTag(3), DiskRequest::Flush).unwrap();
        assert_eq!(finish(&mut disk, 1)[0].result, Err(DiskError::Gone));
    })
    .join()
    .unwrap();
}

#[test]
fn a_block_device_is_a_disk_too() {
    let scratch = Scratch::file(4 << 20);
    let Some(device) = Loop::attach(&scratch) else {
        println!("skipped: no loop device can be had");
        return;
    };
    let mut disk = UringDisk::open(device.0.as_ref(), Mode::Worker, 8).unwrap();
    assert_eq!(disk.geometry().length, 4 << 20);
    assert_eq!(write(&mut disk, 1 << 20, 65_536, 5), Ok(()));
    disk.enqueue(DiskTag(0), DiskRequest::Flush).unwrap();
    assert_eq!(finish(&mut disk, 1)[0].result, Ok(()));
    let second = UringDisk::open(device.0.as_ref(), Mode::Worker, 8);
    assert!(matches!(second, Err(UringDiskError::Open(OpenError::InUse { .. }))));
    disk.enqueue(DiskTag(0), DiskRequest::Discard { offset: 1 << 20, length: 65_536 }).unwrap();
    assert_eq!(finish(&mut disk, 1)[0].result, Ok(()));
    assert!(disk.geometry().has_discard, "a loop device over a file has");
    drop(disk);
    assert!(
        std::os::unix::fs::MetadataExt::blocks(&fs::metadata(scratch.path()).unwrap()) * 512
            < 65_536,
        "space comes back"
    );
    assert!(fs::read(scratch.path()).unwrap()[1 << 20..].iter().all(|&byte| byte == 0));
}

/// A small file system, unmounted on drop.
struct Tmpfs(Scratch);

impl Tmpfs {
    fn mount(size: &str) -> Option<Self> {
        let folder = Scratch::folder();
        let option = format!("size={size}");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &option, "plinth-test"])
            .arg(folder.path())
            .output();
        mount.is_ok_and(|output| output.status.success()).then_some(Self(folder))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// A loop device over a file, detached on drop.
struct Loop(String);

impl Loop {
    fn attach(scratch: &Scratch) -> Option<Self> {
        let output =
            Command::new("losetup").args(["--find", "--show"]).arg(scratch.path()).output().ok()?;
        let device = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        (output.status.success() && !device.is_empty()).then_some(Self(device))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn who_only_completes_is_served_too() {
    let scratch = Scratch::file(1 << 20);
    let mut disk = open(&scratch);
    disk.enqueue(DiskTag(5), DiskRequest::Flush).unwrap();
    disk.submit();
    let started = Instant::now();
    let mut ended = Vec::new();
    while ended.is_empty() {
        disk.complete(&mut ended);
        assert!(started.elapsed().as_secs() < 30, "the flush never ended");
    }
    assert_eq!(ended[0].tag, DiskTag(5));
}

/// A small ext4 that can be frozen: whoever writes to it then waits in the kernel.
struct Freezable {
    folder: Scratch,
    _image: Scratch,
}

impl Freezable {
    fn mount() -> Option<Self> {
        let image = Scratch::file(64 << 20);
        let folder = Scratch::folder();
        let run = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).output();
            output.is_ok_and(|output| output.status.success())
        };
        let paths = [image.path(), folder.path()].map(|path| path.to_str().unwrap());
        let is_made = run("mkfs.ext4", &["-q", "-F", paths[0]])
            && run("mount", &["-o", "loop", paths[0], paths[1]]);
        is_made.then_some(Self { folder, _image: image })
    }

    fn freeze(&self, is_frozen: bool) -> bool {
        let how = if is_frozen { "--freeze" } else { "--unfreeze" };
        let done = Command::new("fsfreeze").arg(how).arg(self.folder.path()).output();
        done.is_ok_and(|output| output.status.success())
    }
}

impl Drop for Freezable {
    fn drop(&mut self) {
        self.freeze(false);
        let _ = Command::new("umount").arg("-l").arg(self.folder.path()).status();
    }
}

#[test]
fn a_device_that_hangs_is_given_up_while_it_is_mounted_or_unmounted() {
    let Some(system) = Freezable::mount() else {
        println!("skipped: no ext4 can be mounted");
        return;
    };
    let scratch = Scratch::file_in(system.folder.path(), 32 << 20);
    let mut disk = UringDisk::open(scratch.path(), Mode::Worker, 64).unwrap();
    Store::format(&mut disk, &FormatOptions { id: [3; 16], limits: None }).unwrap();
    let patience = Duration::from_millis(300);
    let hung = DiskError::Hung { millis: 300 };
    disk.set_patience(Some(patience));
    let mut store = Store::mount(disk, StoreOptions::default()).unwrap();
    let key = ObjectKey { object: ObjectId(1), ..ObjectKey::default() };
    if !system.freeze(true) {
        println!("skipped: nothing can be frozen");
        return;
    }
    let started = Instant::now();
    let buffer = IoBuffer::zeroed(4096);
    store
        .submit(StoreTag(1), StoreRequest::Write { key, offset: 0, length: 4096, buffer })
        .unwrap();
    // An unmount would wait for ever for the write and its checkpoint.
    drop(store.unmount());
    assert!(started.elapsed() >= patience && started.elapsed() < Duration::from_secs(10));
    assert!(system.freeze(false));
    // The kernel has the old ring's writes, and with them the file's lock, a little longer.
    let mut disk = loop {
        match UringDisk::open(scratch.path(), Mode::Worker, 64) {
            Ok(disk) => break disk,
            Err(error) => assert!(started.elapsed() < Duration::from_secs(20), "{error}"),
        }
    };
    disk.set_patience(Some(patience));
    assert!(system.freeze(true));
    let failed = Store::mount(disk, StoreOptions::default()).unwrap_err();
    let is_named = match failed {
        MountError::Disk(error) => error == hung,
        MountError::ReadOnly(reason) => reason.to_string().contains("has not answered for 300 ms"),
        _ => false,
    };
    assert!(is_named, "{failed}");
    assert!(system.freeze(false));
    // It is a store as before, for who comes when the device answers.
    let started = Instant::now();
    let mounted = loop {
        match UringDisk::open(scratch.path(), Mode::Worker, 64) {
            Ok(disk) => break Store::mount(disk, StoreOptions::default()),
            Err(error) => assert!(started.elapsed() < Duration::from_secs(20), "{error}"),
        }
    };
    mounted.unwrap().check().unwrap();
}
