// SPDX-License-Identifier: Apache-2.0
//! Which node a VM goes to.
//!
//! Filters first: each node that cannot take the VM is refused with its reason. Of the rest the
//! one whose scarcer resource is least used afterwards wins; between equals the one with fewer
//! VMs, then the one that joined first.

use crate::size::Size;
use plinth_ids::{Name, NodeId};
use std::fmt;

/// What a VM needs of a node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Demand {
    pub vcpus: u64,
    pub memory: u64,
    /// Where its volumes are, if it has any.
    pub node: Option<NodeId>,
}

/// A node, as the planner sees it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Candidate {
    pub id: NodeId,
    pub name: Name,
    pub is_alive: bool,
    /// What keeps it from running VMs at all, as its preflight found.
    pub missing: Option<String>,
    pub vcpus_allocatable: u64,
    pub vcpus_allocated: u64,
    pub memory_allocatable: u64,
    pub memory_allocated: u64,
    pub vms: u64,
    /// Whether it has a pool with a copy of the image, where one is wanted.
    pub has_image: bool,
    /// The other node of one of the VM's VPCs that it cannot reach for want of an underlay.
    pub cut_off_from: Option<Name>,
}

/// Why a node cannot take a VM.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NodeRefusal {
    Dead,
    Missing { what: String },
    VolumesElsewhere,
    NoImage,
    NoUnderlay { peer: Name },
    Vcpus { needed: u64, left: u64 },
    Memory { needed: u64, left: u64 },
}

impl fmt::Display for NodeRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dead => f.write_str("its agent does not answer"),
            Self::Missing { what } => write!(f, "cannot run VMs: {what}"),
            Self::VolumesElsewhere => f.write_str("the volumes are on another node"),
            Self::NoImage => f.write_str("has no pool with a copy of the image"),
            Self::NoUnderlay { peer } => {
                write!(f, "no underlay joins it with {peer}, where the vpc has VMs")
            }
            Self::Vcpus { needed, left } => write!(f, "needs {needed} vCPU, {left} left"),
            Self::Memory { needed, left } => {
                write!(f, "needs {} of memory, {} left", Size(*needed), Size(*left))
            }
        }
    }
}

impl Candidate {
    const fn vcpus_left(&self) -> u64 {
        self.vcpus_allocatable.saturating_sub(self.vcpus_allocated)
    }

    const fn memory_left(&self) -> u64 {
        self.memory_allocatable.saturating_sub(self.memory_allocated)
    }

    /// Why this node cannot take the VM, if it cannot.
    pub fn refusal(&self, demand: &Demand) -> Option<NodeRefusal> {
        if !self.is_alive {
            return Some(NodeRefusal::Dead);
        }
        if let Some(what) = &self.missing {
            return Some(NodeRefusal::Missing { what: what.clone() });
        }
        if demand.node.is_some_and(|node| node != self.id) {
            return Some(NodeRefusal::VolumesElsewhere);
        }
        if !self.has_image {
            return Some(NodeRefusal::NoImage);
        }
        if let Some(peer) = &self.cut_off_from {
            return Some(NodeRefusal::NoUnderlay { peer: peer.clone() });
        }
        let (needed, left) = (demand.vcpus, self.vcpus_left());
        if needed > left {
            return Some(NodeRefusal::Vcpus { needed, left });
        }
        let (needed, left) = (demand.memory, self.memory_left());
        (needed > left).then_some(NodeRefusal::Memory { needed, left })
    }

    /// Thousandths of the scarcer resource that are given away once the VM is here.
    fn use_permille(&self, demand: &Demand) -> u64 {
        let share = |allocated: u64, more: u64, all: u64| {
            let permille =
                (u128::from(allocated) + u128::from(more)) * 1000 / u128::from(all.max(1));
            u64::try_from(permille).unwrap_or(u64::MAX)
        };
        share(self.vcpus_allocated, demand.vcpus, self.vcpus_allocatable).max(share(
            self.memory_allocated,
            demand.memory,
            self.memory_allocatable,
        ))
    }
}

