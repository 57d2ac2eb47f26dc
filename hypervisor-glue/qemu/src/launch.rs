// SPDX-License-Identifier: Apache-2.0
//! Starts a VM's process and waits until it answers.

use crate::birth;
use crate::process::{Process, ProcessError, begin};
use crate::{Machine, Monitor, VmFolder, command_line, network_file};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long QEMU may take until its monitor answers. Connecting to backends is part of it.
const START_LIMIT: Duration = Duration::from_secs(20);
/// A log is cut back before a start when it is longer than this.
const LOG_LENGTH_MAX: u64 = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("its process was begun before and does not answer yet")]
    Begun,
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("QEMU {ending}")]
    Ended { ending: String },
    #[error("QEMU did not answer within {START_LIMIT:?} and was ended")]
    Mute,
}

/// Starts `qemu` for `machine`. When this returns the guest runs.
///
/// # Errors
/// [`LaunchError::Begun`] when a process of the VM exists already; it is left as it is. After every
/// other error no process is left.
pub fn launch(qemu: &Path, machine: &Machine, folder: &VmFolder) -> Result<Process, LaunchError> {
    let fault = |path: PathBuf| |source| LaunchError::Write { path, source };
    std::fs::create_dir_all(folder.path()).map_err(fault(folder.path().into()))?;
    let lock = birth::take(folder).map_err(fault(folder.birth()))?.ok_or(LaunchError::Begun)?;
    prepare(machine, folder)?;
    let mut process = begin(qemu, &command_line(machine, folder), &folder.log(), lock.into())?;
    let deadline = Instant::now() + START_LIMIT;
    loop {
        if let Ok(mut monitor) = Monitor::connect(&folder.qmp(), Duration::from_secs(1))
            && monitor.status().is_ok()
            // Not another process that was there before.
            && monitor.process() == Some(process.identity().process)
        {
            return Ok(process);
        }
        if let Some(ending) = process.ending() {
            return Err(LaunchError::Ended { ending });
        }
        if Instant::now() >= deadline {
            process.kill();
            process.wait(Duration::from_secs(5));
            process.ending();
            return Err(LaunchError::Mute);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn prepare(machine: &Machine, folder: &VmFolder) -> Result<(), LaunchError> {
    let write = |path: PathBuf, text: &str| {
        std::fs::write(&path, text).map_err(|source| LaunchError::Write { path, source })
    };
    write(folder.hostname(), &format!("{}\n", machine.name))?;
    write(folder.network(), &network_file(&machine.nics))?;
    for log in [folder.log(), folder.console_log()] {
        if std::fs::metadata(&log).is_ok_and(|data| data.len() > LOG_LENGTH_MAX) {
            std::fs::remove_file(&log)
                .map_err(|source| LaunchError::Write { path: log.clone(), source })?;
        }
    }
    Ok(())
}
