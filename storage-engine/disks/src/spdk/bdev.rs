// SPDX-License-Identifier: Apache-2.0
//! SPDK's half, through the crate `ironspdk`.
//!
//! The program starts SPDK (`ironspdk::SpdkApp`) and calls [`open`] from any thread of its own
//! afterwards. Each device gets an SPDK thread, on the CPU that it is told.
//!
//! This file is compiled only with the feature `spdk`, where libspdk is installed. It has been
//! type-checked against ironspdk's bindings, and run nowhere yet: the machines that the project
//! is tested on have neither libspdk nor an NVMe.

use super::{BridgeDisk, Job, JobKind, Lower, LowerGeometry, SpdkDiskError, WriteCache};
use crossbeam_channel::bounded;
use ironspdk::{DmaBuf, Io, Lbdev, LbdevIoChannel, LbdevIoCtx, SpdkThread, TlsKey};
use plinth_store::DiskError;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Requests under way on one device.
const DEPTH: usize = 512;

/// How long SPDK may take to open a device.
const OPEN_PATIENCE: Duration = Duration::from_secs(10);

/// Free DMA buffers that a thread keeps, of each size.
const KEPT: usize = 64;

/// A device behind SPDK.
pub type SpdkDisk = BridgeDisk<Bdev>;

/// What an SPDK thread has of its device.
struct Opened {
    device: Rc<Lbdev>,
    channel: Rc<LbdevIoChannel>,
    /// By length: allocating DMA memory takes a lock of SPDK's.
    free: BTreeMap<usize, Vec<DmaBuf>>,
}

static OPENED: TlsKey<Opened> = TlsKey::new(0);

/// The SPDK thread of one device.
pub struct Bdev {
    thread: SpdkThread,
}

impl std::fmt::Debug for Bdev {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bdev").finish_non_exhaustive()
    }
}

/// Opens the SPDK bdev `name` on a new SPDK thread on `cpu`.
///
/// # Errors
/// `Gone` when SPDK is not running, `Open` when it has no such device, and what
/// [`BridgeDisk::new`] says.
pub fn open(name: &str, cpu: u32, cache: WriteCache) -> Result<SpdkDisk, SpdkDiskError> {
    let thread = SpdkThread::new_at_cores(name, [cpu]);
    let (answer, answered) = bounded(1);
    let name = name.to_owned();
    thread.spawn(move || async move {
        // Nobody takes the answer after the patience: then the device is closed again.
        let facts = open_here(&name);
        if answer.send(facts).is_err() {
            OPENED.clear();
        }
    });
    let facts = answered.recv_timeout(OPEN_PATIENCE).map_err(|_| SpdkDiskError::Gone)??;
    BridgeDisk::new(Bdev { thread }, facts, cache, DEPTH)
}

/// On the device's SPDK thread.
fn open_here(name: &str) -> Result<LowerGeometry, SpdkDiskError> {
    let device = Lbdev::open(name).map_err(|_| SpdkDiskError::Open)?;
    let channel = device.get_io_channel();
    let size = device.desc().block_len();
    let facts = LowerGeometry {
        block_size: u32::try_from(size).unwrap_or(u32::MAX),
        block_count: device.desc().number_of_blocks(),
    };
    OPENED.set(Opened { device: Rc::new(device), channel, free: BTreeMap::new() });
    Ok(facts)
}

impl Lower for Bdev {
    fn start(&mut self, jobs: Vec<Job>) {
        if !self.thread.is_running() {
            // Dropped, each job ends with `Gone`.
            return;
        }
        self.thread.spawn(move || async move {
            for job in jobs {
                SpdkThread::spawn_local(carry_out(job));
            }
        });
    }
}

impl Drop for Bdev {
    fn drop(&mut self) {
        let thread_ends = || async {
            OPENED.clear();
        };
        self.thread.spawn(thread_ends);
        self.thread.request_exit();
    }
}

async fn carry_out(mut job: Job) {
    let result = transfer(&mut job).await;
    job.end(result);
}

async fn transfer(job: &mut Job) -> Result<(), DiskError> {
    let opened = OPENED.get_mut().ok_or(DiskError::Gone)?;
    let length = job.bytes().len();
    let kept = opened.free.get_mut(&length).and_then(Vec::pop);
    let no_memory = DiskError::Device { errno: 12 };
    let mut data = match kept {
        Some(data) => data,
        None => DmaBuf::new(length).map_err(|_| no_memory)?,
    };
    if job.kind() == JobKind::Write {
        data.as_mut_slice().copy_from_slice(job.bytes());
    }
    // Shared handles, not references: other requests of this thread run while this one waits.
    let (device, channel) = (Rc::clone(&opened.device), Rc::clone(&opened.channel));
    let block = device.desc().block_len();
    let first = job.offset() / block as u64;
    let mut io = Io::new_buf(data, first, block).map_err(|_| no_memory)?;
    let mut context = LbdevIoCtx::new();
    let is_good = match job.kind() {
        JobKind::Read => device.read(&channel, &mut io, &mut context).await,
        JobKind::Write => device.write(&channel, &mut io, &mut context).await,
    };
    let Io::Buf(data) = io else { return Err(DiskError::Gone) };
    let data = data.into_inner();
    if is_good && job.kind() == JobKind::Read {
        job.bytes_mut().copy_from_slice(data.as_slice());
    }
    if let Some(opened) = OPENED.get_mut() {
        let free = opened.free.entry(length).or_default();
        if free.len() < KEPT {
            free.push(data);
        }
    }
    // SPDK says whether, not why: 5 is EIO.
    if is_good { Ok(()) } else { Err(DiskError::Device { errno: 5 }) }
}
