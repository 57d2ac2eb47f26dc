// SPDX-License-Identifier: Apache-2.0
//! Security groups, compiled: which connections a port may open and accept.
//!
//! Every group keeps its own rules, sorted by rank, a list for each direction and family. A port
//! with several groups is judged by the rule of lowest rank among the first matches of each, which
//! is the first match of all its rules in one list; so a group that is on a thousand ports is in
//! memory once, and no combination of groups makes a list of its own.
//!
//! ```text
//!  rank   priority 2 | host bits of the peer 8 | ports less one 16 | any protocol 1 | allow 1
//! ```
//!
//! The rank is the documented order as one number, lower first. A type and code of ICMP stand
//! where TCP and UDP have the destination port, as `type * 256 + code`, so that "a type with any
//! code" is a range of 256 and "any type" is all of them.
//!
//! Sums: a rule takes 24 bytes for IPv4 and 48 for IPv6, and one that names no prefix stands in
//! both lists: 100 000 rules take 7.2 MB at most. A port of 100 rules is judged by reading 2.4 KB
//! from one end to the other, in 216 ns; docs/dataplane.md has the table.

use plinth_ids::{GroupId, Name};
use plinth_switch_api::{Direction, Priority, Rule, RulePeer, RuleVerdict, SecurityGroup};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What the first packet of a connection asks of a port's rules.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Question {
    pub(crate) direction: Direction,
    pub(crate) protocol: u8,
    /// TCP and UDP: the destination port. ICMP: type * 256 + code. `None`: there is none to see.
    pub(crate) port: Option<u16>,
    /// The other end: whom the guest writes to, or who writes to it.
    pub(crate) peer: IpAddr,
    /// The groups of the NIC that has the peer's address.
    pub(crate) peer_groups: GroupSet,
}

/// Which rule decided.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct RuleId {
    pub(crate) group: GroupId,
    /// Its place in the group's list of the configuration, from zero.
    pub(crate) index: u16,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Ruling {
    pub(crate) is_allowed: bool,
    /// `None`: no rule matched, or the port is not filtered.
    pub(crate) rule: Option<RuleId>,
}

/// A set of groups, by its place in [`SecurityTables::sets`]. Equal sets are one.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct GroupSet(u32);

/// An address of either family as the compiled rules compare it.
trait Bits: Copy {
    fn is_within(self, network: Self, mask: Self) -> bool;
}

impl Bits for u32 {
    #[inline]
    fn is_within(self, network: Self, mask: Self) -> bool {
        (self ^ network) & mask == 0
    }
}

impl Bits for u128 {
    #[inline]
    fn is_within(self, network: Self, mask: Self) -> bool {
        (self ^ network) & mask == 0
    }
}

/// A rule for one family.
#[derive(Clone, Copy, Debug)]
struct Compiled<A> {
    /// With a mask of zeros: any address.
    network: A,
    mask: A,
    /// The peer must be in it; 0: no matter.
    group: u32,
    rank: u32,
    first: u16,
    last: u16,
    protocol: u8,
    /// The place in the group's list.
    index: u16,
}

const _: () = assert!(size_of::<Compiled<u32>>() == 24);
const _: () = assert!(size_of::<Compiled<u128>>() == 48);

const RANK_ALLOW: u32 = 1;
const RANK_ANY_PROTOCOL: u32 = 2;

/// The rules of one group in one direction.
#[derive(Debug, Default)]
struct Lists {
    ipv4: Box<[Compiled<u32>]>,
    ipv6: Box<[Compiled<u128>]>,
}

#[derive(Debug)]
struct Group {
    id: GroupId,
    name: Name,
    inbound: Lists,
    outbound: Lists,
}

/// A group of a set: `rules` is its place in [`SecurityTables::groups`], or [`NO_RULES`].
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Member {
    id: GroupId,
    rules: u32,
}

/// Of a group that only remotes are in.
const NO_RULES: u32 = u32::MAX;

#[derive(Debug, Default)]
pub(crate) struct SecurityTables {
    /// Sorted by id.
    groups: Box<[Group]>,
    /// The first is empty.
    sets: Box<[Box<[Member]>]>,
    /// The sets' places in order of their members, so that a list finds its set.
    order: Box<[GroupSet]>,
}

