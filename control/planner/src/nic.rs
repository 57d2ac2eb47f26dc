// SPDX-License-Identifier: Apache-2.0
//! NICs by themselves: how they come and go, the groups they are in, what they may speak from.

use crate::change::{Change, Record};
use crate::cluster::{Cluster, Observed};
use crate::group::check_group_count;
use crate::names;
use crate::record::{Meta, Nic, VmRecord};
use crate::spec::{nic_number, port_name};
use crate::vm::NICS_MAX;
use plinth_api::{Code, EniView, NicLimits, NicRate, NicRequest, NicState, Refusal, Run};
use plinth_ids::{Name, PortId, Prefix};
use plinth_switch_api::{BITS_PER_SECOND, PACKETS_PER_SECOND, WEIGHT_DEFAULT, WEIGHT_MAX};

/// Ranges of one NIC; the switch takes as many.
pub(crate) const ALLOWED_MAX: usize = 64;

impl Cluster {
    /// Every NIC with its VM and its place in it.
    pub(crate) fn nics(&self) -> impl Iterator<Item = (&VmRecord, usize, &Nic)> {
        self.vms
            .values()
            .flat_map(|vm| vm.nics.iter().enumerate().map(move |(index, nic)| (vm, index, nic)))
    }

    pub(crate) fn find_nic(&self, name: &Name) -> Result<(&VmRecord, usize, &Nic), Refusal> {
        self.nics().find(|(vm, index, _)| port_name(vm, *index) == *name).ok_or_else(|| {
            Refusal::new(Code::NotFound, format!("there is no NIC {name}"))
                .field("NIC")
                .remedy("`plinth nic list` shows what there is")
        })
    }

    /// A change of one NIC's settings, which reach a running VM: its spec's epoch rises, and the
    /// guest sees nothing of it.
    fn change_nic(
        &self,
        name: &Name,
        change: impl FnOnce(&mut Nic) -> Result<(), Refusal>,
    ) -> Result<Change, Refusal> {
        let (vm, index, _) = self.find_nic(name)?;
        let mut vm = vm.clone();
        change(&mut vm.nics[index])?;
        vm.changed_after = self.epoch();
        Ok(Change::default().put(Record::Vm(vm)))
    }

    /// Gives a VM one more NIC, also while it runs.
    pub fn nic_attach(&self, vm: &Name, request: &NicRequest) -> Result<Change, Refusal> {
        let vm = self.usable_vm(vm)?;
        if vm.nics.len() >= NICS_MAX {
            let text = format!("VM {} has {NICS_MAX} NICs, those that leave it included", vm.name);
            return Err(Refusal::new(Code::NoRoom, text)
                .field("VM")
                .remedy("detach one first: plinth nic detach NIC"));
        }
        let planned = self.plan_nics(std::slice::from_ref(request))?;
        if let Some(node) = self.node(vm.node)
            && let Some(other) = self.cut_off(node, &planned)
        {
            let text = format!("the vpc has NICs on node {other}, to which there is no tunnel");
            return Err(Refusal::new(Code::Invalid, text)
                .field("NIC subnet")
                .remedy("give every node an underlay, or name a subnet of another vpc"));
        }
        let coming = VmRecord { nics: planned.clone(), ..vm.clone() };
        let meta = Meta { next_port: self.meta.next_port + 1, ..self.meta.clone() };
        let mut change = self.seat_vm(&coming, Change::default().put(Record::Meta(meta)))?;
        let mut vm = with_numbers(vm);
        let is_free = |number: &u8| !vm.nics.iter().any(|nic| nic.number == Some(*number));
        let number = (0..u8::MAX).find(is_free);
        vm.nics.extend(planned.into_iter().map(|nic| Nic { number, ..nic }));
        change.writes.extend(self.put_vm(vm).writes);
        Ok(change)
    }

    /// Takes a NIC from its VM, also while that runs. Its addresses are free, and what is bound to
    /// it goes, once the guest has let go of it.
    pub fn nic_detach(&self, name: &Name) -> Result<Change, Refusal> {
        let (vm, index, nic) = self.find_nic(name)?;
        if nic.is_leaving {
            return Ok(Change::default());
        }
        self.usable_vm(&vm.name)?;
        let mut vm = with_numbers(vm);
        vm.nics[index].is_leaving = true;
        Ok(self.put_vm(vm))
    }

    /// Puts a NIC into a group, or takes it out. A NIC in no group is denied everything.
    pub fn nic_group(&self, name: &Name, group: &Name, is_member: bool) -> Result<Change, Refusal> {
        let group = self.find_group("GROUP", group)?;
        self.change_nic(name, |nic| {
            let refuse = |code, text: String, remedy: &str| {
                Err(Refusal::new(code, text).field("GROUP").remedy(remedy))
            };
            if group.vpc != nic.vpc {
                let text =
                    format!("security group {} is of another vpc than NIC {name}", group.name);
                return refuse(Code::Invalid, text, "name a group of the NIC's vpc");
            }
            let groups = nic.groups.get_or_insert_default();
            let is_in = groups.contains(&group.id);
            match (is_in, is_member) {
                (true, true) => {
                    let text = format!("NIC {name} is in security group {} already", group.name);
                    return refuse(Code::Exists, text, "nothing is left to do");
                }
                (false, false) => {
                    let text = format!("NIC {name} is not in security group {}", group.name);
                    return refuse(Code::NotFound, text, "`plinth nic show` lists its groups");
                }
                (false, true) => groups.push(group.id),
                (true, false) => groups.retain(|id| *id != group.id),
            }
            check_group_count(groups.len(), "GROUP")
        })
    }

