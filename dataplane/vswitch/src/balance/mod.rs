// SPDX-License-Identifier: Apache-2.0
//! Balancers as the stages see them: which address and port stands for which backends, and which
//! of them a new connection gets.
//!
//! ```text
//!  (VPC, address) ─▶ a balancer's? ─▶ (VPC, address, protocol, port) ─▶ listener
//!                                                                          │ scheduler
//!   client had one? ─▶ it, if it still serves      turn, fewest, hash ◀────┘
//! ```
//!
//! The tables change with the configuration only. What changes with connections is a number a
//! listener, whose turn it is; a number a backend, kept by the flow table; and the clients that
//! are to get the same backend again. All are at places that stay from one configuration to the
//! next.

mod clients;
mod maglev;
mod places;

pub(crate) use places::Places;

use crate::external::OUTSIDE;
use crate::flow::FlowKey;
use crate::lookup::Lookup;
use crate::snapshot::{Destination, Owner};
use clients::Clients;
use maglev::{Seat, fill, hash_of, mix, reduced};
use plinth_ids::{Moment, Name, Vni};
use plinth_switch_api::{
    Backend, BackendState, BackendStatus, Balancer, ForwardProtocol, Listener, Scheduler,
    SwitchConfig,
};
use plinth_wire::{PROTOCOL_TCP, PROTOCOL_UDP};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// What a listener is known by from one configuration to the next.
type ListenerKey = (Name, u8, u16);
/// And a backend.
type BackendKey = (Name, u8, u16, IpAddr, u16);

/// A backend that gets new connections.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Choice {
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    weight: u16,
    /// Under which its connections are counted.
    pub(crate) place: u32,
}

/// A listener's table by hash, with what it was made of.
#[derive(Clone, Debug)]
struct Hashing {
    seats: Arc<[Seat]>,
    table: Arc<[u16]>,
}

#[derive(Debug)]
pub(crate) struct ListenerTables {
    pub(crate) place: u32,
    first: u16,
    last: u16,
    /// The VPC of its backends.
    pub(crate) home: Vni,
    scheduler: Scheduler,
    /// In milliseconds.
    stickiness: Option<u32>,
    /// Sorted by address and port.
    pub(crate) choices: Box<[Choice]>,
    /// Who may keep connections, sorted.
    keeping: Box<[(IpAddr, u16)]>,
    /// Sums of weights, for turns.
    sums: Box<[u32]>,
    hashing: Option<Hashing>,
}

#[derive(Debug, Default)]
pub(crate) struct BalancerTables {
    /// Addresses of balancers, in the VPC of their clients.
    addresses: Lookup<(Vni, IpAddr), ()>,
    /// VPCs with an address of the VPC's own.
    vnis: Lookup<Vni, ()>,
    /// By the first port.
    listeners: BTreeMap<(Vni, IpAddr, u8, u16), ListenerTables>,
    places: Places<ListenerKey>,
    backends: Places<BackendKey>,
    by_name: BTreeMap<ListenerKey, Hashing>,
}

/// What is written down when a connection begins.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Chosen {
    listener: u32,
    pub(crate) backend: u32,
    stickiness: Option<u32>,
}

impl BalancerTables {
    /// Of all listeners, who gets new connections.
    #[cfg(test)]
    pub(crate) fn choices(&self) -> Vec<(IpAddr, u16)> {
        let choices = self.listeners.values().flat_map(|listener| &listener.choices);
        choices.map(|choice| (choice.address, choice.port)).collect()
    }

