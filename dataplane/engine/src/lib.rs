//! The pinned worker: one loop, idle ladder, budgets, counters
