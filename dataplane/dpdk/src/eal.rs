// SPDX-License-Identifier: Apache-2.0
//! DPDK's environment, started once a process.

use crate::{Errno, log};
use plinth_rt::AffinityError;
use std::ffi::CString;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// How DPDK is to be started.
#[derive(Clone, Debug)]
pub struct EalConfig {
    /// Of packet memory, in MiB. Without hugepages it is taken when it is touched.
    pub memory_mb: u32,
    /// Take hugepages if enough of them are free.
    pub use_hugepages: bool,
    /// One file for all memory, which `net_virtio_user` needs when it is on hugepages.
    pub single_file: bool,
}

impl Default for EalConfig {
    fn default() -> Self {
        Self { memory_mb: 128, use_hugepages: true, single_file: false }
    }
}

/// What packet memory is made of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Memory {
    Hugepages { page_kib: u64 },
    OrdinaryPages,
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hugepages { page_kib } if page_kib.is_multiple_of(1024 * 1024) => {
                write!(f, "{} GiB hugepages", page_kib / 1024 / 1024)
            }
            Self::Hugepages { page_kib } => write!(f, "{} MiB hugepages", page_kib / 1024),
            Self::OrdinaryPages => f.write_str("ordinary pages"),
        }
    }
}

/// Proof that DPDK is up. Copies are the same environment; it stays until the process ends.
#[derive(Clone, Copy, Debug)]
pub struct Eal {
    memory: Memory,
}

#[derive(Debug, thiserror::Error)]
pub enum EalError {
    #[error("DPDK was started in this process already; it can be started once")]
    StartedBefore,
    #[error("DPDK's log cannot be kept")]
    Log { source: io::Error },
    #[error("the CPUs of the calling thread cannot be kept")]
    Affinity { source: AffinityError },
    #[error(
        "DPDK does not start with {memory_mb} MiB of {memory} (it printed: {log}); free memory, \
         or ask for less"
    )]
    Start { memory_mb: u32, memory: Memory, log: String, source: Errno },
}

/// Whether `rte_eal_init` was called. It cannot be called again, even after it failed.
static STARTED: Mutex<bool> = Mutex::new(false);

impl Eal {
    /// Starts DPDK. The calling thread keeps the CPUs that it had.
    ///
    /// Hugepages are looked at first, and ordinary pages are taken when too few are free:
    /// [`Self::memory`] says which. PCI devices are looked for only where one is bound to a
    /// driver for user space.
    pub fn init(config: &EalConfig) -> Result<Self, EalError> {
        let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
        if *started {
            return Err(EalError::StartedBefore);
        }
        log::capture().map_err(|source| EalError::Log { source })?;
        let cpus = plinth_rt::allowed_cpus().map_err(|source| EalError::Affinity { source })?;
        let memory = choose_memory(config);
        let arguments = arguments(config, memory, cpus.first().copied().unwrap_or(0));
        *started = true;
        let result = start(&arguments);
        // DPDK pinned this thread to its main core, and threads made later would inherit that.
        let restored = plinth_rt::allow_all_cpus(&cpus);
        let log = log::take();
        result.map_err(|source| EalError::Start {
            memory_mb: config.memory_mb,
            memory,
            log,
            source,
        })?;
        restored.map_err(|source| EalError::Affinity { source })?;
        remove_runtime_folder();
        Ok(Self { memory })
    }

    pub const fn memory(self) -> Memory {
        self.memory
    }

