// SPDX-License-Identifier: Apache-2.0
//! VMs: what is wanted of them.

use crate::change::{Change, Record};
use crate::cluster::{Cluster, Observed};
use crate::names;
use crate::place::{Candidate, Demand, place};
use crate::record::{
    Disk, ImageRecord, Meta, Nic, NodeRecord, State, SubnetRecord, VmRecord, VolumeRecord,
};
use crate::volume::has_copy;
use plinth_api::{
    Boot, CheckState, Code, DiskRequest, Level, NicLimits, NicRequest, Refusal, Run, VmCreate,
    VmState,
};
use plinth_ids::{MacAddress, Name, NodeId, PortId, VmId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// Leaves room for `-system` and `-15` in a name of 63 characters.
const NAME_LENGTH_MAX: usize = 56;
const VCPUS_MAX: u32 = 256;
const MEMORY_MIN: u64 = 32 << 20;
const MEMORY_MAX: u64 = 16 << 40;
const MIB: u64 = 1 << 20;
pub(crate) const NICS_MAX: usize = 8;
const DISKS_MAX: usize = 16;

/// Kept for the node's own programs: an eighth of its memory, half a GiB at least.
const fn memory_reserve(memory: u64) -> u64 {
    let eighth = memory / 8;
    if eighth < 512 * MIB { 512 * MIB } else { eighth }
}

impl Cluster {
    pub fn vm_create(
        &self,
        request: &VmCreate,
        observed: &Observed,
        now: u64,
    ) -> Result<Change, Refusal> {
        names::free(&self.vms, "vm", &request.name)?;
        check_shape(request)?;
        let boot = boot(request)?;
        let image = request.image.as_ref().map(|name| self.ready_image(name)).transpose()?;
        let volumes = self.data_volumes(&request.volumes)?;
        let id = VmId(self.meta.next_vm);
        let nics = self.plan_nics(&request.nics)?;
        let node =
            self.pick_node(request, image.map(|(image, _)| image), &volumes, &nics, observed)?;
        let mut meta = Meta {
            next_vm: self.meta.next_vm + 1,
            next_port: self.meta.next_port
                + u32::try_from(nics.len()).expect("the NICs were counted in check_shape"),
            ..self.meta.clone()
        };
        let mut disks = Vec::new();
        let mut change = Change::default();
        if let Some((image, size)) = image {
            let pool = self
                .pools_of(node)
                .find(|pool| has_copy(image, pool).is_ok())
                .expect("the planner chose a node that has a copy");
            self.has_room(pool, observed, Level::Nearfull, "--image")?;
            let wanted = request.system_size;
            let system =
                self.system_volume((id, &request.name), pool, (image, size), wanted, now)?;
            meta.next_volume += 1;
            disks.push(Disk { volume: system.id, is_read_only: false });
            change = change.put(Record::Volume(system));
        }
        disks.extend(
            volumes
                .iter()
                .map(|(volume, disk)| Disk { volume: volume.id, is_read_only: disk.is_read_only }),
        );
        let vm = VmRecord {
            id,
            name: request.name.clone(),
            node,
            vcpus: request.vcpus,
            memory: request.memory,
            boot,
            image: image.map(|(image, _)| image.id),
            nics: numbered(nics),
            disks,
            run: if request.start { Run::Running } else { Run::Stopped { grace_seconds: 0 } },
            start_number: u64::from(request.start),
            state: if image.is_some() { State::Creating } else { State::Ready },
            changed_after: self.epoch(),
            created_at: now,
        };
        let change = self.seat_vm(&vm, change)?;
        Ok(change.put(Record::Meta(meta)).put(Record::Vm(vm)))
    }

    fn data_volumes<'a>(
        &self,
        requests: &'a [DiskRequest],
    ) -> Result<Vec<(&VolumeRecord, &'a DiskRequest)>, Refusal> {
        let mut volumes: Vec<(&VolumeRecord, &DiskRequest)> = Vec::new();
        for request in requests {
            let name = &request.volume;
            let volume = names::find(&self.volumes, "volume", "--volume", name)?;
            let refuse = |code, text: String| Err(Refusal::new(code, text).field("--volume"));
            if volumes.iter().any(|(other, _)| other.id == volume.id) {
                return refuse(Code::Invalid, format!("volume {name} is named twice"));
            }
            if volume.state != State::Ready {
                return refuse(Code::State, format!("volume {name} is not ready"));
            }
            if let Some(vm) = self.holder(volume.id) {
                return refuse(Code::InUse, format!("volume {name} is a disk of VM {}", vm.name));
            }
            volumes.push((volume, request));
        }
        Ok(volumes)
    }

    pub(crate) fn plan_nics(&self, requests: &[NicRequest]) -> Result<Vec<Nic>, Refusal> {
        let mut taken: BTreeMap<&Name, BTreeSet<Ipv4Addr>> = BTreeMap::new();
        // What an operator asked for comes first: a free choice must not take it away.
        for request in requests {
            if let Some(address) = request.address
                && !taken.entry(&request.subnet).or_default().insert(address)
            {
                return Err(Refusal::new(Code::Invalid, format!("{address} is given twice"))
                    .field("--nic address"));
            }
        }
        let mut nics = Vec::new();
        for (request, port) in requests.iter().zip(self.meta.next_port..) {
            let subnet = names::find(&self.subnets, "subnet", "--nic subnet", &request.subnet)?;
            let mut nic = self.plan_nic(subnet, request.address, PortId(port), &mut taken)?;
            nic.groups = self.plan_groups(subnet, &request.groups)?;
            nics.push(nic);
        }
        Ok(nics)
    }

    fn plan_nic<'a>(
        &self,
        subnet: &'a SubnetRecord,
        wanted: Option<Ipv4Addr>,
        port: PortId,
        taken: &mut BTreeMap<&'a Name, BTreeSet<Ipv4Addr>>,
    ) -> Result<Nic, Refusal> {
        let in_request = taken.entry(&subnet.name).or_default();
        let none = BTreeSet::new();
        let others = if wanted.is_some() { &none } else { &*in_request };
        let address = self.pick_address(subnet, wanted, others)?;
        in_request.insert(address);
        let mac = mac_of(port);
        let (vpc, name) = (subnet.vpc, subnet.name.clone());
        Ok(Nic {
            number: None,
            is_leaving: false,
            port,
            vpc,
            subnet: name,
            mac,
            address,
            groups: None,
            allowed: Vec::new(),
            limits: NicLimits::default(),
        })
    }

    fn pick_node(
        &self,
        request: &VmCreate,
        image: Option<&ImageRecord>,
        volumes: &[(&VolumeRecord, &DiskRequest)],
        nics: &[Nic],
        observed: &Observed,
    ) -> Result<NodeId, Refusal> {
        let homes: BTreeSet<NodeId> = volumes
            .iter()
            .filter_map(|(volume, _)| self.pool(volume.pool).map(|pool| pool.node))
            .collect();
        if homes.len() > 1 {
            return Err(Refusal::new(Code::Invalid, "the volumes are on different nodes")
                .field("--volume")
                .remedy("give volumes of one node; `plinth volume list` shows where each is"));
        }
        let demand = Demand {
            vcpus: u64::from(request.vcpus),
            memory: request.memory,
            node: homes.into_iter().next(),
        };
        let mut nodes: Vec<&NodeRecord> = self.nodes.values().collect();
        if let Some(name) = &request.node {
            nodes = vec![names::find(&self.nodes, "node", "--node", name)?];
        }
        let candidates: Vec<Candidate> =
            nodes.iter().map(|node| self.candidate(node, image, nics, observed)).collect();
        place(&candidates, &demand).map_err(|refusals| {
            let reasons: Vec<String> =
                refusals.iter().map(|(name, refusal)| format!("{name}: {refusal}")).collect();
            Refusal::new(Code::NoRoom, format!("no node can take it ({})", reasons.join("; ")))
                .field("--node")
                .remedy("`plinth node show` says what a node has and lacks")
        })
    }

    /// A node as the planner sees it for a VM with this image and these NICs.
    fn candidate(
        &self,
        node: &NodeRecord,
        image: Option<&ImageRecord>,
        nics: &[Nic],
        observed: &Observed,
    ) -> Candidate {
        let allocation = self.allocation(node.id, observed);
        let missing = observed.status(node.id).and_then(|status| {
            let check = status.facts.checks.iter().find(|c| c.state == CheckState::Missing)?;
            Some(check.text.clone())
        });
        let has_copy = |image| self.pools_of(node.id).any(|pool| has_copy(image, pool).is_ok());
        Candidate {
            id: node.id,
            name: node.name.clone(),
            is_alive: observed.is_alive(node.id),
            missing,
            vcpus_allocatable: allocation.vcpus_allocatable,
            vcpus_allocated: allocation.vcpus_allocated,
            memory_allocatable: allocation.memory_allocatable,
            memory_allocated: allocation.memory_allocated,
            vms: allocation.vms,
            has_image: image.is_none_or(has_copy),
            cut_off_from: self.cut_off(node, nics),
        }
    }

    /// Another node with a NIC in one of these VPCs, if there is no tunnel to it.
    pub(crate) fn cut_off(&self, node: &NodeRecord, nics: &[Nic]) -> Option<Name> {
        let in_vpc = |vm: &&VmRecord| {
            vm.node != node.id
                && vm.nics.iter().any(|theirs| nics.iter().any(|nic| nic.vpc == theirs.vpc))
        };
        let mut peers = self.vms.values().filter(in_vpc).filter_map(|vm| self.node(vm.node));
        let peer = peers.find(|peer| node.underlay.is_none() || peer.underlay.is_none())?;
        Some(peer.name.clone())
    }

    /// What of a node is given to VMs, running or not.
    pub(crate) fn allocation(&self, node: NodeId, observed: &Observed) -> Allocation {
        let vms = self.vms.values().filter(|vm| vm.node == node);
        let facts = observed.status(node).map(|status| &status.facts);
        let memory = facts.map_or(0, |facts| facts.memory);
        let cpus = facts.map_or(0, |facts| u64::from(facts.cpus));
        let mut allocation = Allocation {
            vcpus_allocatable: cpus * u64::from(self.meta.vcpus_per_cpu),
            memory_allocatable: memory.saturating_sub(memory_reserve(memory)),
            ..Allocation::default()
        };
        for vm in vms {
            allocation.vms += 1;
            allocation.vcpus_allocated += u64::from(vm.vcpus);
            allocation.memory_allocated += vm.memory;
        }
        allocation
    }

    /// Wants a VM to run. A guest that switched itself off is started again.
    pub fn vm_start(&self, name: &Name, observed: &Observed) -> Result<Change, Refusal> {
        let vm = self.usable_vm(name)?;
        let state = observed.vm(vm.node, vm.id);
        let is_under_way = state.is_some_and(|status| {
            matches!(status.state, VmState::Running | VmState::Starting)
                || status.start_number < vm.start_number
        });
        if vm.run == Run::Running && (is_under_way || state.is_none()) {
            return Ok(Change::default());
        }
        let start_number = vm.start_number + 1;
        Ok(self.put_vm(VmRecord { run: Run::Running, start_number, ..vm.clone() }))
    }

    pub fn vm_stop(&self, name: &Name, grace_seconds: u32) -> Result<Change, Refusal> {
        let vm = self.usable_vm(name)?;
        let run = Run::Stopped { grace_seconds };
        if vm.run == run {
            return Ok(Change::default());
        }
        Ok(self.put_vm(VmRecord { run, ..vm.clone() }))
    }

    pub fn vm_delete(
        &self,
        name: &Name,
        force: bool,
        observed: &Observed,
    ) -> Result<Change, Refusal> {
        let vm = names::find(&self.vms, "vm", "NAME", name)?;
        if vm.state == State::Deleting {
            return Ok(Change::default());
        }
        let is_off =
            observed.vm(vm.node, vm.id).is_some_and(|status| status.state == VmState::Stopped);
        if vm.run == Run::Running && !is_off && !force {
            return Err(Refusal::new(Code::State, format!("VM {name} is running"))
                .field("NAME")
                .remedy(format!("stop it with `plinth vm stop {name}`, or give --force")));
        }
        let run = Run::Stopped { grace_seconds: 0 };
        Ok(self.put_vm(VmRecord { run, state: State::Deleting, ..vm.clone() }))
    }

    pub(crate) fn usable_vm(&self, name: &Name) -> Result<&VmRecord, Refusal> {
        let vm = names::find(&self.vms, "vm", "NAME", name)?;
        if vm.state == State::Deleting {
            return Err(
                Refusal::new(Code::State, format!("VM {name} is being deleted")).field("NAME")
            );
        }
        Ok(vm)
    }

    /// A changed VM, with the mark from which on a spec has the change.
    pub(crate) fn put_vm(&self, vm: VmRecord) -> Change {
        let vm = VmRecord { changed_after: self.epoch(), ..vm };
        Change::default().put(Record::Vm(vm))
    }
}

