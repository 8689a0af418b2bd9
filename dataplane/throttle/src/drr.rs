//! Taking turns while a pool is short: deficit round robin (Shreedhar and Varghese 1995), weighted.
//!
//! A round is one visit to each member. At a visit the member's deficit grows by its quantum, its weight's
//! share of `members x largest request`, so a round is as short as fairness allows and serves about as many
//! requests as it has members. Should a whole round serve nobody (all owe for something large), the rounds
//! until somebody may send are credited at once, so that turns cost time in proportion to members, never to
//! debt. A member sends while its deficit is
//! positive, and the request that takes it below zero is still sent (the surplus form): so a newcomer is
//! served at its first visit however small its weight, and then waits as many rounds as that is worth.
//! Leaving with a debt does not cancel it: it is worked off by the rounds that pass meanwhile.
//!
//! Deficits count what a request is worth to the pool: the time in which the pool earns it, in 2^-20 ns, fine
//! enough for weights that differ by a million.
//!
//! A ring's members are volumes, or, in the node's, also groups: a group that is held up by the node sits
//! there with the weight of all its waiting volumes, and who goes when its turn comes is decided in its own
//! ring (hierarchical round robin).
//!
//! Invariants: members form one circular order through their [`Seat`]s; `weights` is the sum of the
//! members' weights; a seat is in at most one ring.

use crate::limits::DIMS;
use crate::parking::NONE;

/// Rounds after which any debt is forgotten; also what an emptied ring counts as.
const FORGIVEN: u64 = 1 << 32;
/// Fraction bits of `quantum_per_weight`.
const FRACTION: u32 = 32;
/// Largest worth and quantum, far from overflow.
pub(crate) const WORTH_MAX: i64 = i64::MAX / 4;

/// The place of a volume, or of a group, in a ring, and its deficit as of a round of that ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seat {
    prev: u32,
    next: u32,
    /// The pool in whose ring it waits, or `NONE`.
    pub(crate) pool: u32,
    weight: u64,
    deficit: i64,
    round: u64,
}

impl Seat {
    pub(crate) fn new(weight: u64) -> Seat {
        Seat { prev: NONE, next: NONE, pool: NONE, weight, deficit: 0, round: 0 }
    }

    pub(crate) fn weight(&self) -> u64 {
        self.weight
    }

    /// Sets the weight of one that is in no ring.
    pub(crate) fn set_weight(&mut self, weight: u64) {
        self.weight = weight;
    }
}

/// The ring of one pool.
#[derive(Clone, Debug)]
pub(crate) struct Ring {
    head: u32,
    tail: u32,
    members: u32,
    weights: u128,
    round: u64,
    visits_left: u32,
    quantum_per_weight: u64,
    worth_max: i64,
    /// Somebody was given leave to send in this round.
    fruitful: bool,
    /// The dimensions that members wait for.
    pub(crate) waiting: [bool; DIMS],
}

impl Ring {
    pub(crate) fn new() -> Ring {
        Ring {
            head: NONE,
            tail: NONE,
            members: 0,
            weights: 0,
            round: FORGIVEN,
            visits_left: 0,
            quantum_per_weight: 0,
            worth_max: 1,
            fruitful: true,
            waiting: [false; DIMS],
        }
    }

    pub(crate) fn front(&self) -> Option<u32> {
        (self.head != NONE).then_some(self.head)
    }

    pub(crate) fn members(&self) -> u32 {
        self.members
    }

    /// The sum of the members' weights.
    pub(crate) fn weights(&self) -> u64 {
        u64::try_from(self.weights).unwrap_or(u64::MAX)
    }

    /// Takes a member in, last.
    pub(crate) fn join(&mut self, seats: &mut [Seat], member: u32, pool: u32) {
        let seat = &mut seats[member as usize];
        let quantum = self.quantum(seat.weight);
        let deficit = match self.round.saturating_sub(seat.round) {
            FORGIVEN.. => 0,
            rounds => i128::from(seat.deficit) + i128::from(rounds) * i128::from(quantum),
        };
        (seat.pool, seat.round, seat.deficit) = (pool, self.round, deficit.min(0) as i64);
        self.weights += u128::from(seat.weight);
        self.members += 1;
        self.append(seats, member);
    }

    /// Lets a member out; its debt stays with it.
    pub(crate) fn leave(&mut self, seats: &mut [Seat], member: u32) {
        self.unlink(seats, member);
        let seat = &mut seats[member as usize];
        seat.round = self.round;
        seat.pool = NONE;
        self.weights -= u128::from(seat.weight);
        self.members -= 1;
        self.visits_left = self.visits_left.min(self.members);
        if self.members == 0 {
            self.round += FORGIVEN;
            self.waiting = [false; DIMS];
        }
    }