    /// Upon `previous`, whose places stay and whose tables are kept where they would be the same.
    /// `owner` says who has an address, `is_unfit` who gets no new connections.
    pub(crate) fn new(
        config: &SwitchConfig,
        previous: &Self,
        owner: impl Fn(Vni, IpAddr) -> Option<Owner>,
        is_unfit: impl Fn(&Balancer, &Listener, &Backend) -> bool,
    ) -> Self {
        if config.balancers.is_empty() {
            return Self::default();
        }
        let mut tables = Self {
            places: Places::upon(&previous.places, all_listeners(config).map(key_of)),
            backends: Places::upon(&previous.backends, all_backends(config)),
            ..Self::default()
        };
        tables.addresses =
            config.balancers.iter().map(|given| ((scope(given), given.address), ())).collect();
        let inner = config.balancers.iter().filter(|given| given.line.is_none());
        tables.vnis = inner.map(|given| (given.vni, ())).collect();
        for (balancer, listener) in all_listeners(config) {
            let name = key_of((balancer, listener));
            let at = (scope(balancer), balancer.address, name.1, name.2);
            let made = tables.listener((balancer, listener), &previous.by_name, &owner, &is_unfit);
            if let Some(hashing) = &made.hashing {
                tables.by_name.insert(name, hashing.clone());
            }
            tables.listeners.insert(at, made);
        }
        tables
    }

    fn listener(
        &self,
        (balancer, listener): (&Balancer, &Listener),
        previous: &BTreeMap<ListenerKey, Hashing>,
        owner: impl Fn(Vni, IpAddr) -> Option<Owner>,
        is_unfit: impl Fn(&Balancer, &Listener, &Backend) -> bool,
    ) -> ListenerTables {
        let name = key_of((balancer, listener));
        let has_nic = |backend: &Backend| {
            let owner = owner(balancer.vni, backend.address);
            // What comes from outside is answered from the node that it came to.
            owner.is_some_and(|owner| {
                balancer.line.is_none() || matches!(owner.destination, Destination::Local(_))
            })
        };
        let mut choices: Vec<Choice> = listener
            .backends
            .iter()
            .filter(|backend| backend.state == BackendState::Active && has_nic(backend))
            .filter(|backend| !is_unfit(balancer, listener, backend))
            .map(|backend| Choice {
                address: backend.address,
                port: backend.port,
                weight: backend.weight,
                place: self.backends.get(&backend_key(&name, backend)).unwrap_or(0),
            })
            .collect();
        choices.sort_by_key(|choice| (choice.address, choice.port));
        let keeping = listener.backends.iter().filter(|given| given.state != BackendState::Down);
        let mut keeping: Vec<_> = keeping.map(|given| (given.address, given.port)).collect();
        keeping.sort_unstable();
        let weights = choices.iter().map(|choice| u32::from(choice.weight));
        // Two of weight 10 are served by turns of one, and not of twenty in some order.
        let common = weights.fold(0, divisor).max(1);
        let sums = choices.iter().scan(0, |sum, choice| {
            *sum += u32::from(choice.weight) / common;
            Some(*sum)
        });
        let hashing = (listener.scheduler == Scheduler::SourceHash && !choices.is_empty())
            .then(|| hashing(&choices, previous.get(&name)));
        ListenerTables {
            place: self.places.get(&name).unwrap_or(0),
            first: listener.ports.0,
            last: listener.ports.1,
            home: balancer.vni,
            scheduler: listener.scheduler,
            stickiness: listener.stickiness.map(|seconds| seconds.saturating_mul(1000)),
            sums: sums.collect(),
            choices: choices.into(),
            keeping: keeping.into(),
            hashing,
        }
    }

    /// Whether an address is a balancer's for who is in a VPC, or outside.
    pub(crate) fn has(&self, from: Vni, address: IpAddr) -> bool {
        self.addresses.get(&(from, address)).is_some()
    }

    /// Whether a packet without ports may be one that a backend of this VPC answers with.
    pub(crate) fn are_in(&self, vni: Vni) -> bool {
        self.vnis.get(&vni).is_some()
    }

    /// Who serves what a packet is for that comes in from `from`.
    pub(crate) fn listener_of(&self, from: Vni, key: &FlowKey) -> Option<&ListenerTables> {
        let (_, address) = key.addresses();
        let (protocol, port) = (key.protocol(), key.destination_port());
        if !matches!(protocol, PROTOCOL_TCP | PROTOCOL_UDP) {
            return None;
        }
        let range = (from, address, protocol, 0)..=(from, address, protocol, port);
        let (_, listener) = self.listeners.range(range).next_back()?;
        (port <= listener.last).then_some(listener)
    }

