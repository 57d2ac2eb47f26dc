// SPDX-License-Identifier: Apache-2.0
//! Security groups and their rules.

use crate::change::{Change, Key, Record};
use crate::cluster::Cluster;
use crate::names;
use crate::record::{GroupRecord, Meta, RuleRecord, SubnetRecord};
use plinth_api::{
    Code, GroupSpec, GroupView, PeerSpec, Refusal, RuleDirection, RulePeer, RulePriority,
    RuleProtocol, RuleScope, RuleSpec, RuleVerdict, RuleView, VmSpec,
};
use plinth_ids::{GroupId, Name, Vni};
use std::collections::BTreeSet;

/// What the switch takes.
pub(crate) const RULES_MAX: usize = 1000;
pub(crate) const GROUPS_PER_NIC_MAX: usize = 16;

impl Cluster {
    /// The group of NICs that name none: they may write to everybody, and are written to by each
    /// other only.
    pub(crate) fn default_group(
        &self,
        vpc: &Name,
        vni: Vni,
        now: u64,
    ) -> Result<GroupRecord, Refusal> {
        let readable = format!("{vpc}-default").parse().ok();
        let name = readable.filter(|name| !self.groups.contains_key(name)).unwrap_or_else(|| {
            format!("default-{vni}").parse().expect("a word and a number are a name")
        });
        names::free(&self.groups, "security-group", &name)?;
        let id = GroupId(self.meta.next_group);
        let allow = |number, direction, peer| RuleRecord {
            number,
            scope: RuleScope {
                direction,
                priority: RulePriority::Low,
                verdict: RuleVerdict::Allow,
                protocol: RuleProtocol::Any,
                ports: None,
                icmp: None,
            },
            peer,
        };
        let rules = vec![
            allow(1, RuleDirection::Outbound, PeerSpec::Any),
            allow(2, RuleDirection::Inbound, PeerSpec::Group(id)),
        ];
        Ok(GroupRecord { id, name, vpc: vni, rules, next_rule: 3, created_at: now })
    }

    /// A group without rules denies everything.
    pub fn group_create(&self, name: Name, vpc: &Name, now: u64) -> Result<Change, Refusal> {
        names::free(&self.groups, "security-group", &name)?;
        let vpc = names::find(&self.vpcs, "vpc", "--vpc", vpc)?.vni;
        let id = GroupId(self.meta.next_group);
        let meta = Meta { next_group: self.meta.next_group + 1, ..self.meta.clone() };
        let group = GroupRecord { id, name, vpc, rules: Vec::new(), next_rule: 1, created_at: now };
        Ok(Change::default().put(Record::Meta(meta)).put(Record::Group(group)))
    }

    pub fn group_delete(&self, name: &Name) -> Result<Change, Refusal> {
        let group = self.find_group("NAME", name)?;
        let refuse = |text: String, remedy: String| {
            Err(Refusal::new(Code::InUse, text).field("NAME").remedy(remedy))
        };
        let vpc = self.vpc(group.vpc);
        if let Some(vpc) = vpc.filter(|vpc| vpc.default_group == Some(group.id)) {
            return refuse(
                format!("security group {name} is the default one of vpc {}", vpc.name),
                "it goes with the vpc; its rules may be removed".to_owned(),
            );
        }
        let member =
            |nic: &crate::record::Nic| nic.groups.iter().flatten().any(|id| *id == group.id);
        if let Some((vm, index, _)) = self.nics().find(|(_, _, nic)| member(nic)) {
            let nic = crate::spec::port_name(vm, index);
            return refuse(
                format!("NIC {nic} is in security group {name}"),
                format!("take it out first: plinth nic group remove {nic} {name}"),
            );
        }
        let names_it = |other: &&GroupRecord| {
            other.id != group.id
                && other.rules.iter().any(|rule| rule.peer == PeerSpec::Group(group.id))
        };
        if let Some(other) = self.groups.values().find(names_it) {
            return refuse(
                format!("a rule of security group {} names {name} as peer", other.name),
                format!("remove it first: plinth security-group show {}", other.name),
            );
        }
        Ok(Change::default().delete(Key::Group(name.clone())))
    }

