// SPDX-License-Identifier: Apache-2.0
//! plinth-stored, as a node agent would run it.

use crate::daemon::{Daemon, program};
use crate::scratch::Scratch;
use crate::wait::within;
use anyhow::{Context, Result, anyhow, bail, ensure};
use plinth_ids::{DiskId, Epoch, PoolId, VolumeId};
use plinth_manage::Client;
use plinth_store_api::{
    Answer, Attachment, CONFIG_VERSION, Durability, Pool, PoolStatus, Reply, Request, StoreConfig,
    Verb,
};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const START: Duration = Duration::from_secs(30);
const ANSWER: Duration = Duration::from_secs(30);

/// A running store, its folders and its next configuration.
#[derive(Debug)]
pub struct Store {
    daemon: Daemon,
    folder: PathBuf,
    arguments: Vec<String>,
    /// What [`Store::apply`] sends; its epoch is counted up there.
    pub config: StoreConfig,
}

impl Store {
    /// Starts a store without pools.
    ///
    /// # Errors
    /// When it does not come up, with its log.
    pub fn start(scratch: &Scratch, tag: &str) -> Result<Self> {
        Self::start_with(scratch, tag, &[])
    }

    /// The same with more arguments for the daemon, such as `--cpu 1`.
    ///
    /// # Errors
    /// As [`Store::start`].
    pub fn start_with(scratch: &Scratch, tag: &str, arguments: &[&str]) -> Result<Self> {
        let folder = scratch.join(tag);
        std::fs::create_dir_all(&folder).context("the store's folder")?;
        let arguments: Vec<_> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let daemon = launch(&folder, &arguments)?;
        let config = StoreConfig {
            version: CONFIG_VERSION,
            workers: Vec::new(),
            epoch: Epoch(0),
            pools: Vec::new(),
            attachments: Vec::new(),
        };
        let mut store = Self { daemon, folder, arguments, config };
        store.wait_until_up()?;
        Ok(store)
    }

    fn wait_until_up(&mut self) -> Result<()> {
        within(START, "plinth-stored answers", || {
            self.daemon.check()?;
            self.call(Verb::Status).map(drop)
        })
    }

    /// Formats a pool of `size` bytes on a file of the store's folder, and takes it into the
    /// configuration, which is applied.
    ///
    /// # Errors
    /// When the store refuses.
    pub fn make_pool(&mut self, id: u32, size: u64) -> Result<PathBuf> {
        let device = self.folder.join(format!("pool-{id}"));
        self.make_pool_on(id, &device, size)?;
        Ok(device)
    }

    /// The same on a device or file of the caller's choice.
    ///
    /// # Errors
    /// When the store refuses.
    pub fn make_pool_on(&mut self, id: u32, device: &Path, size: u64) -> Result<()> {
        self.make_pool_as(id, device, size, Durability::Flush)
    }

    /// The same with a durability.
    ///
    /// # Errors
    /// When the store refuses.
    pub fn make_pool_as(
        &mut self,
        id: u32,
        device: &Path,
        size: u64,
        durability: Durability,
    ) -> Result<()> {
        let (id, device) = (PoolId(id), device.to_owned());
        // A disk in the store's memory is made empty at every start, and has its size in its name.
        let text = device.to_string_lossy();
        if !text.starts_with("memory:") && !text.starts_with("null:") {
            let (device, size) = (device.clone(), Some(size));
            self.call(Verb::PoolFormat {
                id,
                disk: DiskId::FIRST,
                device,
                size,
                overwrite: false,
            })?;
        }
        self.config.pools.push(Pool::of_one(id, device, durability));
        self.apply()
    }

