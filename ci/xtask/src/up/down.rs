// SPDX-License-Identifier: Apache-2.0
//! The end of everything that runs, in the order in which it depends on each other: the agent,
//! or it would start again what is ended; the VMs; the daemons; the network.

use super::layout::Layout;
use super::{network, node};
use anyhow::{Context, Result, bail};
use plinth_ids::VmId;
use plinth_qemu::{Monitor, Process, RunState, VmFolder, adopt, uuid};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long guests may take to switch themselves off, all at once.
const GRACE: Duration = Duration::from_secs(15);
/// How long a process may take to end after it was told.
const END_LIMIT: Duration = Duration::from_secs(10);
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

pub(super) fn end(layout: &Layout) -> Result<()> {
    let mut ended = 0;
    for number in layout.numbers() {
        ended += end_process(&layout.run(number).join("plinthd.process"))?;
    }
    let mut vms = Vec::new();
    for number in layout.numbers() {
        vms.extend(find_vms(&layout.run(number).join("vm"))?);
    }
    ended += vms.len();
    end_vms(vms)?;
    for number in layout.numbers() {
        for daemon in ["plinth-switchd", "plinth-stored"] {
            ended += end_process(&layout.run(number).join(format!("{daemon}.process")))?;
        }
    }
    network::remove(layout)?;
    let run = layout.run_root();
    if run.exists() {
        std::fs::remove_dir_all(&run)
            .with_context(|| format!("cannot remove {}", run.display()))?;
        println!(
            "Ended {ended} processes. What is on the disks stays in {}.",
            layout.state(1).display()
        );
    }
    Ok(())
}

/// Ends the process that a file tells of. How many were ended.
fn end_process(record: &Path) -> Result<usize> {
    let Some(process) = node::process(record) else { return Ok(0) };
    process.terminate();
    if !process.wait(END_LIMIT) {
        process.kill();
        if !process.wait(END_LIMIT) {
            bail!("process {} does not end", process.identity().process);
        }
    }
    Ok(1)
}

/// The living VMs of a node.
fn find_vms(folder: &Path) -> Result<Vec<(VmFolder, Process)>> {
    let mut vms = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(vms) };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(number) = name.and_then(|name| name.parse().ok()) else { continue };
        let folder = VmFolder::new(path)?;
        if let Some(process) = adopt(&folder, &uuid(VmId(number)), None) {
            vms.push((folder, process));
        }
    }
    Ok(vms)
}

/// Asks all guests to switch themselves off, waits, and ends the processes.
fn end_vms(vms: Vec<(VmFolder, Process)>) -> Result<()> {
    let monitor = |folder: &VmFolder| Monitor::connect(&folder.qmp(), ANSWER_LIMIT);
    for (folder, _) in &vms {
        // Whoever does not hear is ended below all the same.
        let _ = monitor(folder).and_then(|mut monitor| monitor.press_power());
    }
    let deadline = Instant::now() + GRACE;
    let is_on = |folder: &VmFolder| {
        let state = monitor(folder).and_then(|mut monitor| monitor.status());
        matches!(state, Ok(RunState::Running))
    };
    while Instant::now() < deadline && vms.iter().any(|(folder, _)| is_on(folder)) {
        std::thread::sleep(Duration::from_millis(200));
    }
    for (folder, process) in vms {
        let _ = monitor(&folder).and_then(|mut monitor| monitor.quit());
        if !process.wait(END_LIMIT) {
            process.kill();
            if !process.wait(END_LIMIT) {
                bail!("QEMU process {} does not end", process.identity().process);
            }
        }
    }
    Ok(())
}
