// SPDX-License-Identifier: Apache-2.0
//! VPCs: tenant networks, one VNI each.

use crate::change::{Change, Key, Record};
use crate::cluster::Cluster;
use crate::names;
use crate::record::{Meta, VpcRecord};
use plinth_api::{Code, Refusal};
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
        // The next search starts after this one, so that a VNI rests before it is used again.
        let meta = Meta { next_vni: vni.get() % Vni::MAX + 1, ..self.meta.clone() };
        let vpc = VpcRecord { name, vni, created_at: now };
        Ok(Change::default().put(Record::Meta(meta)).put(Record::Vpc(vpc)))
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
        Ok(Change::default().delete(Key::Vpc(name.clone())))
    }
}
