// SPDX-License-Identifier: Apache-2.0
//! Who serves disks: ours in its settings, and the peers. Started and filled when first needed.

use super::super::shared::{cpu_time, disk_folder, perf, read};
use super::super::{Folder, Run};
use super::fio;
use super::qemu::qemu_storage_daemon;
use crate::blk;
use anyhow::{Context, Result};
use plinth_stage::daemon::output;
use plinth_stage::{Daemon, Scratch, Store};
use plinth_store_api::{Answer, Durability, Status, Verb};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Bytes that are read and written, of every contender.
pub(super) const SPAN: u64 = 1 << 30;

/// The longest that filling a disk may take; it ends when the disk is full.
const FILL_SECONDS: f64 = 120.0;

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Who {
    /// Ours: volumes that answer at once.
    Null,
    /// Ours on its memory disk: one volume, four volumes, one with as many bytes, sixteen.
    Memory,
    MemoryFour,
    MemoryOne,
    MemorySixteen,
    /// Ours on a file.
    File,
    FileFlush,
    FileInterrupt,
    /// fio itself on a file, without any server.
    Fio,
    QemuStorageDaemon,
}

impl Who {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Null => "plinth-stored, null volume",
            Self::Memory => "plinth-stored, memory disk",
            Self::MemoryFour => "plinth-stored, memory disk, 4 volumes of 1 queue",
            Self::MemoryOne => "plinth-stored, memory disk, 1 volume of 1 queue",
            Self::MemorySixteen => "plinth-stored, memory disk, 16 volumes",
            Self::File => "plinth-stored, durability device",
            Self::FileFlush => "plinth-stored, durability flush",
            Self::FileInterrupt => "plinth-stored, durability device, interrupt mode",
            Self::Fio => "fio, io_uring",
            Self::QemuStorageDaemon => "qemu-storage-daemon",
        }
    }

    const fn program(self) -> Option<&'static str> {
        match self {
            Self::Fio => Some("fio"),
            Self::QemuStorageDaemon => Some("qemu-storage-daemon"),
            _ => None,
        }
    }

    pub(crate) fn version(self) -> String {
        let Some(program) = self.program() else {
            return concat!("plinth ", env!("CARGO_PKG_VERSION")).to_owned();
        };
        let text = output(Command::new(program).arg("--version")).unwrap_or_default();
        text.lines().next().unwrap_or_default().to_owned()
    }

    /// Why this contender cannot run here.
    pub(crate) fn unmet(self) -> Option<String> {
        let program = self.program()?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let is_there = std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
        (!is_there).then(|| format!("{program} is not installed (ci/setup bench)"))
    }

    /// The arguments of our daemon.
    const fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Null => &["--cpu", "1", "--measuring"],
            Self::FileInterrupt => &["--cpu", "1", "--mode", "interrupt"],
            _ => &["--cpu", "1"],
        }
    }

    const fn volumes(self) -> u64 {
        match self {
            Self::MemoryFour => 4,
            Self::MemorySixteen => 16,
            _ => 1,
        }
    }
}

/// A server that runs.
#[derive(Debug)]
enum Process {
    Ours(Box<Store>),
    Peer(Daemon),
    /// fio brings its own.
    None,
}

#[derive(Debug)]
struct Served {
    process: Process,
    sockets: Vec<PathBuf>,
    /// fio's file.
    file: PathBuf,
    _scratch: Scratch,
}

/// The servers that run, and the folder of their files.
#[derive(Debug)]
pub(crate) struct Stage {
    folder: Folder,
    served: BTreeMap<Who, Served>,
}

