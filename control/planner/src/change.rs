// SPDX-License-Identifier: Apache-2.0
//! Records by key, and atomic changes of them.

use crate::record::{
    BalancerRecord, EipRecord, GatewayRecord, GroupRecord, ImageRecord, LineRecord, Meta,
    NodeRecord, PoolRecord, SnapshotRecord, SubnetRecord, TokenRecord, VmRecord, VolumeRecord,
    VpcRecord,
};
use plinth_ids::Name;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Where a record stands in the registry.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Key {
    Meta,
    Token(String),
    Node(Name),
    Pool(Name),
    Image(Name),
    Volume(Name),
    /// A volume and one of its snapshots.
    Snapshot(Name, Name),
    Vpc(Name),
    Subnet(Name),
    Group(Name),
    Line(Name),
    Eip(Name),
    Gateway(Name),
    Balancer(Name),
    Vm(Name),
}

/// The registry's text for a key, as in `vm/web-1`.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Meta => f.write_str("meta"),
            Self::Token(digest) => write!(f, "token/{digest}"),
            Self::Node(name) => write!(f, "node/{name}"),
            Self::Pool(name) => write!(f, "pool/{name}"),
            Self::Image(name) => write!(f, "image/{name}"),
            Self::Volume(name) => write!(f, "volume/{name}"),
            Self::Snapshot(volume, name) => write!(f, "snapshot/{volume}/{name}"),
            Self::Vpc(name) => write!(f, "vpc/{name}"),
            Self::Subnet(name) => write!(f, "subnet/{name}"),
            Self::Group(name) => write!(f, "group/{name}"),
            Self::Line(name) => write!(f, "line/{name}"),
            Self::Eip(name) => write!(f, "eip/{name}"),
            Self::Gateway(name) => write!(f, "gateway/{name}"),
            Self::Balancer(name) => write!(f, "balancer/{name}"),
            Self::Vm(name) => write!(f, "vm/{name}"),
        }
    }
}

/// One record. In the registry it is JSON, tagged with its kind.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Record {
    Meta(Meta),
    Token(TokenRecord),
    Node(NodeRecord),
    Pool(PoolRecord),
    Image(ImageRecord),
    Volume(VolumeRecord),
    Snapshot(SnapshotRecord),
    Vpc(VpcRecord),
    Subnet(SubnetRecord),
    Group(GroupRecord),
    Line(LineRecord),
    Eip(EipRecord),
    Gateway(GatewayRecord),
    Balancer(BalancerRecord),
    Vm(VmRecord),
}

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("the record at {key} is not readable")]
    Json { key: String, source: serde_json::Error },
    #[error("the record at {key} belongs at {belongs}")]
    Misplaced { key: String, belongs: String },
}

impl Record {
    pub fn key(&self) -> Key {
        match self {
            Self::Meta(_) => Key::Meta,
            Self::Token(token) => Key::Token(token.digest.clone()),
            Self::Node(node) => Key::Node(node.name.clone()),
            Self::Pool(pool) => Key::Pool(pool.name.clone()),
            Self::Image(image) => Key::Image(image.name.clone()),
            Self::Volume(volume) => Key::Volume(volume.name.clone()),
            Self::Snapshot(snapshot) => {
                Key::Snapshot(snapshot.volume.clone(), snapshot.name.clone())
            }
            Self::Vpc(vpc) => Key::Vpc(vpc.name.clone()),
            Self::Subnet(subnet) => Key::Subnet(subnet.name.clone()),
            Self::Group(group) => Key::Group(group.name.clone()),
            Self::Line(line) => Key::Line(line.name.clone()),
            Self::Eip(eip) => Key::Eip(eip.name.clone()),
            Self::Gateway(gateway) => Key::Gateway(gateway.name.clone()),
            Self::Balancer(balancer) => Key::Balancer(balancer.name.clone()),
            Self::Vm(vm) => Key::Vm(vm.name.clone()),
        }
    }

    /// The registry's bytes.
    pub fn emit(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("records have text keys and finite numbers only")
    }

    /// Reads what [`Self::emit`] wrote, found at `key`.
    pub fn parse(key: &str, bytes: &[u8]) -> Result<Self, RecordError> {
        let record: Self = serde_json::from_slice(bytes)
            .map_err(|source| RecordError::Json { key: key.to_owned(), source })?;
        let belongs = record.key().to_string();
        if belongs == key {
            Ok(record)
        } else {
            Err(RecordError::Misplaced { key: key.to_owned(), belongs })
        }
    }
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Write {
    Put(Record),
    Delete(Key),
}

impl Write {
    pub fn key(&self) -> Key {
        match self {
            Self::Put(record) => record.key(),
            Self::Delete(key) => key.clone(),
        }
    }
}

/// Writes that happen together or not at all.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[must_use]
pub struct Change {
    pub writes: Vec<Write>,
}

impl Change {
    pub fn put(mut self, record: Record) -> Self {
        self.writes.push(Write::Put(record));
        self
    }

    pub fn delete(mut self, key: Key) -> Self {
        self.writes.push(Write::Delete(key));
        self
    }

    pub const fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }
}