    /// Changes the weight of a member.
    pub(crate) fn reweigh(&mut self, seats: &mut [Seat], member: u32, weight: u64) {
        let seat = &mut seats[member as usize];
        self.weights = self.weights + u128::from(weight) - u128::from(seat.weight);
        seat.weight = weight;
    }

    /// Visits the front: true if it may send, false if it was sent to the end to wait for its next visit.
    pub(crate) fn visit(&mut self, seats: &mut [Seat]) -> bool {
        let Some(member) = self.front() else { return false };
        if seats[member as usize].deficit > 0 {
            return true;
        }
        if self.visits_left == 0 {
            self.begin_round(seats);
        }
        let seat = &mut seats[member as usize];
        self.visits_left -= 1;
        let quantum = self.quantum(seat.weight);
        seat.deficit += quantum;
        let may = seat.deficit > 0;
        self.fruitful |= may;
        if !may {
            self.rotate(seats);
        }
        may
    }

    /// Charges the front for what it sent; at a deficit of zero or less its visit ends.
    pub(crate) fn charge(&mut self, seats: &mut [Seat], worth: i64) {
        let Some(member) = self.front() else { return };
        self.worth_max = self.worth_max.max(worth);
        let seat = &mut seats[member as usize];
        seat.deficit -= worth;
        if seat.deficit <= 0 {
            self.rotate(seats);
        }
    }

    fn begin_round(&mut self, seats: &mut [Seat]) {
        self.round += 1;
        self.visits_left = self.members;
        let total = u128::from(self.members) * self.worth_max as u128;
        let share = (total << FRACTION).div_ceil(self.weights.max(1));
        self.quantum_per_weight = u64::try_from(share).unwrap_or(u64::MAX);
        // One giant should not make the rounds long for ever.
        self.worth_max = (self.worth_max - (self.worth_max >> 4)).max(1);
        if !std::mem::take(&mut self.fruitful) {
            self.skip_rounds(seats);
        }
    }

    /// Credits the rounds in which nobody could send, so that somebody can in the one that begins.
    fn skip_rounds(&mut self, seats: &mut [Seat]) {
        let needed = |seat: &Seat, quantum: i64| 1 - seat.deficit.min(0) / quantum;
        let mut fewest = i64::MAX;
        let mut at = self.head;
        while at != NONE {
            let seat = &seats[at as usize];
            fewest = fewest.min(needed(seat, self.quantum(seat.weight)));
            at = seat.next;
        }
        at = self.head;
        while at != NONE {
            let seat = &mut seats[at as usize];
            let credit = i128::from(self.quantum(seat.weight)) * i128::from(fewest - 1);
            // Nobody needs fewer rounds than are credited, so no deficit becomes positive.
            seat.deficit = (i128::from(seat.deficit) + credit).min(0) as i64;
            at = seat.next;
        }
        self.round = self.round.saturating_add((fewest - 1) as u64 % FORGIVEN);
    }

    fn quantum(&self, weight: u64) -> i64 {
        let quantum = (u128::from(weight) * u128::from(self.quantum_per_weight)) >> FRACTION;
        i64::try_from(quantum).unwrap_or(WORTH_MAX).clamp(1, WORTH_MAX)
    }

    fn rotate(&mut self, seats: &mut [Seat]) {
        let member = self.head;
        if member != self.tail {
            self.unlink(seats, member);
            self.append(seats, member);
        }
    }

    fn append(&mut self, seats: &mut [Seat], member: u32) {
        let tail = self.tail;
        let seat = &mut seats[member as usize];
        (seat.prev, seat.next) = (tail, NONE);
        match tail {
            NONE => self.head = member,
            tail => seats[tail as usize].next = member,
        }
        self.tail = member;
    }

