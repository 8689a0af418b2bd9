//! The hints and the clock that safe Rust lacks: prefetch, huge pages, the time-stamp counter.

/// Asks the processor to bring the cache line at `place` close. A hint: it never faults.
#[inline(always)]
pub fn prefetch<T>(place: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: prefetch has no architectural effect, and the address comes from a live reference.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(place).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Asks the kernel to back `memory`, which nobody has touched yet, with 2 MiB pages where it can. For tables
/// that are read at random: with 4 KiB pages, each look into a large one costs a walk of the page tables. A
/// hint: without transparent huge pages nothing changes.
pub fn prefer_huge_pages<T>(memory: &mut [std::mem::MaybeUninit<T>]) {
    #[cfg(all(target_os = "linux", not(miri)))]
    {
        const PAGE: usize = 4096;
        let start = (memory.as_mut_ptr() as usize).next_multiple_of(PAGE);
        let end = (memory.as_ptr() as usize + size_of_val(memory)) / PAGE * PAGE;
        if end > start {
            // SAFETY: the range lies inside `memory`; the advice changes which pages back it, not what
            // they hold.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(all(target_os = "linux", not(miri))))]
    let _ = memory;
}

/// Gives memory that was freed back to the kernel. The allocator keeps it for later, and after a large
/// configuration was parsed that is more than all that the process still uses. Takes milliseconds: not for
/// workers.
pub fn trim_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu", not(miri)))]
    {
        // SAFETY: it touches only memory that is free, under the allocator's own locks.
        unsafe { libc::malloc_trim(0) };
    }
}

/// Time-stamp counter: about 19 ns to read, constant rate on every processor with `constant_tsc`.
/// On other architectures: nanoseconds since an arbitrary point.
#[inline(always)]
pub fn tsc() -> u64 {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        // SAFETY: rdtsc is available on every x86_64 and has no memory effect.
        unsafe { std::arch::x86_64::_rdtsc() }
    }
    #[cfg(any(not(target_arch = "x86_64"), miri))]
    {
        use std::sync::OnceLock;
        use std::time::Instant;
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_nanos() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_with_the_hint_is_ordinary_memory() {
        let large = if cfg!(miri) { 8192 } else { 3 << 20 };
        for len in [0, 1, 4096, large] {
            let mut memory = Vec::<u8>::with_capacity(len);
            prefer_huge_pages(memory.spare_capacity_mut());
            memory.resize(len, 0x5a);
            assert!(memory.iter().all(|byte| *byte == 0x5a));
        }
    }
}
