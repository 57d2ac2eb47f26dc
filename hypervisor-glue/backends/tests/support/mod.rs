// SPDX-License-Identifier: Apache-2.0
//! A worker thread with a disk in memory, and a frontend that drives a fake disk over a socket.

use plinth_backends::blk::{BlkClass, BlkDevice, BlkOperation, BlkOptions, BlkRequest, BlkStatus};
use plinth_backends::fake::{Answer, FakeDisk};
use plinth_backends::{Device, DeviceOptions, DeviceToken, HandedDevice, Shrinkable, WorkerLink};
use plinth_guest_memory::RegionSpec;
use plinth_virtio::QueueLayout;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserInflight};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

pub(crate) const CAPACITY: u64 = 4096;
pub(crate) const RING_SIZE: u16 = 64;

/// A folder of the test's own.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("plinth-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Waits for something that another thread will bring about.
pub(crate) fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let patience = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < patience, "{what} did not come");
        std::thread::yield_now();
    }
}

/// A backend: a served device and the thread that polls it.
pub(crate) struct Backend {
    pub(crate) device: Option<Device>,
    pub(crate) class: Arc<BlkClass>,
    /// While set, requests are taken and not completed.
    pub(crate) is_held: Arc<AtomicBool>,
    pub(crate) open_requests: Arc<AtomicU64>,
    pub(crate) resubmitted: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    worker: Option<JoinHandle<()>>,
}

/// The bytes of a disk, which outlive its backends.
pub(crate) type Image = Arc<Mutex<Vec<u8>>>;

pub(crate) fn image() -> Image {
    Arc::new(Mutex::new(vec![0; usize::try_from(CAPACITY * 512).unwrap()]))
}

impl Backend {
    pub(crate) fn start(socket: &Path, image: &Image) -> Self {
        Self::start_with(socket, image, 2, None)
    }

    /// Goes on with what another backend has handed over.
    pub(crate) fn take_over(image: &Image, queues: u16, handed: HandedDevice) -> Self {
        let socket = handed.path().to_path_buf();
        Self::start_with(&socket, image, queues, Some(handed))
    }

    fn start_with(socket: &Path, image: &Image, queues: u16, handed: Option<HandedDevice>) -> Self {
        let class = Arc::new(BlkClass::new(BlkOptions {
            capacity: CAPACITY,
            is_read_only: false,
            queues,
            serial: [b's'; 20],
            discard_unit: 64,
        }));
        let (sender, events) = crossbeam_channel::bounded(16);
        let [is_held, is_over] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let [open_requests, resubmitted] = [(); 2].map(|()| Arc::new(AtomicU64::new(0)));
        let options = DeviceOptions {
            socket: socket.to_path_buf(),
            token: DeviceToken(7),
            shrinkable: Shrinkable::Refuse,
        };
        let link = WorkerLink::new(sender, Arc::new(|| {}));
        let device = match handed {
            None => Device::serve(options, class.clone(), link).unwrap(),
            Some(handed) => Device::take_over(options, class.clone(), link, handed).unwrap(),
        };
        let mut disk = BlkDevice::new(class.clone());
        let image = image.clone();
        let (held, over, open, again) =
            (is_held.clone(), is_over.clone(), open_requests.clone(), resubmitted.clone());
        let worker = std::thread::spawn(move || {
            let mut requests: Vec<BlkRequest> = Vec::new();
            while !over.load(Ordering::Relaxed) {
                while let Ok(event) = events.try_recv() {
                    assert_eq!(event.device, DeviceToken(7));
                    disk.handle(event.change);
                }
                disk.poll(&mut requests, 32);
                open.store(disk.open_requests() as u64, Ordering::Relaxed);
                again.store(disk.counters().resubmitted, Ordering::Relaxed);
                if !held.load(Ordering::Relaxed) {
                    for request in requests.drain(..) {
                        let status = carry_out(&mut disk, &request, &image);
                        disk.complete(request.tag, status);
                    }
                }
                disk.flush();
                std::thread::yield_now();
            }
        });
        let (device, worker) = (Some(device), Some(worker));
        Self { device, class, is_held, open_requests, resubmitted, is_over, worker }
    }

    pub(crate) fn device(&self) -> &Device {
        self.device.as_ref().unwrap()
    }

