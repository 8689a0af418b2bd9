//! Loss, duplication, reordering, delay and corruption on top of a port, from a seed.

/// How often what goes wrong, in both directions. Probabilities are between 0 and 1.
#[derive(Clone, Debug, PartialEq)]
pub struct FaultSpec {
    /// Seed: the same seed makes the same decisions for the same sequence of frames.
    pub seed: u64,
    /// Probability that a frame is lost.
    pub loss: f64,
    /// Probability that a frame comes twice.
    pub duplicate: f64,
    /// Probability that a frame changes places with its successor.
    pub reorder: f64,
    /// Probability that a bit of a frame is flipped.
    pub corrupt: f64,
    /// Probability that a frame is delayed by `delay_ns`.
    pub delay: f64,
    /// Delay of a delayed frame, ns.
    pub delay_ns: u64,
    /// Frames held back at most in each direction; a frame that finds no room is lost.
    pub held_frames_max: usize,
}
