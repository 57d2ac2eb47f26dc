// SPDX-License-Identifier: Apache-2.0
//! A disk in memory that fails on request.
