// SPDX-License-Identifier: Apache-2.0
//! Tokens and nodes.

use crate::change::{Change, Key, Record};
use crate::cluster::Cluster;
use crate::names;
use crate::record::{Meta, NodeRecord, TokenRecord};
use plinth_api::{Code, Refusal, Underlay};
use plinth_ids::{Name, NodeId};
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
        let node = NodeRecord { id, name, agent, underlay, created_at: now };
        Ok((id, Change::default().put(Record::Meta(meta)).put(Record::Node(node))))
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
