// SPDX-License-Identifier: Apache-2.0
//! Where everything of one node lies.

use plinth_ids::{PortId, VmId, VolumeId};
use plinth_qemu::{FolderError, SOCKET_PATH_MAX, VmFolder};
use std::path::{Path, PathBuf};

/// The two folders of a node. What is in the run folder may be lost with the machine's power.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Places {
    state: PathBuf,
    run: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    #[error(
        "sockets below {} would have paths of up to {length} bytes, the kernel takes \
         {SOCKET_PATH_MAX}: choose a shorter --run-dir", run.display()
    )]
    TooLong { run: PathBuf, length: usize },
    #[error("{} is not an absolute path: the daemons run elsewhere", path.display())]
    Relative { path: PathBuf },
}

impl Places {
    /// # Errors
    /// When a socket below `run` could get a path that the kernel does not take.
    pub fn new(state: impl Into<PathBuf>, run: impl Into<PathBuf>) -> Result<Self, PlaceError> {
        let places = Self { state: state.into(), run: run.into() };
        for path in [&places.state, &places.run] {
            if !path.is_absolute() {
                return Err(PlaceError::Relative { path: path.clone() });
            }
        }
        // The longest names there can be, so that no VM fails later for its number.
        let longest = [
            places.port_socket(PortId(u32::MAX)),
            places.volume_socket(VolumeId(u64::MAX)),
            places.run.join("vm").join(u64::MAX.to_string()).join("console.sock"),
        ];
        let length = longest.iter().map(|path| path.as_os_str().len()).max().unwrap_or_default();
        if length > SOCKET_PATH_MAX {
            return Err(PlaceError::TooLong { run: places.run, length });
        }
        Ok(places)
    }

    pub fn state(&self) -> &Path {
        &self.state
    }

    pub fn run(&self) -> &Path {
        &self.run
    }

    /// The management socket of plinth-switchd.
    pub fn switchd_socket(&self) -> PathBuf {
        self.run.join("switchd.sock")
    }

    /// The management socket of plinth-stored.
    pub fn stored_socket(&self) -> PathBuf {
        self.run.join("stored.sock")
    }

    /// Where plinth-switchd asks what guests want to know of themselves.
    pub fn metadata_socket(&self) -> PathBuf {
        self.run.join(plinth_switch_api::METADATA_SOCKET)
    }

    /// The vhost-user socket of a NIC.
    pub fn port_socket(&self, port: PortId) -> PathBuf {
        self.run.join("net").join(format!("{port}.sock"))
    }

    /// The vhost-user socket of a volume.
    pub fn volume_socket(&self, volume: VolumeId) -> PathBuf {
        self.run.join("blk").join(format!("{volume}.sock"))
    }

    /// The run folder of a VM.
    ///
    /// # Errors
    /// Never for places that [`Self::new`] took.
    pub fn vm(&self, vm: VmId) -> Result<VmFolder, FolderError> {
        VmFolder::new(self.run.join("vm").join(vm.0.to_string()))
    }

    /// What a daemon says of itself.
    pub fn daemon_log(&self, name: &str) -> PathBuf {
        self.run.join(format!("{name}.log"))
    }

    /// Which process a daemon is.
    pub(crate) fn daemon_record(&self, name: &str) -> PathBuf {
        self.run.join(format!("{name}.process"))
    }

    /// What the try of KVM came to, since the machine's start.
    pub(crate) fn probe_record(&self) -> PathBuf {
        self.run.join("accelerator")
    }

    pub(crate) fn spec(&self) -> PathBuf {
        self.state.join("node-spec.json")
    }

    pub(crate) fn vm_records(&self) -> PathBuf {
        self.state.join("vms")
    }

    pub(crate) fn vm_record(&self, vm: VmId) -> PathBuf {
        self.vm_records().join(format!("{}.json", vm.0))
    }

    /// Where images wait for their import.
    pub(crate) fn imports(&self) -> PathBuf {
        self.state.join("imports")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_folder_whose_sockets_would_be_too_long_is_refused() {
        assert!(Places::new("/var/lib/plinth", "/run/plinth").is_ok());
        let long = format!("/{}", "x".repeat(80));
        let error = Places::new("/var/lib/plinth", long).unwrap_err();
        assert!(error.to_string().contains("--run-dir"), "{error}");
        assert!(matches!(Places::new("state", "/run/plinth"), Err(PlaceError::Relative { .. })));
    }
}