impl SecurityTables {
    /// The name of a group that has rules here.
    pub(crate) fn name_of(&self, group: GroupId) -> Option<&Name> {
        let place = self.groups.binary_search_by_key(&group, |found| found.id).ok()?;
        Some(&self.groups[place].name)
    }

    /// The set of these groups, if a NIC had just these when the tables were made.
    pub(crate) fn set_of(&self, list: &[GroupId]) -> Option<GroupSet> {
        let members = members_of(&self.groups, list);
        let place = self.order.binary_search_by(|&set| self.members(set).cmp(&members));
        Some(self.order[place.ok()?])
    }

    /// The groups of a set, each with whether it has rules here.
    #[cfg(test)]
    pub(crate) fn described(&self, set: GroupSet) -> Vec<(GroupId, bool)> {
        self.members(set).iter().map(|one| (one.id, one.rules != NO_RULES)).collect()
    }

    fn members(&self, set: GroupSet) -> &[Member] {
        self.sets.get(set.0 as usize).map_or(&[], |members| members)
    }

    /// Judges the first packet of a connection by the rules of every group in `set`.
    pub(crate) fn judge(&self, set: GroupSet, question: &Question) -> Ruling {
        let peers = self.members(question.peer_groups);
        let mut best: Option<(u32, RuleId)> = None;
        for member in self.members(set) {
            let Some(group) = self.groups.get(member.rules as usize) else { continue };
            let lists = match question.direction {
                Direction::Inbound => &group.inbound,
                Direction::Outbound => &group.outbound,
            };
            let below = best.map_or(u32::MAX, |(rank, _)| rank);
            let found = match question.peer {
                IpAddr::V4(peer) => {
                    first_match(&lists.ipv4, peer.to_bits(), question, peers, below)
                }
                IpAddr::V6(peer) => {
                    first_match(&lists.ipv6, peer.to_bits(), question, peers, below)
                }
            };
            if let Some((rank, index)) = found {
                best = Some((rank, RuleId { group: group.id, index }));
            }
        }
        match best {
            Some((rank, rule)) => Ruling { is_allowed: rank & RANK_ALLOW != 0, rule: Some(rule) },
            None => Ruling { is_allowed: false, rule: None },
        }
    }
}

/// The first rule that matches, if its rank is lower than `below`.
fn first_match<A: Bits>(
    rules: &[Compiled<A>],
    peer: A,
    question: &Question,
    peers: &[Member],
    below: u32,
) -> Option<(u32, u16)> {
    // A packet without ports is matched by rules for all ports only.
    let (low, high) = question.port.map_or((0, u16::MAX), |port| (port, port));
    for rule in rules {
        if rule.rank >= below {
            return None;
        }
        let is_protocol = rule.protocol == question.protocol || rule.rank & RANK_ANY_PROTOCOL != 0;
        let is_port = rule.first <= low && high <= rule.last;
        if is_protocol
            && is_port
            && peer.is_within(rule.network, rule.mask)
            && (rule.group == 0 || peers.iter().any(|member| member.id.0 == rule.group))
        {
            return Some((rule.rank, rule.index));
        }
    }
    None
}

/// Builds the tables: groups first, then the sets as they come.
#[derive(Debug)]
pub(crate) struct SecurityBuilder {
    groups: Vec<Group>,
    sets: BTreeMap<Box<[Member]>, GroupSet>,
}

impl SecurityBuilder {
    /// `groups` have been checked: ids are single and not 0, and the limits are kept.
    pub(crate) fn new(groups: &[SecurityGroup]) -> Self {
        let mut compiled: Vec<Group> = groups.iter().map(compile_group).collect();
        compiled.sort_by_key(|group| group.id);
        let empty: Box<[Member]> = Box::new([]);
        Self { groups: compiled, sets: [(empty, GroupSet(0))].into() }
    }

    /// The set of these groups, which is the one of any other list of the same.
    pub(crate) fn intern(&mut self, list: &[GroupId]) -> GroupSet {
        let members = members_of(&self.groups, list);
        let next = u32::try_from(self.sets.len()).expect("sets are fewer than NICs");
        *self.sets.entry(members.into()).or_insert(GroupSet(next))
    }

