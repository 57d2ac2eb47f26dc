// SPDX-License-Identifier: Apache-2.0
//! What a store is asked and what it answers.

use crate::buffer::IoBuffer;
use plinth_ids::PoolId;
use std::fmt;
use std::ops::RangeInclusive;

/// The largest object.
pub const OBJECT_SIZE_MAX: u32 = 4 << 20;

/// The most steps of a transaction.
pub const STEPS_MAX: usize = 32;

/// The most objects in one answer to a `List`.
pub const LIST_MAX: usize = 1024;

/// A placement group: the objects whose operations are ordered among each other.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PgId(pub u32);

/// The name of an object in its placement group. Its owner gives it meaning.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ObjectId(pub u128);

/// The whole address of an object. The order of keys is the order of lists.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ObjectKey {
    pub pool: PoolId,
    pub pg: PgId,
    pub object: ObjectId,
    /// 0 is the object that is written to; snapshots have other numbers.
    pub snapshot: u64,
}

impl ObjectKey {
    /// The last key there can be.
    pub const MAX: Self = Self {
        pool: PoolId(u32::MAX),
        pg: PgId(u32::MAX),
        object: ObjectId(u128::MAX),
        snapshot: u64::MAX,
    };
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pg, object, snapshot, .. } = self;
        let (pool, _) = crate::keys::group_of(self);
        if crate::keys::is_companion(self) {
            f.write_str("the keys of ")?;
        } else if crate::keys::is_hidden(self) {
            return write!(f, "the log of {pool}/{}", pg.0);
        }
        write!(f, "{pool}/{}/{:032x}@{snapshot}", pg.0, object.0)
    }
}

/// The caller's name for a request. It comes back with the completion.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct StoreTag(pub u64);

/// One request.
///
/// A buffer covers whole blocks: the byte at `offset` of the object is the byte at
/// `offset % 4096` of the buffer, and the buffer's length is at least
/// `offset % 4096 + length` rounded up to whole blocks. So a range that starts inside a block
/// needs no shifting when the rest of the block is filled in.
#[derive(Debug)]
pub enum StoreRequest {
    /// Fills the buffer with whole blocks around the range. An object or a range that was never
    /// written reads as zeros.
    Read { key: ObjectKey, offset: u32, length: u32, buffer: IoBuffer },
    /// Writes one range, of any alignment. The object is made if it is not there.
    Write { key: ObjectKey, offset: u32, length: u32, buffer: IoBuffer },
    /// All of it or nothing, in order, on objects of one placement group.
    Apply { transaction: Vec<Operation> },
    /// Reads an object's attributes.
    Attributes { key: ObjectKey },
    /// Names at most `limit` objects of the range (1 to [`LIST_MAX`]; more is cut), in order, as
    /// they are after every change that was submitted before this. A change that is submitted
    /// later may be seen too.
    List { range: RangeInclusive<ObjectKey>, limit: usize },
    /// Reads an object's size, units and version.
    Status { key: ObjectKey },
    /// Counts what the object holds: its units, those that no other object has, its written
    /// blocks.
    Usage { key: ObjectKey },
    /// Counts what several objects of one placement group hold together, at most [`LIST_MAX`]: a
    /// unit that some of them share once, and as theirs alone if nobody else has it. Objects that
    /// are not there hold nothing. Answered with [`StoreAnswer::Usage`].
    UsageOf { keys: Vec<ObjectKey> },
    /// Names the blocks in which the bytes of two objects may differ. Blocks in the same unit are
    /// equal; blocks in different units count as different whatever they hold, for nothing is
    /// read. An object that is not there is one of zeros. Sizes and attributes are not compared.
    Compare { a: ObjectKey, b: ObjectKey },
    /// Looks up keys of the object, at most [`LIST_MAX`].
    GetKeys { key: ObjectKey, names: Vec<Vec<u8>> },
    /// Names at most `limit` pairs of the object (1 to [`LIST_MAX`], and at most 1 MiB) whose keys
    /// come behind `after`, in the order of their bytes. To go on, give the last key: pairs that
    /// come or go meanwhile do not disturb those that stay.
    ListKeys { key: ObjectKey, after: Option<Vec<u8>>, limit: usize },
    /// Reads at most `limit` entries of a group's log (1 to [`LIST_MAX`], and at most 1 MiB) whose
    /// versions are higher than `after`, in order.
    ReadLog { pool: PoolId, pg: PgId, after: u64, limit: usize },
    /// Writes zeros over the units of the object in which nothing is written and that no other
    /// object has: those that [`Operation::Scrap`] left. Answered when the device has the zeros.
    Wipe { key: ObjectKey },
    /// Writes the whole journal over, so that no bytes of earlier changes are left in it. Answered
    /// with [`StoreAnswer::Flushed`] when the device has that; durable behind a later flush.
    TurnJournal,
    /// Makes durable every change that was acknowledged before this, whatever the pool's
    /// durability is: it ends after a flush of the device that began when all of that was written.
    Flush,
}

