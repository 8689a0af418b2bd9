//! The engine that all policies run in, and the limits of each call.
//!
//! Fuel decides: it is deterministic, so that a replay ends where the decision ended. The epoch deadline, about ten
//! times longer, is the net below it. A guest has no clock, no threads and no instruction whose result depends
//! on the machine: NaNs are canonical, relaxed SIMD is off.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use thiserror::Error;
use wasmtime::{Config, Enabled, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig};

/// Period of the epoch, in which deadlines are counted.
const EPOCH_MS: u64 = 10;

/// Memory of an instance that is cleared and kept for the next one in its place.
const RESIDENT_BYTES: usize = 256 << 10;

/// What a policy may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Instructions of one call, about.
    pub fuel: u64,
    /// Longest call on a clock.
    pub deadline_ms: u64,
    /// Memory of one instance.
    pub memory_bytes: usize,
    /// Its stack.
    pub stack_bytes: usize,
    /// What it may hand to the host in one call.
    pub answer_bytes: usize,
    /// Its exported state.
    pub state_bytes: usize,
    /// Lines that it may log in one call.
    pub log_lines: u32,
    /// Its component.
    pub component_bytes: usize,
    /// Instances at the same time: for each policy thread and kind one active and one shadow, and as many again
    /// during an activation.
    pub instances: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            fuel: 200_000_000,
            deadline_ms: 2_000,
            memory_bytes: 64 << 20,
            stack_bytes: 512 << 10,
            answer_bytes: 8 << 20,
            state_bytes: 4 << 20,
            log_lines: 64,
            component_bytes: 8 << 20,
            instances: 128,
        }
    }
}

/// Why there is no engine.
#[derive(Debug, Error)]
#[error("WebAssembly cannot run here: {0}; policies stay native")]
pub struct EngineError(String);

/// The engine; clones share it.
#[derive(Clone)]
pub struct Engine {
    inner: wasmtime::Engine,
    limits: Limits,
    _ticker: Arc<Ticker>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine with these limits.
    pub fn new(limits: Limits) -> Result<Engine, EngineError> {
        let failed = |error: &dyn std::fmt::Display| EngineError(format!("{error:#}"));
        let inner = wasmtime::Engine::new(&settings(&limits)).map_err(|error| failed(&error))?;
        let ticker = Ticker::start(inner.clone()).map_err(|error| failed(&error))?;
        Ok(Engine { inner, limits, _ticker: Arc::new(ticker) })
    }

    /// The limits of each call.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.inner
    }

    /// The deadline in epochs; one more, because the present one has begun already.
    pub(crate) fn deadline_epochs(&self) -> u64 {
        self.limits.deadline_ms.div_ceil(EPOCH_MS) + 1
    }
}

fn settings(limits: &Limits) -> Config {
    let mut pool = PoolingAllocationConfig::default();
    pool.total_component_instances(limits.instances)
        // A component of wit-component has its module, and small ones that adapt it.
        .total_core_instances(limits.instances * 4)
        .total_memories(limits.instances)
        .total_tables(limits.instances * 4)
        .max_memories_per_component(1)
        // An instance in a place that was used before finds its pages there: the first decision after a swap does not
        // wait for them one by one, and giving them back interrupts no other processor.
        .linear_memory_keep_resident(RESIDENT_BYTES)
        // Where the kernel can tell (6.7), only what was written is cleared, wherever it lies.
        .pagemap_scan(Enabled::Auto)
        .table_keep_resident(RESIDENT_BYTES / 4)
        .max_memory_size(limits.memory_bytes);
    let mut config = Config::new();
    config
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
        .memory_reservation(limits.memory_bytes as u64)
        .max_wasm_stack(limits.stack_bytes)
        .cranelift_opt_level(OptLevel::Speed)
        .cranelift_nan_canonicalization(true)
        .wasm_relaxed_simd(false)
        .wasm_backtrace_max_frames(None)
        .consume_fuel(true)
        .epoch_interruption(true);
    config
}

/// Advances the epoch until it is dropped.
struct Ticker {
    stop: Option<Sender<()>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Ticker {
    fn start(engine: wasmtime::Engine) -> std::io::Result<Ticker> {
        let (stop, stopped) = channel::<()>();
        let turn = move || {
            while stopped.recv_timeout(Duration::from_millis(EPOCH_MS)) == Err(RecvTimeoutError::Timeout) {
                engine.increment_epoch();
            }
        };
        let thread = std::thread::Builder::new().name("policy-epoch".into()).spawn(turn)?;
        Ok(Ticker { stop: Some(stop), thread: Mutex::new(Some(thread)) })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        // The thread ends when its channel is gone.
        self.stop = None;
        let thread = self.thread.get_mut().ok().and_then(Option::take);
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            // It does nothing that can panic; without it, fuel still ends every call.
        }
    }
}