    /// Ends the worker where it stands, with requests open, as a kill does; then the rest.
    pub(crate) fn kill(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(worker) = self.worker.take() {
            worker.join().unwrap();
        }
        self.device = None;
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // The device first: it takes its queues back from a worker that still answers.
        self.is_held.store(false, Ordering::Relaxed);
        if !self.is_over.load(Ordering::Relaxed) {
            self.device = None;
        }
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

fn carry_out(disk: &mut BlkDevice, request: &BlkRequest, image: &Image) -> BlkStatus {
    let mut image = image.lock().unwrap();
    let range = |sector: u64, length: u32| {
        let start = usize::try_from(sector).unwrap() * 512;
        start..start + length as usize
    };
    let result = match request.operation {
        BlkOperation::Read { sector, length } => {
            disk.copy_in(request.tag, 0, &image[range(sector, length)])
        }
        BlkOperation::Write { sector, length } => {
            disk.copy_out(request.tag, 0, &mut image[range(sector, length)])
        }
        _ => Ok(()),
    };
    if result.is_ok() { BlkStatus::Ok } else { BlkStatus::IoError }
}

/// A frontend that has a fake guest behind it, as QEMU has a real one.
pub(crate) struct Client {
    pub(crate) frontend: Frontend,
    pub(crate) kicks: Vec<EventFd>,
    pub(crate) calls: Vec<EventFd>,
}

pub(crate) fn region(spec: &RegionSpec, file: &File) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: spec.guest.0,
        memory_size: spec.length,
        userspace_addr: spec.frontend,
        mmap_offset: spec.offset,
        mmap_handle: file.as_raw_fd(),
    }
}

impl Client {
    /// Says everything up to the features.
    pub(crate) fn connect(socket: &Path) -> Self {
        let mut frontend = Frontend::connect(socket, 2).unwrap();
        let features = frontend.get_features().unwrap();
        frontend.set_owner().unwrap();
        let protocol = frontend.get_protocol_features().unwrap();
        assert!(protocol.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD));
        frontend.set_protocol_features(protocol).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        assert_eq!(frontend.get_queue_num().unwrap(), 2);
        frontend.set_features(features).unwrap();
        let make = || EventFd::new(libc_nonblock()).unwrap();
        Self {
            frontend,
            kicks: (0..2).map(|_| make()).collect(),
            calls: (0..2).map(|_| make()).collect(),
        }
    }

    pub(crate) fn set_memory(&self, disk: &FakeDisk) {
        let own = &disk.guest.own;
        self.frontend.set_mem_table(&[region(&own.spec, &own.file)]).unwrap();
    }

    /// The record of requests in flight: the old one, or a new one that is kept by the caller.
    pub(crate) fn set_inflight(&mut self, kept: &mut Option<(VhostUserInflight, File)>) {
        if kept.is_none() {
            let wanted = VhostUserInflight::new(0, 0, 2, RING_SIZE);
            *kept = Some(self.frontend.get_inflight_fd(&wanted).unwrap());
        }
        let (shape, file) = kept.as_ref().unwrap();
        self.frontend.set_inflight_fd(shape, file.as_raw_fd()).unwrap();
    }

    /// Starts and enables both rings where the ring itself stands, as QEMU does after a crash.
    pub(crate) fn start(&mut self, disk: &FakeDisk) {
        for (index, layout) in disk.guest.layouts.iter().enumerate() {
            self.start_ring(index, layout, disk, used_index(disk, layout));
        }
    }

    pub(crate) fn start_ring(
        &mut self,
        index: usize,
        layout: &QueueLayout,
        disk: &FakeDisk,
        base: u16,
    ) {
        let spec = disk.guest.own.spec;
        let there = |address: u64| address - spec.guest.0 + spec.frontend;
        self.frontend.set_vring_num(index, layout.size).unwrap();
        self.frontend.set_vring_base(index, base).unwrap();
        let addresses = VringConfigData {
            queue_max_size: layout.size,
            queue_size: layout.size,
            flags: 0,
            desc_table_addr: there(layout.descriptors.0),
            used_ring_addr: there(layout.used.0),
            avail_ring_addr: there(layout.available.0),
            log_addr: None,
        };
        self.frontend.set_vring_addr(index, &addresses).unwrap();
        self.frontend.set_vring_call(index, &self.calls[index]).unwrap();
        self.frontend.set_vring_kick(index, &self.kicks[index]).unwrap();
        self.frontend.set_vring_enable(index, true).unwrap();
    }
}

fn libc_nonblock() -> i32 {
    vmm_sys_util::eventfd::EFD_NONBLOCK
}

/// The used index as it stands in the ring.
pub(crate) fn used_index(disk: &FakeDisk, layout: &QueueLayout) -> u16 {
    let place = plinth_guest_memory::GuestAddress(layout.used.0 + 2);
    disk.guest.own.memory.u16_at(place).unwrap().load(Ordering::Acquire)
}

/// Waits for the next request to come back.
pub(crate) fn answer(disk: &mut FakeDisk, queue: u16) -> Answer {
    wait_for("an answer", || disk.poll(queue))
}