/// A step of a transaction.
///
/// A step sees the steps before it. Each object may be, in this order, cloned from (any number of
/// times), then changed by one step that is about its data (`Write`, `WriteFull`, `Zero`,
/// `Scrap`, `Truncate`) or about all of it (`Remove`, `Clone` into). Steps on attributes may stand
/// anywhere, but not before a step about all of the object, nor behind a `Remove`; so may those on
/// keys, but not before a clone is made of the object, nor on a clone. An object that is cloned
/// from is there before the transaction. At most [`STEPS_MAX`] steps.
///
/// What was cloned into may be changed by one step about its data, if the transaction leaves what it
/// was cloned from as it is. So `Clone { source: X, target: Y }` with a `Write` of Y behind it is
/// the first write of an object that Y has from elsewhere.
///
/// So `Clone { source: X, target: Y }` with a `Write` of X behind it is the first write after a
/// snapshot: Y keeps the old bytes, X gets the new ones, both or neither after a crash.
#[derive(Debug)]
pub enum Operation {
    /// Makes the object if it is not there.
    Touch {
        key: ObjectKey,
    },
    /// Changes nothing; refuses the whole transaction unless the object has this version before
    /// it. 0: there is no such object. Stands before the steps that change the object.
    Expect {
        key: ObjectKey,
        version: u64,
    },
    Write {
        key: ObjectKey,
        offset: u32,
        length: u32,
        buffer: IoBuffer,
    },
    /// Replaces the whole contents; `length` is the object's size afterwards.
    WriteFull {
        key: ObjectKey,
        length: u32,
        buffer: IoBuffer,
    },
    /// The range, of whole 4 KiB blocks, reads as zeros afterwards; units that nothing is left in
    /// are given back. No object is no error.
    Zero {
        key: ObjectKey,
        offset: u32,
        length: u32,
    },
    /// The whole object reads as zeros afterwards; it keeps the units that no other object has.
    /// For [`StoreRequest::Wipe`]. No object is no error.
    Scrap {
        key: ObjectKey,
    },
    /// Sets the size, a multiple of 4 KiB; what is past it is given back. Makes the object if it
    /// is not there.
    Truncate {
        key: ObjectKey,
        size: u32,
    },
    /// Removes the object and gives back its units. No object is no error.
    Remove {
        key: ObjectKey,
    },
    /// Makes `target` equal to `source`, sharing its units. What `target` was is removed first.
    Clone {
        source: ObjectKey,
        target: ObjectKey,
    },
    SetAttribute {
        key: ObjectKey,
        name: Vec<u8>,
        value: Vec<u8>,
    },
    RemoveAttribute {
        key: ObjectKey,
        name: Vec<u8>,
    },
    /// Sets keys: of 1 to 255 bytes, with values of at most 3072. Makes the object if it is not
    /// there. Of equal keys the last counts.
    SetKeys {
        key: ObjectKey,
        pairs: Vec<(Vec<u8>, Vec<u8>)>,
    },
    /// Keys that are not there are no error.
    RemoveKeys {
        key: ObjectKey,
        names: Vec<Vec<u8>>,
    },
    /// Removes every key from `from` on and below `to`; `None` is the end.
    RemoveKeyRange {
        key: ObjectKey,
        from: Vec<u8>,
        to: Option<Vec<u8>>,
    },
    /// Makes the object if it is not there, and gives it this version, which some other store gave
    /// it; the last step on its object. Versions of later changes of this store are higher.
    SetVersion {
        key: ObjectKey,
        version: u64,
    },
    /// Changes nothing but what versions are given: later changes' are higher than this one. As
    /// any transaction it is answered with a version that is higher than all that were given.
    RaiseVersions {
        pool: PoolId,
        pg: PgId,
        above: u64,
    },
    /// Appends an entry of at most 3072 bytes to the log of the transaction's group. Versions rise
    /// strictly, also over entries that were trimmed.
    LogAppend {
        pool: PoolId,
        pg: PgId,
        version: u64,
        entry: Vec<u8>,
    },
    /// Removes entries up to this version.
    LogTrim {
        pool: PoolId,
        pg: PgId,
        up_to: u64,
    },
    /// Removes the log of the transaction's group, and what it remembers of versions.
    LogRemove {
        pool: PoolId,
        pg: PgId,
    },
}

