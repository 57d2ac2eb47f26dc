// SPDX-License-Identifier: Apache-2.0
//! plinth-switchd.
fn main() {}
