//! The ring's room, divided between the file systems that volumes are on: a device gets more only while it has no more than
//! what is left. So one that is alone has half of it, and whoever comes next finds some.
//!
//! Invariants: all devices together have no more entries at the kernel than the ring is for; parts of one device wait in
//! their order.

use std::collections::VecDeque;

/// One file system.
#[derive(Debug, Default)]
struct Device {
    /// `st_dev`.
    number: u64,
    /// Attached to it; without any its place is free.
    volumes: u32,
    /// Requests that have a slot.
    slots: u32,
    /// Entries that the kernel has.
    entries: u32,
    /// Parts of requests that wait for room in the ring: slot and piece.
    backlog: VecDeque<(u32, u32)>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Devices {
    devices: Vec<Device>,
    in_flight_max: u32,
}

impl Devices {
    pub fn new(in_flight_max: u32) -> Devices {
        Devices { devices: Vec::new(), in_flight_max }
    }

    /// Room that nobody has, of slots or of entries.
    fn left(&self, taken: fn(&Device) -> u32) -> u32 {
        self.in_flight_max - self.devices.iter().map(taken).sum::<u32>()
    }

    fn find(&self, number: u64) -> Option<usize> {
        self.devices.iter().position(|one| one.volumes > 0 && one.number == number)
    }

    /// A volume comes.
    pub fn join(&mut self, number: u64) {
        let is_free = |one: &Device| one.volumes == 0 && one.slots == 0;
        let at = self.find(number).or_else(|| self.devices.iter().position(is_free)).unwrap_or_else(|| {
            self.devices.push(Device::default());
            self.devices.len() - 1
        });
        let device = &mut self.devices[at];
        device.number = number;
        device.volumes += 1;
    }

    /// A volume goes.
    pub fn leave(&mut self, number: u64) {
        if let Some(at) = self.find(number) {
            self.devices[at].volumes -= 1;
        }
    }

    /// A request wants a slot; the place of its device, if that may have one more.
    pub fn take_slot(&mut self, number: u64) -> Option<usize> {
        let left = self.left(|device| device.slots);
        let at = self.find(number)?;
        let device = &mut self.devices[at];
        (device.slots < left).then(|| {
            device.slots += 1;
            at
        })
    }

    pub fn slot_ended(&mut self, at: usize) {
        self.devices[at].slots -= 1;
    }

    /// A part of a request waits for the ring.
    pub fn wait(&mut self, at: usize, part: (u32, u32)) {
        self.devices[at].backlog.push_back(part);
    }

    /// The next part that may go into the ring, of a device from `at` on; it stays where it is.
    pub fn next(&self, at: usize) -> Option<(usize, (u32, u32))> {
        let left = self.left(|device| device.entries);
        let mut rest = self.devices.iter().enumerate().skip(at).filter(|(_, one)| one.entries < left);
        rest.find_map(|(at, one)| Some((at, *one.backlog.front()?)))
    }

    /// The next part of a device went into the ring, or is given up.
    pub fn taken(&mut self, at: usize, submitted: bool) {
        let device = &mut self.devices[at];
        device.backlog.pop_front();
        device.entries += u32::from(submitted);
    }

    pub fn entry_ended(&mut self, at: usize) {
        self.devices[at].entries -= 1;
    }

    /// Nothing is at the kernel or waits for it.
    pub fn are_idle(&self) -> bool {
        self.devices.iter().all(|one| one.entries == 0 && one.backlog.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_has_its_share_and_a_newcomer_finds_room() {
        let mut devices = Devices::new(16);
        devices.join(1);
        assert_eq!((0..20).filter_map(|_| devices.take_slot(1)).count(), 8, "half of it, though it is alone");
        // None of them is answered.
        devices.join(2);
        devices.join(2);
        let others = (0..20).filter_map(|_| devices.take_slot(2)).collect::<Vec<_>>();
        assert_eq!(others, [1; 4]);
        devices.join(3);
        assert_eq!((0..20).filter_map(|_| devices.take_slot(3)).count(), 2);
        assert_eq!(devices.take_slot(1), None);
        for part in 0..10 {
            devices.wait(0, (part, 0));
            devices.wait(1, (part, 1));
        }
        let mut submitted = Vec::new();
        while let Some((at, part)) = devices.next(0) {
            devices.taken(at, true);
            submitted.push((at, part.0));
        }
        let of = |device: usize, parts: u32| (0..parts).map(move |part| (device, part));
        assert_eq!(submitted, of(0, 8).chain(of(1, 4)).collect::<Vec<_>>(), "each in its order");
        devices.entry_ended(1);
        assert_eq!(devices.next(0), Some((1, (4, 1))), "the other one does not answer");
        // When all its volumes are gone its place is given away, once nothing of it is under way.
        devices.leave(2);
        assert_eq!(devices.find(2), Some(1));
        devices.leave(2);
        devices.join(4);
        assert_eq!((devices.find(2), devices.find(4)), (None, Some(3)));
        (0..4).for_each(|_| devices.slot_ended(1));
        devices.join(5);
        assert_eq!(devices.find(5), Some(1));
    }
}
