// SPDX-License-Identifier: Apache-2.0
//! What a spec means for the daemons and for QEMU: pure functions.

use crate::{Places, balance, external, network};
use plinth_api::{
    Boot, DiskSpec, Durability, NicSpec, NodeSpec, PoolAccess, PoolClass, PoolDiskSpec, PoolSpec,
    Run, VmSpec, VolumeLimits,
};
use plinth_ids::{Epoch, VmId, VolumeId};
use plinth_qemu as qemu;
use plinth_store_api as store;
use plinth_switch_api as switch;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Queues of a disk: one for each vCPU up to this many, because one worker serves them all.
const DISK_QUEUES_MAX: u32 = 4;

/// What a VM that has a process, or is to have one, needs of the daemons.
///
/// A running VM keeps what it was started with until its process is gone, whatever the spec
/// says meanwhile.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Needs {
    pub nics: Vec<NicSpec>,
    pub disks: Vec<(DiskSpec, u16)>,
}

/// The needs of every VM: `wanted` is the spec, `held` are the specs that living processes were
/// started with.
pub fn needs(wanted: &[VmSpec], held: &BTreeMap<VmId, VmSpec>) -> Needs {
    let to_run = wanted.iter().filter(|vm| vm.run == Run::Running);
    let mut nics = BTreeMap::new();
    let mut disks: BTreeMap<VolumeId, (DiskSpec, u16)> = BTreeMap::new();
    // Later ones win: what a living process was started with stays as it is.
    for vm in to_run.chain(held.values()) {
        nics.extend(vm.nics.iter().map(|nic| (nic.port, nic.clone())));
        disks.extend(vm.disks.iter().map(|disk| (disk.volume, (disk.clone(), disk_queues(vm)))));
    }
    // Security groups and ranges reach a living process: they are the switch's, not QEMU's.
    for nic in wanted.iter().flat_map(|vm| &vm.nics) {
        if let Some(needed) = nics.get_mut(&nic.port) {
            needed.groups = nic.groups.clone();
            needed.allowed = nic.allowed.clone();
            needed.limits = nic.limits;
        }
    }
    // So do limits of disks: they are the store's.
    for disk in wanted.iter().flat_map(|vm| &vm.disks) {
        if let Some((needed, _)) = disks.get_mut(&disk.volume) {
            needed.limits = disk.limits;
        }
    }
    Needs { nics: nics.into_values().collect(), disks: disks.into_values().collect() }
}

fn disk_queues(vm: &VmSpec) -> u16 {
    u16::try_from(vm.vcpus.clamp(1, DISK_QUEUES_MAX)).expect("it is at most DISK_QUEUES_MAX")
}

/// The switch's configuration. `epoch` is filled in by whoever sends it.
pub fn switch_config(spec: &NodeSpec, needs: &Needs, places: &Places) -> switch::SwitchConfig {
    let underlay = spec.underlay.as_ref().map(|underlay| switch::Underlay {
        device: underlay.device.clone(),
        vtep: underlay.vtep,
        prefix_length: underlay.prefix_length,
        gateway: underlay.gateway,
        mac: underlay.mac,
        mtu: underlay.mtu,
    });
    let ports = needs.nics.iter().map(|nic| switch::GuestPort {
        id: nic.port,
        name: nic.name.clone(),
        vni: nic.vni,
        mac: nic.mac,
        addresses: nic.addresses.iter().map(|address| address.ip).collect(),
        socket: places.port_socket(nic.port),
        mtu: nic.mtu,
        queue_pairs: 1,
        subnet: network::known_subnet(spec, nic),
        security_groups: network::known_groups(spec, nic),
        allowed: nic.allowed.clone(),
        limits: network::port_limits(nic.limits),
    });
    let remotes = spec.remotes.iter().map(|remote| switch::Remote {
        vni: remote.vni,
        mac: remote.mac,
        addresses: remote.addresses.clone(),
        vtep: remote.vtep,
        subnet: Some(remote.subnet.clone()),
        security_groups: remote.groups.clone(),
        allowed: remote.allowed.clone(),
    });
    switch::SwitchConfig {
        underlay,
        ports: ports.collect(),
        remotes: remotes.collect(),
        vpcs: spec.vpcs.iter().map(network::vpc).collect(),
        answers: network::answers(&spec.vpcs),
        security_groups: spec.groups.iter().map(network::security_group).collect(),
        external: external::external(spec, &needs.nics),
        balancers: balance::balancers(spec, &needs.nics),
        ..switch::SwitchConfig::empty(Epoch(0))
    }
}

