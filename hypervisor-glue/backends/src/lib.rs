// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! virtio-net and virtio-blk in poll mode, for a worker.
//!
//! A worker keeps one [`net::NetDevice`] or [`blk::BlkDevice`] for each device, feeds it the
//! [`QueueEvent`]s of the device's thread and polls it each round. The other half,
//! [`net::NetClass`] or [`blk::BlkClass`], goes to [`plinth_vhost::Device::serve`].
//!
//! ```text
//! let (sender, events) = crossbeam_channel::bounded(64);
//! let class = Arc::new(NetClass::new(options));
//! let server = Device::serve(device_options, class.clone(), WorkerLink::new(sender, wake))?;
//! // On the worker, each round:
//! while let Ok(event) = events.try_recv() { devices[event.device].handle(event.change); }
//! device.receive(pair, &mut burst);        // packets out of the guest
//! other.deliver(pair, head, payload, offload)?;
//! device.release(&mut burst);
//! device.flush(); other.flush();
//! ```

pub mod blk;
mod config;
pub mod fake;
pub mod fuzz;
mod kicks;
pub mod net;
mod slots;

pub use kicks::KickChange;
pub use plinth_vhost::{
    Device, DeviceOptions, DeviceStatus, DeviceToken, HandOverError, HandOverLine, HandedDevice,
    QueueChange, QueueEvent, ServeError, Shrinkable, Successor, WorkerLink,
};
