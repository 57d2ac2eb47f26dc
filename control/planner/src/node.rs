// SPDX-License-Identifier: Apache-2.0
//! Tokens and nodes.

use crate::change::{Change, Key, Record};
use crate::cluster::{Cluster, Observed};
use crate::names;
use crate::record::{Meta, NodeRecord, TokenRecord};
use plinth_api::{Code, Refusal, STORE_CORES_MAX, Underlay};
use plinth_ids::{Name, NodeId};
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// Tokens that may be open at once.
pub const TOKENS_MAX: usize = 1000;

const LIFETIME_MAX: u32 = 30 * 24 * 3600;

impl Cluster {
    /// Keeps a new token's digest. Tokens that have ended are dropped on the way.
    pub fn token_create(
        &self,
        digest: String,
        lifetime_seconds: u32,
        now: u64,
    ) -> Result<Change, Refusal> {
        if lifetime_seconds == 0 || lifetime_seconds > LIFETIME_MAX {
            return Err(Refusal::new(Code::Invalid, "a token lives 1 second to 30 days")
                .field("--lifetime")
                .remedy("give for example 1h"));
        }
        let mut change = Change::default();
        for token in self.tokens.values().filter(|token| token.expires_at <= now) {
            change = change.delete(Key::Token(token.digest.clone()));
        }
        if self.tokens.len() - change.writes.len() >= TOKENS_MAX {
            return Err(Refusal::new(Code::NoRoom, format!("{TOKENS_MAX} tokens are open"))
                .remedy("wait until some end"));
        }
        let expires_at = now + u64::from(lifetime_seconds);
        Ok(change.put(Record::Token(TokenRecord { digest, expires_at, used_by: None })))
    }

    /// A node joins with the token whose secret has this digest.
    ///
    /// The token is spent by it, also when the answer is lost on its way: the node then needs
    /// another token and another name.
    pub fn node_join(
        &self,
        digest: &str,
        name: Name,
        agent: SocketAddr,
        underlay: Option<Underlay>,
        now: u64,
    ) -> Result<(NodeId, Change), Refusal> {
        let token = self.tokens.get(digest).ok_or_else(|| {
            Refusal::new(Code::Denied, "this token is not one of this cluster")
                .field("TOKEN")
                .remedy("make one with `plinth node token`")
        })?;
        if token.expires_at <= now {
            return Err(Refusal::new(Code::Denied, "this token has expired")
                .field("TOKEN")
                .remedy("make another with `plinth node token`"));
        }
        if let Some(node) = &token.used_by {
            return Err(Refusal::new(
                Code::Denied,
                format!("this token was used already, by node {node}"),
            )
            .field("TOKEN")
            .remedy("make one for each node with `plinth node token`"));
        }
        let used = TokenRecord { used_by: Some(name.clone()), ..token.clone() };
        let (id, change) = self.node_add(name, agent, underlay, now)?;
        Ok((id, change.put(Record::Token(used))))
    }

    /// A node without a token: the one that the cluster is made on.
    pub fn node_add(
        &self,
        name: Name,
        agent: SocketAddr,
        underlay: Option<Underlay>,
        now: u64,
    ) -> Result<(NodeId, Change), Refusal> {
        names::free(&self.nodes, "node", &name)?;
        if let Some(other) = self.nodes.values().find(|node| node.agent == agent) {
            return Err(Refusal::new(
                Code::Exists,
                format!("node {} has the agent address {agent}", other.name),
            )
            .field("--agent")
            .remedy("give each node its own address"));
        }
        if let Some(underlay) = &underlay {
            self.check_underlay(underlay)?;
        }
        let id = NodeId(self.meta.next_node);
        let meta = Meta { next_node: self.meta.next_node + 1, ..self.meta.clone() };
        let store_cores = Vec::new();
        let node = NodeRecord { id, name, agent, underlay, created_at: now, store_cores };
        Ok((id, Change::default().put(Record::Meta(meta)).put(Record::Node(node))))
    }

    /// Chooses the CPUs of a node's store: one worker each, in this order; none leaves one worker
    /// to the system. Pools and disks find their worker by themselves.
    pub fn node_store_cores(
        &self,
        name: &Name,
        cores: Vec<u32>,
        observed: &Observed,
    ) -> Result<Change, Refusal> {
        let node = self.nodes.get(name).ok_or_else(|| {
            Refusal::new(Code::NotFound, format!("there is no node {name}"))
                .field("NAME")
                .remedy("see `plinth node list`")
        })?;
        if !cores.is_empty() {
            check_store_cores(node, &cores, observed)?;
        }
        if node.store_cores == cores {
            return Ok(Change::default());
        }
        let node = NodeRecord { store_cores: cores, ..node.clone() };
        Ok(Change::default().put(Record::Node(node)))
    }

    fn check_underlay(&self, underlay: &Underlay) -> Result<(), Refusal> {
        let taken = |node: &&NodeRecord| {
            node.underlay.as_ref().is_some_and(|other| other.vtep == underlay.vtep)
        };
        if let Some(other) = self.nodes.values().find(taken) {
            return Err(Refusal::new(
                Code::Exists,
                format!("node {} has the VTEP address {}", other.name, underlay.vtep),
            )
            .field("--vtep")
            .remedy("give each node its own address"));
        }
        if underlay.prefix_length == 0 || underlay.prefix_length > 32 {
            return Err(Refusal::new(
                Code::Invalid,
                format!("/{} is no prefix length for IPv4", underlay.prefix_length),
            )
            .field("--vtep")
            .remedy("give address and prefix, as in 172.16.0.1/24"));
        }
        if underlay.mtu < 600 {
            return Err(Refusal::new(
                Code::Invalid,
                format!("an MTU of {} leaves guests too little", underlay.mtu),
            )
            .field("--underlay-mtu")
            .remedy("give the MTU of the underlay, as in 1500"));
        }
        Ok(())
    }
}

/// Whether a store can have these workers on this node.
fn check_store_cores(node: &NodeRecord, cores: &[u32], observed: &Observed) -> Result<(), Refusal> {
    let invalid = |text: String| Refusal::new(Code::Invalid, text).field("CORES");
    if cores.len() > STORE_CORES_MAX {
        let text = format!("{} cores are too many for a store", cores.len());
        return Err(invalid(text).remedy(format!("give {STORE_CORES_MAX} at most")));
    }
    let mut seen = BTreeSet::new();
    if let Some(core) = cores.iter().find(|core| !seen.insert(**core)) {
        let text = format!("core {core} is in the list twice");
        return Err(invalid(text).remedy("give each worker a core of its own"));
    }
    let Some(status) = observed.status(node.id) else {
        let text = format!("node {} has not said yet how many cores it has", node.name);
        return Err(Refusal::new(Code::Unreachable, text)
            .remedy("try again when `plinth node show` has its cpu"));
    };
    let cpus = status.facts.cpus;
    if let Some(core) = cores.iter().find(|core| **core >= cpus) {
        let text = format!("node {} has no core {core}", node.name);
        let last = cpus.saturating_sub(1);
        return Err(invalid(text).remedy(format!("its cores are 0 to {last}")));
    }
    Ok(())
}