    pub fn rule_add(
        &self,
        group: &Name,
        scope: RuleScope,
        peer: &RulePeer,
    ) -> Result<Change, Refusal> {
        let mut record = self.find_group("GROUP", group)?.clone();
        check_scope(&scope)?;
        let peer = match peer {
            RulePeer::Any => PeerSpec::Any,
            RulePeer::Prefix(prefix) => PeerSpec::Prefix(*prefix),
            RulePeer::Group(name) => {
                let peer = self.find_group("--peer-group", name)?;
                if peer.vpc != record.vpc {
                    let text = format!("security group {name} is of another vpc than {group}");
                    return Err(Refusal::new(Code::Invalid, text)
                        .field("--peer-group")
                        .remedy("name a group of the same vpc, or a range with --peer"));
                }
                PeerSpec::Group(peer.id)
            }
        };
        if record.rules.iter().any(|rule| rule.scope == scope && rule.peer == peer) {
            let text = format!("security group {group} has this rule");
            return Err(Refusal::new(Code::Exists, text).field("GROUP").remedy("once is enough"));
        }
        if record.rules.len() >= RULES_MAX {
            let text = format!("security group {group} has {RULES_MAX} rules, which is the limit");
            return Err(Refusal::new(Code::NoRoom, text)
                .field("GROUP")
                .remedy("join rules into ranges, or use a second group"));
        }
        record.rules.push(RuleRecord { number: record.next_rule, scope, peer });
        record.next_rule += 1;
        Ok(Change::default().put(Record::Group(record)))
    }

    pub fn rule_remove(&self, group: &Name, number: u32) -> Result<Change, Refusal> {
        let mut record = self.find_group("GROUP", group)?.clone();
        let before = record.rules.len();
        record.rules.retain(|rule| rule.number != number);
        if record.rules.len() == before {
            let text = format!("security group {group} has no rule {number}");
            return Err(Refusal::new(Code::NotFound, text)
                .field("NUMBER")
                .remedy(format!("`plinth security-group show {group}` numbers them")));
        }
        Ok(Change::default().put(Record::Group(record)))
    }

    pub(crate) fn find_group(
        &self,
        field: &'static str,
        name: &Name,
    ) -> Result<&GroupRecord, Refusal> {
        names::find(&self.groups, "security-group", field, name)
    }

    /// The groups of a new NIC: those asked for, or its VPC's default one.
    pub(crate) fn plan_groups(
        &self,
        subnet: &SubnetRecord,
        wanted: &[Name],
    ) -> Result<Option<Vec<GroupId>>, Refusal> {
        if wanted.is_empty() {
            let default = self.vpc(subnet.vpc).and_then(|vpc| vpc.default_group);
            return Ok(default.map(|id| vec![id]));
        }
        let mut groups = Vec::new();
        for name in wanted {
            let group = self.find_group("--nic group", name)?;
            let refuse = |text: String, remedy: &str| {
                Err(Refusal::new(Code::Invalid, text).field("--nic group").remedy(remedy))
            };
            if group.vpc != subnet.vpc {
                let text = format!("security group {name} is of another vpc than {}", subnet.name);
                return refuse(text, "name a group of the NIC's vpc");
            }
            if groups.contains(&group.id) {
                return refuse(format!("security group {name} is named twice"), "once is enough");
            }
            groups.push(group.id);
        }
        check_group_count(groups.len(), "--nic group")?;
        Ok(Some(groups))
    }

