//! Packet-rate harness, peers side by side, idle bench, micro-benchmarks
