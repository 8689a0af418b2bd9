//! Burst credits, groups, node bucket, parking and fair release
