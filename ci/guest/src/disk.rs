// SPDX-License-Identifier: Apache-2.0
//! The store under a guest's file system.

use crate::vm::{Parts, Vm, image};
use anyhow::{Result, ensure};
use plinth_ids::{PoolId, VolumeId};
use plinth_stage::runner::Length;
use plinth_stage::{Scratch, Store};
use plinth_store_api::{Attachment, Verb};
use std::thread;
use std::time::Duration;

const MIB: u64 = 1 << 20;

pub(crate) fn killed_store(_length: Length) -> Result<()> {
    let scratch = Scratch::new()?;
    let mut store = Store::start(&scratch, "b")?;
    store.make_pool(1, 512 * MIB)?;
    let socket = store.make_volume(1, 1, 128 * MIB, 1)?;
    let mut vm = Vm::start(&scratch, 1, Parts { disks: vec![socket], ..Parts::default() })?;
    vm.agent.check("mkfs.ext4 -q /dev/vda && mkdir -p /disk && mount /dev/vda /disk")?;
    vm.agent.check("dd if=/dev/urandom of=/disk/file bs=64k count=128 2>/dev/null && sync")?;
    let written = vm.agent.check("md5sum </disk/file")?;
    store.kill()?;
    store.start_again()?;
    // Nothing of what is read is to come from the guest's own memory.
    vm.agent.check("echo 3 >/proc/sys/vm/drop_caches")?;
    ensure!(vm.agent.check("md5sum </disk/file")? == written, "the bytes differ after the kill");
    // Again, in the middle of writing, with the guest waiting for the store meanwhile.
    let script = "(dd if=/disk/file of=/disk/second bs=64k conv=fsync 2>/run/dd; \
                  echo $? >/run/status) >/dev/null 2>&1 &";
    vm.agent.check(script)?;
    thread::sleep(Duration::from_millis(200));
    store.kill()?;
    thread::sleep(Duration::from_secs(2));
    ensure!(vm.is_alive(), "QEMU did not outlive the store");
    store.start_again()?;
    vm.agent.check("while [ ! -s /run/status ]; do sleep 0.1; done")?;
    ensure!(vm.agent.check("cat /run/status")? == "0", "the write failed");
    vm.agent.check("echo 3 >/proc/sys/vm/drop_caches")?;
    ensure!(vm.agent.check("md5sum </disk/second")? == written, "the second file differs");
    // The file system as it is on the disk, read by its own checker.
    vm.agent.check("umount /disk && fsck.ext4 -fn /dev/vda >/dev/null")?;
    let complaints = vm.complaints()?;
    ensure!(complaints.is_empty(), "the guest's kernel says: {complaints:?}");
    Ok(())
}

/// A disk that grows under a running guest, which goes on writing and uses the new room.
pub(crate) fn grown(_length: Length) -> Result<()> {
    let scratch = Scratch::new()?;
    let mut store = Store::start(&scratch, "b")?;
    store.make_pool(1, 512 * MIB)?;
    let socket = store.make_volume(1, 1, 64 * MIB, 1)?;
    let mut vm = Vm::start(&scratch, 1, Parts { disks: vec![socket], ..Parts::default() })?;
    let sectors = |mib: u64| (mib * MIB / 512).to_string();
    ensure!(vm.agent.check("cat /sys/block/vda/size")? == sectors(64), "the size at first");
    vm.agent.check("mkfs.ext4 -q /dev/vda && mkdir -p /disk && mount /dev/vda /disk")?;
    let (pool, volume) = (PoolId(1), VolumeId(1));
    store.call(Verb::VolumeGrow { pool, volume, size: 192 * MIB })?;
    let wait = format!(
        "for i in $(seq 100); do [ $(cat /sys/block/vda/size) = {} ] && exit 0; sleep 0.1; done; \
         exit 1",
        sectors(192)
    );
    vm.agent.check(&wait)?;
    vm.agent.check("resize2fs /dev/vda >/dev/null 2>&1")?;
    vm.agent.check("dd if=/dev/zero of=/disk/large bs=1M count=128 conv=fsync 2>/dev/null")?;
    let complaints = vm.complaints()?;
    ensure!(complaints.is_empty(), "the guest's kernel says: {complaints:?}");
    Ok(())
}

pub(crate) fn imported(_length: Length) -> Result<()> {
    let scratch = Scratch::new()?;
    let mut store = Store::start(&scratch, "b")?;
    store.make_pool(1, 1024 * MIB)?;
    let source = image()?.disk;
    let size = std::fs::metadata(&source)?.len().next_multiple_of(MIB);
    let (pool, volume) = (PoolId(1), VolumeId(1));
    let name = "system".parse()?;
    store.call(Verb::VolumeCreate { pool, volume, name, size })?;
    store.call(Verb::VolumeImport { pool, volume, source })?;
    let socket = scratch.join("system.sock");
    let attachment = Attachment {
        pool,
        volume,
        socket: socket.clone(),
        queues: 1,
        is_read_only: false,
        limits: None,
        worker: None,
    };
    store.config.attachments.push(attachment);
    store.apply()?;
    let disks = vec![socket];
    let parts = Parts { disks, boots_from_disk: true, ..Parts::default() };
    let mut vm = Vm::start(&scratch, 1, parts)?;
    let mounts = vm.agent.check("mount")?;
    ensure!(mounts.contains(" on / type ext4 (rw"), "the root is not the disk: {mounts}");
    vm.agent.check("echo kept >/root/note; sync")?;
    let complaints = vm.complaints()?;
    ensure!(complaints.is_empty(), "the guest's kernel says: {complaints:?}");
    Ok(())
}
