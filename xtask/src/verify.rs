//! One numbered claim of the product at a time, shown on this machine by the tests and benches that hold
//! it. What CI runs in a short form runs here in full, and a test that is skipped shows nothing.

use std::path::Path;

use crate::tools::{self, Outcome, cargo, show};
use crate::{bench, etcd, fuzz, run, sim};

/// Options of `cargo xtask verify`.
#[derive(clap::Args)]
pub struct Args {
    /// Number of the claim, as in docs/SPECIFICATION.md; without it they are listed
    claim: Option<u8>,
}

/// A claim: its number, what it says, and the steps that show it.
struct Claim {
    number: u8,
    says: &'static str,
    steps: &'static [Step],
}

enum Step {
    /// Tests of a package, in optimised form, with their output; the variable makes them run in full.
    Test { package: &'static str, test: &'static str, filter: &'static str },
    /// A bench.
    Bench(&'static [&'static str]),
    /// Every interleaving.
    Loom,
    /// Worlds of the control plane's core.
    Sim(&'static [&'static str]),
    /// Every fuzz target, ten minutes each.
    Fuzz,
    /// The store's suite over etcd.
    EtcdSuite,
    /// A control plane that has its store in etcd.
    EtcdDaemon,
}

/// Tests over whole programs.
const fn end_to_end(test: &'static str, filter: &'static str) -> Step {
    Step::Test { package: "tests", test, filter }
}

const CLAIMS: &[Claim] = &[
    Claim {
        number: 1,
        says: "a kernel vxlan device is the peer, IPv4 and IPv6 underlay; Geneve between gateways; clean captures",
        steps: &[end_to_end("overlay", "")],
    },
    Claim {
        number: 2,
        says: "super-segments become the frames that the kernel's own segmentation makes",
        steps: &[end_to_end("gso", "")],
    },
    Claim {
        number: 3,
        says: "tenants never meet; everything refused is counted under its reason; every record balances",
        steps: &[
            Step::Test { package: "overlay", test: "isolation", filter: "" },
            Step::Test { package: "overlay", test: "drops", filter: "" },
            end_to_end("balance", ""),
        ],
    },
    Claim {
        number: 4,
        says: "what is admitted follows the configured curve; volumes share a short node fairly",
        steps: &[
            Step::Test { package: "throttle", test: "curve", filter: "" },
            Step::Test { package: "throttle", test: "fairness", filter: "" },
            end_to_end("credits", ""),
            end_to_end("serve", "credits::"),
            end_to_end("serve", "neighbour::"),
        ],
    },
    Claim {
        number: 5,
        says: "packets per second beside DPDK and OVS",
        steps: &[Step::Bench(&["rate"]), Step::Bench(&["peers"])],
    },
    Claim {
        number: 6,
        says: "an idle worker sleeps, a busy one does not; no wake-up is lost",
        steps: &[
            Step::Bench(&["idle"]),
            Step::Test { package: "engine", test: "", filter: "recorded_decisions" },
            Step::Loom,
        ],
    },
    Claim {
        number: 7,
        says: "1,000 reloads under load lose nothing; kill -9 leaves nothing",
        steps: &[end_to_end("lifecycle", "")],
    },
    Claim {
        number: 8,
        says: "no input panics; the throttle equals exact arithmetic",
        steps: &[Step::Test { package: "throttle", test: "trace", filter: "" }, Step::Fuzz],
    },
    Claim {
        number: 9,
        says: "spans add up to the host's latency; delayed writes are found with their stage; what that costs",
        steps: &[
            Step::Test { package: "trace", test: "", filter: "" },
            end_to_end("serve", "trace::"),
            end_to_end("serve", "spans::"),
            Step::Bench(&["trace"]),
        ],
    },
    Claim {
        number: 10,
        says: "a store in etcd is a store; a control plane there goes on across kill -9 of either",
        steps: &[Step::EtcdSuite, Step::EtcdDaemon],
    },
    Claim {
        number: 11,
        says: "moves between nodes begin when the learnt load is quiet, and hosts hardly notice (10 minutes)",
        steps: &[end_to_end("control", "profiles::")],
    },
    Claim {
        number: 12,
        says: "1,000 swaps of each kind a minute under load fail nothing, and disturb no worker (15 minutes)",
        steps: &[
            Step::Test { package: "host", test: "policies", filter: "swaps::" },
            Step::Bench(&["policy", "--under-load"]),
        ],
    },
    Claim {
        number: 13,
        says: "each bad guest is contained, answered natively, counted, explained and rolled back",
        steps: &[Step::Test { package: "host", test: "policies", filter: "bad_guests::" }],
    },
    Claim {
        number: 14,
        says: "a shadow decides nothing and is compared; a log is replayed to the bit, and differs for another version",
        steps: &[
            Step::Test { package: "host", test: "policies", filter: "shadow" },
            Step::Test { package: "host", test: "policies", filter: "decision_log::" },
        ],
    },
    Claim {
        number: 15,
        says: "a storm stays within its slots; nothing runs twice or is lost; shares follow capacity",
        steps: &[
            Step::Test { package: "control-core", test: "", filter: "scenarios::" },
            end_to_end("control", "storm::"),
        ],
    },
    Claim {
        number: 16,
        says: "a lost head is replaced while hosts wait 3 s at most; leases are revoked in time (an hour)",
        steps: &[
            end_to_end("control", "failover::"),
            end_to_end("control", "leases::"),
            end_to_end("guest", "failover::"),
        ],
    },
    Claim {
        number: 17,
        says: "10,000 worlds without a violation, each planted mistake found; every route fuzzed (half an hour)",
        steps: &[
            Step::Sim(&["--seeds", "10000"]),
            Step::Sim(&["--bug", "all", "--seeds", "500"]),
            end_to_end("control", "api::"),
        ],
    },
    Claim {
        number: 18,
        says: "stock hosts: a Linux guest over NVMe/TCP and NBD, libnbd, QEMU, fio, over TCP, TLS and Unix sockets",
        steps: &[
            end_to_end("guest", "nvme::"),
            end_to_end("guest", "nbd::"),
            end_to_end("serve", "clients::"),
            end_to_end("serve", "tls::"),
        ],
    },
    Claim {
        number: 19,
        says: "what was flushed survives kill -9 at any moment and every crash; the second owner fences the first",
        steps: &[
            Step::Test { package: "volume", test: "", filter: "crashes" },
            end_to_end("serve", "kill::"),
            end_to_end("serve", "fence::"),
            end_to_end("serve", "damage::"),
        ],
    },
    Claim {
        number: 20,
        says: "1,000 hand-overs of busy volumes between workers: no error, pauses of 5 ms at most for 99 of 100",
        steps: &[end_to_end("serve", "moves::")],
    },
    Claim {
        number: 21,
        says: "hostile clients end their own session at most; a disk that is full or stands still harms nobody else",
        steps: &[
            end_to_end("serve", "hostile::"),
            end_to_end("serve", "full::"),
            end_to_end("serve", "stall::"),
        ],
    },
    Claim {
        number: 22,
        says: "requests per second beside nbdkit and qemu-nbd; what many connections and volumes cost; other NVMe/TCP \
               targets are given by --peer and are not in it (an hour)",
        steps: &[Step::Bench(&["block"])],
    },
];

