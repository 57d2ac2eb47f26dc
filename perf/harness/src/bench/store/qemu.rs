// SPDX-License-Identifier: Apache-2.0
//! qemu-storage-daemon, which serves a file as ours does.

use anyhow::Result;
use plinth_stage::{Daemon, Scratch, until};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const DISK: u64 = 1 << 30;
const START: Duration = Duration::from_secs(30);

pub(super) fn qemu_storage_daemon(scratch: &Scratch, folder: &Path) -> Result<(PathBuf, Daemon)> {
    let (file, socket) = (folder.join("raw"), scratch.join("q.sock"));
    std::fs::File::create(&file)?.set_len(DISK)?;
    let blockdev =
        format!("driver=file,node-name=f,filename={},aio=io_uring,cache.direct=on", file.display());
    let export = format!(
        "type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={},writable=on,num-queues=1",
        socket.display()
    );
    let mut command = Command::new("taskset");
    command.args(["-c", "1", "qemu-storage-daemon"]);
    command.args(["--blockdev", &blockdev, "--export", &export]);
    let daemon = Daemon::start("qemu-storage-daemon", command, &scratch.join("q.log"))?;
    until(START, "qemu-storage-daemon listens", || socket.exists())?;
    Ok((socket, daemon))
}
