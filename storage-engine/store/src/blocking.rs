// SPDX-License-Identifier: Apache-2.0
//! One request after the other, for formatting and mounting: before there is a store, nobody
//! waits for it.

use crate::buffer::IoBuffer;
use crate::disk::{Disk, DiskCompletion, DiskError, DiskRequest, DiskTag};

/// Carries out one request and polls the disk until it has ended.
fn run<D: Disk>(disk: &mut D, request: DiskRequest) -> Result<Option<IoBuffer>, DiskError> {
    const TAG: DiskTag = DiskTag(u64::MAX);
    let mut completions: Vec<DiskCompletion> = Vec::new();
    let mut request = Some(request);
    loop {
        if let Some(waiting) = request.take() {
            request = disk.enqueue(TAG, waiting).err();
            disk.submit();
        }
        disk.complete(&mut completions);
        if let Some(done) = completions.drain(..).find(|done| done.tag == TAG) {
            return done.result.map(|()| done.buffer);
        }
        std::hint::spin_loop();
    }
}

pub(crate) fn read<D: Disk>(
    disk: &mut D,
    offset: u64,
    buffer: IoBuffer,
) -> Result<IoBuffer, DiskError> {
    let length = buffer.length();
    let back = run(disk, DiskRequest::Read { offset, buffer })?;
    let wanted = u32::try_from(length).unwrap_or(u32::MAX);
    back.ok_or(DiskError::Short { moved: 0, wanted })
}

pub(crate) fn write<D: Disk>(
    disk: &mut D,
    offset: u64,
    buffer: IoBuffer,
) -> Result<IoBuffer, DiskError> {
    let back = run(disk, DiskRequest::Write { offset, buffer })?;
    Ok(back.unwrap_or_else(|| IoBuffer::zeroed(0)))
}

pub(crate) fn flush<D: Disk>(disk: &mut D) -> Result<(), DiskError> {
    run(disk, DiskRequest::Flush).map(|_| ())
}
