// SPDX-License-Identifier: Apache-2.0
//! VPCs: tenant networks, one VNI each.

use crate::change::{Change, Key, Record};
use crate::cluster::Cluster;
use crate::names;
use crate::record::{Meta, VpcRecord};
use plinth_api::{Code, HopSpec, Refusal};
use plinth_ids::{Name, Vni};

impl Cluster {
    pub fn vpc_create(&self, name: Name, vni: Option<Vni>, now: u64) -> Result<Change, Refusal> {
        names::free(&self.vpcs, "vpc", &name)?;
        let vni = match vni {
            Some(vni) => {
                self.check_vni(vni)?;
                vni
            }
            None => self.free_vni()?,
        };
        let group = self.default_group(&name, vni, now)?;
        // The next search starts after this one, so that a VNI rests before it is used again.
        let meta = Meta {
            next_vni: vni.get() % Vni::MAX + 1,
            next_group: self.meta.next_group + 1,
            ..self.meta.clone()
        };
        let default_group = Some(group.id);
        let vpc = VpcRecord {
            name,
            vni,
            default_group,
            routes: Vec::new(),
            upstreams: Vec::new(),
            is_metadata_off: false,
            created_at: now,
        };
        let change = Change::default().put(Record::Meta(meta));
        Ok(change.put(Record::Group(group)).put(Record::Vpc(vpc)))
    }

    fn check_vni(&self, vni: Vni) -> Result<(), Refusal> {
        if vni.get() == 0 {
            return Err(Refusal::new(Code::Invalid, "VNI 0 belongs to no VPC")
                .field("--vni")
                .remedy(format!("give 1 to {}, or leave it out", Vni::MAX)));
        }
        match self.vpc(vni) {
            None => Ok(()),
            Some(other) => {
                Err(Refusal::new(Code::Exists, format!("VNI {vni} is that of vpc {}", other.name))
                    .field("--vni")
                    .remedy("leave it out to take the next free one"))
            }
        }
    }

    fn free_vni(&self) -> Result<Vni, Refusal> {
        // One more than there are VPCs must find a free one, unless all are taken.
        let tries = u32::try_from(self.vpcs.len()).unwrap_or(Vni::MAX).saturating_add(1);
        (0..tries.min(Vni::MAX))
            .map(|step| (self.meta.next_vni.max(1) - 1 + step) % Vni::MAX + 1)
            .filter_map(Vni::new)
            .find(|vni| self.vpc(*vni).is_none())
            .ok_or_else(|| Refusal::new(Code::NoRoom, "all VNIs are taken").field("--vni"))
    }

    pub fn vpc_delete(&self, name: &Name) -> Result<Change, Refusal> {
        let vpc = names::find(&self.vpcs, "vpc", "NAME", name)?;
        if let Some(subnet) = self.subnets.values().find(|subnet| subnet.vpc == vpc.vni) {
            return Err(Refusal::new(
                Code::InUse,
                format!("vpc {name} has subnet {}", subnet.name),
            )
            .field("NAME")
            .remedy(format!("delete it first: plinth subnet delete {}", subnet.name)));
        }
        let leads_here = |other: &&VpcRecord| {
            other.routes.iter().any(|route| route.next_hop == HopSpec::Peer(vpc.vni))
        };
        if let Some(other) = self.vpcs.values().find(leads_here) {
            let text = format!("vpc {} has a route to vpc {name}", other.name);
            return Err(Refusal::new(Code::InUse, text)
                .field("NAME")
                .remedy(format!("`plinth route list {}` shows it; remove it first", other.name)));
        }
        if let Some(gateway) = self.gateways.values().find(|gateway| gateway.vpc == vpc.vni) {
            let text = format!("NAT gateway {} is of vpc {name}", gateway.name);
            return Err(Refusal::new(Code::InUse, text)
                .field("NAME")
                .remedy(format!("delete it first: plinth nat-gateway delete {}", gateway.name)));
        }
        if let Some(balancer) = self.balancers.values().find(|balancer| balancer.vpc == vpc.vni) {
            let text = format!("load balancer {} is of vpc {name}", balancer.name);
            return Err(Refusal::new(Code::InUse, text)
                .field("NAME")
                .remedy(format!("delete it first: plinth lb delete {}", balancer.name)));
        }
        let groups = self.groups.values().filter(|group| group.vpc == vpc.vni);
        Ok(groups.fold(Change::default().delete(Key::Vpc(name.clone())), |change, group| {
            change.delete(Key::Group(group.name.clone()))
        }))
    }
}
