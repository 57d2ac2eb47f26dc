// SPDX-License-Identifier: Apache-2.0
//! Bindings to DPDK, made at build time from the installed headers.
//!
//! No logic is here: an allow-list of functions in `build.rs`, and `shim.c` for those that C has
//! as static inline functions. Only `plinth-dpdk` may use this crate; everybody else uses that.
#![allow(
    unsafe_code,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    missing_debug_implementations,
    unnecessary_transmutes,
    unused_qualifications,
    unreachable_pub,
    unsafe_op_in_unsafe_fn,
    clippy::all,
    clippy::pedantic,
    clippy::nursery,
    clippy::restriction,
    reason = "bindgen's output keeps C's names and shapes, and nobody reads it as Rust"
)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
