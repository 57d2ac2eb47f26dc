// SPDX-License-Identifier: Apache-2.0
//! Every no that a client can hear: a stable code, and a text with the remedy.

use crate::control::ApplyError;
use crate::nic::NicError;
use crate::uplink::UplinkError;
use crate::worker::WorkerSilent;
use plinth_manage::LineFault;
use plinth_obs::Chain;
use plinth_switch_api::Refusal;
use plinth_vswitch::{ChangeError, ConfigError};
use std::error::Error;

fn refused(code: &str, error: &(dyn Error + 'static)) -> Refusal {
    Refusal { code: code.to_owned(), text: Chain(error).to_string() }
}

impl ApplyError {
    const fn code(&self) -> &'static str {
        match self {
            Self::Config { source } => match source {
                ConfigError::Version { .. } => "config-version",
                ConfigError::EpochBackwards { .. } => "config-old",
                ConfigError::EpochReused { .. } => "config-same-epoch",
                _ => "config-invalid",
            },
            Self::Change { source } => match source {
                ChangeError::Base { .. } => "change-base",
                ChangeError::NotNewer { .. } => "change-number",
                ChangeError::TooMany { .. } => "change-edits",
                ChangeError::NotThere { .. } => "change-not-there",
                ChangeError::Refused { .. } => "config-invalid",
            },
            Self::Nic { source } => match source {
                NicError::Relative { .. } => "socket-relative",
                NicError::Folder { .. } => "socket-folder",
                NicError::Serve { .. } => "socket",
            },
            Self::Uplink { source } => match source {
                UplinkError::Name { .. } => "device-name",
                UplinkError::InterfaceMtu { .. } => "device-mtu",
                UplinkError::Pool { .. } => "device-memory",
                UplinkError::Open { .. } => "device",
            },
            Self::Keep { .. } => "keep",
            Self::Worker { .. } => "worker-silent",
            Self::Stopping => "stopping",
        }
    }
}

pub(crate) fn of_apply(error: &ApplyError) -> Refusal {
    refused(error.code(), error)
}

pub(crate) fn of_worker(error: &WorkerSilent) -> Refusal {
    refused("worker-silent", error)
}

pub(crate) fn of_line(fault: &LineFault) -> Refusal {
    refused(fault.code(), fault)
}

/// A question that cannot be answered as it was put.
pub(crate) fn of_look(text: String) -> Refusal {
    Refusal { code: "look-invalid".to_owned(), text }
}
