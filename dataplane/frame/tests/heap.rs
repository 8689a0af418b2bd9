//! Giving memory back, alone in its process so that nobody else's memory is counted.
#![cfg(all(target_os = "linux", target_env = "gnu", not(miri)))]
#![allow(missing_docs)]

#[test]
fn freed_memory_goes_back_to_the_kernel() {
    let resident_kib = || -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    // 64 MiB in pieces below any threshold, and one that keeps the end of the heap where it is.
    let pieces: Vec<Box<[u8; 8192]>> = (0..8192_u32).map(|n| Box::new([n as u8 | 1; 8192])).collect();
    let last = Box::new([1_u8; 8192]);
    drop(pieces);
    let kept = resident_kib();
    frame::trim_heap();
    let trimmed = resident_kib();
    assert!(kept > trimmed + (32 << 10), "{kept} KiB before, {trimmed} after");
    assert_eq!(last[8191], 1);
}
