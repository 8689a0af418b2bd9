//! What threads and processors spend, from /proc.

use std::fs;
use std::time::{Duration, Instant};

use crate::Outcome;

/// A thread whose time on its processor can be read.
#[derive(Clone, Debug)]
pub struct Thread {
    schedstat: String,
}

impl Thread {
    /// The thread of process `pid` whose name begins with `name`.
    pub fn find(pid: u32, name: &str) -> Outcome<Thread> {
        let folder = format!("/proc/{pid}/task");
        let tasks = fs::read_dir(&folder).map_err(|error| format!("{folder}: {error}"))?;
        for task in tasks.flatten() {
            let path = task.path();
            if fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.starts_with(name)) {
                return Ok(Thread { schedstat: path.join("schedstat").to_string_lossy().into_owned() });
            }
        }
        Err(format!("process {pid} has no thread {name}"))
    }

    /// Time that it has run, as of the kernel's last timer tick (4 ms or less).
    pub fn cpu(&self) -> Outcome<Duration> {
        let text = fs::read_to_string(&self.schedstat).map_err(|e| format!("{}: {e}", self.schedstat))?;
        let ns = text.split_whitespace().next().and_then(|field| field.parse().ok());
        ns.map(Duration::from_nanos).ok_or_else(|| format!("{} holds no number", self.schedstat))
    }
}

/// Time of all processors together, in ticks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ticks {
    /// All of it.
    pub total: u64,
    /// Nothing to do.
    pub idle: u64,
    /// Soft interrupts: the kernel's network stack.
    pub softirq: u64,
    /// System calls.
    pub system: u64,
    /// Taken away by the host of a virtual machine.
    pub steal: u64,
}

impl Ticks {
    /// What /proc/stat says now: one per processor.
    pub fn each() -> Outcome<Vec<Ticks>> {
        let text = fs::read_to_string("/proc/stat").map_err(|error| format!("/proc/stat: {error}"))?;
        let processors = text.lines().filter(|line| {
            line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        });
        Ok(processors.map(Ticks::parse).collect())
    }

    /// user nice system idle iowait irq softirq steal; see proc_stat(5).
    fn parse(line: &str) -> Ticks {
        let fields: Vec<u64> = line.split_whitespace().skip(1).map(|f| f.parse().unwrap_or(0)).collect();
        let field = |at: usize| fields.get(at).copied().unwrap_or(0);
        let total = fields.iter().take(8).sum();
        Ticks { total, idle: field(3) + field(4), softirq: field(6), system: field(2), steal: field(7) }
    }

    /// Shares of (idle, softirq, system) since `before`.
    pub fn shares_since(&self, before: &Ticks) -> (f64, f64, f64) {
        let total = (self.total - before.total).max(1) as f64;
        let share = |now: u64, then: u64| (now - then) as f64 / total;
        (
            share(self.idle, before.idle),
            share(self.softirq, before.softirq),
            share(self.system, before.system),
        )
    }
}

/// Interrupts that other processors sent to one, since the machine started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interrupts {
    /// Memory was unmapped or protected elsewhere (`TLB`).
    pub tlb: u64,
    /// Something was to be called there (`CAL`).
    pub call: u64,
}

impl Interrupts {
    /// What /proc/interrupts says of a processor.
    pub fn of(cpu: usize) -> Outcome<Interrupts> {
        let text =
            fs::read_to_string("/proc/interrupts").map_err(|error| format!("/proc/interrupts: {error}"))?;
        Interrupts::parse(&text, cpu)
            .ok_or_else(|| format!("/proc/interrupts has no TLB and CAL of processor {cpu}"))
    }

    /// A line has a name, then a number for each processor that is on, in their order.
    fn parse(text: &str, cpu: usize) -> Option<Interrupts> {
        let name = format!("CPU{cpu}");
        let column = text.lines().next()?.split_whitespace().position(|word| word == name)?;
        let of = |kind: &str| {
            let line = text.lines().find_map(|line| line.trim_start().strip_prefix(kind))?;
            line.split_whitespace().nth(column)?.parse().ok()
        };
        Some(Interrupts { tlb: of("TLB:")?, call: of("CAL:")? })
    }

    /// What came since `before`.
    pub fn since(self, before: Interrupts) -> Interrupts {
        Interrupts { tlb: self.tlb - before.tlb, call: self.call - before.call }
    }
}

/// Waits for a quiet machine, and says so if it does not become one.
pub fn settle(limit: Duration) -> Outcome {
    if !wait_for_quiet(limit)? {
        eprintln!("the machine is not quiet; measured all the same");
    }
    Ok(())
}

/// Waits until every processor was more than 80 % idle for one second. False after `limit`.
pub fn wait_for_quiet(limit: Duration) -> Outcome<bool> {
    let until = Instant::now() + limit;
    loop {
        let before = Ticks::each()?;
        std::thread::sleep(Duration::from_secs(1));
        let now = Ticks::each()?;
        let quiet = now.iter().zip(&before).all(|(now, before)| now.shares_since(before).0 > 0.8);
        if quiet || Instant::now() > until {
            return Ok(quiet);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_works_uses_time() {
        let (started, starts) = std::sync::mpsc::channel();
        let name = std::thread::Builder::new().name("cpu-test".into()).spawn(move || {
            started.send(()).expect("the test waits");
            let until = Instant::now() + Duration::from_millis(300);
            while Instant::now() < until {
                std::hint::spin_loop();
            }
        });
        // A thread has its name before it begins.
        starts.recv().expect("it starts");
        let thread = Thread::find(std::process::id(), "cpu-test").expect("it runs");
        let first = thread.cpu().expect("readable");
        let until = Instant::now() + Duration::from_secs(10);
        while thread.cpu().is_ok_and(|now| now == first) {
            assert!(Instant::now() < until, "no time was used");
            std::thread::yield_now();
        }
        name.expect("spawned").join().expect("no panic");
        assert!(Thread::find(std::process::id(), "no such thread").is_err());
    }

    #[test]
    fn interrupts_are_those_of_the_processor() {
        let text = "           CPU0       CPU2\n LOC: 7 8 Local timer interrupts\n\
                    CAL:     130848     121632   Function call interrupts\n\
                    TLB:      89503      95275   TLB shootdowns\n";
        let of = |cpu| Interrupts::parse(text, cpu);
        assert_eq!(of(0), Some(Interrupts { tlb: 89_503, call: 130_848 }));
        assert_eq!(of(2), Some(Interrupts { tlb: 95_275, call: 121_632 }));
        assert_eq!(of(1), None);
        assert_eq!(Interrupts::parse("CPU0\nTLB: 1\n", 0), None);
        let now = Interrupts { tlb: 5, call: 9 };
        assert_eq!(now.since(Interrupts { tlb: 2, call: 9 }), Interrupts { tlb: 3, call: 0 });
    }

    #[test]
    fn shares_add_up() {
        let before = Ticks::parse("cpu0 10 0 10 70 10 0 0 0 0 0");
        let now = Ticks::parse("cpu0 20 0 20 140 10 0 10 0 0 0");
        assert_eq!((before.total, now.total), (100, 200));
        assert_eq!(now.shares_since(&before), (0.7, 0.1, 0.1));
    }
}
