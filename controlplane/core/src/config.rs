//! What an operator may choose, each with its unit and default.

/// Bounds, times and rates of the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where randomness begins; the server takes it from the system, a simulator from its seed.
    pub seed: u64,
    /// Hand decisions out as [`crate::Ask`]; otherwise the native defaults decide within the step.
    pub ask: bool,
    /// How long an answer may take before the native default answers instead.
    pub answer_within_ms: u64,
    /// How often nodes are told to say that they are there.
    pub heartbeat_ms: u64,
    /// Silence after which a node gets nothing new.
    pub suspect_after_ms: u64,
    /// Silence after which a node is lost; also how long a late or new watcher judges nobody.
    pub lost_after_ms: u64,
    /// How long a lost node must be heard without a gap before it is trusted again.
    pub return_after_ms: u64,
    /// A gap between two steps after which the watcher itself was late.
    pub watcher_gap_ms: u64,
    /// One in so many nodes, and at least two, vanishing at once shuts the valve.
    pub valve_share: u64,
    /// Bulk copies at once at a node that did not say how many it can do.
    pub copy_slots_per_node: u64,
    /// Operations at once at a node; as source or target.
    pub operations_per_node: u64,
    /// Operations of a tenant at once.
    pub operations_per_tenant: u64,
    /// Operations at once.
    pub operations_in_fleet: u64,
    /// Room beyond the limits on operations that only failover uses.
    pub operations_reserved: u64,
    /// Moves at once over one link.
    pub copies_per_link: u64,
    /// Rate of one bulk copy, scrub or wipe.
    pub copy_bytes_per_s: u64,
    /// Least time between two rounds of scheduling.
    pub round_ms: u64,
    /// Operations offered to the policy in one round.
    pub candidates_max: usize,
    /// How long an operation that could run may be passed over before an alarm, and the native default takes it.
    pub starving_after_ms: u64,
    /// Shortest time for a step, however little it has to do.
    pub step_base_ms: u64,
    /// Attempts at a step that says that trying again may help.
    pub tries_max: u16,
    /// How long an operation waits for a lost node before it is given up.
    pub patience_ms: u64,
    /// When something said that was not confirmed is said again.
    pub resend_ms: u64,
    /// How long a condition is not acted on again after it was dealt with.
    pub cooldown_ms: u64,
    /// How often weights are decided on.
    pub weights_ms: u64,
    /// Longest grace of a revoked lease.
    pub grace_max_ms: u32,
    /// Longest time to live of a lease.
    pub ttl_max_ms: u64,
    /// A move must have begun within so long, unless it says otherwise.
    pub move_deadline_ms: u64,
    /// Blackout of a move of nothing.
    pub hand_over_us: u64,
    /// Shortest and longest period that is looked for in the load of a volume.
    pub period_ms: (u64, u64),
    /// Blackouts of moves above this are refused while there is a choice.
    pub blackout_max_us: u64,
    /// Volumes whose load is remembered second by second.
    pub fine_histories_max: usize,
    /// Tenants, nodes, volumes, leases of consumers, waiting operations, each.
    pub limits: Limits,
}

/// Bounds of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tenants.
    pub tenants: usize,
    /// Nodes.
    pub nodes: usize,
    /// Names of pools, since the control plane started.
    pub pools: usize,
    /// Volumes.
    pub volumes: usize,
    /// Leases.
    pub leases: usize,
    /// Operations that are not over.
    pub operations: usize,
    /// Operations, and their events, that are over and kept to be looked at.
    pub history: usize,
    /// Idempotency keys remembered.
    pub keys: usize,
    /// Conditions, steps and released leases read from one report, each.
    pub report: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            tenants: 16_384,
            nodes: 4_096,
            pools: 65_536,
            volumes: 1_000_000,
            leases: 2_000_000,
            operations: 50_000,
            history: 10_000,
            keys: 10_000,
            report: 65_536,
        }
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            seed: 0,
            ask: false,
            answer_within_ms: 200,
            heartbeat_ms: 250,
            suspect_after_ms: 750,
            lost_after_ms: 1_500,
            return_after_ms: 1_000,
            watcher_gap_ms: 500,
            valve_share: 3,
            copy_slots_per_node: 4,
            operations_per_node: 64,
            operations_per_tenant: 256,
            operations_in_fleet: 4_096,
            operations_reserved: 1_024,
            copies_per_link: 1,
            copy_bytes_per_s: 200_000_000,
            round_ms: 10,
            candidates_max: 1_024,
            starving_after_ms: 30_000,
            step_base_ms: 30_000,
            tries_max: 5,
            patience_ms: 300_000,
            resend_ms: 500,
            cooldown_ms: 5_000,
            weights_ms: 1_000,
            grace_max_ms: 500,
            ttl_max_ms: 600_000,
            move_deadline_ms: 3_600_000,
            hand_over_us: 50_000,
            period_ms: (10_000, 86_400_000),
            blackout_max_us: 5_000_000,
            fine_histories_max: 10_000,
            limits: Limits::default(),
        }
    }
}
