//! Volumes that are attached and not used.

use std::time::{Duration, Instant};

use super::Sample;
use super::servers::Server;
use crate::Outcome;
use crate::load::Attached;

/// For how long they are watched.
const WATCH: Duration = Duration::from_secs(10);
/// How often their clients look whether they have to say something.
const LOOK: Duration = Duration::from_millis(20);

/// Attaches volumes that no load goes to.
pub(super) fn attach(
    server: &Server,
    volumes: std::ops::Range<u32>,
    keep_alive_ms: u32,
) -> Outcome<Vec<Attached>> {
    volumes.map(|number| Attached::open(server.uri(number)?, keep_alive_ms)).collect()
}

/// What the server spends on them.
pub(super) fn measure(server: &Server, others: &mut [Attached]) -> Outcome<Sample> {
    let before = server.spent()?;
    let begun = Instant::now();
    while begun.elapsed() < WATCH {
        for other in others.iter_mut() {
            other.keep_alive()?;
        }
        std::thread::sleep(LOOK);
    }
    let after = server.spent()?;
    let (user_ns, kernel_ns) = (after.user_ns - before.user_ns, after.kernel_ns - before.kernel_ns);
    let all_ns = user_ns + kernel_ns;
    Ok(Sample {
        iops: 0.0,
        p50_us: 0.0,
        p99_us: 0.0,
        user_ns: 0.0,
        kernel_share: kernel_ns as f64 / all_ns.max(1) as f64,
        cpu_share: all_ns as f64 / begun.elapsed().as_nanos() as f64,
    })
}
