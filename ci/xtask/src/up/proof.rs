// SPDX-License-Identifier: Apache-2.0
//! Shows, from inside the guests, that disks keep and the network carries.

use super::cli::Cli;
use super::demonstration::Vm;
use super::layout::Layout;
use anyhow::{Context, Result, anyhow, bail};
use plinth_guest_image::GuestAgent;
use std::time::Duration;

/// A guest under emulation on a busy machine takes its time.
const BOOT_PATIENCE: Duration = Duration::from_secs(120);

/// What a data disk showed.
pub(super) struct DiskProof {
    /// How often the demonstration has written to it.
    pub(super) runs: u64,
}

pub(super) struct PingProof {
    pub(super) text: String,
    /// What crossed between the nodes, where there are two.
    pub(super) underlay: Option<String>,
}

pub(super) fn connect(layout: &Layout, vms: &[Vm]) -> Result<Vec<GuestAgent>> {
    vms.iter()
        .map(|vm| {
            let folder = layout.run(vm.node).join("vm").join(vm.id.to_string());
            GuestAgent::connect(&folder.join("agent.sock"), BOOT_PATIENCE).with_context(|| {
                format!("{} does not boot; see {}", vm.name, folder.join("console.log").display())
            })
        })
        .collect()
}

/// A file system is made only where there is none: its magic number is at byte 1080 (ext4's
/// superblock). The data of the run before is checked first; then new data is written, synced,
/// and read back from the disk, not from the guest's memory.
const DISK_SCRIPT: &str = r#"
set -e
for block in /sys/block/vd*; do
    if [ "$(cat $block/size)" = 2097152 ]; then disk=/dev/${block##*/}; fi
done
magic=$(dd if=$disk bs=1 skip=1080 count=2 2>/dev/null | xxd -p)
[ "$magic" = 53ef ] || mkfs.ext4 -q $disk
mkdir -p /mnt/data
grep -q " /mnt/data " /proc/mounts || mount $disk /mnt/data
cd /mnt/data
runs=0
if [ -f runs ]; then
    sha256sum -c -s sum
    runs=$(cat runs)
fi
dd if=/dev/urandom of=bytes bs=64k count=128 2>/dev/null
sha256sum bytes >sum
echo $((runs + 1)) >runs
sync
cd /
umount /mnt/data
echo 3 >/proc/sys/vm/drop_caches
mount $disk /mnt/data
cd /mnt/data
sha256sum -c -s sum
cat runs
cd /
umount /mnt/data
"#;

pub(super) fn disks(guests: &mut [GuestAgent]) -> Result<Vec<DiskProof>> {
    guests
        .iter_mut()
        .enumerate()
        .map(|(number, guest)| {
            let runs = guest.check(DISK_SCRIPT).with_context(|| {
                format!("the data disk of demo-{} did not keep what was written", number + 1)
            })?;
            Ok(DiskProof { runs: runs.trim().parse().context("the guest's count is no number")? })
        })
        .collect()
}

pub(super) fn ping(
    layout: &Layout,
    cli: &Cli,
    guests: &mut [GuestAgent],
    vms: &[Vm],
) -> Result<PingProof> {
    let before = uplink(layout, cli)?;
    let output = guests[0].run(&format!("ping -c 3 -W 5 {}", vms[1].address))?;
    let said = output.text();
    let received = said
        .lines()
        .find(|line| line.contains("packets received"))
        .and_then(|line| line.split(", ").nth(1)?.split(' ').next()?.parse::<u32>().ok());
    let Some(received @ 1..) = received else {
        bail!("demo-1 does not reach demo-2: {said}");
    };
    let average = said.lines().find_map(|line| line.split('/').nth(3)).unwrap_or("?");
    let text = format!("{received} of 3 came back, {average} ms on average");
    let after = uplink(layout, cli)?;
    let underlay = match (before, after) {
        (Some(before), Some(after)) => {
            if after.sent < before.sent + 3 || after.received < before.received + 3 {
                bail!("the pings did not cross the underlay: {before:?}, then {after:?}");
            }
            let vpc = cli.find("vpc", "demo")?.ok_or_else(|| anyhow!("the vpc is gone"))?;
            Some(format!(
                "they crossed between the nodes in VXLAN, VNI {}: node-1's uplink sent {} and \
                 received {} frames meanwhile",
                vpc["vni"],
                after.sent - before.sent,
                after.received - before.received
            ))
        }
        _ => None,
    };
    Ok(PingProof { text, underlay })
}

#[derive(Debug)]
struct Uplink {
    sent: u64,
    received: u64,
}

/// The counters of the first node's way to the others.
fn uplink(layout: &Layout, cli: &Cli) -> Result<Option<Uplink>> {
    if layout.vtep(1).is_none() {
        return Ok(None);
    }
    let ports = cli.ask(&["switch", "ports", "--node", "node-1"])?;
    let ports = ports.as_array().ok_or_else(|| anyhow!("no list of ports"))?;
    let port = ports
        .iter()
        .find(|port| port["vni"].is_null())
        .ok_or_else(|| anyhow!("node-1 has no uplink: see `plinth node show node-1`"))?;
    let number = |name: &str| port[name].as_u64().unwrap_or(0);
    Ok(Some(Uplink { sent: number("packets_sent"), received: number("packets_received") }))
}
