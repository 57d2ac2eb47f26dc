// SPDX-License-Identifier: Apache-2.0
//! The store killed, replaced and killed together with its guest, under real drivers and a real
//! file system.

use crate::tools;
use crate::vm::{Parts, Vm};
use anyhow::{Context, Result, ensure};
use plinth_stage::runner::Length;
use plinth_stage::{Scratch, Store};
use std::thread;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// Writes and removes files without end and without a sync, so that a kill finds the file system
/// in the middle of something.
const CHURN: &str = "(i=0; while true; do i=$((i+1)); \
     dd if=/dev/urandom of=/disk/churn$((i%8)) bs=4k count=$((i%64+1)) 2>/dev/null; \
     rm -f /disk/churn$(((i+3)%8)); done) >/dev/null 2>&1 &";

/// QEMU and the store die together, as in a power cut of the node but for its page cache. What
/// the guest was told to be durable must be there, and the file system must be whole.
pub(crate) fn everything(_length: Length) -> Result<()> {
    let scratch = Scratch::new()?;
    let mut store = Store::start(&scratch, "b")?;
    store.make_pool(1, 512 * MIB)?;
    let socket = store.make_volume(1, 1, 128 * MIB, 1)?;
    let start = |number| {
        Vm::start(&scratch, number, Parts { disks: vec![socket.clone()], ..Parts::default() })
    };
    let mut vm = start(1)?;
    vm.agent.check("mkfs.ext4 -q /dev/vda && mkdir -p /disk && mount /dev/vda /disk")?;
    let mut durable: Vec<(String, String)> = Vec::new();
    for round in 0..3_u64 {
        vm.agent.check(CHURN)?;
        for file in 0..4 {
            let path = format!("/disk/kept-{round}-{file}");
            vm.agent.check(&format!(
                "dd if=/dev/urandom of={path} bs=16k count=16 conv=fsync 2>/dev/null && sync"
            ))?;
            durable.push((path.clone(), vm.agent.check(&format!("md5sum <{path}"))?));
        }
        // Dropped is killed: QEMU first or the store first, by turns.
        if round % 2 == 0 {
            drop(vm);
            store.kill()?;
        } else {
            store.kill()?;
            drop(vm);
        }
        store.start_again()?;
        vm = start(round + 2)?;
        // The mount replays the file system's own journal; then its checker has to be content.
        vm.agent.check("mkdir -p /disk && mount /dev/vda /disk && umount /disk")?;
        let check = vm.agent.run("fsck.ext4 -fn /dev/vda 2>&1")?;
        ensure!(check.status == 0, "round {round}, the file system is damaged: {check:?}");
        vm.agent.check("mount /dev/vda /disk")?;
        for (path, sum) in &durable {
            let found = vm.agent.check(&format!("md5sum <{path}"));
            let found = found.with_context(|| format!("round {round}, {path} is not there"))?;
            ensure!(found == *sum, "round {round}, {path} differs");
        }
        let complaints = vm.complaints()?;
        ensure!(complaints.is_empty(), "the guest's kernel says: {complaints:?}");
    }
    Ok(())
}

/// The store is replaced by `--take-over` again and again while a guest copies.
pub(crate) fn replaced(_length: Length) -> Result<()> {
    let scratch = Scratch::new()?;
    let mut store = Store::start(&scratch, "b")?;
    store.make_pool(1, 512 * MIB)?;
    let socket = store.make_volume(1, 1, 128 * MIB, 1)?;
    let mut vm = Vm::start(&scratch, 1, Parts { disks: vec![socket], ..Parts::default() })?;
    vm.agent.check("mkfs.ext4 -q /dev/vda && mkdir -p /disk && mount /dev/vda /disk")?;
    vm.agent.check("dd if=/dev/urandom of=/disk/file bs=64k count=128 2>/dev/null && sync")?;
    let written = vm.agent.check("md5sum </disk/file")?;
    let script = "(for i in 1 2 3 4; do dd if=/disk/file of=/disk/copy$i bs=16k conv=fsync \
                  2>/dev/null || echo failed; done; echo ended) >/run/copies 2>&1 &";
    vm.agent.check(script)?;
    for _ in 0..4 {
        thread::sleep(Duration::from_millis(700));
        store.take_over()?;
    }
    vm.agent.check("while ! grep -q ended /run/copies; do sleep 0.1; done")?;
    let copies = vm.agent.check("cat /run/copies")?;
    ensure!(copies.trim() == "ended", "a copy failed: {copies}");
    vm.agent.check("echo 3 >/proc/sys/vm/drop_caches")?;
    for copy in 1..=4 {
        let sum = vm.agent.check(&format!("md5sum </disk/copy{copy}"))?;
        ensure!(sum == written, "copy {copy} differs");
    }
    vm.agent.check("umount /disk && fsck.ext4 -fn /dev/vda >/dev/null")?;
    let complaints = vm.complaints()?;
    ensure!(complaints.is_empty(), "the guest's kernel says: {complaints:?}");
    Ok(())
}

/// fio writes at random, reads everything back and compares it, while the store is killed and
/// started again.
pub(crate) fn verified(length: Length) -> Result<()> {
    let scratch = Scratch::new()?;
    let mut store = Store::start(&scratch, "b")?;
    store.make_pool(1, 768 * MIB)?;
    let socket = store.make_volume(1, 1, 64 * MIB, 1)?;
    let tools = tools::volume_with_fio(&scratch, &mut store, 1, 2)?;
    let mut vm = Vm::start(&scratch, 1, Parts { disks: vec![socket, tools], ..Parts::default() })?;
    vm.agent.check("mkdir -p /tools && mount -o ro /dev/vdb /tools")?;
    let seconds = length.pick(Duration::from_secs(15), Duration::from_secs(300)).as_secs();
    let script = format!(
        "(LD_LIBRARY_PATH=/tools/lib /tools/lib/ld-linux-x86-64.so.2 /tools/fio --name=v \
         --filename=/dev/vda --rw=randrw --bsrange=4k-64k --size=48m --ioengine=libaio \
         --iodepth=16 --direct=1 --verify=crc32c --verify_fatal=1 --verify_backlog=512 \
         --time_based --runtime={seconds} --randrepeat=0 >/run/fio 2>&1; \
         echo $? >/run/status) >/dev/null 2>&1 &"
    );
    vm.agent.check(&script)?;
    let mut kills = 0;
    let until = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < until {
        thread::sleep(Duration::from_millis(1500));
        store.kill()?;
        kills += 1;
        store.start_again()?;
    }
    vm.agent.check("while [ ! -s /run/status ]; do sleep 0.2; done")?;
    let report = vm.agent.check("cat /run/fio")?;
    ensure!(vm.agent.check("cat /run/status")? == "0", "fio after {kills} kills:\n{report}");
    // Ten on a machine of its own; a disk that others keep busy makes starts take seconds.
    ensure!(kills >= 1, "nothing was killed");
    let complaints = vm.complaints()?;
    ensure!(complaints.is_empty(), "the guest's kernel says: {complaints:?}");
    println!("{kills} kills under fio");
    Ok(())
}
