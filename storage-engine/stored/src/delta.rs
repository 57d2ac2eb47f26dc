// SPDX-License-Identifier: Apache-2.0
//! Deltas: what differs between two snapshots, written to a file and taken in from one.
//!
//! Runs on the thread of the connection that asked, a few pieces at a time, as `transfer` does.
//! A file is read and judged whole before anything of it is carried out.

use crate::message::{EngineRefusal, Held, Message};
use crate::snapshots;
use crate::transfer::{PIECE, Transfer, TransferError, absolute, create_target, usize_of};
use crate::worker::WorkerPort;
use plinth_format::{
    DELTA_HEAD, DELTA_HEADER, DeltaEnd, DeltaFault, DeltaHeader, DeltaKind, DeltaRecord, DeltaScan,
};
use plinth_ids::{Name, PoolId, SnapshotId, VolumeId};
use plinth_volume::{SnapshotSpec, SnapshotStatus, VolumeRefusal, VolumeRequest};
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub(crate) enum DeltaError {
    #[error(transparent)]
    Transfer(#[from] TransferError),
    #[error("{path:?} is no delta that can be taken in")]
    Fault { path: PathBuf, source: DeltaFault },
    #[error("the snapshot's name in {path:?} cannot be one")]
    Name { path: PathBuf },
    #[error(
        "the delta is from snapshot {name:?}, which is not the newest one of the volume: take in the deltas before it"
    )]
    Base { name: String },
    #[error("the delta is a whole volume, and this one has data or snapshots: take a new one")]
    NotEmpty,
    #[error("the volume was written since snapshot {name:?}: roll it back to that first")]
    Written { name: String },
}

impl From<EngineRefusal> for DeltaError {
    fn from(refusal: EngineRefusal) -> Self {
        Self::Transfer(refusal.into())
    }
}

fn end_of(status: &SnapshotStatus) -> DeltaEnd {
    DeltaEnd {
        identity: status.identity,
        size: status.size,
        created_at: status.created_at,
        name: status.name.as_str().to_owned(),
    }
}

fn find(
    port: &WorkerPort,
    pool: PoolId,
    volume: VolumeId,
    snapshot: SnapshotId,
) -> Result<SnapshotStatus, EngineRefusal> {
    let all = port.ask(|answer| Message::Snapshots { pool, volume, answer })?;
    let found = all.into_iter().find(|known| known.snapshot == snapshot && !known.is_leaving);
    found.ok_or(EngineRefusal::Volume(VolumeRefusal::SnapshotMissing))
}

/// Writes a delta to a new file. Durable when this returns; no file is left when it fails.
pub(crate) fn export(
    port: &WorkerPort,
    pool: PoolId,
    volume: VolumeId,
    (from, to): (Option<SnapshotId>, SnapshotId),
    target: &Path,
) -> Result<(), DeltaError> {
    absolute(target)?;
    let base = from.map(|from| find(port, pool, volume, from)).transpose()?;
    let end = find(port, pool, volume, to)?;
    if base.as_ref().is_some_and(|base| base.created_at > end.created_at || base.size > end.size) {
        return Err(EngineRefusal::Volume(VolumeRefusal::BadRange).into());
    }
    let hold = |snapshot| -> Result<Held, EngineRefusal> {
        port.ask(|answer| Message::HoldSnapshot { pool, volume, snapshot, answer })
    };
    // Both stay until the file is written.
    let held = from.map(hold).transpose()?;
    let _base = held.map(|held| Transfer::over(port, pool, held));
    let transfer = Transfer::over(port, pool, hold(to)?);
    let file = create_target(target)?;
    let header = DeltaHeader { base: base.as_ref().map(end_of), end: end_of(&end) };
    let outcome = write_delta(transfer, (volume, from, to), &header, &file, target);
    if outcome.is_err() {
        // The error that is told is the first one.
        let _ = fs::remove_file(target);
    }
    outcome
}

fn write_delta(
    mut transfer: Transfer<'_>,
    (volume, from, to): (VolumeId, Option<SnapshotId>, SnapshotId),
    header: &DeltaHeader,
    file: &File,
    target: &Path,
) -> Result<(), DeltaError> {
    let fault = |source| TransferError::Target { path: target.into(), source };
    let first = header.emit();
    let mut scan = DeltaScan::new(&first)
        .map_err(|source| DeltaError::Fault { path: target.into(), source })?;
    let mut out = BufWriter::with_capacity(usize_of(PIECE), file);
    out.write_all(&first).map_err(fault)?;
    let mut start = Some(0);
    while let Some(from_byte) = start {
        let (port, pool) = (transfer.port(), transfer.pool());
        let changes = snapshots::changes(port, pool, volume, (from, Some(to)), from_byte)?;
        for range in &changes.ranges {
            if range.is_zero {
                let head = scan.emit(DeltaKind::Zero, (range.offset, range.length), &[]);
                out.write_all(&head).map_err(fault)?;
                continue;
            }
            let (mut at, end) = (range.offset, range.offset + range.length);
            while at < end {
                let length = (end - at).min(PIECE - at % PIECE);
                let data = transfer.read_now(at, length)?;
                let head = scan.emit(DeltaKind::Data, (at, length), &data);
                out.write_all(&head).and_then(|()| out.write_all(&data)).map_err(fault)?;
                at += length;
            }
        }
        start = changes.next;
    }
    out.write_all(&scan.emit_end()).and_then(|()| out.flush()).map_err(fault)?;
    file.sync_all().map_err(fault)?;
    let folder = target.parent().ok_or_else(|| fault(io::ErrorKind::InvalidInput.into()))?;
    Ok(File::open(folder).and_then(|folder| folder.sync_all()).map_err(fault)?)
}

