// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! The on-disk records of Plinth's object store.