/// The end of one request.
#[derive(Debug)]
pub struct StoreCompletion {
    pub tag: StoreTag,
    /// The buffer of a read or a single write, also when it failed.
    pub buffer: Option<IoBuffer>,
    pub result: Result<StoreAnswer, StoreRefusal>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum StoreAnswer {
    /// The read's bytes are in the buffer.
    Read,
    /// The change is done, and durable as far as the pool promises.
    Changed {
        /// Units that objects of this request have more than before.
        units: i64,
        /// Objects that there are more than before.
        objects: i64,
        /// The version of every object that the request changed. Each change's is higher than
        /// those of all changes that were carried out before it in this store; 0 is none.
        version: u64,
    },
    Attributes {
        size: u32,
        attributes: Vec<(Vec<u8>, Vec<u8>)>,
    },
    Listed {
        objects: Vec<ObjectStatus>,
        /// Where the next `List` of the range begins, if there is more. Objects that come or go
        /// meanwhile do not disturb those that stay: each is named once.
        next: Option<ObjectKey>,
    },
    Status {
        object: ObjectStatus,
        /// That of the last change.
        version: u64,
    },
    Usage {
        /// Units that the object has, or that the objects have together.
        units: u32,
        /// Those of them that no other object has: what removing the object, or all that were
        /// named, would free.
        unique: u32,
        /// Blocks of 4 KiB that were written, all others are zeros; the sum over the objects.
        blocks: u32,
    },
    Wiped {
        /// Units that have zeros.
        units: u32,
    },
    /// In order, and no two touch.
    Compared {
        ranges: Vec<BlockRange>,
    },
    Keys {
        /// In the order of the keys, or in that in which they were asked for.
        pairs: Vec<(Vec<u8>, Vec<u8>)>,
        /// Whether a list goes on.
        more: bool,
    },
    Log {
        entries: Vec<(u64, Vec<u8>)>,
        /// The highest version that was ever appended, 0 for none.
        last: u64,
        more: bool,
    },
    Flushed,
}

/// Neighboring blocks of an object, 4 KiB each.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BlockRange {
    pub first: u32,
    pub count: u32,
}

/// Why a request was not carried out. Nothing was changed unless the variant says so.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum StoreRefusal {
    #[error("no free unit is left on the disk: delete volumes or add space")]
    NoSpace,
    #[error("no free place for another object is left: delete volumes or add space")]
    NoObjectSlot,
    #[error("{key} does not exist")]
    NotFound { key: ObjectKey },
    #[error("{key} has version {found}, not {expected}: read it again")]
    VersionMismatch { key: ObjectKey, expected: u64, found: u64 },
    #[error("the pool of {key} is too high: pools of objects are below 2^30")]
    BadPool { key: ObjectKey },
    #[error("a key for {key} has not 1 to 255 bytes, or its value more than 3072")]
    BadPair { key: ObjectKey },
    #[error("{key} take all their 4 MiB: remove some")]
    KeysFull { key: ObjectKey },
    #[error("a page of {key} is damaged: remove the object")]
    BadKeys { key: ObjectKey },
    #[error("the log of group {} in pool {pool} is at version {last}, so {version} is too low", pg.0)]
    LogOrder { pool: PoolId, pg: PgId, version: u64, last: u64 },
    #[error("version {version} is higher than any that a store gives")]
    BadVersion { version: u64 },
    #[error("bytes {offset}+{length} are not inside 4 MiB, or not the whole blocks they must be")]
    BadRange { offset: u32, length: u32 },
    #[error("the buffer is shorter than the blocks of the range")]
    ShortBuffer,
    #[error("the attributes of {key} would take more than their page holds")]
    AttributesFull { key: ObjectKey },
    #[error("a step on {key} cannot stand behind the steps before it, or it is of another group")]
    BadTransaction { key: ObjectKey },
    #[error("the transaction has more than 32 steps, none, or needs more journal than there is")]
    TransactionTooLarge,
    #[error(
        "the transaction needs {pages} map pages in memory at once, and may take {limit}, half of \
         the store's: split it, or give the store a larger cache"
    )]
    TransactionTooWide { pages: usize, limit: usize },
    #[error("a unit of {key} has as many owners as can be counted: copy instead of cloning")]
    TooManyClones { key: ObjectKey },
    #[error("block {block} of {key} does not match its checksum")]
    BadBlock { key: ObjectKey, block: u32 },
    #[error("the metadata of {key} does not match its checksum")]
    BadMetadata { key: ObjectKey },
    #[error("block {block} of {key} cannot be read from the device")]
    ReadFailed { key: ObjectKey, block: u32 },
    #[error("{key} is of a placement group past the last one, 255")]
    BadGroup { key: ObjectKey },
    #[error("the disk that has {key} is not in service: ask the pool's disks why")]
    DiskOut { key: ObjectKey },
    /// The change may survive in part, as if it had not been acknowledged.
    #[error("the store is read-only because a device write failed")]
    ReadOnly,
}

/// One object in a listing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ObjectStatus {
    pub key: ObjectKey,
    /// Bytes.
    pub size: u32,
    /// Units it has, shared ones included.
    pub units: u32,
}
