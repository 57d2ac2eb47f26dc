// SPDX-License-Identifier: Apache-2.0
//! What security groups must hold: rules that can match, and groups that exist.

use super::check_count;
use crate::{ConfigError, Place, VpcLimits};
use plinth_ids::{GroupId, Name};
use plinth_switch_api::{Rule, RuleProtocol, SecurityGroup, SwitchConfig};
use std::collections::BTreeMap;
use std::fmt;

/// A rule, by its group and its place in the group's list, from zero.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RulePlace {
    pub group: GroupId,
    pub name: Name,
    pub index: usize,
}

impl fmt::Display for RulePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}) rules[{}]", self.group, self.name, self.index)
    }
}

/// What is wrong with a security group, or with a NIC's list of them.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SecurityError {
    #[error("security group {name}: id 0 means no group: number groups from 1")]
    IdReserved { name: Name },
    #[error("{id} is configured twice, as {first} and as {second}: give each group its own id")]
    IdTwice { id: GroupId, first: Name, second: Name },
    #[error(
        "{group} ({name}): {found} rules are more than the limit of {limit}: join some, or use two groups"
    )]
    TooManyRules { group: GroupId, name: Name, found: usize, limit: usize },
    #[error("{place}: ports {first}-{last} run backwards: give the lower one first")]
    PortsBackwards { place: RulePlace, first: u16, last: u16 },
    #[error("{place}: only tcp and udp have ports: name one of them or leave ports out")]
    PortsWithoutProtocol { place: RulePlace },
    #[error("{place}: only icmp and icmpv6 have types: name one of them or leave icmp out")]
    IcmpWithoutProtocol { place: RulePlace },
    #[error(
        "{place}: {found} security groups are more than the limit of {limit}: join their rules"
    )]
    TooManyGroups { place: Place, found: usize, limit: usize },
    #[error(
        "{place}: {group} is not in this configuration: add it to security_groups or take it from the NIC"
    )]
    GroupUnknown { place: Place, group: GroupId },
    #[error("{place}: {group} is named twice: once is enough")]
    GroupNamedTwice { place: Place, group: GroupId },
}

impl SecurityError {
    pub const fn code(&self) -> &'static str {
        match self {
            Self::IdReserved { .. } => "group-id-reserved",
            Self::IdTwice { .. } => "group-id-twice",
            Self::TooManyRules { .. } => "too-many-rules",
            Self::PortsBackwards { .. } => "ports-backwards",
            Self::PortsWithoutProtocol { .. } => "ports-without-protocol",
            Self::IcmpWithoutProtocol { .. } => "icmp-without-protocol",
            Self::TooManyGroups { .. } => "too-many-groups",
            Self::GroupUnknown { .. } => "group-unknown",
            Self::GroupNamedTwice { .. } => "group-named-twice",
        }
    }
}

/// The groups of a configuration that have been checked.
pub(super) struct Groups<'a>(BTreeMap<GroupId, &'a SecurityGroup>);

impl<'a> Groups<'a> {
    pub(super) fn check(config: &'a SwitchConfig, limits: &VpcLimits) -> Result<Self, ConfigError> {
        let list = &config.security_groups;
        check_count("security groups", list.len(), limits.security_groups as usize)?;
        let rules = list.iter().map(|group| group.rules.len()).sum();
        check_count("rules", rules, limits.rules as usize)?;
        let mut groups: BTreeMap<GroupId, &SecurityGroup> = BTreeMap::new();
        for group in list {
            check_group(group, limits)?;
            if let Some(first) = groups.insert(group.id, group) {
                let (first, second) = (first.name.clone(), group.name.clone());
                return Err(SecurityError::IdTwice { id: group.id, first, second }.into());
            }
        }
        Ok(Self(groups))
    }

    /// Checks the list of a port, whose groups must be known, and of which none is twice.
    pub(super) fn check_port(
        &self,
        place: &Place,
        list: &[GroupId],
        limits: &VpcLimits,
    ) -> Result<(), SecurityError> {
        check_list(place, list, limits)?;
        match list.iter().find(|group| !self.0.contains_key(group)) {
            Some(&group) => Err(SecurityError::GroupUnknown { place: place.clone(), group }),
            None => Ok(()),
        }
    }
}

/// Checks a NIC's list. The lists are short: `limits` says how short.
pub(super) fn check_list(
    place: &Place,
    list: &[GroupId],
    limits: &VpcLimits,
) -> Result<(), SecurityError> {
    let (found, limit) = (list.len(), usize::from(limits.groups_per_nic));
    if found > limit {
        return Err(SecurityError::TooManyGroups { place: place.clone(), found, limit });
    }
    for (before, &group) in list.iter().enumerate() {
        if group == GroupId(0) {
            return Err(SecurityError::GroupUnknown { place: place.clone(), group });
        }
        if list[..before].contains(&group) {
            return Err(SecurityError::GroupNamedTwice { place: place.clone(), group });
        }
    }
    Ok(())
}

fn check_group(group: &SecurityGroup, limits: &VpcLimits) -> Result<(), SecurityError> {
    let SecurityGroup { id, name, rules } = group;
    if *id == GroupId(0) {
        return Err(SecurityError::IdReserved { name: name.clone() });
    }
    let (found, limit) = (rules.len(), usize::from(limits.rules_per_group));
    if found > limit {
        return Err(SecurityError::TooManyRules { group: *id, name: name.clone(), found, limit });
    }
    for (index, rule) in rules.iter().enumerate() {
        check_rule(rule, || RulePlace { group: *id, name: name.clone(), index })?;
    }
    Ok(())
}

fn check_rule(rule: &Rule, place: impl Fn() -> RulePlace) -> Result<(), SecurityError> {
    let has_ports = matches!(rule.protocol, RuleProtocol::Tcp | RuleProtocol::Udp);
    let has_types = matches!(rule.protocol, RuleProtocol::Icmp | RuleProtocol::Icmpv6);
    if let Some((first, last)) = rule.ports {
        if !has_ports {
            return Err(SecurityError::PortsWithoutProtocol { place: place() });
        }
        if first > last {
            return Err(SecurityError::PortsBackwards { place: place(), first, last });
        }
    }
    if rule.icmp.is_some() && !has_types {
        return Err(SecurityError::IcmpWithoutProtocol { place: place() });
    }
    Ok(())
}