    /// Whether a connection that was balanced so may still be; `None` if it is for no balancer.
    /// `from` is the key of its first packet as it came in, and `to` as it went.
    pub(crate) fn holds(&self, from: &FlowKey, to: &FlowKey, vni: Vni) -> Option<bool> {
        let begun = from.ingress().vni;
        let (source, destination) = from.addresses();
        if !self.has(begun, destination) {
            return None;
        }
        let (new_source, backend) = to.addresses();
        let holds = self.listener_of(begun, from).is_some_and(|listener| {
            let port = to.destination_port().wrapping_sub(from.destination_port());
            let port = port.wrapping_add(listener.first);
            let is_kept = listener.keeping.binary_search(&(backend, port)).is_ok();
            is_kept && listener.home == vni && new_source == source
        });
        Some(holds && to.source_port() == from.source_port())
    }
}

impl ListenerTables {
    /// The number of the choice that a connection gets, which is below that of choices. With more
    /// attempts, others. There must be a choice.
    pub(crate) fn pick(&self, key: &FlowKey, turn: u32, counts: &[u32], attempt: u32) -> usize {
        let of_turn = || self.of_turn(turn.wrapping_add(attempt));
        match (self.scheduler, &self.hashing) {
            (Scheduler::SourceHash, Some(hashing)) => {
                let hash = mix(hash_of(key.addresses().0) ^ u64::from(attempt));
                let size = u32::try_from(hashing.table.len()).unwrap_or(1);
                usize::from(hashing.table[reduced(hash, size) as usize])
            }
            (Scheduler::LeastConnections, _) if attempt == 0 => self.least(counts),
            _ => of_turn(),
        }
    }

    /// Every turn of a round, of which there are as many as all weights together, is one backend's
    /// once for each unit of its weight; the step keeps the turns of one apart.
    fn of_turn(&self, turn: u32) -> usize {
        let total = self.sums.last().copied().unwrap_or(1).max(1);
        let at = u64::from(turn % total) * u64::from(step_of(total)) % u64::from(total);
        self.sums.partition_point(|&sum| u64::from(sum) <= at)
    }

    fn least(&self, counts: &[u32]) -> usize {
        let load = |choice: &Choice| counts.get(choice.place as usize).copied().unwrap_or(0);
        let mut best = 0;
        for (number, choice) in self.choices.iter().enumerate() {
            let (ours, theirs) = (choice, &self.choices[best]);
            // load / weight, compared without a division; one more, so that weights count at rest.
            let left = (u64::from(load(ours)) + 1) * u64::from(theirs.weight);
            let right = (u64::from(load(theirs)) + 1) * u64::from(ours.weight);
            if left < right {
                best = number;
            }
        }
        best
    }

    /// The choice at a backend's place.
    pub(crate) fn choice_at(&self, place: u32) -> Option<usize> {
        self.choices.iter().position(|choice| choice.place == place)
    }

    /// What the destination port of a packet becomes at a backend.
    pub(crate) const fn port_at(&self, choice: &Choice, port: u16) -> u16 {
        choice.port.wrapping_add(port.wrapping_sub(self.first))
    }

    pub(crate) const fn is_sticky(&self) -> bool {
        self.stickiness.is_some()
    }

    pub(crate) const fn chosen(&self, choice: &Choice) -> Chosen {
        Chosen { listener: self.place, backend: choice.place, stickiness: self.stickiness }
    }
}

/// What connections change, which one worker writes.
#[derive(Debug)]
pub(crate) struct BalancerState {
    /// By the listener's place.
    turns: Box<[u32]>,
    pub(crate) clients: Clients,
}

impl BalancerState {
    pub(crate) fn new(listeners: u32, clients: u32) -> Self {
        Self { turns: vec![0; listeners as usize].into(), clients: Clients::new(clients) }
    }

    pub(crate) fn turn(&self, listener: u32) -> u32 {
        self.turns.get(listener as usize).copied().unwrap_or(0)
    }