/// Shows a claim, or lists them.
pub fn run(args: &Args) -> Outcome {
    let Some(number) = args.claim else {
        for claim in CLAIMS {
            println!("{}  {}", claim.number, claim.says);
        }
        return Ok(());
    };
    let claim = CLAIMS
        .iter()
        .find(|claim| claim.number == number)
        .ok_or_else(|| format!("there is no claim {number}; `cargo xtask verify` lists them"))?;
    println!("claim {}: {}", claim.number, claim.says);
    tools::ensure(tools::TEST_TOOLS)?;
    let skips = std::env::temp_dir().join(format!("tidegate-verify-{}", std::process::id()));
    let outcome = claim.steps.iter().try_for_each(|one| step(one, &skips));
    // There is no such file unless a test was skipped.
    let skipped = std::fs::read_to_string(&skips).unwrap_or_default();
    let _ = std::fs::remove_file(&skips);
    outcome?;
    if skipped.is_empty() {
        Ok(())
    } else {
        Err(format!("claim {number} is not shown:\n{}", skipped.trim_end()))
    }
}

fn step(step: &Step, skips: &Path) -> Outcome {
    match step {
        Step::Test { package, test, filter } => {
            if *package == "tests" {
                // The end-to-end tests start the daemon as a user would.
                run::programs()?;
            }
            let mut command = cargo();
            command.args(["test", "--release", "--package", package]);
            if !test.is_empty() {
                command.args(["--test", test]);
            }
            command.env("TIDEGATE_FULL", "1").env("TIDEGATE_TEST_SKIPS", skips);
            command.env("CARGO_PROFILE_RELEASE_PANIC", "unwind");
            show(command.args(["--", "--nocapture", filter]))
        }
        Step::Bench(words) => bench::run(&bench::Args::of(words)),
        Step::Sim(words) => sim::simulate(words),
        Step::Loom => fuzz::loom(),
        Step::Fuzz => fuzz::run(&fuzz::Args::full()),
        Step::EtcdSuite => etcd::suite(Some(skips)),
        Step::EtcdDaemon => etcd::daemon(skips),
    }
}
