// SPDX-License-Identifier: Apache-2.0
//! testpmd between two vhost-user sockets.

use anyhow::Result;
use plinth_stage::{Daemon, Scratch, until};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

const START: Duration = Duration::from_secs(30);

pub(super) fn testpmd(scratch: &Scratch, sockets: &[PathBuf; 2]) -> Result<Daemon> {
    // Its standard input must stay open, or it ends: a pipe that it opens for writing too.
    let script = format!(
        "mkfifo {input} && exec dpdk-testpmd --lcores 0@0,1@1 --main-lcore 0 -n 1 --no-huge -m 512 \
         --no-pci --no-shconf --file-prefix plt{} --vdev net_vhost0,iface={} \
         --vdev net_vhost1,iface={} -- --nb-cores=1 --forward-mode=io --auto-start \
         --no-mlockall --total-num-mbufs=8192 <>{input}",
        std::process::id(),
        sockets[0].display(),
        sockets[1].display(),
        input = scratch.join("testpmd.input").display(),
    );
    let mut command = Command::new("bash");
    command.args(["-c", &script]);
    let daemon = Daemon::start("testpmd", command, &scratch.join("testpmd.log"))?;
    until(START, "testpmd listens", || sockets.iter().all(|socket| socket.exists()))?;
    Ok(daemon)
}