    /// Takes notice of a connection that has begun with `packet`.
    pub(crate) fn begun(
        &mut self,
        now: Moment,
        flows: &crate::flow::FlowTable,
        packet: &FlowKey,
        chosen: &Chosen,
    ) {
        if let Some(turn) = self.turns.get_mut(chosen.listener as usize) {
            *turn = turn.wrapping_add(1);
        }
        if let Some(kept) = chosen.stickiness {
            let places = (chosen.listener, chosen.backend);
            self.clients.remember(now, flows, packet, places, kept);
        }
    }
}

/// Every backend as it is shown, with its connections.
pub(crate) fn status<'a>(
    config: &'a SwitchConfig,
    tables: &'a BalancerTables,
    of: &'a Name,
    counts: &'a [u32],
) -> impl Iterator<Item = BackendStatus> + 'a {
    let listeners = all_listeners(config).filter(move |(balancer, _)| balancer.name == *of);
    listeners.flat_map(move |(balancer, listener)| {
        let name = key_of((balancer, listener));
        listener.backends.iter().map(move |backend| {
            let place = tables.backends.get(&backend_key(&name, backend));
            let count = place.and_then(|place| counts.get(place as usize)).copied();
            BackendStatus {
                balancer: balancer.name.clone(),
                protocol: listener.protocol,
                port: listener.ports.0,
                backend: backend.address,
                backend_port: backend.port,
                state: backend.state,
                connections: count.unwrap_or(0),
            }
        })
    })
}

/// How far one turn is from the next in a round of `total`: near the golden section of it, and
/// without a common divisor.
fn step_of(total: u32) -> u32 {
    let start = u32::try_from(u64::from(total) * 618 / 1000).unwrap_or(1).max(1);
    (start..).find(|&step| divisor(step, total) == 1).unwrap_or(1)
}

const fn divisor(a: u32, b: u32) -> u32 {
    let (mut a, mut b) = (a, b);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// The table of the choices: the one before, if it was made of the same.
fn hashing(choices: &[Choice], previous: Option<&Hashing>) -> Hashing {
    let seat = |choice: &Choice| {
        let Choice { address, port, weight, .. } = *choice;
        Seat { address, port, weight }
    };
    let seats: Vec<Seat> = choices.iter().map(seat).collect();
    match previous {
        Some(previous) if *previous.seats == *seats => previous.clone(),
        _ => Hashing { table: fill(&seats).into(), seats: seats.into() },
    }
}

/// The most places that the tables of a configuration can have.
pub(crate) fn hash_places(config: &SwitchConfig) -> usize {
    let hashed = all_listeners(config)
        .filter(|(_, listener)| listener.scheduler == Scheduler::SourceHash)
        .map(|(_, listener)| plinth_switch_api::hash_places(listener.backends.len()) as usize);
    hashed.sum()
}

/// Where the clients of a balancer are.
fn scope(balancer: &Balancer) -> Vni {
    if balancer.line.is_some() { OUTSIDE } else { balancer.vni }
}

fn all_listeners(config: &SwitchConfig) -> impl Iterator<Item = (&Balancer, &Listener)> {
    let each = config.balancers.iter();
    each.flat_map(|balancer| balancer.listeners.iter().map(move |listener| (balancer, listener)))
}

fn all_backends(config: &SwitchConfig) -> impl Iterator<Item = BackendKey> {
    all_listeners(config).flat_map(|(balancer, listener)| {
        let name = key_of((balancer, listener));
        listener.backends.iter().map(move |backend| backend_key(&name, backend))
    })
}

fn key_of((balancer, listener): (&Balancer, &Listener)) -> ListenerKey {
    let protocol = match listener.protocol {
        ForwardProtocol::Tcp => PROTOCOL_TCP,
        ForwardProtocol::Udp => PROTOCOL_UDP,
    };
    (balancer.name.clone(), protocol, listener.ports.0)
}

fn backend_key(listener: &ListenerKey, backend: &Backend) -> BackendKey {
    (listener.0.clone(), listener.1, listener.2, backend.address, backend.port)
}
