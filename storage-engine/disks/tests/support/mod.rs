// SPDX-License-Identifier: Apache-2.0
//! Scratch files, and requests that wait for their end.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]

use plinth_store::{Disk, DiskCompletion, DiskError, DiskRequest, DiskTag, IoBuffer};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A file or folder of a test's own, removed on drop.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    fn name(folder: &Path) -> PathBuf {
        // Only makes names differ within this process; publishes nothing.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        folder.join(format!("plinth-disks-{}-{number}", std::process::id()))
    }

    pub(crate) fn file(size: u64) -> Self {
        Self::file_in(&std::env::temp_dir(), size)
    }

    pub(crate) fn file_in(folder: &Path, size: u64) -> Self {
        let path = Self::name(folder);
        File::create_new(&path).unwrap().set_len(size).unwrap();
        Self(path)
    }

    pub(crate) fn folder() -> Self {
        let path = Self::name(&std::env::temp_dir());
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
        let _ = fs::remove_dir(&self.0);
    }
}

/// Submits and completes until `count` requests have ended.
pub(crate) fn finish(disk: &mut dyn Disk, count: usize) -> Vec<DiskCompletion> {
    let started = Instant::now();
    let mut ended = Vec::new();
    while ended.len() < count {
        disk.submit();
        disk.complete(&mut ended);
        assert!(started.elapsed() < Duration::from_secs(30), "{} of {count} ended", ended.len());
    }
    ended
}

/// Writes `length` bytes of `fill`.
pub(crate) fn write(
    disk: &mut dyn Disk,
    offset: u64,
    length: usize,
    fill: u8,
) -> Result<(), DiskError> {
    let mut buffer = IoBuffer::zeroed(length);
    buffer.as_bytes_mut().fill(fill);
    disk.enqueue(DiskTag(0), DiskRequest::Write { offset, buffer }).unwrap();
    finish(disk, 1)[0].result
}