    /// Lets a NIC speak from a range that is not its own, or no longer.
    pub fn nic_allow(
        &self,
        name: &Name,
        range: Prefix,
        is_allowed: bool,
    ) -> Result<Change, Refusal> {
        let carried = self.carried_by(self.find_nic(name)?.2.port).count();
        self.change_nic(name, |nic| {
            let refuse = |code, text: String, remedy: &str| {
                Err(Refusal::new(code, text).field("RANGE").remedy(remedy))
            };
            let is_there = nic.allowed.contains(&range);
            match (is_there, is_allowed) {
                (true, true) => {
                    let text = format!("NIC {name} may speak from {range} already");
                    refuse(Code::Exists, text, "nothing is left to do")
                }
                (false, false) => {
                    let text = format!("{range} is no range that was allowed to NIC {name}");
                    refuse(Code::NotFound, text, "`plinth nic show` lists them")
                }
                (false, true) if nic.allowed.len() + carried >= ALLOWED_MAX => {
                    let text = format!("a NIC has {ALLOWED_MAX} allowed ranges at most");
                    refuse(Code::NoRoom, text, "join some into a larger one")
                }
                (false, true) => {
                    nic.allowed.push(range);
                    Ok(())
                }
                (true, false) => {
                    nic.allowed.retain(|one| *one != range);
                    Ok(())
                }
            }
        })
    }

    /// Holds a NIC to limits, or to none.
    pub fn nic_limit(&self, name: &Name, limits: NicLimits) -> Result<Change, Refusal> {
        check_rate("--out", &limits.outbound)?;
        check_rate("--in", &limits.inbound)?;
        if limits.weight > WEIGHT_MAX {
            let text = format!("a weight of {} is out of range", limits.weight);
            return Err(Refusal::new(Code::Invalid, text)
                .field("--weight")
                .remedy(format!("give 1 to {WEIGHT_MAX}; the usual one is {WEIGHT_DEFAULT}")));
        }
        self.change_nic(name, |nic| {
            nic.limits = limits;
            Ok(())
        })
    }

    /// The NICs of one VM, or of all.
    pub fn eni_views(
        &self,
        vm: Option<&Name>,
        observed: &Observed,
    ) -> Result<Vec<EniView>, Refusal> {
        if let Some(name) = vm {
            names::find(&self.vms, "vm", "VM", name)?;
        }
        let chosen = self.nics().filter(|(owner, _, _)| vm.is_none_or(|name| owner.name == *name));
        Ok(chosen.map(|(vm, index, nic)| self.nic_view(vm, index, nic, observed)).collect())
    }

    pub fn eni_view(&self, name: &Name, observed: &Observed) -> Result<EniView, Refusal> {
        let (vm, index, nic) = self.find_nic(name)?;
        Ok(self.nic_view(vm, index, nic, observed))
    }

    /// The port that the next NIC is given.
    pub const fn next_port(&self) -> PortId {
        PortId(self.meta.next_port)
    }

    /// The NIC of a port.
    pub fn eni_of(&self, port: PortId, observed: &Observed) -> Result<EniView, Refusal> {
        let found = self.nics().find(|(_, _, nic)| nic.port == port);
        let (vm, index, nic) = found.ok_or_else(|| {
            Refusal::new(Code::NotFound, format!("there is no NIC with {port}")).field("NIC")
        })?;
        Ok(self.nic_view(vm, index, nic, observed))
    }

    fn nic_view(&self, vm: &VmRecord, index: usize, nic: &Nic, observed: &Observed) -> EniView {
        let status = observed.vm(vm.node, vm.id);
        let groups = nic.groups.as_ref();
        EniView {
            name: port_name(vm, index),
            vm: vm.name.clone(),
            port: nic.port,
            vpc: self.vpc_name(nic.vpc),
            subnet: nic.subnet.clone(),
            mac: nic.mac,
            addresses: self.nic_addresses(nic),
            groups: groups.map(|list| list.iter().map(|id| self.group_name(*id)).collect()),
            allowed: nic.allowed.clone(),
            limits: nic.limits,
            state: match status {
                _ if nic.is_leaving => NicState::Leaving,
                Some(status) if status.nics.contains(&nic.port) => NicState::Attached,
                _ if vm.run == Run::Running => NicState::Waiting,
                _ => NicState::Off,
            },
        }
    }
}

/// With every number written down, because a place in the list is about to change.
fn with_numbers(vm: &VmRecord) -> VmRecord {
    let mut numbered = vm.clone();
    for (index, nic) in numbered.nics.iter_mut().enumerate() {
        nic.number = u8::try_from(nic_number(vm, index)).ok();
    }
    numbered
}

/// A rate of 0 is none; a burst without its rate says nothing. The switch takes the same ranges.
pub(crate) fn check_rate(field: &str, rate: &NicRate) -> Result<(), Refusal> {
    let NicRate { bits_per_second, bits_burst, packets_per_second, packets_burst } = *rate;
    let packets = format!("{field}-pps");
    for (field, rate, burst, (least, most)) in [
        (field, bits_per_second, bits_burst, BITS_PER_SECOND),
        (packets.as_str(), packets_per_second, packets_burst, PACKETS_PER_SECOND),
    ] {
        if rate > 0 && !(least..=most).contains(&rate) || burst > most {
            return Err(Refusal::new(Code::Invalid, "that rate or burst is out of range")
                .field(field)
                .remedy(format!("give {least} to {most}, or leave it away")));
        }
        if rate == 0 && burst > 0 {
            return Err(Refusal::new(Code::Invalid, "a burst needs a rate")
                .field(format!("{field}-burst"))
                .remedy(format!("give {field} too")));
        }
    }
    Ok(())
}
