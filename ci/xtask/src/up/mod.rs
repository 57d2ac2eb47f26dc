// SPDX-License-Identifier: Apache-2.0
//! `up` and `down`: a node, or two on one machine, with the demonstration on it.
//!
//! Everything that an operator could type is done with the CLI. Running `up` again is harmless:
//! each step looks first. `down` ends every process, namespace and link; what is on the disks
//! stays, so that the next `up` goes on with it.

mod cli;
mod demonstration;
mod down;
mod layout;
mod network;
mod node;
mod proof;
mod steps;

use anyhow::{Context, Result, bail};
use clap::Args;
use cli::Cli;
use layout::Layout;
use std::path::Path;
use steps::Steps;

#[derive(Args, Clone, Debug)]
pub(crate) struct UpOptions {
    /// How many nodes: 1, or 2 in network namespaces with an underlay between them
    #[arg(long, default_value = "1", value_parser = clap::value_parser!(u8).range(1..=2))]
    nodes: u8,
}

/// Besides one for each node.
const STEPS: usize = 8;

pub(crate) fn up(options: &UpOptions) -> Result<()> {
    need_root()?;
    let layout = Layout::new(options.nodes);
    refuse_another(&layout)?;
    let mut steps = Steps::new(STEPS + layout.numbers().count());

    steps.begin("makes the guest image");
    let image = plinth_guest_image::build(&crate::shell::root().join("target/guest-image"))?;
    steps.begin("lays the network between the nodes");
    network::lay(&layout)?;
    let cli = Cli::new(&layout);
    for number in layout.numbers() {
        steps.begin(&format!("starts {}", layout.name(number)));
        node::configure(&layout, number, &cli)?;
        node::start(&layout, number)?;
        if number == 1 {
            cli.wait_for_service().map_err(|error| node::explain(&layout, number, error))?;
        }
    }
    steps.begin("waits for every node");
    cli.wait_for_nodes(layout.numbers().count() as u64)?;
    steps.begin("makes pools, image and network");
    demonstration::prepare(&layout, &cli, &image)?;
    steps.begin("starts two VMs");
    let vms = demonstration::vms(&layout, &cli, &image)?;
    steps.begin("waits for the guests");
    let mut guests = proof::connect(&layout, &vms)?;
    steps.begin("writes and reads back on each guest's disk");
    let disks = proof::disks(&mut guests)?;
    steps.begin("pings from guest to guest");
    let ping = proof::ping(&layout, &cli, &mut guests, &vms)?;
    steps.end();
    demonstration::report(&layout, &cli, &vms, &disks, &ping)
}

pub(crate) fn down() -> Result<()> {
    need_root()?;
    for nodes in [1, 2] {
        down::end(&Layout::new(nodes))?;
    }
    Ok(())
}

fn need_root() -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").context("/proc is not mounted")?;
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    if ids.split_whitespace().nth(1) != Some("0") {
        bail!("VMs, namespaces and DPDK need root: run it with sudo, or as root");
    }
    Ok(())
}

/// One machine holds one node, or the two of the demonstration, not both at once.
fn refuse_another(layout: &Layout) -> Result<()> {
    let other = Layout::new(if layout.numbers().count() == 1 { 2 } else { 1 });
    if other.numbers().any(|number| node::is_running(&other, number)) {
        bail!("a cluster of another size is up on this machine: `make down` first");
    }
    Ok(())
}

/// The text of a path that we made ourselves.
fn text(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    /// A root folder with nothing in it lacks everything that is looked for below it.
    #[test]
    fn the_preflight_names_every_lack_with_its_remedy() {
        let root = std::env::temp_dir().join(format!("plinth-bare-{}", std::process::id()));
        std::fs::create_dir_all(root.join("proc/sys/kernel")).unwrap();
        std::fs::write(root.join("proc/sys/kernel/io_uring_disabled"), "2\n").unwrap();
        std::fs::write(root.join("proc/sys/kernel/osrelease"), "4.19.0\n").unwrap();
        let output = Command::new(crate::shell::root().join("ci/preflight"))
            .env("ROOT", &root)
            .output()
            .unwrap();
        std::fs::remove_dir_all(&root).unwrap();
        assert!(!output.status.success());
        let said = String::from_utf8(output.stderr).unwrap();
        for lack in ["Debian", "/dev/net/tun", "memory: 0", "io_uring", "this is 4.19.0", "disk: 0"]
        {
            assert!(said.contains(lack), "{lack}: {said}");
        }
        let lacks = said.lines().filter(|line| line.starts_with("missing: ")).count();
        let remedies = said.lines().filter(|line| line.starts_with("  mend it: ")).count();
        assert!(lacks >= 6, "{said}");
        assert_eq!(lacks, remedies, "{said}");
        assert!(said.ends_with("Nothing was changed.\n"), "{said}");
    }
}