    fn unlink(&mut self, seats: &mut [Seat], member: u32) {
        let Seat { prev, next, .. } = seats[member as usize];
        match prev {
            NONE => self.head = next,
            prev => seats[prev as usize].next = next,
        }
        match next {
            NONE => self.tail = prev,
            next => seats[next as usize].prev = prev,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring_of(weights: &[u64]) -> (Ring, Vec<Seat>) {
        let mut ring = Ring::new();
        let mut seats: Vec<Seat> = weights.iter().map(|&w| Seat::new(w)).collect();
        for volume in 0..weights.len() as u32 {
            ring.join(&mut seats, volume, 0);
        }
        (ring, seats)
    }

    /// Serves until `total` worth is sent, each member with requests of its own size; returns the sums.
    fn run(ring: &mut Ring, seats: &mut [Seat], sizes: &[i64], total: i64) -> Vec<i64> {
        let mut sums = vec![0; sizes.len()];
        let (mut sent, mut visits) = (0, 0u64);
        while sent < total {
            visits += 1;
            let front = ring.front().unwrap() as usize;
            if ring.visit(seats) {
                sums[front] += sizes[front];
                sent += sizes[front];
                ring.charge(seats, sizes[front]);
            }
        }
        let services: u64 = sums.iter().zip(sizes).map(|(&sum, &size)| (sum / size) as u64).sum();
        assert!(visits <= 3 * services + 100 * sizes.len() as u64, "{visits} visits for {services}");
        sums
    }

    fn assert_shares(sums: &[i64], weights: &[u64], tolerance: f64) {
        let (sent, weighed) = (sums.iter().sum::<i64>() as f64, weights.iter().sum::<u64>() as f64);
        for (i, (&sum, &weight)) in sums.iter().zip(weights).enumerate() {
            let ratio = (sum as f64 / sent) / (weight as f64 / weighed);
            assert!((ratio - 1.0).abs() < tolerance, "member {i}: {ratio} of its share");
        }
    }

    #[test]
    fn equal_weights_share_equally_whatever_their_sizes() {
        let weights = [7; 10];
        let (mut ring, mut seats) = ring_of(&weights);
        let sizes = [1, 2, 3, 5, 8, 13, 21, 34, 55, 89].map(|s| s * 1000);
        let sums = run(&mut ring, &mut seats, &sizes, 200_000_000);
        assert_shares(&sums, &weights, 0.01);
    }

    #[test]
    fn shares_follow_weights_over_six_decades() {
        let weights = [1, 10, 1_000, 100_000, 1_000_000];
        let (mut ring, mut seats) = ring_of(&weights);
        let sums = run(&mut ring, &mut seats, &[64 << 17; 5], (64 << 17) * 1_111_011 * 2);
        // The lightest is served twice in all this: the others tell.
        assert_shares(&sums[1..], &weights[1..], 0.1);
        assert!((1..=4).contains(&(sums[0] / (64 << 17))), "{sums:?}");
    }

    #[test]
    fn a_newcomer_is_served_within_a_round() {
        let mut weights = vec![1_000_000; 10];
        weights.push(1);
        let (mut ring, mut seats) = ring_of(&weights[..10]);
        seats.push(Seat::new(1));
        run(&mut ring, &mut seats[..], &[1500; 11], 1_000_000);
        ring.join(&mut seats, 10, 0);
        let mut before = 0;
        while ring.front() != Some(10) {
            if ring.visit(&mut seats) {
                ring.charge(&mut seats, 1500);
                before += 1;
            }
        }
        assert!(ring.visit(&mut seats), "served at the first visit");
        assert!(before <= 22, "{before}");
    }

    #[test]
    fn an_old_debt_does_not_cost_visits() {
        // A giant request, then small ones until the giant is forgotten, then its sender alone.
        let (mut ring, mut seats) = ring_of(&[1, 1]);
        run(&mut ring, &mut seats, &[1 << 50, 100], 1 << 50);
        for _ in 0..10_000 {
            if ring.visit(&mut seats) {
                ring.charge(&mut seats, 100);
            }
        }
        ring.leave(&mut seats, 1);
        let mut visits = 0;
        while !ring.visit(&mut seats) {
            visits += 1;
        }
        assert!(visits < 10, "{visits}");
    }

    #[test]
    fn leaving_and_coming_back_does_not_pay() {
        // Member 0 leaves after each request and joins again at once; the others stay.
        let (mut ring, mut seats) = ring_of(&[1, 10, 10]);
        let mut sums = [0i64; 3];
        for _ in 0..100_000 {
            let front = ring.front().unwrap();
            if ring.visit(&mut seats) {
                sums[front as usize] += 100;
                ring.charge(&mut seats, 100);
                if front == 0 {
                    ring.leave(&mut seats, 0);
                    ring.join(&mut seats, 0, 0);
                }
            }
        }
        let share = sums[0] as f64 / sums.iter().sum::<i64>() as f64;
        assert!((share * 21.0 - 1.0).abs() < 0.1, "{share}");
    }

    #[test]
    fn an_emptied_ring_forgives() {
        let (mut ring, mut seats) = ring_of(&[1]);
        assert!(ring.visit(&mut seats));
        ring.charge(&mut seats, 1 << 40);
        ring.leave(&mut seats, 0);
        assert_eq!((ring.front(), ring.members()), (None, 0));
        ring.join(&mut seats, 0, 0);
        assert!(ring.visit(&mut seats));
    }

    #[test]
    fn extreme_worths_and_weights_do_not_overflow() {
        let (mut ring, mut seats) = ring_of(&[crate::RATE_MAX, 1]);
        for _ in 0..1000 {
            if ring.visit(&mut seats) {
                ring.charge(&mut seats, WORTH_MAX);
            }
        }
        ring.reweigh(&mut seats, 1, crate::RATE_MAX);
        ring.leave(&mut seats, 0);
        assert_eq!(ring.front(), Some(1));
    }
}
