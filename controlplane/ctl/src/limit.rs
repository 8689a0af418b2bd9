//! Limits of work on the command line: so much at once of something, everywhere or somewhere, changed while it goes on.

use clap::{Subcommand, ValueEnum};
use contract::{Command, Dim, Limit, Node, OperationKind, Scope, Tenant, Volume};

use crate::ask::{Asker, Failure};
use crate::table::Table;

/// `tidegate limit`
#[derive(Subcommand)]
pub enum LimitCommand {
    /// Show those that were set; what has none is not limited, or as the configuration says
    List,
    /// Set one; what is under way goes on, also above it
    Put {
        /// Of what
        dim: DimArg,
        /// Where: fleet, node/NAME, link/NAME/NAME, volume/NAME, tenant/NAME, or kind/KIND like kind/scrub
        scope: String,
        /// Most of it at once; of iops and bytes-per-s in each second
        max: u64,
    },
}

/// What is limited.
#[derive(Clone, Copy, ValueEnum)]
pub enum DimArg {
    /// Operations at once
    Operations,
    /// Bulk copies at once, as source or as target
    CopySlots,
    /// I/O operations per second that work causes
    Iops,
    /// Bytes per second that work causes
    BytesPerS,
}

impl DimArg {
    fn dim(self) -> Dim {
        match self {
            DimArg::Operations => Dim::Operations,
            DimArg::CopySlots => Dim::CopySlots,
            DimArg::Iops => Dim::Iops,
            DimArg::BytesPerS => Dim::BytesPerS,
        }
    }
}

/// Runs `tidegate limit`.
pub async fn run(asker: &Asker, command: LimitCommand) -> Result<(), Failure> {
    match command {
        LimitCommand::List => {
            let limits: Vec<Limit> = asker.some("limits").await?;
            asker.show(&limits, |limits| {
                let mut table = Table::new(&["OF", "SCOPE", "MAX"]);
                for limit in limits {
                    table.row(vec![limit.dim.to_string(), limit.scope.to_string(), limit.max.to_string()]);
                }
                table
            })
        }
        LimitCommand::Put { dim, scope, max } => {
            let limit = Limit { dim: dim.dim(), scope: scope_of(asker, &scope).await?, max };
            asker.change_and_tell(Command::LimitPut(limit), None, false).await
        }
    }
}

async fn scope_of(asker: &Asker, text: &str) -> Result<Scope, Failure> {
    let node = async |name: &str| Ok::<_, Failure>(asker.one::<Node>("nodes", name).await?.id);
    let parts: Vec<&str> = text.split('/').collect();
    Ok(match parts[..] {
        ["fleet"] => Scope::Fleet,
        ["node", name] => Scope::Node(node(name).await?),
        ["link", one, other] => Scope::link(node(one).await?, node(other).await?),
        ["volume", name] => Scope::Volume(asker.one::<Volume>("volumes", name).await?.id),
        ["tenant", name] => Scope::Tenant(asker.one::<Tenant>("tenants", name).await?.id),
        ["kind", name] => Scope::Kind(kind_of(name)?),
        _ => {
            return Err(Failure::Other(format!(
                "{text} is no scope; write fleet, node/NAME, link/NAME/NAME, volume/NAME, tenant/NAME or kind/KIND"
            )));
        }
    })
}

fn kind_of(name: &str) -> Result<OperationKind, Failure> {
    OperationKind::ALL.into_iter().find(|kind| kind.to_string() == name).ok_or_else(|| {
        let all = OperationKind::ALL.map(|kind| kind.to_string()).join(", ");
        Failure::Other(format!("{name} is no kind of operation; there are {all}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_found_by_the_word_that_is_shown() {
        assert!(kind_of("move-node").is_ok_and(|kind| kind == OperationKind::MoveNode));
        assert!(kind_of("move").is_err_and(|why| why.to_string().contains("move-node, failover")));
    }
}
