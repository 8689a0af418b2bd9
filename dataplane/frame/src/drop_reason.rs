//! Why a frame was not delivered: one list for the whole data plane.

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// The one reason under which a frame that is not delivered is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum DropReason { $($(#[$doc])* $variant,)* }

        impl DropReason {
            /// Every reason, in the order of its number.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)*];
            /// How many reasons there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The name in configuration, metrics and tables.
            pub fn name(self) -> &'static str {
                match self { $(DropReason::$variant => $name,)* }
            }
        }
    };
}

reasons! {
    /// Too short for the header that its type announces.
    Truncated = "truncated",
    /// A field contradicts another one or its standard.
    Malformed = "malformed",
    /// A checksum is wrong.
    BadChecksum = "bad_checksum",
    /// No tenant is attached to this port and VLAN.
    UnknownAttachment = "unknown_attachment",
    /// The source MAC or address is not one that the tenant's port may use.
    Spoofed = "spoofed",
    /// A type of frame that the overlay does not carry.
    UnsupportedType = "unsupported_type",
    /// No rule matches.
    NoRule = "no_rule",
    /// A rule says drop.
    RuleDrop = "rule_drop",
    /// A rule says trap and no trap port is configured.
    TrapNoPort = "trap_no_port",
    /// Not addressed to this tunnel endpoint.
    NotForUs = "not_for_us",
    /// The VNI belongs to no tenant.
    UnknownVni = "unknown_vni",
    /// The tenant is not reachable by the port or the endpoint that the frame came from.
    WrongPort = "wrong_port",
    /// A critical Geneve option is not understood (RFC 8926, clause 3.5).
    UnknownOption = "unknown_option",
    /// Inner ECN and outer ECN may not be combined (RFC 6040, clause 4.2).
    EcnForbidden = "ecn_forbidden",
    /// The inner destination is no known address of the tenant.
    UnknownDestination = "unknown_destination",
    /// Larger than the path allows; the sender was told.
    TooBig = "too_big",
    /// Neighbour not resolved and its waiting room full.
    Unresolved = "unresolved",
    /// The volume's parking bound, in frames or in bytes, is reached.
    ParkedFull = "parked_full",
    /// No free frame.
    NoFrame = "no_frame",
    /// The egress port's queue is full.
    TxFull = "tx_full",
    /// The egress port is down or gone.
    PortDown = "port_down",
    /// The ring to another worker is full.
    RingFull = "ring_full",
    /// Dropped on purpose by fault injection.
    FaultInjected = "fault_injected",
    /// Answered by the data plane itself (ARP, neighbour discovery).
    Answered = "answered",
    /// The volume or its rule was removed while the frame was parked.
    RuleGone = "rule_gone",
    /// Still parked or queued when the daemon stopped.
    Shutdown = "shutdown",
}