    /// Makes the calling thread known to DPDK, which gives it a cache of its own in front of
    /// every pool. Without it packets are handled alike, only slower.
    pub fn register_thread(self) -> Result<Registration, RegisterError> {
        // SAFETY: the environment is up, or `self` would not be there; the call changes this
        // thread's variables and takes its own lock for the shared ones.
        match unsafe { plinth_dpdk_sys::rte_thread_register() } {
            0 => Ok(Registration { not_send: PhantomData }),
            code => Err(RegisterError { source: Errno::from_return(code), log: log::take() }),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the thread cannot be made known to DPDK (it printed: {log})")]
pub struct RegisterError {
    log: String,
    source: Errno,
}

/// Keeps the thread known to DPDK. It stays on its thread and goes before it ends.
///
/// Buffers in the thread's caches stay there for the next thread that is registered; others do
/// not see them until then.
#[derive(Debug)]
pub struct Registration {
    not_send: PhantomData<*const ()>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: this is the thread that was registered, because the value is not `Send`.
        unsafe { plinth_dpdk_sys::rte_thread_unregister() };
    }
}

fn start(arguments: &[CString]) -> Result<(), Errno> {
    // DPDK permutes the vector of pointers and keeps some of the texts, so both stay for the
    // life of the process. It is a few hundred bytes, once.
    let texts: &'static [CString] = arguments.to_vec().leak();
    let pointers = texts.iter().map(|text| text.as_ptr().cast_mut());
    let pointers = pointers.chain([std::ptr::null_mut()]).collect::<Vec<_>>().leak();
    let count = i32::try_from(texts.len()).expect("there are a dozen arguments");
    // SAFETY: `count` pointers to zero-terminated texts and a null, which nobody else touches
    // and which live for ever. No other thread is in DPDK, because the caller holds the lock
    // that lets one call through per process.
    let code = unsafe { plinth_dpdk_sys::rte_eal_init(count, pointers.as_mut_ptr()) };
    if code < 0 { Err(Errno::from_return(code)) } else { Ok(()) }
}

fn arguments(config: &EalConfig, memory: Memory, cpu: u32) -> Vec<CString> {
    let mut texts = vec![
        "plinth".to_owned(),
        format!("--lcores=0@{cpu}"),
        format!("--file-prefix=plinth-{}", std::process::id()),
        "--no-telemetry".to_owned(),
        "--log-level=warning".to_owned(),
        "-m".to_owned(),
        config.memory_mb.to_string(),
    ];
    match memory {
        Memory::Hugepages { .. } => {
            texts.push("--in-memory".to_owned());
            if config.single_file {
                texts.push("--single-file-segments".to_owned());
            }
        }
        // `--in-memory` refuses to go with `--no-huge`; without shared configuration there are
        // no files either.
        Memory::OrdinaryPages => {
            texts.extend(["--no-huge".to_owned(), "--no-shconf".to_owned()]);
        }
    }
    if !has_user_space_pci_device() {
        // Without a PCI device nothing needs physical addresses, which only root may read.
        texts.extend(["--no-pci".to_owned(), "--iova-mode=va".to_owned()]);
    }
    texts
        .into_iter()
        .map(|text| CString::new(text).expect("made of our own texts and numbers"))
        .collect()
}

/// The largest page size of which enough is free, tried by taking one.
fn choose_memory(config: &EalConfig) -> Memory {
    if !config.use_hugepages {
        return Memory::OrdinaryPages;
    }
    let wanted_kib = u64::from(config.memory_mb) * 1024;
    let mut sizes = free_hugepages();
    sizes.sort_unstable_by_key(|&(page_kib, _)| std::cmp::Reverse(page_kib));
    sizes
        .into_iter()
        .find(|&(page_kib, free)| {
            free.saturating_mul(page_kib) >= wanted_kib && can_touch_hugepage(page_kib)
        })
        .map_or(Memory::OrdinaryPages, |(page_kib, _)| Memory::Hugepages { page_kib })
}

/// Sizes in KiB, and how many pages of each are free.
fn free_hugepages() -> Vec<(u64, u64)> {
    let Ok(folders) = std::fs::read_dir("/sys/kernel/mm/hugepages") else { return Vec::new() };
    let size = |folder: &std::fs::DirEntry| {
        let name = folder.file_name().into_string().ok()?;
        let page_kib = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let free = std::fs::read_to_string(folder.path().join("free_hugepages")).ok()?;
        Some((page_kib, free.trim().parse().ok()?))
    };
    folders.flatten().filter_map(|folder| size(&folder)).collect()
}

/// Whether this process gets a hugepage: a free one may be promised to others, or a control
/// group may forbid it.
fn can_touch_hugepage(page_kib: u64) -> bool {
    let Ok(length) = usize::try_from(page_kib * 1024) else { return false };
    let Ok(size_shift) = libc::c_int::try_from(length.ilog2()) else { return false };
    let flags = libc::MAP_PRIVATE
        | libc::MAP_ANONYMOUS
        | libc::MAP_HUGETLB
        | libc::MAP_POPULATE
        | (size_shift << libc::MAP_HUGE_SHIFT);
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new anonymous mapping at a place of the kernel's choice touches nothing that
    // is there already.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
    if base == libc::MAP_FAILED {
        return false;
    }
    // SAFETY: the mapping of the call above, which nobody else knows of.
    unsafe { libc::munmap(base, length) };
    true
}

/// Whether a PCI device is bound to a driver through which DPDK can reach it.
fn has_user_space_pci_device() -> bool {
    ["vfio-pci", "uio_pci_generic", "igb_uio"].iter().any(|driver| {
        std::fs::read_dir(Path::new("/sys/bus/pci/drivers").join(driver)).is_ok_and(|entries| {
            entries.flatten().any(|entry| entry.file_name().to_string_lossy().contains(':'))
        })
    })
}

/// DPDK makes a folder for files that it was told not to write.
fn remove_runtime_folder() {
    // SAFETY: gives a zero-terminated text that DPDK keeps for the life of the process.
    let folder = unsafe { plinth_dpdk_sys::rte_eal_get_runtime_dir() };
    if folder.is_null() {
        return;
    }
    // SAFETY: not null, checked above; static and zero-terminated, as above.
    let folder = unsafe { std::ffi::CStr::from_ptr(folder) };
    if let Ok(folder) = folder.to_str() {
        // It stays if it is not empty: then something of ours or another's is in it.
        let _ = std::fs::remove_dir(folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_named_as_operators_know_it() {
        assert_eq!(Memory::Hugepages { page_kib: 2048 }.to_string(), "2 MiB hugepages");
        assert_eq!(Memory::Hugepages { page_kib: 1024 * 1024 }.to_string(), "1 GiB hugepages");
        assert_eq!(Memory::OrdinaryPages.to_string(), "ordinary pages");
    }

    #[test]
    fn more_than_any_machine_has_free_is_taken_from_ordinary_pages() {
        let config = EalConfig { memory_mb: u32::MAX, ..EalConfig::default() };
        assert_eq!(choose_memory(&config), Memory::OrdinaryPages);
    }
}