/// What of a node may be given to VMs and what is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Allocation {
    pub(crate) vms: u64,
    pub(crate) vcpus_allocatable: u64,
    pub(crate) vcpus_allocated: u64,
    pub(crate) memory_allocatable: u64,
    pub(crate) memory_allocated: u64,
}

/// A locally administered address (the 2) that carries the port's number, so that no two ports
/// ever had the same.
fn mac_of(port: PortId) -> MacAddress {
    let [a, b, c, d] = port.0.to_be_bytes();
    MacAddress([0x02, 0x50, a, b, c, d])
}

/// With the numbers that name them, which stay when others go.
fn numbered(nics: Vec<Nic>) -> Vec<Nic> {
    nics.into_iter().zip(0..).map(|(nic, number)| Nic { number: Some(number), ..nic }).collect()
}

fn check_shape(request: &VmCreate) -> Result<(), Refusal> {
    let refuse = |field: &str, text: String, remedy: &str| {
        Err(Refusal::new(Code::Invalid, text).field(field).remedy(remedy))
    };
    let length = request.name.as_str().len();
    if length > NAME_LENGTH_MAX {
        let text = format!("a VM's name has {NAME_LENGTH_MAX} characters at most, not {length}");
        return refuse("NAME", text, "its disk and ports are named after it");
    }
    if !(1..=VCPUS_MAX).contains(&request.vcpus) {
        let text = format!("{} vCPUs are not possible", request.vcpus);
        return refuse("--vcpus", text, &format!("give 1 to {VCPUS_MAX}"));
    }
    let memory = request.memory;
    if !(MEMORY_MIN..=MEMORY_MAX).contains(&memory) || !memory.is_multiple_of(MIB) {
        let text = format!("{memory} bytes of memory are not possible");
        return refuse("--memory", text, "give 32M to 16T in whole MiB, as in 256M");
    }
    if request.nics.len() > NICS_MAX {
        let text = format!("{} NICs are too many", request.nics.len());
        return refuse("--nic", text, &format!("give {NICS_MAX} at most"));
    }
    let disks = request.volumes.len() + usize::from(request.image.is_some());
    if disks > DISKS_MAX {
        let text = format!("{disks} disks are too many");
        return refuse("--volume", text, &format!("{DISKS_MAX} at most, the system disk included"));
    }
    if request.system_size.is_some() && request.image.is_none() {
        let text = "a system disk is made from an image only".to_owned();
        return refuse("--system-size", text, "give --image too");
    }
    Ok(())
}

fn boot(request: &VmCreate) -> Result<Boot, Refusal> {
    let refuse = |field: &str, text: &str, remedy: &str| {
        Err(Refusal::new(Code::Invalid, text).field(field).remedy(remedy))
    };
    let Some(kernel) = &request.kernel else {
        if request.initrd.is_some() {
            return refuse("--initrd", "an initrd needs a kernel", "give --kernel too");
        }
        if request.append.is_some() {
            return refuse("--append", "kernel parameters need a kernel", "give --kernel too");
        }
        if request.image.is_none() && request.volumes.is_empty() {
            let remedy = "give --image, a --volume that boots, or --kernel";
            return refuse("--image", "there is nothing to boot from", remedy);
        }
        return Ok(Boot::Disk);
    };
    for (field, path) in [("--kernel", Some(kernel)), ("--initrd", request.initrd.as_ref())] {
        if path.is_some_and(|path| !path.starts_with('/')) {
            return refuse(field, "the path is not absolute", "give the path on the node");
        }
    }
    Ok(Boot::Kernel {
        kernel: kernel.clone(),
        initrd: request.initrd.clone(),
        append: request.append.clone().unwrap_or_default(),
    })
}
