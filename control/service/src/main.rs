// SPDX-License-Identifier: Apache-2.0
//! plinthd.
fn main() {}
