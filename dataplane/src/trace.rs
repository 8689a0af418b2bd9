//! `tidegate-dataplane trace`: I/Os that were followed, as waterfalls or as JSON.

use std::time::Duration;

use agent::traces::TraceQuery;
use agent::{client, waterfall};

use crate::{Outcome, Output, Socket, enough, show};

/// How often it is looked for more.
const LOOK: Duration = Duration::from_millis(200);
/// I/Os that are shown of those that came meanwhile.
const FOLLOW_MAX: usize = 1024;

/// Options of `trace`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    socket: Socket,
    /// Only I/Os of this export
    #[arg(long, value_name = "EXPORT", default_value = "")]
    volume: String,
    /// The N slowest of those that are kept, instead of the newest
    #[arg(long, value_name = "N", conflicts_with = "follow")]
    slowest: Option<usize>,
    /// The N newest
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "follow")]
    newest: usize,
    /// Only outliers: I/Os that took much longer than others of their class
    #[arg(long)]
    outliers: bool,
    /// Show each one as it comes, until Ctrl-C
    #[arg(long)]
    follow: bool,
    /// Form of the output; JSON is one object, with --follow one for each look
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// Shows what was asked for.
pub fn run(args: &Args) -> Outcome {
    let socket = args.socket.resolve()?;
    let mut asked = TraceQuery {
        volume: args.volume.clone(),
        after: 0,
        outliers: args.outliers,
        slowest: args.slowest.is_some(),
        limit: args.slowest.unwrap_or(if args.follow { FOLLOW_MAX } else { args.newest }),
    };
    if args.follow {
        asked.after = client::trace(&socket, &TraceQuery::default())?.collected.traces;
    }
    loop {
        let report = client::trace(&socket, &asked)?;
        asked.after = report.traces.iter().map(|trace| trace.number).max().unwrap_or(asked.after);
        let text = match (args.output, args.follow) {
            (Output::Json, true) if report.traces.is_empty() => String::new(),
            (Output::Json, _) => serde_json::to_string(&report)? + "\n",
            (Output::Table, _) => {
                let drawn: String = report.traces.iter().map(waterfall::draw).collect();
                if args.follow { drawn } else { waterfall::summary(&report) + &drawn }
            }
        };
        if let Err(error) = show(&text, false) {
            return enough(error);
        }
        if !args.follow {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
}
