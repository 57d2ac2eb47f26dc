// SPDX-License-Identifier: Apache-2.0
//! `plinth switch`.

use super::Deed;
use clap::Subcommand;
use plinth_api::SwitchTable;
use plinth_ids::Name;

#[derive(Debug, Subcommand)]
pub enum SwitchVerb {
    /// Where packets enter and leave, with counters
    Ports {
        /// [default: the only one]
        #[arg(long)]
        node: Option<Name>,
    },
    /// Conversations that the switch knows
    Flows {
        /// [default: the only one]
        #[arg(long)]
        node: Option<Name>,
        /// The newest so many
        #[arg(long, default_value = "100")]
        limit: u32,
    },
    /// Packets that ended in the switch, by reason
    Drops {
        /// [default: the only one]
        #[arg(long)]
        node: Option<Name>,
    },
}

impl SwitchVerb {
    pub(super) fn deed(self) -> Deed {
        match self {
            Self::Ports { node } => Deed::Switch(node, SwitchTable::Ports),
            Self::Flows { node, limit } => Deed::Switch(node, SwitchTable::Flows { limit }),
            Self::Drops { node } => Deed::Switch(node, SwitchTable::Drops),
        }
    }
}
