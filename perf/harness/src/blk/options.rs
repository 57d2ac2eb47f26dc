// SPDX-License-Identifier: Apache-2.0
//! What `plinth-perf blk` can be asked for.

use super::stamp::BLOCK;
use crate::pattern::Order;
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

#[derive(Clone, Debug, Deserialize, Serialize, clap::Args)]
pub(crate) struct Options {
    /// The backend's vhost-user socket; given several times, one thread serves them all alike.
    #[arg(long, required = true)]
    pub socket: Vec<PathBuf>,
    /// Order of the offsets.
    #[arg(long, value_enum, default_value_t)]
    pub order: Order,
    /// Share of writes, in percent: 0 only reads, 100 only writes.
    #[arg(long, default_value_t = 0)]
    pub writes: u64,
    /// Bytes of one request, a multiple of 512.
    #[arg(long, default_value_t = 4096)]
    pub block_size: u32,
    /// Requests in flight on each queue.
    #[arg(long, default_value_t = 1)]
    pub depth: u16,
    /// Requests in flight on each queue of the first socket alone, whose latencies are then the
    /// only ones that count: what the others do to it.
    #[arg(long)]
    pub meek_depth: Option<u16>,
    #[arg(long, default_value_t = 1)]
    pub queues: u16,
    /// Length of the run.
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// Not counted, before the run.
    #[arg(long, default_value_t = 1.0)]
    pub warm_up: f64,
    /// End after this many requests, if that is before the time is up.
    #[arg(long)]
    pub count: Option<u64>,
    /// Requests a second, in all; latency is then counted from when a request was due.
    #[arg(long)]
    pub rate: Option<u64>,
    /// A flush after this many writes; 0 is never.
    #[arg(long, default_value_t = 0)]
    pub flush_every: u64,
    /// A flush after each write, by the same slot, when the write has ended: counted as one write,
    /// whose latency ends with the flush.
    #[arg(long, conflicts_with = "flush_every")]
    pub durable: bool,
    /// Bytes from one place to the next, a multiple of 512 and no less than a request. Left out,
    /// a request's length.
    #[arg(long)]
    pub stride: Option<u64>,
    /// Use only the first bytes of the disk.
    #[arg(long)]
    pub span: Option<u64>,
    /// Repeats the same requests.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Pin to this CPU.
    #[arg(long)]
    pub cpu: Option<u32>,
    /// Check every byte that is read against what was written, across restarts of the backend.
    #[arg(long)]
    pub verify: bool,
    /// With --verify: what was never written must read as zeroes.
    #[arg(long, requires = "verify")]
    pub zeroed: bool,
    /// With --verify: how long the backend may be away before that is a failure.
    #[arg(long, default_value_t = 30.0)]
    pub patience: f64,
    /// Write the result here as JSON, besides the summary.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

impl Options {
    /// Every refusal names the option and what would do.
    pub(crate) fn check(&self) -> Result<()> {
        let block = usize::try_from(self.block_size).unwrap_or(usize::MAX);
        if block == 0 || !block.is_multiple_of(512) || block > 1 << 20 {
            bail!("--block-size {block}: give a multiple of 512 up to 1048576");
        }
        if self.verify && !block.is_multiple_of(BLOCK) {
            bail!("--block-size {block} with --verify: give a multiple of {BLOCK}");
        }
        let stride = self.stride();
        if !stride.is_multiple_of(512) || stride < u64::from(self.block_size) {
            bail!("--stride {stride}: give a multiple of 512, no less than --block-size");
        }
        if self.verify && (self.socket.len() > 1 || self.durable || self.stride.is_some()) {
            bail!("--verify: takes one --socket, and neither --durable nor --stride");
        }
        if self.writes > 100 {
            bail!("--writes {}: give 0 to 100 percent", self.writes);
        }
        if !(1..=256).contains(&self.depth) {
            bail!("--depth {}: give 1 to 256", self.depth);
        }
        if let Some(meek) = self.meek_depth
            && !(1..=self.depth).contains(&meek)
        {
            bail!("--meek-depth {meek}: give 1 to --depth, which is {}", self.depth);
        }
        if self.meek_depth.is_some() && (self.verify || self.socket.len() < 2) {
            bail!("--meek-depth: give a second --socket, and no --verify");
        }
        if !(1..=16).contains(&self.queues) {
            bail!("--queues {}: give 1 to 16", self.queues);
        }
        if self.rate == Some(0) {
            bail!("--rate 0 never sends anything; leave it out for no limit");
        }
        Ok(())
    }
}

impl Options {
    /// Bytes from one place to the next.
    pub(crate) fn stride(&self) -> u64 {
        self.stride.unwrap_or(u64::from(self.block_size))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn options() -> Options {
        Options {
            socket: vec![PathBuf::from("/nowhere")],
            order: Order::Rand,
            writes: 50,
            block_size: 4096,
            depth: 4,
            meek_depth: None,
            queues: 1,
            seconds: 1.0,
            warm_up: 0.0,
            count: None,
            rate: None,
            flush_every: 0,
            durable: false,
            stride: None,
            span: None,
            seed: 1,
            cpu: None,
            verify: false,
            zeroed: false,
            patience: 5.0,
            json: None,
        }
    }

    #[test]
    fn refusals_name_the_option() {
        let refused = |change: fn(&mut Options), name: &str| {
            let mut options = options();
            change(&mut options);
            assert!(options.check().unwrap_err().to_string().starts_with(name), "{name}");
        };
        assert!(options().check().is_ok());
        refused(|options| options.block_size = 100, "--block-size 100");
        refused(|options| (options.verify, options.block_size) = (true, 512), "--block-size 512");
        refused(|options| options.stride = Some(2048), "--stride 2048");
        refused(|options| (options.verify, options.durable) = (true, true), "--verify");
        refused(|options| options.writes = 101, "--writes");
        refused(|options| options.depth = 0, "--depth");
        refused(|options| options.meek_depth = Some(5), "--meek-depth");
        refused(|options| options.meek_depth = Some(1), "--meek-depth");
        refused(|options| options.queues = 17, "--queues");
        refused(|options| options.rate = Some(0), "--rate");
    }
}
