// SPDX-License-Identifier: Apache-2.0
//! An operator adds, drains and removes disks.

use crate::lab::Lab;
use anyhow::{Context, Result, ensure};
use plinth_stage::runner::Length;

/// A disk is added to a pool with volumes in it, the first one drained and removed.
pub(crate) fn disks(_: Length) -> Result<()> {
    let lab = Lab::start()?;
    let (first, second) = (lab.scratch.join("first"), lab.scratch.join("second"));
    let create = "pool create trial --class performance --size 256M";
    lab.plinth(&format!("{create} --device {}", first.display()))?;
    let image = lab.scratch.join("image");
    std::fs::write(&image, vec![0x5a; 8 << 20])?;
    lab.plinth(&format!("image import small {}", image.display()))?;
    for number in 0..8 {
        lab.plinth(&format!("volume create data-{number} --image small"))?;
    }
    let limits = lab.plinth("volume limit show data-0")?;
    ensure!(limits["limits"]["iops"] == 1800, "a performance volume has {limits}");
    let limits = lab.plinth("volume limit set data-0 --iops 500 --bandwidth 10M")?;
    ensure!(limits["limits"]["bytes_per_second"] == 10 << 20, "{limits}");
    ensure!(lab.refused("disk drain trial 1")? == "no-room", "the only disk was drained");
    let add = format!("disk add trial --size 256M --device {}", second.display());
    let disk = lab.plinth(&add)?;
    ensure!(disk["disk"] == 2, "{disk}");
    ensure!(lab.refused(&add)? == "in-use", "a device was added twice");
    lab.until("both disks are in", |lab| {
        let disks = lab.plinth("disk list trial").ok()?;
        disks.as_array()?.iter().all(|disk| disk["status"]["state"] == "in").then_some(())
    })?;
    ensure!(lab.refused("disk remove trial 1")? == "state", "a disk in service was removed");
    lab.plinth("disk drain trial 1")?;
    lab.until("the first disk is empty", |lab| {
        let disks = lab.plinth("disk list trial").ok()?;
        let first = disks.as_array()?.iter().find(|disk| disk["disk"] == 1)?.clone();
        let is_empty = first["status"]["state"] == "draining" && first["status"]["objects"] == 0;
        is_empty.then_some(())
    })?;
    lab.until("the first disk is removed", |lab| lab.plinth("disk remove trial 1").ok())?;
    let disks = lab.plinth("disk list trial")?;
    ensure!(disks.as_array().is_some_and(|disks| disks.len() == 1), "{disks}");
    // What was on it is there, and can still be cloned and deleted.
    lab.until("the pool is in service", |lab| lab.plinth("volume create late --image small").ok())?;
    for volume in lab.plinth("volume list")?.as_array().context("no list")? {
        let name = volume["name"].as_str().context("no name")?.to_owned();
        lab.plinth(&format!("volume delete {name}"))?;
    }
    lab.stop()
}
