// SPDX-License-Identifier: Apache-2.0
//! Metadata as curl on a kernel's stack sees it: guest, switch and agent are the real ones.

use crate::vpc::at;
use anyhow::{Context, Result, ensure};
use plinth_api::NodeSpec;
use plinth_ids::{MacAddress, PortId};
use plinth_node::{NodeAgent, NodeConfig, Places, Surroundings};
use plinth_stage::daemon::program;
use plinth_stage::runner::Length;
use plinth_stage::tap_guest::NIC;
use plinth_stage::{Scratch, TapGuest, within};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);
const IPV4: &str = "169.254.169.254";
const IPV6: &str = "[fd00:ec2::254]";

/// An agent with its switch. Its VMs wait for a store that never comes, while their NICs are
/// there.
struct Node {
    agent: Option<NodeAgent>,
    places: Places,
}

impl Node {
    fn start(scratch: &Scratch) -> Result<Self> {
        let places = Places::new(scratch.join("s"), scratch.join("r"))?;
        let mut node = Self { agent: None, places: places.clone() };
        let root = scratch.join("root");
        std::fs::create_dir_all(&root).context("a root without /dev/kvm")?;
        let config = NodeConfig {
            places,
            switchd: program("plinth-switchd")?,
            stored: "/bin/false".into(),
            qemu: "/bin/false".into(),
            qemu_img: "/bin/false".into(),
            surroundings: Surroundings { root },
        };
        node.agent = Some(NodeAgent::start(config).context("the agent starts")?);
        Ok(node)
    }