    /// Makes a volume and serves it on the socket that is returned.
    ///
    /// # Errors
    /// When the store refuses.
    pub fn make_volume(
        &mut self,
        pool: u32,
        volume: u64,
        size: u64,
        queues: u16,
    ) -> Result<PathBuf> {
        let name = format!("volume-{volume}").parse().context("a volume's name")?;
        let (pool, volume) = (PoolId(pool), VolumeId(volume));
        self.call(Verb::VolumeCreate { pool, volume, name, size })?;
        let socket = self.folder.join(format!("blk-{}.sock", volume.0));
        let attachment = Attachment {
            pool,
            volume,
            socket: socket.clone(),
            queues,
            is_read_only: false,
            limits: None,
            worker: None,
        };
        self.config.attachments.push(attachment);
        self.apply()?;
        Ok(socket)
    }

    /// # Errors
    /// When it is refused.
    pub fn apply(&mut self) -> Result<()> {
        self.config.epoch.0 += 1;
        match self.call(Verb::Apply(self.config.clone()))? {
            Answer::Applied { epoch } if epoch == self.config.epoch => Ok(()),
            other => bail!("apply was answered with {other:?}"),
        }
    }

    /// # Errors
    /// When the store does not answer, or refuses.
    pub fn call(&self, verb: Verb) -> Result<Answer> {
        let mut client = Client::connect(&self.folder.join("stored.sock"), ANSWER)?;
        let reply: Reply = client.call(&Request { id: 1, verb })?;
        reply.result.map_err(|refusal| anyhow!("{}: {}", refusal.code, refusal.text))
    }

    /// # Errors
    /// As [`Store::call`].
    pub fn pools(&self) -> Result<Vec<PoolStatus>> {
        match self.call(Verb::Pools)? {
            Answer::Pools(pools) => Ok(pools),
            other => bail!("pools was answered with {other:?}"),
        }
    }

    /// # Errors
    /// When it was dead already.
    pub fn kill(&mut self) -> Result<()> {
        self.daemon.kill()
    }

    /// Starts it again over its folders, as the node agent does. No configuration is sent.
    ///
    /// # Errors
    /// When it does not come up, or an attachment does not.
    pub fn start_again(&mut self) -> Result<()> {
        self.daemon = launch(&self.folder, &self.arguments)?;
        self.wait_until_up()?;
        let count = self.config.attachments.len();
        within(START, "every volume is served", || {
            self.daemon.check()?;
            let Answer::Status(status) = self.call(Verb::Status)? else { bail!("no status") };
            let pools = self.pools()?;
            let is_used =
                |id| self.config.attachments.iter().any(|attachment| attachment.pool == id);
            let used = pools.iter().filter(|pool| is_used(pool.id));
            let attachments = status.attachments.iter().map(|attachment| &attachment.fault);
            let fault = used.map(|pool| &pool.fault).chain(attachments).flatten().next().cloned();
            match fault {
                Some(fault) => bail!("{fault}"),
                None if status.attachments.len() == count => self.find_sockets(),
                None => bail!("{} of {count} attachments", status.attachments.len()),
            }
        })
    }

    /// Whether somebody listens at every socket: a killed process leaves its files behind, and an
    /// attachment that has not been tried yet has no fault.
    fn find_sockets(&self) -> Result<()> {
        for attachment in &self.config.attachments {
            let socket = &attachment.socket;
            UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
        }
        Ok(())
    }

    /// Starts a second process that takes over from the first, and waits for the end of that.
    ///
    /// # Errors
    /// When the old process ends badly, or the new one does not serve.
    pub fn take_over(&mut self) -> Result<()> {
        let mut arguments = self.arguments.clone();
        arguments.push("--take-over".to_owned());
        let successor = launch(&self.folder, &arguments)?;
        let ended = self.daemon.wait(START)?;
        self.daemon = successor;
        ensure!(ended.success(), "the old process ended with {ended}; {}", self.daemon.tail());
        self.wait_until_up()
    }

    pub const fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }
}

fn launch(folder: &Path, arguments: &[String]) -> Result<Daemon> {
    let mut command = Command::new(program("plinth-stored")?);
    command
        .arg("--run-dir")
        .arg(folder)
        .arg("--state-dir")
        .arg(folder.join("state"))
        .args(arguments);
    Daemon::start("plinth-stored", command, &folder.join("log"))
}