    pub(crate) fn finish(self) -> SecurityTables {
        let order = self.sets.values().copied().collect();
        let mut sets: Vec<(Box<[Member]>, GroupSet)> = self.sets.into_iter().collect();
        sets.sort_by_key(|(_, set)| set.0);
        let sets = sets.into_iter().map(|(members, _)| members).collect();
        SecurityTables { groups: self.groups.into(), sets, order }
    }
}

/// Sorted by id, each once.
fn members_of(groups: &[Group], list: &[GroupId]) -> Vec<Member> {
    let place = |id| match groups.binary_search_by_key(&id, |group| group.id) {
        Ok(place) => u32::try_from(place).expect("groups are counted in 32 bits"),
        Err(_) => NO_RULES,
    };
    let mut members: Vec<Member> = list.iter().map(|&id| Member { id, rules: place(id) }).collect();
    members.sort();
    members.dedup();
    members
}

fn compile_group(group: &SecurityGroup) -> Group {
    Group {
        id: group.id,
        name: group.name.clone(),
        inbound: compile_lists(&group.rules, Direction::Inbound),
        outbound: compile_lists(&group.rules, Direction::Outbound),
    }
}

fn compile_lists(rules: &[Rule], direction: Direction) -> Lists {
    let mut ipv4 = Vec::new();
    let mut ipv6 = Vec::new();
    for (index, rule) in (0..).zip(rules).filter(|(_, rule)| rule.direction == direction) {
        match rule.peer {
            RulePeer::Any => {
                ipv4.push(compile_rule(rule, index, (0, 0), 32));
                ipv6.push(compile_rule(rule, index, (0, 0), 128));
            }
            RulePeer::Group(_) => {
                ipv4.push(compile_rule(rule, index, (0, 0), 0));
                ipv6.push(compile_rule(rule, index, (0, 0), 0));
            }
            RulePeer::Prefix(prefix) => {
                let host_bits = prefix.bits() - prefix.length();
                match prefix.network() {
                    IpAddr::V4(network) => {
                        let mask = u32::MAX.checked_shl(host_bits.into()).unwrap_or(0);
                        ipv4.push(compile_rule(rule, index, (network.to_bits(), mask), host_bits));
                    }
                    IpAddr::V6(network) => {
                        let mask = u128::MAX.checked_shl(host_bits.into()).unwrap_or(0);
                        ipv6.push(compile_rule(rule, index, (network.to_bits(), mask), host_bits));
                    }
                }
            }
        }
    }
    // Of rules with one rank the verdict is the same; the first one written is named.
    ipv4.sort_by_key(|rule| (rule.rank, rule.index));
    ipv6.sort_by_key(|rule| (rule.rank, rule.index));
    Lists { ipv4: ipv4.into(), ipv6: ipv6.into() }
}

fn compile_rule<A>(rule: &Rule, index: u16, (network, mask): (A, A), host_bits: u8) -> Compiled<A> {
    let (first, last) = match (rule.ports, rule.icmp) {
        (Some(ports), _) => ports,
        (None, Some((kind, Some(code)))) => {
            let both = u16::from_be_bytes([kind, code]);
            (both, both)
        }
        (None, Some((kind, None))) => {
            (u16::from_be_bytes([kind, 0]), u16::from_be_bytes([kind, u8::MAX]))
        }
        (None, None) => (0, u16::MAX),
    };
    let priority: u32 = match rule.priority {
        Priority::High => 0,
        Priority::Mid => 1,
        Priority::Low => 2,
    };
    let mut rank = priority << 26 | u32::from(host_bits) << 18 | u32::from(last - first) << 2;
    if rule.protocol.number().is_none() {
        rank |= RANK_ANY_PROTOCOL;
    }
    if rule.verdict == RuleVerdict::Allow {
        rank |= RANK_ALLOW;
    }
    let group = match rule.peer {
        RulePeer::Group(group) => group.0,
        RulePeer::Any | RulePeer::Prefix(_) => 0,
    };
    let protocol = rule.protocol.number().unwrap_or(0);
    Compiled { network, mask, group, rank, first, last, protocol, index }
}

#[cfg(test)]
mod tests;