    fn take(&self, spec: NodeSpec) -> Result<()> {
        let agent = self.agent.as_ref().context("the agent runs")?;
        agent.take(spec).map(drop).map_err(|no| anyhow::anyhow!("the spec is refused: {no:?}"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Nobody starts the daemon again then, which goes on without its agent.
        self.agent = None;
        let record = self.places.run().join("plinth-switchd.process");
        let identity = std::fs::read(record).ok();
        let identity: Option<serde_json::Value> =
            identity.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        if let Some(process) = identity.and_then(|identity| identity["process"].as_u64()) {
            let _ = Command::new("kill").arg(process.to_string()).status();
            let living = Path::new("/proc").join(process.to_string());
            let _ = within(PATIENCE, "the switch ends", || {
                ensure!(!living.join("exe").exists(), "it is there");
                Ok(())
            });
        }
    }
}

/// VMs 1 and 2 in one VPC, VM 3 in another with VM 1's address.
fn spec() -> Result<NodeSpec> {
    let vm = |number: u32, vni: u32, address: Ipv4Addr| {
        serde_json::json!({
            "id": number, "name": format!("vm-{number}"), "vcpus": 1, "memory": 134_217_728,
            "boot": "disk", "disks": [], "run": "running", "start_number": 1,
            "nics": [{
                "port": number, "name": format!("nic-{number}"), "vni": vni,
                "mac": mac(number), "mtu": 1450, "subnet": "front", "gateway": at(1, 1),
                "addresses": [{"ip": address, "prefix_length": 24},
                              {"ip": format!("fd00:1::{number}"), "prefix_length": 64}],
                "groups": null, "allowed": [],
            }],
        })
    };
    let vpc = |vni: u32, name: &str| {
        serde_json::json!({
            "vni": vni, "name": name, "router_mac": "02:ff:00:00:00:01", "routes": [],
            "subnets": [{"name": "front", "dhcp": null, "prefixes": [
                {"prefix": "10.0.1.0/24", "gateway": "10.0.1.1"},
                {"prefix": "fd00:1::/64", "gateway": "fd00:1::ff"}]}],
            "dns": {"zone": format!("{name}.internal"), "upstreams": []}, "hosts": [],
        })
    };
    let spec = serde_json::json!({
        "epoch": 1, "node": 1, "name": "node", "underlay": null, "pools": [], "remotes": [],
        "vms": [vm(1, 100, at(1, 5)), vm(2, 100, at(1, 6)), vm(3, 200, at(1, 5))],
        "vpcs": [vpc(100, "blue"), vpc(200, "red")], "groups": [],
    });
    serde_json::from_value(spec).context("a spec")
}

fn mac(number: u32) -> MacAddress {
    let [.., low] = number.to_be_bytes();
    MacAddress([2, 0, 0, 0, 1, low])
}

fn guest(scratch: &Scratch, node: &Node, number: u32, address: Ipv4Addr) -> Result<TapGuest> {
    let socket = node.places.port_socket(PortId(number));
    within(PATIENCE, "the port is there", || {
        ensure!(socket.exists(), "no {}", socket.display());
        Ok(())
    })?;
    let guest = TapGuest::start(scratch, &format!("m{number}"), &socket, mac(number), address)?;
    guest.namespace.run(&format!("sysctl -q -w net.ipv6.conf.{NIC}.disable_ipv6=0"))?;
    guest.namespace.ip(&format!("address add fd00:1::{number}/64 dev {NIC} nodad"))?;
    guest.namespace.ip(&format!("route add default via {} dev {NIC}", at(1, 1)))?;
    guest.namespace.ip(&format!("-6 route add default via fd00:1::ff dev {NIC}"))?;
    Ok(guest)
}

fn ask(guest: &TapGuest, host: &str, path: &str) -> Result<String> {
    curl(guest, "", &format!("http://{host}/latest/meta-data/{path}"))
}

fn curl(guest: &TapGuest, options: &str, url: &str) -> Result<String> {
    let options = if options.is_empty() { String::new() } else { format!("{options} ") };
    guest.namespace.run(&format!("curl --silent --show-error --max-time 4 {options}{url}"))
}

pub(crate) fn told(_length: Length) -> Result<()> {
    let scratch = Scratch::new()?;
    let node = Node::start(&scratch)?;
    node.take(spec()?)?;
    let first = guest(&scratch, &node, 1, at(1, 5))?;
    let second = guest(&scratch, &node, 2, at(1, 6))?;
    let third = guest(&scratch, &node, 3, at(1, 5))?;
    for (number, guest, zone) in [(1, &first, "blue"), (2, &second, "blue"), (3, &third, "red")] {
        for host in [IPV4, IPV6] {
            let name = within(PATIENCE, "metadata is there", || ask(guest, host, "hostname"))?;
            ensure!(name == format!("vm-{number}.{zone}.internal"), "{number}, {host}: {name}");
            let mac = ask(guest, host, "mac")?;
            ensure!(mac == self::mac(number).to_string(), "{number}, {host}: {mac}");
        }
    }
    // By a route to the link, the router answers for the address itself.
    second.namespace.ip(&format!("route add {IPV4}/32 dev {NIC}"))?;
    ensure!(ask(&second, IPV4, "local-ipv4")? == "10.0.1.6", "on the link");
    many(&first)?;
    // Longer than a segment, which the kernel leaves to the NIC to cut.
    let long = format!("--header X-Long:{}", "x".repeat(3500));
    let told = curl(&first, &long, &format!("http://{IPV4}/latest/meta-data/instance-name"))?;
    ensure!(told == "vm-1", "a long request: {told}");
    let longer = format!("--include --header X-Long:{}", "x".repeat(6000));
    let told = curl(&first, &longer, &format!("http://{IPV4}/latest/"))?;
    ensure!(told.starts_with("HTTP/1.1 431 "), "a longer request: {told}");
    lies(&second)
}

/// Requests after and beside each other.
fn many(guest: &TapGuest) -> Result<()> {
    let url = format!("http://{IPV4}/latest/meta-data/instance-name?[1-40]");
    let told = curl(guest, "", &url)?;
    ensure!(told == "vm-1".repeat(40), "40 after each other: {told}");
    let told = curl(guest, "--parallel --parallel-max 6", &url)?;
    ensure!(told == "vm-1".repeat(40), "six beside each other: {told}");
    Ok(())
}

/// With another's address and in another's name, a guest is told nothing of the other.
fn lies(guest: &TapGuest) -> Result<()> {
    guest.namespace.ip(&format!("address add {}/32 dev {NIC}", at(1, 5)))?;
    let url = format!("http://{IPV4}/latest/meta-data/instance-name");
    let stolen = curl(guest, &format!("--interface {}", at(1, 5)), &url);
    ensure!(stolen.is_err(), "a false source is heard: {stolen:?}");
    let named = curl(guest, "--header Host:vm-1 --header X-Real-IP:10.0.1.5", &url)?;
    ensure!(named == "vm-2", "a header says who asks: {named}");
    let lent = curl(guest, "--include --header X-Forwarded-For:10.0.1.5", &url)?;
    ensure!(lent.starts_with("HTTP/1.1 403 "), "passed on: {lent}");
    Ok(())
}
