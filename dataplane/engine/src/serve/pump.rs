//! The volumes: what their media have answered, what they go on with, and what they answer.

use block::{Done, VolumeId};
use trace::{Medium, Stage};
use tracing::warn;

use super::follow::{Follower, Stamp};
use super::{Server, activate};
use crate::clock::Stopwatch;

impl Server {
    /// Takes what the files have answered.
    pub(super) fn complete(&mut self, watch: &Stopwatch) -> usize {
        let count = self.finished.len();
        if count > 0 {
            self.relist_crowded();
        }
        let mut follower = Follower { tracer: &mut self.tracer, watch };
        let mut finished = std::mem::take(&mut self.finished);
        for answer in finished.drain(..) {
            let volume = answer.volume;
            match self.targets.get_mut(volume.0 as usize).and_then(Option::as_mut) {
                Some(target) => {
                    target.complete(answer, &mut self.pool, watch.turn_ns(), &mut follower);
                    if !std::mem::replace(&mut target.listed, true) {
                        self.busy.push(volume.0);
                    }
                }
                None => answer.buffer.into_iter().for_each(|buffer| self.pool.free(buffer)),
            }
        }
        self.finished = finished;
        if let Some(files) = &mut self.files {
            for notice in files.notices() {
                warn!("{notice}");
            }
        }
        count
    }

    /// There may be room at the files for whom there was none: ahead of those that made it, which may want more.
    fn relist_crowded(&mut self) {
        for number in self.crowded.drain(..) {
            if let Some(target) = self.targets.get_mut(number as usize).and_then(Option::as_mut) {
                target.crowded = false;
                if !std::mem::replace(&mut target.listed, true) {
                    self.busy.push(number);
                }
            }
        }
    }

    /// Moves the volumes on, and answers.
    pub(super) fn pump(&mut self, watch: &Stopwatch) -> usize {
        let now_ns = watch.turn_ns();
        let mut moved = 0;
        let mut kept = 0;
        for at in 0..self.busy.len() {
            let number = self.busy[at];
            let Some(target) = self.targets[number as usize].as_mut() else { continue };
            if target.quiesced && !target.is_busy() {
                target.listed = false;
                continue;
            }
            let mut follower = Follower { tracer: &mut self.tracer, watch };
            let is_crowded = target.pump(self.files.as_mut(), &mut self.pool, now_ns, &mut follower);
            let mut stamp = Stamp::new(watch);
            while let Some(done) = target.finished() {
                moved += 1;
                let flight = self.flights[done.tag.0 as usize];
                self.flights_free.push(done.tag.0 as u32);
                if let Some((lba, blocks)) = flight.range {
                    target.changed(lba, blocks);
                }
                if flight.trace.0 != 0 {
                    // Volumes in files have said themselves how far their medium came.
                    if target.medium() != Medium::File {
                        self.tracer.step(flight.trace, Stage::Media, stamp.ns());
                    }
                    self.tracer.answered(flight.trace, done.status);
                    if flight.range.is_some() && done.status.is_ok() {
                        target.unsynced.push(flight.trace);
                    }
                }
                // INVARIANT: a session stays until it has all its answers.
                let Some(connection) = self.connections[flight.connection as usize].as_mut() else {
                    continue;
                };
                let done = Done { tag: flight.tag, ..done };
                if let Err(unknown) = connection.session.complete(done, &mut self.pool) {
                    warn!("{unknown}");
                }
                activate(&mut self.active, flight.connection, connection);
            }
            if let Some(news) = target.news() {
                warn!(volume = number, "{news}");
                self.lost.extend(target.is_fenced().then_some(VolumeId(number)));
            }
            if is_crowded && !std::mem::replace(&mut target.crowded, true) {
                self.crowded.push(number);
            }
            target.listed = target.wants_pump();
            if target.listed {
                self.busy[kept] = number;
                kept += 1;
            } else {
                self.retry_ns = self.retry_ns.into_iter().chain(target.retry_at_ns()).min();
            }
        }
        self.busy.truncate(kept);
        moved
    }
}