/// A delta file that is gone along record by record.
struct Reader<'a> {
    path: &'a Path,
    file: BufReader<File>,
    scan: DeltaScan,
    header: DeltaHeader,
}

impl<'a> Reader<'a> {
    fn open(path: &'a Path) -> Result<Self, DeltaError> {
        let read = |source| TransferError::Source { path: path.into(), source };
        let file = File::open(path).map_err(read)?;
        let mut file = BufReader::with_capacity(usize_of(PIECE), file);
        let mut first = [0; DELTA_HEADER];
        fill(&mut file, &mut first, path)?;
        let fault = |source| DeltaError::Fault { path: path.into(), source };
        let header = DeltaHeader::parse(&first).map_err(fault)?;
        let scan = DeltaScan::new(&first).map_err(fault)?;
        Ok(Self { path, file, scan, header })
    }

    /// Goes back to the first record.
    fn rewind(&mut self) -> Result<(), DeltaError> {
        let read = |source| TransferError::Source { path: self.path.into(), source };
        self.file.rewind().map_err(read)?;
        let mut first = [0; DELTA_HEADER];
        fill(&mut self.file, &mut first, self.path)?;
        // A file that was exchanged meanwhile ends at its first record: the checksums differ.
        let fault = |source| DeltaError::Fault { path: self.path.into(), source };
        self.scan = DeltaScan::new(&self.header.emit()).map_err(fault)?;
        Ok(())
    }

    /// The next record and its data; `None` behind the last one.
    fn next(&mut self, data: &mut Vec<u8>) -> Result<Option<DeltaRecord>, DeltaError> {
        let fault = |source| DeltaError::Fault { path: self.path.into(), source };
        if self.scan.is_over() {
            let read = |source| TransferError::Source { path: self.path.into(), source };
            let has_more = self.file.read(&mut [0]).map_err(read)? > 0;
            return if has_more { Err(fault(DeltaFault::Trailing)) } else { Ok(None) };
        }
        let mut head = [0; DELTA_HEAD];
        fill(&mut self.file, &mut head, self.path)?;
        let record = self.scan.parse(&head).map_err(fault)?;
        data.resize(usize_of(record.data_length()), 0);
        fill(&mut self.file, data, self.path)?;
        self.scan.accept(&head, record, data).map_err(fault)?;
        Ok(Some(record))
    }
}

fn fill(file: &mut impl Read, bytes: &mut [u8], path: &Path) -> Result<(), DeltaError> {
    file.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            DeltaError::Fault { path: path.into(), source: DeltaFault::Short }
        }
        _ => TransferError::Source { path: path.into(), source: error }.into(),
    })
}

/// Takes a delta in. Durable when this returns.
pub(crate) fn import(
    port: &WorkerPort,
    pool: PoolId,
    (volume, snapshot): (VolumeId, SnapshotId),
    source: &Path,
    now: u64,
) -> Result<(), DeltaError> {
    absolute(source)?;
    let mut reader = Reader::open(source)?;
    let mut data = Vec::new();
    while reader.next(&mut data)?.is_some() {}
    let end = reader.header.end.clone();
    let name: Name = end.name.parse().map_err(|_| DeltaError::Name { path: source.into() })?;
    let transfer = Transfer::hold(port, pool, volume)?;
    if is_at(&transfer, volume, &reader.header)? {
        return Ok(());
    }
    if end.size > transfer.size() {
        port.carry_out(pool, VolumeRequest::Grow { volume, size: end.size, now })?;
    }
    reader.rewind()?;
    apply(transfer, &mut reader)?;
    let (identity, created_at) = (end.identity, end.created_at);
    let spec = SnapshotSpec { volume, snapshot, name, identity, created_at };
    Ok(port.carry_out(pool, VolumeRequest::SnapshotCreate { spec })?)
}

/// Whether the volume has the delta's end already; a refusal if it does not have its base.
fn is_at(
    transfer: &Transfer<'_>,
    volume: VolumeId,
    header: &DeltaHeader,
) -> Result<bool, DeltaError> {
    let (port, pool) = (transfer.port(), transfer.pool());
    let all = port.ask(|answer| Message::Snapshots { pool, volume, answer })?;
    let newest = all.iter().rfind(|known| !known.is_leaving);
    if newest.is_some_and(|newest| newest.identity == header.end.identity) {
        return Ok(true);
    }
    let Some(base) = &header.base else {
        let is_empty = newest.is_none() && transfer.written() == 0 && !transfer.is_clone();
        return if is_empty { Ok(false) } else { Err(DeltaError::NotEmpty) };
    };
    let Some(newest) = newest.filter(|newest| newest.identity == base.identity) else {
        return Err(DeltaError::Base { name: base.name.clone() });
    };
    let since = (Some(newest.snapshot), None);
    let changes = snapshots::changes(port, pool, volume, since, 0)?;
    if changes.ranges.is_empty() && changes.next.is_none() {
        Ok(false)
    } else {
        Err(DeltaError::Written { name: base.name.clone() })
    }
}

fn apply(mut transfer: Transfer<'_>, reader: &mut Reader<'_>) -> Result<(), DeltaError> {
    let mut data = Vec::new();
    let handle = transfer.handle();
    while let Some(DeltaRecord { kind, offset, length }) = reader.next(&mut data)? {
        match kind {
            DeltaKind::Data => transfer.write(offset, &data)?,
            DeltaKind::Zero => {
                transfer.finish(VolumeRequest::Zero { volume: handle, offset, length })?;
            }
            DeltaKind::End => {}
        }
    }
    transfer.drain(0)?;
    Ok(transfer.finish(VolumeRequest::Flush { volume: handle })?)
}
