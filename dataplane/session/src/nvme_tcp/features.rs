//! Get and Set Features (base clauses 5.15 and 5.27).
//!
//! Several of them base makes mandatory that have nothing to act on here (arbitration, power, temperature,
//! error recovery): they keep what a host sets, as it may expect, until the controller is reset.

use wire::nvme::StatusCode;
use wire::nvme::data::{Events, Feature};

/// Features that keep a value, in the order of [`Features::kept`].
const KEPT: [Feature; 4] =
    [Feature::ARBITRATION, Feature::TEMPERATURE_THRESHOLD, Feature::ERROR_RECOVERY, Feature::WRITE_ATOMICITY];

/// Every feature of a controller with namespaces, and of one without.
pub(super) const IO_FEATURES: [u8; 10] = [0x01, 0x02, 0x04, 0x05, 0x06, 0x07, 0x0a, 0x0b, 0x0f, 0x81];
pub(super) const DISCOVERY_FEATURES: [u8; 2] = [0x0b, 0x0f];

#[derive(Debug)]
pub(super) struct Features {
    kept: [u32; KEPT.len()],
    write_cache: bool,
    queues: u16,
    events: Events,
}

impl Features {
    pub fn new(queues_max: u16) -> Features {
        Features { kept: [0; KEPT.len()], write_cache: true, queues: queues_max, events: Events::NONE }
    }

    /// Answers may come before data is durable.
    pub fn write_cache(&self) -> bool {
        self.write_cache
    }

    pub fn queues(&self) -> u16 {
        self.queues
    }

    pub fn events(&self) -> Events {
        self.events
    }

    /// Dword 0 of the answer. Keep Alive and Host Identifier are the controller's own.
    pub fn get(&self, feature: Feature) -> Result<u32, StatusCode> {
        Ok(match feature {
            Feature::POWER_MANAGEMENT => 0,
            Feature::VOLATILE_WRITE_CACHE => self.write_cache.into(),
            Feature::QUEUES => u32::from(self.queues - 1) << 16 | u32::from(self.queues - 1),
            Feature::ASYNC_EVENTS => self.events.0,
            other => self.kept[Self::place(other)?],
        })
    }

    /// Sets a feature to `value` (dword 11); returns dword 0 of the answer. `has_queues` says that I/O queues
    /// were made, `queues_max` how many there may be.
    pub fn set(
        &mut self,
        feature: Feature,
        value: u32,
        has_queues: bool,
        queues_max: u16,
    ) -> Result<u32, StatusCode> {
        match feature {
            // PS: there is one power state.
            Feature::POWER_MANAGEMENT if value & 0x1f == 0 => {}
            Feature::POWER_MANAGEMENT => return Err(StatusCode::INVALID_FIELD),
            Feature::VOLATILE_WRITE_CACHE => self.write_cache = value & 1 != 0,
            Feature::QUEUES => {
                let (submission, completion) = (value as u16, (value >> 16) as u16);
                // "If the value specified is 65,535, [...] Invalid Field in Command".
                if submission == u16::MAX || completion == u16::MAX {
                    return Err(StatusCode::INVALID_FIELD);
                }
                // "shall not be changed after" the first I/O queue was made.
                if has_queues {
                    return Err(StatusCode::COMMAND_SEQUENCE_ERROR);
                }
                self.queues = (submission.min(completion) + 1).min(queues_max);
                return self.get(feature);
            }
            Feature::ASYNC_EVENTS => self.events = Events(value),
            other => self.kept[Self::place(other)?] = value,
        }
        Ok(0)
    }

    fn place(feature: Feature) -> Result<usize, StatusCode> {
        KEPT.iter().position(|&kept| kept == feature).ok_or(StatusCode::INVALID_FIELD)
    }
}