impl Stage {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { folder: disk_folder()?, served: BTreeMap::new() })
    }

    /// Ends the servers that a case does not need: they take memory.
    pub(super) fn keep_only(&mut self, whos: &[Who]) {
        // Those on files share their disk and are asked again and again.
        let is_file = |who: Who| who >= Who::File;
        let keeps_files = whos.iter().copied().any(is_file);
        self.served.retain(|who, _| whos.contains(who) || (keeps_files && is_file(*who)));
    }

    /// One run of a client against a contender.
    pub(super) fn run(&mut self, who: Who, arguments: &[&str], seconds: f64) -> Result<Run> {
        if !self.served.contains_key(&who) {
            let served = start(who, self.folder.path())?;
            self.served.insert(who, served);
        }
        let served = self.served.get_mut(&who).context("it was started just above")?;
        match &served.process {
            Process::None => fio::run(&served.file, SPAN, arguments, seconds),
            Process::Ours(store) => {
                let before = status(store)?;
                let cpu = cpu_time(before.process);
                let mut run = client(&served.sockets, arguments, seconds)?;
                let after = status(store)?;
                let spent = cpu_time(before.process) - cpu;
                let of = |amount: u64| Some(per(amount, after.requests - before.requests));
                run.cycles = of(after.busy_cycles - before.busy_cycles);
                run.system_calls = of(after.costs.system_calls - before.costs.system_calls);
                run.cpu = of(spent).map(|nanoseconds| nanoseconds / 1000.0);
                let (from, to) = (bytes_written(&before), bytes_written(&after));
                let to_disk = after.costs.disk_bytes_written - before.costs.disk_bytes_written;
                run.amplification = (to > from).then(|| per(to_disk, to - from));
                Ok(run)
            }
            Process::Peer(daemon) => {
                let cpu = cpu_time(daemon.process());
                let mut run = client(&served.sockets, arguments, seconds)?;
                let spent = cpu_time(daemon.process()) - cpu;
                run.cpu = Some(per(spent, run.asked) / 1000.0);
                Ok(run)
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "sums of one run are far below 2^53")]
fn per(amount: u64, count: u64) -> f64 {
    amount as f64 / count.max(1) as f64
}

fn bytes_written(status: &Status) -> u64 {
    status.attachments.iter().map(|attachment| attachment.bytes_written).sum()
}

pub(super) fn status(store: &Store) -> Result<Status> {
    match store.call(Verb::Status)? {
        Answer::Status(status) => Ok(status),
        other => anyhow::bail!("status was answered with {other:?}"),
    }
}

/// Runs `plinth-perf blk` on CPU 0.
pub(super) fn client(sockets: &[PathBuf], arguments: &[&str], seconds: f64) -> Result<Run> {
    let scratch = Scratch::new()?;
    let mut command = perf(&scratch, "blk", seconds)?;
    for socket in sockets {
        command.arg("--socket").arg(socket);
    }
    if !arguments.contains(&"--warm-up") {
        command.args(["--warm-up", "0.3"]);
    }
    command.args(arguments);
    output(&mut command)?;
    let report: blk::Report = read(&scratch)?;
    let load = report.load.context("a load has a result")?;
    Ok(Run {
        figure: load.iops,
        p50: load.latency.p50,
        p99: load.latency.p99,
        losses: load.errors,
        command: report.circumstances.command,
        asked: load.asked,
        unfairness: unfairness(&load.shares),
        ..Run::default()
    })
}

/// From the least to the most of the clients, in percent of their mean.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
fn unfairness(shares: &[u64]) -> Option<f64> {
    let (least, most) = (shares.iter().min()?, shares.iter().max()?);
    let mean = shares.iter().sum::<u64>() as f64 / shares.len() as f64;
    (shares.len() > 1 && mean > 0.0).then(|| (most - least) as f64 / mean * 100.0)
}

/// Every block exists before it is measured: a hole costs a disk nothing.
pub(super) fn fill(socket: &Path, bytes: u64) -> Result<()> {
    let scratch = Scratch::new()?;
    let mut fill = perf(&scratch, "blk", FILL_SECONDS)?;
    fill.arg("--socket").arg(socket).args(["--order", "seq", "--block-size", "131072"]);
    fill.args(["--depth", "16", "--writes", "100", "--warm-up", "0"]);
    fill.args(["--flush-every", "4096", "--count", &(bytes / 131_072).to_string()]);
    output(&mut fill).context("filling the disk").map(drop)
}

fn start(who: Who, folder: &Path) -> Result<Served> {
    let scratch = Scratch::new()?;
    let file = folder.join("fio");
    match who {
        Who::Fio => {
            fio::fill(&file, SPAN)?;
            Ok(Served { process: Process::None, sockets: Vec::new(), file, _scratch: scratch })
        }
        Who::QemuStorageDaemon => {
            let (socket, daemon) = qemu_storage_daemon(&scratch, folder)?;
            fill(&socket, SPAN)?;
            let process = Process::Peer(daemon);
            Ok(Served { process, sockets: vec![socket], file, _scratch: scratch })
        }
        _ => {
            let (device, durability) = match who {
                Who::Null => ("null:256MiB".into(), Durability::Device),
                Who::File | Who::FileInterrupt => {
                    (folder.join(format!("pool-{who:?}")), Durability::Device)
                }
                Who::FileFlush => (folder.join("pool-flush"), Durability::Flush),
                _ => ("memory:3GiB".into(), Durability::Device),
            };
            let mut store = Store::start_with(&scratch, "s", who.arguments())?;
            store.make_pool_as(1, &device, 2 * SPAN, durability)?;
            let mut sockets = Vec::new();
            for volume in 1..=who.volumes() {
                let size = SPAN / who.volumes();
                let socket = store.make_volume(1, volume, size, 1)?;
                if who != Who::Null {
                    fill(&socket, size)?;
                }
                sockets.push(socket);
            }
            let process = Process::Ours(Box::new(store));
            Ok(Served { process, sockets, file, _scratch: scratch })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_that_get_the_same_are_served_fairly() {
        assert_eq!(unfairness(&[5, 5, 5]), Some(0.0));
        assert_eq!(unfairness(&[90, 110]), Some(20.0));
        assert_eq!(unfairness(&[7]), None, "one alone is not compared");
        assert_eq!(unfairness(&[]), None);
    }

    #[test]
    fn the_kernel_knows_how_long_we_ran() {
        assert!(cpu_time(std::process::id()) > 0);
        assert_eq!(cpu_time(u32::MAX), 0);
    }
}
