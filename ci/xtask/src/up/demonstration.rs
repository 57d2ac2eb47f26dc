// SPDX-License-Identifier: Apache-2.0
//! What the demonstration makes, and what it says at the end.

use super::cli::Cli;
use super::layout::Layout;
use super::proof::{DiskProof, PingProof};
use super::text;
use anyhow::{Context, Result, anyhow, bail};
use plinth_guest_image::GuestImage;
use serde_json::Value;
use std::path::PathBuf;

const NETWORK: &str = "demo";
const CIDR: &str = "10.77.0.0/24";
const POOL_SIZE: &str = "4G";
pub(super) const DATA_SIZE: &str = "1G";

/// A VM of the demonstration.
pub(super) struct Vm {
    pub(super) name: String,
    pub(super) id: u64,
    pub(super) node: u8,
    pub(super) address: String,
    pub(super) accelerator: String,
    boots: &'static str,
}

/// Pools, the image, the network and the data volumes.
pub(super) fn prepare(layout: &Layout, cli: &Cli, image: &GuestImage) -> Result<()> {
    for number in layout.numbers() {
        let pool = layout.pool(number);
        let device = text(&layout.state(number).join("demo.pool"));
        let node = layout.name(number);
        let make =
            ["pool", "create", &pool, "--node", &node, "--device", &device, "--size", POOL_SIZE];
        cli.ensure("pool", &pool, &make)?;
        ready(cli, "pool", &pool)?;
    }
    cli.ensure("image", NETWORK, &["image", "import", NETWORK, &text(&image.disk)])?;
    ready(cli, "image", NETWORK)?;
    cli.ensure("vpc", NETWORK, &["vpc", "create", NETWORK])?;
    let subnet = ["subnet", "create", NETWORK, "--vpc", NETWORK, "--cidr", CIDR];
    cli.ensure("subnet", NETWORK, &subnet)?;
    for (vm, node) in [(1, 1), (2, layout.second())] {
        let volume = data_volume(vm);
        let pool = layout.pool(node);
        let make = ["volume", "create", &volume, "--size", DATA_SIZE, "--pool", &pool];
        cli.ensure("volume", &volume, &make)?;
        ready(cli, "volume", &volume)?;
    }
    Ok(())
}

fn data_volume(vm: u8) -> String {
    format!("demo-data-{vm}")
}

/// Waits until a node has made it.
fn ready(cli: &Cli, area: &str, name: &str) -> Result<()> {
    cli.wait(|cli| {
        let found = cli.find(area, name)?.ok_or_else(|| anyhow!("{area} {name} is gone"))?;
        if found["state"] != "ready" || found["fault"].is_string() {
            bail!("{area} {name} is {}: {}", found["state"], found["fault"]);
        }
        Ok(())
    })
}

/// One VM that is given a kernel, one that boots by itself from a clone of the image.
pub(super) fn vms(layout: &Layout, cli: &Cli, image: &GuestImage) -> Result<Vec<Vm>> {
    // The node reads the kernel at each start, so it lies where nobody tidies up.
    let folder = layout.state(1).join("demo");
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make {}", folder.display()))?;
    let keep = |from: &PathBuf, name: &str| -> Result<String> {
        let to = folder.join(name);
        std::fs::copy(from, &to).with_context(|| format!("cannot write {}", to.display()))?;
        Ok(text(&to))
    };
    let kernel = keep(&image.kernel, "vmlinuz")?;
    let initrd = keep(&image.initramfs, "initramfs")?;
    let boot = ["--kernel", &kernel, "--initrd", &initrd, "--append", image.kernel_parameters];
    start(layout, cli, 1, 1, &boot)?;
    start(layout, cli, 2, layout.second(), &["--image", NETWORK])?;
    [(1, 1, "a kernel"), (2, layout.second(), "its own disk")]
        .into_iter()
        .map(|(number, node, boots)| look(cli, number, node, boots))
        .collect()
}

fn start(layout: &Layout, cli: &Cli, number: u8, node: u8, boot: &[&str]) -> Result<()> {
    let name = format!("demo-{number}");
    match cli.find("vm", &name)? {
        None => {
            let (volume, node) = (data_volume(number), layout.name(node));
            let mut make = vec!["vm", "create", &name, "--nic", NETWORK, "--volume", &volume];
            make.extend(["--node", &node, "--start"]);
            make.extend(boot);
            cli.ask(&make)?;
        }
        // It comes up by itself when it is to run.
        Some(vm) if vm["run"] == "running" && vm["state"] != "stopped" => {}
        Some(_) => drop(cli.ask(&["vm", "start", &name])?),
    }
    Ok(())
}

fn look(cli: &Cli, number: u8, node: u8, boots: &'static str) -> Result<Vm> {
    let name = format!("demo-{number}");
    let vm = cli.wait(|cli| {
        let vm = cli.ask(&["vm", "show", &name])?;
        if vm["state"] != "running" {
            bail!("{name} is {}: {}", vm["state"], vm["reason"]);
        }
        Ok(vm)
    })?;
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(Vm {
        id: vm["id"].as_u64().ok_or_else(|| anyhow!("{name} has no id"))?,
        node,
        address: word(&vm["nics"][0]["addresses"][0]),
        accelerator: word(&vm["accelerator"]),
        name,
        boots,
    })
}

pub(super) fn report(
    layout: &Layout,
    cli: &Cli,
    vms: &[Vm],
    disks: &[DiskProof],
    ping: &PingProof,
) -> Result<()> {
    let nodes = cli.ask(&["node", "list"])?;
    let kvm = nodes[0]["status"]["facts"]["checks"]
        .as_array()
        .and_then(|checks| checks.iter().find(|check| check["name"] == "kvm"))
        .and_then(|check| check["text"].as_str())
        .unwrap_or("not tried");
    let pages = nodes[0]["status"]["daemons"][0]["text"].as_str().unwrap_or("unknown pages");
    let count = layout.numbers().count();
    println!("\nPlinth is up: {count} node{}, 2 VMs.", if count == 1 { "" } else { "s" });
    println!("  guests run under {} ({kvm})", vms[0].accelerator);
    println!("  the switch has {pages}\n");
    println!(
        "  {:8}{:9}{:14}{:13}DISK: 8 MIB WRITTEN, SYNCED, READ BACK",
        "VM", "NODE", "BOOTED BY", "ADDRESS"
    );
    for (vm, disk) in vms.iter().zip(disks) {
        let kept = match disk.runs {
            1 => String::new(),
            runs => format!("; and what run {} wrote was still there", runs - 1),
        };
        println!(
            "  {:8}{:9}{:14}{:13}same bytes{kept}",
            vm.name,
            layout.name(vm.node),
            vm.boots,
            vm.address
        );
    }
    println!("\n  demo-1 pings demo-2 through the switch: {}", ping.text);
    if let Some(underlay) = &ping.underlay {
        println!("  {underlay}");
    }
    let program = crate::shell::programs().join("plinth");
    let root = crate::shell::root();
    let program = text(program.strip_prefix(&root).unwrap_or(&program));
    let prefix = layout.prefix();
    println!("\nTry next:");
    println!("  {prefix}{program} vm list");
    println!("  {prefix}{program} vm console demo-2    (press Enter; Ctrl-] leaves it)");
    println!("  {prefix}{program} node show node-1");
    println!("`make down` stops everything; what is on the disks stays.");
    Ok(())
}
