// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! What a node agent says to plinth-stored, and what it hears back.
//!
//! What must be served (pools, attachments) is given as a whole numbered [`StoreConfig`] that
//! the store keeps on disk; what is in a pool (volumes) is changed by commands and lives in the
//! pool itself. Messages are JSON, one a line, over a unix socket. A field that is not known is
//! an error: a configuration that is half understood must not be carried out.

use plinth_ids::{Epoch, Name, PoolId, VolumeId};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The format version of [`StoreConfig`] that this crate reads and writes.
pub const CONFIG_VERSION: u32 = 1;

/// Everything that one store process is to serve.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// [`CONFIG_VERSION`].
    pub version: u32,
    /// A snapshot with a lower number than the one in force is refused.
    pub epoch: Epoch,
    pub pools: Vec<Pool>,
    pub attachments: Vec<Attachment>,
}

/// A pool on one device or file, formatted earlier by [`Verb::PoolFormat`].
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    pub id: PoolId,
    pub device: PathBuf,
    pub durability: Durability,
}

/// When a write that asks for durability is acknowledged. A guest's FLUSH always flushes.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// After the device's cache was flushed.
    #[default]
    Flush,
    /// When the device has taken it: its cache survives power loss.
    Device,
}

/// A volume that is served on a vhost-user-blk socket.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    pub pool: PoolId,
    pub volume: VolumeId,
    /// Path of the vhost-user socket, made by the store.
    pub socket: PathBuf,
    /// 1 to 16.
    pub queues: u16,
    pub is_read_only: bool,
}

/// One request. `id` comes back with the reply.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    pub id: u64,
    pub verb: Verb,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Verb {
    /// Carry this out and keep it. Idempotent.
    Apply(StoreConfig),
    Status,
    /// Makes an empty pool. Refused where a pool is already, unless `overwrite`.
    /// `size` in bytes makes or grows a sparse file; a device is taken whole with `None`.
    PoolFormat {
        id: PoolId,
        device: PathBuf,
        size: Option<u64>,
        overwrite: bool,
    },
    Pools,
    /// Idempotent for the same id, name and size. `size` in bytes, a multiple of 512.
    VolumeCreate {
        pool: PoolId,
        volume: VolumeId,
        name: Name,
        size: u64,
    },
    /// A volume with the contents of another; nothing is copied until either is written.
    VolumeClone {
        pool: PoolId,
        source: VolumeId,
        volume: VolumeId,
        name: Name,
        size: u64,
    },
    VolumeGrow {
        pool: PoolId,
        volume: VolumeId,
        size: u64,
    },
    /// Refused while the volume is attached.
    VolumeDelete {
        pool: PoolId,
        volume: VolumeId,
    },
    Volumes {
        pool: PoolId,
    },
    /// Fills an existing, unattached volume from a raw file; holes stay holes. Answers when all
    /// is durable.
    VolumeImport {
        pool: PoolId,
        volume: VolumeId,
        source: PathBuf,
    },
    /// Writes a volume to a new sparse raw file.
    VolumeExport {
        pool: PoolId,
        volume: VolumeId,
        target: PathBuf,
    },
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Reply {
    pub id: u64,
    pub result: Result<Answer, Refusal>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    Applied { epoch: Epoch },
    Done,
    Status(Status),
    Pools(Vec<PoolStatus>),
    Volume(VolumeStatus),
    Volumes(Vec<VolumeStatus>),
}

/// The answer is no. `code` is stable, `text` is for people and names the remedy.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Refusal {
    pub code: String,
    pub text: String,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Status {
    pub process: u32,
    pub version: String,
    /// Of the configuration in force, if any.
    pub epoch: Option<Epoch>,
    pub attachments: Vec<AttachmentStatus>,
    /// Share of time since the last question that the worker spent on requests, 0 to 1.
    pub busy: f64,
    /// Cycles of the time-stamp counter spent in rounds that moved requests.
    pub busy_cycles: u64,
    pub requests: u64,
    pub sleeps: u64,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct AttachmentStatus {
    pub volume: VolumeId,
    pub socket: PathBuf,
    /// Why the socket is not there, for people; it is tried again. `None` when it is.
    #[serde(default)]
    pub fault: Option<String>,
    /// Whether a frontend has connected and started its queues.
    pub is_up: bool,
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
    pub errors: u64,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct PoolStatus {
    pub id: PoolId,
    pub device: PathBuf,
    /// `None` in service; else why not, for people.
    pub fault: Option<String>,
    /// Bytes that data can use, and bytes taken, whole units.
    pub capacity: u64,
    pub used: u64,
    pub volumes: u64,
    pub objects: u64,
    /// Blocks that failed their checksum since start.
    pub checksum_errors: u64,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct VolumeStatus {
    pub volume: VolumeId,
    pub name: Name,
    /// Bytes.
    pub size: u64,
    /// Bytes of the units that the volume's objects have, shared ones included.
    pub written: u64,
    pub objects: u64,
    /// Seconds since 1970.
    pub created_at: u64,
    pub updated_at: u64,
    pub attached: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_field_is_refused() {
        let text = r#"{"id":1,"verb":{"apply":{"version":1,"epoch":1,"pools":[],"attachments":[],"extra":1}}}"#;
        assert!(serde_json::from_str::<Request>(text).is_err());
        let text = text.replace(r#","extra":1"#, "");
        assert!(serde_json::from_str::<Request>(&text).is_ok());
    }

    #[test]
    fn a_request_is_one_line_a_person_can_write() {
        let request: Request = serde_json::from_str(r#"{"id":1,"verb":"pools"}"#).unwrap();
        assert_eq!(request, Request { id: 1, verb: Verb::Pools });
    }
}
