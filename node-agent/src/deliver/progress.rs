//! What is to be done next for one delivery. Pure.
//!
//! - *the newest wins*: what is new is written before anything else is tried again, and all actions follow it.
//! - *in order*: an action waits for the one before it to have gone well.
//! - *again, later*: what failed is tried again, after waits that double up to [`LONGEST_WAIT`].
//! - *nothing twice*: what went well is not done again before something is new.

use std::time::Duration;

use spiffe::time::{Backoff, Timestamp};

const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait between two attempts.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// How far one delivery is.
#[derive(Debug)]
pub(super) struct Progress {
    /// The number of its actions.
    actions: usize,
    /// Whether there is something that is not written.
    is_new: bool,
    /// The actions that went well since.
    done: usize,
    backoff: Backoff,
    retry_at: Option<Timestamp>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Write the files.
    Write,
    /// Do the action with this number.
    Act(usize),
    /// Nothing, before this moment or something new.
    Wait(Option<Timestamp>),
}

impl Progress {
    /// A delivery with this number of actions, of which nothing is known yet.
    pub(super) fn new(actions: usize) -> Self {
        let backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        Self { actions, is_new: false, done: actions, backoff, retry_at: None }
    }

    /// There is something new.
    pub(super) fn renew(&mut self) {
        self.is_new = true;
        self.done = 0;
        self.backoff.reset();
        self.retry_at = None;
    }

    /// What is to be done at `now`.
    pub(super) fn next(&self, now: Timestamp) -> Step {
        match self.retry_at {
            Some(at) if now < at => Step::Wait(Some(at)),
            _ if self.is_new => Step::Write,
            _ if self.done < self.actions => Step::Act(self.done),
            _ => Step::Wait(None),
        }
    }

    /// The step of [`next`](Self::next) went well.
    pub(super) fn succeeded(&mut self) {
        if self.is_new {
            self.is_new = false;
        } else {
            self.done = (self.done + 1).min(self.actions);
        }
        self.backoff.reset();
        self.retry_at = None;
    }

    /// It did not. Says when it is tried again. `chance`: any number.
    pub(super) fn failed(&mut self, now: Timestamp, chance: u32) -> Timestamp {
        // At least a second: moments are whole seconds.
        let at = now.plus(self.backoff.after_failure(chance).max(FIRST_WAIT));
        self.retry_at = Some(at);
        at
    }

    /// Whether everything is done.
    pub(super) fn is_done(&self) -> bool {
        !self.is_new && self.done == self.actions
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);

    #[test]
    fn files_first_then_each_action_then_nothing() {
        let mut progress = Progress::new(2);
        assert_eq!(progress.next(NOW), Step::Wait(None));
        progress.renew();
        for step in [Step::Write, Step::Act(0), Step::Act(1)] {
            assert_eq!(progress.next(NOW), step);
            assert!(!progress.is_done());
            progress.succeeded();
        }
        assert_eq!(progress.next(NOW), Step::Wait(None));
        assert!(progress.is_done());
    }

    #[test]
    fn what_failed_is_tried_again_and_the_newest_wins() {
        let mut progress = Progress::new(1);
        progress.renew();
        progress.succeeded();
        let at = progress.failed(NOW, 0);
        assert_eq!((at, progress.next(NOW)), (NOW.plus(FIRST_WAIT), Step::Wait(Some(at))));
        assert_eq!(progress.next(at), Step::Act(0));
        progress.failed(at, 0);
        progress.renew();
        assert_eq!(progress.next(at), Step::Write);
        progress.succeeded();
        assert_eq!(progress.next(at), Step::Act(0), "the action is for the new one now, at once");
    }

    proptest! {
        #[test]
        fn waits_double_up_to_the_longest(chances in prop::collection::vec(any::<u32>(), 1..40)) {
            let mut progress = Progress::new(1);
            progress.renew();
            let mut now = NOW;
            for chance in chances {
                let at = progress.failed(now, chance);
                prop_assert!(at > now && at.since(now) <= LONGEST_WAIT);
                prop_assert_eq!(progress.next(at), Step::Write);
                now = at;
            }
        }

        #[test]
        fn nothing_is_done_twice_and_all_is_done(actions in 0..5_usize, fails in prop::collection::vec(any::<bool>(), 0..30)) {
            let mut progress = Progress::new(actions);
            progress.renew();
            let (mut now, mut done, mut fails) = (NOW, Vec::new(), fails.into_iter());
            while !progress.is_done() {
                match progress.next(now) {
                    Step::Wait(Some(at)) => now = at,
                    Step::Wait(None) => prop_assert!(false, "there is something left to do"),
                    step if fails.next() == Some(true) => { progress.failed(now, 7); prop_assert!(step != Step::Wait(None)); }
                    step => { done.push(step); progress.succeeded(); }
                }
            }
            let expected: Vec<Step> = std::iter::once(Step::Write).chain((0..actions).map(Step::Act)).collect();
            prop_assert_eq!(done, expected);
        }
    }
}