const _: () = assert!(plinth_api::STORE_CORES_MAX <= store::WORKERS_MAX);

/// The store's configuration. `fresh` are pools that a command made and no spec names yet.
pub fn store_config(
    spec: &NodeSpec,
    fresh: &[PoolSpec],
    needs: &Needs,
    places: &Places,
) -> store::StoreConfig {
    let mut pools: BTreeMap<_, _> = fresh.iter().map(|pool| (pool.id, pool)).collect();
    pools.extend(spec.pools.iter().map(|pool| (pool.id, pool)));
    let attachments = needs.disks.iter().map(|(disk, queues)| store::Attachment {
        pool: disk.pool,
        volume: disk.volume,
        socket: places.volume_socket(disk.volume),
        queues: *queues,
        is_read_only: disk.is_read_only,
        limits: disk.limits.map(limits),
        worker: None,
    });
    let pools = pools.into_values().map(store_pool);
    store::StoreConfig {
        version: store::CONFIG_VERSION,
        epoch: Epoch(0),
        workers: spec.store_cores.clone(),
        pools: pools.collect(),
        attachments: attachments.collect(),
    }
}

fn store_pool(pool: &PoolSpec) -> store::Pool {
    let disk = |disk: &PoolDiskSpec| store::PoolDisk {
        id: disk.id,
        device: PathBuf::from(&disk.device),
        is_draining: disk.is_draining,
        worker: None,
    };
    store::Pool {
        id: pool.id,
        disks: pool.disks.iter().map(disk).collect(),
        durability: durability(pool.durability),
        class: match pool.class {
            PoolClass::Ordinary => store::PoolClass::Ordinary,
            PoolClass::Performance => store::PoolClass::Performance,
        },
        scrub: store::ScrubSchedule {
            light_interval: pool.scrub.light_seconds,
            deep_interval: pool.scrub.deep_seconds,
            rate: pool.scrub.rate,
        },
        ladder: store::Ladder::default(),
        discards: true,
        access: match pool.access {
            PoolAccess::Whole => store::PoolAccess::Whole,
            PoolAccess::Rescue => store::PoolAccess::Rescue,
        },
        worker: None,
    }
}

const fn limits(limits: VolumeLimits) -> store::VolumeLimits {
    store::VolumeLimits {
        iops: limits.iops,
        iops_burst: limits.iops_burst,
        bytes_per_second: limits.bytes_per_second,
        bytes_burst: limits.bytes_burst,
    }
}

const fn durability(durability: Durability) -> store::Durability {
    match durability {
        Durability::Flush => store::Durability::Flush,
        Durability::Device => store::Durability::Device,
    }
}

/// The VM as QEMU is to make it.
pub fn machine(
    vm: &VmSpec,
    places: &Places,
    accelerator: qemu::Accelerator,
    has_hugepages: bool,
) -> qemu::Machine {
    let boot = match &vm.boot {
        Boot::Disk => qemu::Boot::Disk,
        Boot::Kernel { kernel, initrd, append } => qemu::Boot::Kernel {
            kernel: kernel.into(),
            initrd: initrd.as_ref().map(Into::into),
            append: append.clone(),
        },
    };
    qemu::Machine {
        name: vm.name.to_string(),
        uuid: qemu::uuid(vm.id),
        vcpus: vm.vcpus,
        memory_mib: vm.memory >> 20,
        accelerator,
        has_hugepages,
        boot,
        disks: vm
            .disks
            .iter()
            .map(|disk| qemu::Disk {
                socket: places.volume_socket(disk.volume),
                queues: disk_queues(vm),
            })
            .collect(),
        nics: vm.nics.iter().map(|nic| machine_nic(nic, places)).collect(),
    }
}

