// SPDX-License-Identifier: Apache-2.0
//! A conversation with one QEMU over its monitor protocol, QMP.

use qapi::{ExecuteError, Qmp, Stream, qmp};
use std::io::{self, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One connection. QEMU serves one at a time, so hold it no longer than needed.
pub struct Monitor {
    path: PathBuf,
    qmp: Qmp<Stream<BufReader<UnixStream>, UnixStream>>,
    stream: UnixStream,
}

/// What QEMU says the guest does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RunState {
    Running,
    /// The guest switched itself off; the process waits to be told to end.
    Off,
    /// The guest's CPUs stand still for another reason.
    Paused,
}

#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    #[error("no QEMU answers at {}", path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("QEMU at {} broke off", path.display())]
    Talk { path: PathBuf, source: io::Error },
    #[error("QEMU at {} refused {command}: {text}", path.display())]
    Refused { path: PathBuf, command: &'static str, text: String },
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Monitor").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Monitor {
    /// Connects and shakes hands; no single answer may take longer than `limit`.
    ///
    /// # Errors
    /// When nobody listens or the other side does not speak QMP in time.
    pub fn connect(path: &Path, limit: Duration) -> Result<Self, MonitorError> {
        let fault = |source| MonitorError::Connect { path: path.into(), source };
        let stream = UnixStream::connect(path).map_err(fault)?;
        stream.set_read_timeout(Some(limit)).map_err(fault)?;
        stream.set_write_timeout(Some(limit)).map_err(fault)?;
        let reader = BufReader::new(stream.try_clone().map_err(fault)?);
        let writer = stream.try_clone().map_err(fault)?;
        let mut qmp = Qmp::new(Stream::new(reader, writer));
        qmp.handshake().map_err(|error| fault(error.into()))?;
        Ok(Self { path: path.into(), qmp, stream })
    }

    /// The id of the process that listens on the socket, as the kernel knows it.
    pub(crate) fn process(&self) -> Option<u32> {
        let peer = rustix::net::sockopt::socket_peercred(&self.stream).ok()?;
        u32::try_from(peer.pid.as_raw_nonzero().get()).ok()
    }

    /// # Errors
    /// When QEMU does not answer.
    pub fn status(&mut self) -> Result<RunState, MonitorError> {
        let status = self.execute("query-status", &qmp::query_status {})?;
        Ok(match status.status {
            qmp::RunState::shutdown => RunState::Off,
            _ if status.running => RunState::Running,
            _ => RunState::Paused,
        })
    }

    /// The UUID that the process was started with.
    ///
    /// # Errors
    /// When QEMU does not answer.
    pub fn uuid(&mut self) -> Result<String, MonitorError> {
        Ok(self.execute("query-uuid", &qmp::query_uuid {})?.UUID)
    }

    /// Presses the power button. The guest may take its time or ignore it.
    ///
    /// # Errors
    /// When QEMU does not answer.
    pub fn press_power(&mut self) -> Result<(), MonitorError> {
        self.execute("system_powerdown", &qmp::system_powerdown {}).map(drop)
    }

    /// Ends the process in good order, whatever the guest does.
    ///
    /// # Errors
    /// When QEMU does not answer.
    pub fn quit(&mut self) -> Result<(), MonitorError> {
        self.execute("quit", &qmp::quit {}).map(drop)
    }

    pub(crate) fn execute<C: qapi::Command>(
        &mut self,
        command: &'static str,
        arguments: &C,
    ) -> Result<C::Ok, MonitorError> {
        let path = || self.path.clone();
        self.qmp.execute(arguments).map_err(|error| match error {
            ExecuteError::Io(source) => MonitorError::Talk { path: path(), source },
            ExecuteError::Qapi(error) => {
                MonitorError::Refused { path: path(), command, text: error.desc }
            }
        })
    }
}
