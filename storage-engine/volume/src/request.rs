// SPDX-License-Identifier: Apache-2.0
//! What the volumes of a pool are asked and what they answer.

use plinth_ids::{Name, SnapshotId, VolumeId};
use plinth_store::{IoBuffer, StoreRefusal};

/// The most bytes that one read or write moves.
pub const REQUEST_BYTES_MAX: u32 = 4 << 20;

/// The caller's name for a request. It comes back with the completion.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct VolumeTag(pub u64);

/// An attached volume. Void after it was detached.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct VolumeHandle(pub u32);

/// What a new volume is to be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VolumeSpec {
    pub volume: VolumeId,
    pub name: Name,
    /// Bytes, a multiple of 512, at least 512.
    pub size: u64,
    /// Seconds since 1970, as the caller's clock has it.
    pub created_at: u64,
}

/// What a new snapshot is to be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SnapshotSpec {
    pub volume: VolumeId,
    pub snapshot: SnapshotId,
    pub name: Name,
    /// Random, and the same for a snapshot that is brought to another pool as a delta: that is
    /// how the other end knows that it has the state that the next delta starts from.
    pub identity: [u8; 16],
    pub created_at: u64,
}

/// One request. Offsets and lengths are bytes, multiples of 512.
///
/// The buffer of a read or write covers whole blocks: the byte at `offset` of the volume is the
/// byte at `offset % 4096` of the buffer, whose length is at least `offset % 4096 + length`
/// rounded up to 4096. One request moves at most 4 MiB.
#[derive(Debug)]
pub enum VolumeRequest {
    Read {
        volume: VolumeHandle,
        offset: u64,
        length: u32,
        buffer: IoBuffer,
    },
    Write {
        volume: VolumeHandle,
        offset: u64,
        length: u32,
        buffer: IoBuffer,
    },
    /// The range reads as zeros afterwards; whole units are given back. Any length.
    Zero {
        volume: VolumeHandle,
        offset: u64,
        length: u64,
    },
    /// The same as `Zero` for whole blocks; what is left at the ends is not touched.
    Discard {
        volume: VolumeHandle,
        offset: u64,
        length: u64,
    },
    /// Every acknowledged write is durable afterwards, on the device.
    Flush {
        volume: VolumeHandle,
    },
    /// Idempotent for an equal specification.
    Create {
        spec: VolumeSpec,
    },
    /// A volume with the contents of `source`, or of a snapshot of it, at least as large. Takes
    /// one transaction: the clone reads what it has not written from its source.
    Clone {
        source: VolumeId,
        snapshot: Option<SnapshotId>,
        spec: VolumeSpec,
    },
    /// Attached volumes grow too. A smaller size is refused, the same size is done already.
    Grow {
        volume: VolumeId,
        size: u64,
        now: u64,
    },
    /// Refused while attached, and while it has snapshots. Answered when the volume is gone for
    /// everybody; its space comes back in the background, also after a restart. With `wipe` what
    /// only the volume has is overwritten with zeros before; see [`crate::Volumes::wipes`].
    Delete {
        volume: VolumeId,
        wipe: bool,
    },
    /// Keeps the volume as it is, also while it is written. What is not answered yet may be in
    /// the snapshot or not. Idempotent for the same number and name.
    SnapshotCreate {
        spec: SnapshotSpec,
    },
    /// Refused while clones stand on it or somebody reads it. Answered when the snapshot is gone
    /// for everybody; its space comes back in the background, also after a restart.
    SnapshotDelete {
        volume: VolumeId,
        snapshot: SnapshotId,
    },
    /// Makes the volume what the snapshot is; later snapshots stay. Its size stays. Refused while
    /// attached. Goes on by itself after a restart; until it is done, nobody can attach.
    Rollback {
        volume: VolumeId,
        snapshot: SnapshotId,
        now: u64,
    },
    /// Gives a clone objects of its own for all that it inherits, so that it stands alone.
    /// Answered at the end. Goes on by itself after a restart.
    Flatten {
        volume: VolumeId,
    },
    /// Counts the units that would be freed.
    Usage {
        volume: VolumeId,
    },
    /// Where `to` may differ from `from`, or from nothing; `to` `None` is the volume as it is.
    /// One piece of the answer, from the byte `start` on.
    Changes {
        volume: VolumeId,
        from: Option<SnapshotId>,
        to: Option<SnapshotId>,
        start: u64,
    },
}