pub(crate) fn machine_nic(nic: &NicSpec, places: &Places) -> qemu::Nic {
    let network = nic.addresses.iter().map(|address| qemu::NicNetwork {
        address: address.ip,
        prefix_length: address.prefix_length,
        // A gateway serves the addresses of its own family.
        gateway: nic.gateway.filter(|gateway| gateway.is_ipv4() == address.ip.is_ipv4()),
    });
    qemu::Nic {
        socket: places.port_socket(nic.port),
        mac: nic.mac,
        mtu: nic.mtu,
        queue_pairs: 1,
        network: network.collect(),
    }
}

/// Every socket that must be there before the VM's process is started.
pub fn sockets(vm: &VmSpec, places: &Places) -> Vec<PathBuf> {
    let nics = vm.nics.iter().map(|nic| places.port_socket(nic.port));
    let disks = vm.disks.iter().map(|disk| places.volume_socket(disk.volume));
    nics.chain(disks).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use plinth_api::Address;
    use plinth_ids::{DiskId, GroupId, MacAddress, NodeId, PoolId, PortId, Vni};

    fn vm(number: u64, run: Run) -> VmSpec {
        VmSpec {
            id: VmId(number),
            name: format!("vm-{number}").parse().unwrap(),
            vcpus: 2,
            memory: 256 << 20,
            boot: Boot::Disk,
            disks: vec![DiskSpec {
                pool: PoolId(1),
                volume: VolumeId(number),
                name: "disk".parse().unwrap(),
                is_read_only: false,
                limits: None,
            }],
            nics: vec![NicSpec {
                port: PortId(u32::try_from(number).unwrap()),
                name: "nic".parse().unwrap(),
                vni: Vni::new(5).unwrap(),
                mac: MacAddress([2, 0, 0, 0, 0, 1]),
                addresses: vec![Address { ip: "10.0.0.2".parse().unwrap(), prefix_length: 24 }],
                gateway: Some("10.0.0.1".parse().unwrap()),
                mtu: 1450,
                subnet: "blue-a".parse().unwrap(),
                groups: Some(vec![GroupId(1)]),
                allowed: Vec::new(),
                limits: plinth_api::NicLimits::default(),
            }],
            run,
            start_number: 1,
        }
    }

    fn volumes(needs: &Needs) -> Vec<u64> {
        needs.disks.iter().map(|(disk, _)| disk.volume.0).collect()
    }

    #[test]
    fn a_stopped_vm_needs_nothing_once_its_process_is_gone() {
        let stopped = [vm(1, Run::Stopped { grace_seconds: 0 }), vm(2, Run::Running)];
        let held = BTreeMap::from([(VmId(1), vm(1, Run::Running))]);
        assert_eq!(volumes(&needs(&stopped, &held)), [1, 2]);
        assert_eq!(volumes(&needs(&stopped, &BTreeMap::new())), [2]);
    }

    #[test]
    fn a_deleted_vm_keeps_its_disks_until_its_process_is_gone() {
        let held = BTreeMap::from([(VmId(1), vm(1, Run::Running))]);
        let needs = needs(&[], &held);
        assert_eq!((volumes(&needs), needs.nics.len()), (vec![1], 1));
    }

    #[test]
    fn what_a_process_was_started_with_outweighs_a_newer_spec() {
        let mut newer = vm(1, Run::Running);
        newer.vcpus = 4;
        newer.disks[0].is_read_only = true;
        let held = BTreeMap::from([(VmId(1), vm(1, Run::Running))]);
        let needs = needs(&[newer], &held);
        assert_eq!(needs.disks.len(), 1);
        assert_eq!((needs.disks[0].0.is_read_only, needs.disks[0].1), (false, 2));
    }

    #[test]
    fn limits_reach_a_living_process_and_nothing_else_does() {
        let chosen = VolumeLimits { iops: 500, iops_burst: 0, bytes_per_second: 0, bytes_burst: 0 };
        let mut newer = vm(1, Run::Running);
        newer.disks[0].limits = Some(chosen);
        newer.disks[0].is_read_only = true;
        let held = BTreeMap::from([(VmId(1), vm(1, Run::Running))]);
        let needs = needs(&[newer], &held);
        assert_eq!((needs.disks[0].0.limits, needs.disks[0].0.is_read_only), (Some(chosen), false));
    }

    #[test]
    fn security_groups_and_ranges_reach_a_living_process() {
        let mut newer = vm(1, Run::Running);
        newer.nics[0].groups = Some(vec![GroupId(2)]);
        newer.nics[0].allowed = vec!["10.8.0.0/16".parse().unwrap()];
        newer.nics[0].mtu = 1000;
        let held = BTreeMap::from([(VmId(1), vm(1, Run::Running))]);
        let needs = needs(std::slice::from_ref(&newer), &held);
        let nic = &needs.nics[0];
        assert_eq!((&nic.groups, &nic.allowed), (&newer.nics[0].groups, &newer.nics[0].allowed));
        assert_eq!(nic.mtu, 1450, "QEMU was told this one");
    }

    #[test]
    fn a_fresh_pool_is_served_until_the_spec_names_it() {
        let pool = |device: &str| PoolSpec {
            id: PoolId(1),
            name: "pool".parse().unwrap(),
            disks: vec![PoolDiskSpec {
                id: DiskId::FIRST,
                device: device.to_owned(),
                is_draining: false,
            }],
            durability: Durability::Flush,
            class: PoolClass::Ordinary,
            scrub: plinth_api::ScrubSchedule::default(),
            access: PoolAccess::Whole,
        };
        let places = Places::new("/s", "/r").unwrap();
        let mut spec = NodeSpec {
            epoch: Epoch(3),
            node: NodeId(1),
            name: "node".parse().unwrap(),
            underlay: None,
            pools: Vec::new(),
            vms: Vec::new(),
            remotes: Vec::new(),
            vpcs: Vec::new(),
            groups: Vec::new(),
            external: plinth_api::ExternalSpec::default(),
            balancers: Vec::new(),
            store_cores: Vec::new(),
        };
        let devices = |spec: &NodeSpec| -> Vec<PathBuf> {
            let config = store_config(spec, &[pool("/fresh")], &Needs::default(), &places);
            config.pools.into_iter().map(|pool| pool.disks[0].device.clone()).collect()
        };
        assert_eq!(devices(&spec), [PathBuf::from("/fresh")]);
        spec.pools.push(pool("/spec"));
        assert_eq!(devices(&spec), [PathBuf::from("/spec")]);
    }

    #[test]
    fn every_core_of_the_spec_is_a_worker_of_the_store() {
        let places = Places::new("/s", "/r").unwrap();
        let cores = |text: &str| {
            let spec: NodeSpec = serde_json::from_str(&format!(
                r#"{{"epoch":3,"node":1,"name":"node","underlay":null,"pools":[],"vms":[],
                "remotes":[],"vpcs":[],"groups":[]{text}}}"#
            ))
            .unwrap();
            store_config(&spec, &[], &Needs::default(), &places).workers
        };
        assert_eq!(cores(r#","store_cores":[4,2]"#), [4, 2]);
        assert_eq!(cores(""), [0; 0], "a spec that an earlier release kept");
    }
}