/// The best node, or every node with its refusal.
pub fn place(
    candidates: &[Candidate],
    demand: &Demand,
) -> Result<NodeId, Vec<(Name, NodeRefusal)>> {
    let best = candidates
        .iter()
        .filter(|candidate| candidate.refusal(demand).is_none())
        .min_by_key(|candidate| (candidate.use_permille(demand), candidate.vms, candidate.id));
    best.map(|candidate| candidate.id).ok_or_else(|| {
        candidates
            .iter()
            .filter_map(|candidate| {
                candidate.refusal(demand).map(|refusal| (candidate.name.clone(), refusal))
            })
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(id: u32, vcpus: (u64, u64), memory: (u64, u64)) -> Candidate {
        Candidate {
            id: NodeId(id),
            name: format!("node-{id}").parse().unwrap(),
            is_alive: true,
            missing: None,
            vcpus_allocated: vcpus.0,
            vcpus_allocatable: vcpus.1,
            memory_allocated: memory.0,
            memory_allocatable: memory.1,
            vms: 0,
            has_image: true,
            cut_off_from: None,
        }
    }

    const DEMAND: Demand = Demand { vcpus: 8, memory: 100, node: None };

    #[test]
    fn every_refusal_says_what_is_needed_and_left() {
        let candidates = [
            Candidate { is_alive: false, ..node(1, (0, 9), (0, 900)) },
            Candidate { missing: Some("no io_uring".to_owned()), ..node(2, (0, 9), (0, 900)) },
            Candidate { has_image: false, ..node(3, (0, 9), (0, 900)) },
            Candidate {
                cut_off_from: Some("node-1".parse().unwrap()),
                ..node(4, (0, 9), (0, 900))
            },
            node(5, (4, 9), (0, 900)),
            node(6, (0, 9), (801, 900)),
        ];
        let refusals = place(&candidates, &DEMAND).unwrap_err();
        let lines: Vec<String> =
            refusals.iter().map(|(name, refusal)| format!("{name}: {refusal}")).collect();
        assert_eq!(
            lines,
            [
                "node-1: its agent does not answer",
                "node-2: cannot run VMs: no io_uring",
                "node-3: has no pool with a copy of the image",
                "node-4: no underlay joins it with node-1, where the vpc has VMs",
                "node-5: needs 8 vCPU, 5 left",
                "node-6: needs 100 of memory, 99 left",
            ]
        );
        let elsewhere = Demand { node: Some(NodeId(9)), ..DEMAND };
        assert_eq!(
            node(1, (0, 9), (0, 900)).refusal(&elsewhere),
            Some(NodeRefusal::VolumesElsewhere)
        );
    }

    #[test]
    fn the_least_used_node_wins_and_ties_go_to_fewer_vms() {
        let busy = node(1, (8, 32), (0, 900));
        let idle = node(2, (0, 32), (0, 900));
        assert_eq!(place(&[busy, idle.clone()], &DEMAND), Ok(NodeId(2)));
        let crowded = Candidate { vms: 3, ..node(1, (0, 32), (0, 900)) };
        assert_eq!(place(&[crowded, idle], &DEMAND), Ok(NodeId(2)));
    }

    prop_compose! {
        fn any_node()(id in 0..9u32, vcpus in (0..64u64, 0..64u64), memory in (0..900u64, 0..900u64),
            is_alive: bool, has_image: bool, vms in 0..5u64) -> Candidate {
            Candidate { is_alive, has_image, vms, ..node(id, vcpus, memory) }
        }
    }

    proptest! {
        /// Whatever the nodes are, the answer fits, nothing better was passed over, and where
        /// nothing fits every node is explained.
        #[test]
        fn the_choice_fits_and_is_the_best(
            nodes in prop::collection::vec(any_node(), 0..8),
            vcpus in 1..20u64,
            memory in 1..400u64,
        ) {
            let demand = Demand { vcpus, memory, node: None };
            let fits = |n: &&Candidate| {
                n.is_alive
                    && n.has_image
                    && n.vcpus_allocated + vcpus <= n.vcpus_allocatable
                    && n.memory_allocated + memory <= n.memory_allocatable
            };
            match place(&nodes, &demand) {
                Ok(id) => {
                    let best = nodes.iter().filter(fits).map(|n| n.use_permille(&demand)).min();
                    let chosen = nodes.iter().filter(fits).filter(|n| n.id == id);
                    prop_assert!(chosen.map(|n| Some(n.use_permille(&demand))).any(|u| u == best));
                }
                Err(refusals) => {
                    prop_assert_eq!(nodes.iter().filter(fits).count(), 0);
                    prop_assert_eq!(refusals.len(), nodes.len());
                }
            }
        }
    }
}