/// The end of one request.
#[derive(Debug)]
pub struct VolumeCompletion {
    pub tag: VolumeTag,
    /// The buffer of a read or write, also when it failed.
    pub buffer: Option<IoBuffer>,
    pub result: Result<(), VolumeRefusal>,
    /// What a question was answered with.
    pub answer: Option<Box<VolumeAnswer>>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum VolumeAnswer {
    Usage(VolumeUsage),
    Changes(Changes),
}

/// Bytes of units.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct VolumeUsage {
    /// That the volume's objects have, shared ones included; its snapshots' copies are not.
    pub written: u64,
    /// That only the volume has: what deleting it would free if its snapshots stayed.
    pub unique: u64,
    /// That only snapshots of the volume have: what deleting all of them would free.
    pub snapshots_unique: u64,
    /// That only this snapshot has: what deleting it would free.
    pub snapshots: Vec<(SnapshotId, u64)>,
}

/// A range in bytes.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct ChangedRange {
    pub offset: u64,
    pub length: u64,
    /// Nothing is written there in the later state: it reads as zeros.
    pub is_zero: bool,
}

/// Ranges of a volume in which two states of it may differ: blocks of 4 KiB, in order; two
/// that touch differ in what they are.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Changes {
    pub ranges: Vec<ChangedRange>,
    /// Where to go on, if this is not all.
    pub next: Option<u64>,
}

/// Why a request was not carried out.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum VolumeRefusal {
    #[error("there is no such volume")]
    NotFound,
    #[error("a volume of this number exists with another name or size")]
    Exists,
    #[error("a volume of this name exists")]
    NameTaken,
    #[error("the size must be a multiple of 512, at least 512 and at most 16 PiB")]
    BadSize,
    #[error("a volume does not shrink")]
    Shrink,
    #[error("the range is not whole sectors inside the volume, or moves more than 4 MiB")]
    BadRange,
    #[error("the buffer is shorter than the blocks of the range")]
    ShortBuffer,
    #[error("the handle is not that of an attached volume")]
    BadHandle,
    #[error("the volume is attached: detach it first")]
    Attached,
    #[error("the volume is being made, cloned or deleted")]
    Busy,
    #[error("the volumes are still being read: try again")]
    NotReady,
    #[error("the headers of the pool's volumes are on a disk that is missing: bring it back")]
    HeadersOut,
    #[error("the header of the volume cannot be understood")]
    BadHeader,
    #[error("the pool holds as many volumes as it can")]
    TooMany,
    #[error("the volume has no such snapshot")]
    SnapshotMissing,
    #[error("a snapshot of this number exists with another name")]
    SnapshotExists,
    #[error("the volume has a snapshot of this name: choose another")]
    SnapshotNameTaken,
    #[error("the volume has {count} snapshots: delete them first")]
    HasSnapshots { count: u32 },
    #[error("{child} is a clone of it, one of {count}: flatten or delete them first")]
    HasClones { child: VolumeId, count: u32 },
    #[error("somebody reads the snapshot: try again when that is done")]
    SnapshotInUse,
    #[error("the volume has as many snapshots as it can: delete some")]
    TooManySnapshots,
    #[error("the source is a clone of a clone, {depth} deep: flatten it first")]
    TooDeep { depth: u32 },
    #[error("the volume is no clone: there is nothing to flatten")]
    NoClone,
    #[error("a snapshot is not written to: clone it")]
    Snapshot,
    #[error("the store refused")]
    Store(#[from] StoreRefusal),
}

/// One volume, as the pool knows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VolumeStatus {
    pub volume: VolumeId,
    pub name: Name,
    /// Bytes.
    pub size: u64,
    /// Bytes of the units that the volume's objects have, shared ones included.
    pub written: u64,
    pub objects: u64,
    pub created_at: u64,
    pub updated_at: u64,
    pub is_attached: bool,
    /// What a clone stands on; the snapshot is `None` when it was taken for the clone alone.
    pub parent: Option<(VolumeId, Option<SnapshotId>)>,
    /// What is being done to it in the background.
    pub chore: Option<ChoreStatus>,
}

/// A deleted volume whose units are being overwritten.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WipeStatus {
    pub volume: VolumeId,
    /// Objects.
    pub done: u64,
    pub total: u64,
}

/// A long affair, and how many objects it has seen to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ChoreStatus {
    pub kind: ChoreKind,
    pub done: u64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ChoreKind {
    /// Gives back what a deleted volume has.
    Reclaim,
    /// Gives back what only deleted snapshots have.
    Trim,
    Rollback,
    Flatten,
    /// Answers a question.
    Count,
}

/// One snapshot, as its volume knows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SnapshotStatus {
    pub snapshot: SnapshotId,
    pub name: Name,
    pub identity: [u8; 16],
    /// Of the volume when it was taken, in bytes.
    pub size: u64,
    pub created_at: u64,
    /// Deleted; its space is coming back.
    pub is_leaving: bool,
}