    /// The groups of one VPC, or of all.
    pub fn group_views(&self, vpc: Option<&Name>) -> Result<Vec<GroupView>, Refusal> {
        let vni = match vpc {
            Some(name) => Some(names::find(&self.vpcs, "vpc", "VPC", name)?.vni),
            None => None,
        };
        let chosen = self.groups.values().filter(|group| vni.is_none_or(|vni| group.vpc == vni));
        Ok(chosen.map(|group| self.group_view(group)).collect())
    }

    pub fn group_view(&self, group: &GroupRecord) -> GroupView {
        let members =
            self.nics().filter(|(_, _, nic)| nic.groups.iter().flatten().any(|id| *id == group.id));
        let rule = |rule: &RuleRecord| RuleView {
            number: rule.number,
            scope: rule.scope,
            peer: match rule.peer {
                PeerSpec::Any => RulePeer::Any,
                PeerSpec::Prefix(prefix) => RulePeer::Prefix(prefix),
                PeerSpec::Group(id) => RulePeer::Group(self.group_name(id)),
            },
        };
        GroupView {
            id: group.id,
            name: group.name.clone(),
            vpc: self.vpc_name(group.vpc),
            is_default: self.vpc(group.vpc).is_some_and(|vpc| vpc.default_group == Some(group.id)),
            rules: group.rules.iter().map(rule).collect(),
            nics: members.map(|(vm, index, _)| crate::spec::port_name(vm, index)).collect(),
            created_at: group.created_at,
        }
    }

    /// A group's name; one that is not there reads as its number.
    pub(crate) fn group_name(&self, id: GroupId) -> Name {
        self.group(id).map_or_else(
            || id.to_string().parse().expect("a word and a number are a name"),
            |group| group.name.clone(),
        )
    }

    /// The groups that some NIC of these VMs is in, with their rules.
    pub(crate) fn group_specs(&self, vms: &[VmSpec]) -> Vec<GroupSpec> {
        let nics = vms.iter().flat_map(|vm| &vm.nics);
        let used: BTreeSet<GroupId> =
            nics.filter_map(|nic| nic.groups.as_ref()).flatten().copied().collect();
        let chosen = self.groups.values().filter(|group| used.contains(&group.id));
        chosen
            .map(|group| GroupSpec {
                id: group.id,
                name: group.name.clone(),
                rules: group
                    .rules
                    .iter()
                    .map(|rule| RuleSpec { scope: rule.scope, peer: rule.peer })
                    .collect(),
            })
            .collect()
    }
}

pub(crate) fn check_group_count(count: usize, field: &'static str) -> Result<(), Refusal> {
    if count > GROUPS_PER_NIC_MAX {
        let text = format!("a NIC is in {GROUPS_PER_NIC_MAX} security groups at most");
        return Err(Refusal::new(Code::NoRoom, text).field(field).remedy("join their rules"));
    }
    Ok(())
}

/// Ports are of TCP and UDP, types of ICMP.
fn check_scope(scope: &RuleScope) -> Result<(), Refusal> {
    let refuse = |field: &str, text: String, remedy: &str| {
        Err(Refusal::new(Code::Invalid, text).field(field).remedy(remedy))
    };
    let has_ports = matches!(scope.protocol, RuleProtocol::Tcp | RuleProtocol::Udp);
    let has_types = matches!(scope.protocol, RuleProtocol::Icmp | RuleProtocol::Icmpv6);
    match scope.ports {
        Some(_) if !has_ports => {
            let text = "only tcp and udp have ports".to_owned();
            return refuse("--port", text, "say --protocol tcp or udp, or leave it out");
        }
        Some((first, last)) if first > last => {
            let text = format!("ports {first}-{last} run backwards");
            return refuse("--port", text, "give the lower one first");
        }
        _ => {}
    }
    if scope.icmp.is_some() && !has_types {
        let text = "only icmp and icmpv6 have types".to_owned();
        return refuse("--icmp-type", text, "say --protocol icmp or icmpv6, or leave it out");
    }
    Ok(())
}
