//! Loops of some microseconds on several threads.
//!
//! A decode runs hundreds of them a token. Between two a thread of rayon's pool falls asleep, has to be woken, and then
//! gets another part than last time, whose weights and states another core has in its cache. In a *team*
//! threads stay awake until the token is done, and begin every loop at their own part of it.

use crate::arith::saturate::Status;
use rayon::prelude::*;
use std::cell::{Cell, UnsafeCell};
use std::hint::spin_loop;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What a thread does in a loop, by its index in the pool.
type Work = dyn Fn(usize) + Sync;

/// A loop of one thread, over the indices that it is handed piece by piece.
type Run<'a> = dyn Fn(&mut dyn FnMut() -> Option<Range<usize>>) -> Status + Sync + 'a;

/// The threads of a pool that help one of them, its leader.
struct Team {
    /// The open loop's.
    work: UnsafeCell<*const Work>,
    /// Loops so far.
    loops: AtomicUsize,
    /// The number of the loop that is open to helpers; zero if none.
    open: Alone<AtomicUsize>,
    /// Helpers that look at the open loop or work in it.
    inside: Alone<AtomicUsize>,
    /// Whether the leader needs no more help.
    over: AtomicBool,
}

/// A value with no other on its cache line.
#[repr(align(128))]
struct Alone<T>(T);

// SAFETY: the leader writes `work` only while no loop is open and no helper inside; helpers read it only inside, while one
// is open.
unsafe impl Sync for Team {}

thread_local! {
    /// The team that this thread leads, if any; none within a loop.
    static LED: Cell<*const Team> = const { Cell::new(ptr::null()) };
}

/// Runs `work` on a thread of rayon's pool, which the others help through every [`share`]. Called on such a thread, where the
/// others have work of their own, it only runs `work`.
pub fn lead<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    match rayon::current_thread_index() {
        Some(_) => work(),
        None => rayon::scope(|_| lead_here(work)),
    }
}

/// [`lead`], on a thread of the pool.
fn lead_here<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let idle: &Work = &|_| ();
    let team = &Team {
        work: UnsafeCell::new(idle),
        loops: AtomicUsize::new(0),
        open: Alone(AtomicUsize::new(0)),
        inside: Alone(AtomicUsize::new(0)),
        over: AtomicBool::new(false),
    };
    rayon::in_place_scope(|scope| {
        let leader = rayon::current_thread_index();
        scope.spawn_broadcast(move |_, thread| {
            // The leader comes here while it waits for something else of rayon's.
            if Some(thread.index()) != leader {
                team.help(thread.index());
            }
        });
        // While it waits, rayon may have this thread lead another team.
        let before = LED.replace(team);
        let done = catch_unwind(AssertUnwindSafe(work));
        LED.set(before);
        team.over.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// Runs `work` for every index below `count`, on several threads from `at_once` indices on for each; `init` makes what a
/// thread keeps between them.
pub fn share<S>(
    count: usize,
    at_once: usize,
    init: impl Fn() -> S + Sync + Send,
    work: impl Fn(&mut S, usize) -> Status + Sync + Send,
) -> Status {
    let run = |next: &mut dyn FnMut() -> Option<Range<usize>>| {
        let (mut kept, mut status) = (init(), Status::default());
        while let Some(range) = next() {
            status = range.fold(status, |status, i| status.plus(work(&mut kept, i)));
        }
        status
    };
    if count <= at_once {
        let mut all = Some(0..count);
        return run(&mut || all.take());
    }
    let team = LED.get();
    // SAFETY: `lead` takes the pointer back before the team goes.
    if let Some(team) = unsafe { team.as_ref() } {
        LED.set(ptr::null());
        let status = team.share(count, at_once, &run);
        LED.set(team);
        return status;
    }
    /// Shares of a thread: one that is held up leaves the rest of them to the others.
    const SHARES: usize = 8;
    let most = count.div_ceil(SHARES * rayon::current_num_threads());
    (0..count)
        .into_par_iter()
        .with_min_len(at_once)
        .with_max_len(most.max(at_once))
        .map_init(&init, |kept, i| work(kept, i))
        .reduce(Status::default, Status::plus)
}

/// Runs both: side by side, or, where all threads share in each, one after the other.
pub fn both<A: Send, B: Send>(
    a: impl FnOnce() -> A + Send,
    b: impl FnOnce() -> B + Send,
) -> (A, B) {
    match LED.get().is_null() {
        true => rayon::join(a, b),
        false => (a(), b()),
    }
}

impl Team {
    /// Helps until the leader needs no more, with rayon's other work too.
    fn help(&self, thread: usize) {
        let mut last = 0;
        while !self.over.load(Ordering::Relaxed) {
            if [0, last].contains(&self.open.0.load(Ordering::Relaxed)) {
                rayon::yield_now();
                continue;
            }
            self.inside.0.fetch_add(1, Ordering::SeqCst);
            let leave = Leave(self);
            let open = self.open.0.load(Ordering::SeqCst);
            if open != 0 {
                last = open;
                // SAFETY: it was open after this thread was inside, so the leader waits in `Close` until it has left.
                unsafe { (**self.work.get())(thread) };
            }
            drop(leave);
        }
    }

    /// [`share`], for the leader.
    fn share(&self, count: usize, at_once: usize, run: &Run) -> Status {
        let threads = rayon::current_num_threads();
        let parts = threads.min(count.div_ceil(at_once));
        let part = |i: usize| i * count / parts..(i + 1) * count / parts;
        /// Pieces of a part: what its own thread has not begun, others may take.
        const PIECES: usize = 4;
        let piece = count.div_ceil(parts * PIECES).max(at_once);
        let begun: Vec<Alone<AtomicUsize>> = (0..parts)
            .map(|i| Alone(AtomicUsize::new(part(i).start)))
            .collect();
        let seen = Mutex::new(Status::default());
        let work = |thread: usize| {
            let mut of = 0..parts;
            let mut from = of.next();
            let mut next = || {
                while let Some(i) = from {
                    let i = (thread + i) % parts;
                    let first = begun[i].0.fetch_add(piece, Ordering::Relaxed);
                    if first < part(i).end {
                        return Some(first..(first + piece).min(part(i).end));
                    }
                    from = of.next();
                }
                None
            };
            if let Some(first) = next() {
                let mut first = Some(first);
                let status = run(&mut || first.take().or_else(&mut next));
                let mut seen = seen.lock().unwrap_or_else(|e| e.into_inner());
                *seen = seen.plus(status);
            }
        };
        let shared: &(dyn Fn(usize) + Sync) = &work;
        // SAFETY: no loop is open, so helpers do not read; the lifetime ends with `close`, which lets none be inside.
        unsafe {
            *self.work.get() = std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static Work>(shared)
        };
        let number = self.loops.fetch_add(1, Ordering::Relaxed) + 1;
        self.open.0.store(number, Ordering::SeqCst);
        let close = Close(self);
        work(rayon::current_thread_index().unwrap_or(0));
        drop(close);
        seen.into_inner().unwrap_or_else(|e| e.into_inner())
    }
}

/// Takes a helper out of a loop, also if its work panics.
struct Leave<'a>(&'a Team);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.inside.0.fetch_sub(1, Ordering::Release);
    }
}

/// Closes a loop and waits for those inside, also if the leader's work panics.
struct Close<'a>(&'a Team);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        self.0.open.0.store(0, Ordering::SeqCst);
        while self.0.inside.0.load(Ordering::SeqCst) != 0 {
            spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::ThreadPoolBuilder;

    fn values(count: usize) -> Status {
        Status {
            values: count as u64,
            ..Status::default()
        }
    }

    /// Every index once, whatever the threads, the count and the size of a share; in a team and outside.
    #[test]
    fn every_index_is_worked_on_once() {
        for threads in [1, 2, 3, 8] {
            let pool = ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            for count in [0, 1, 2, 7, 64, 1000] {
                for at_once in [1, 3, 64] {
                    let all = || {
                        for _ in 0..20 {
                            let seen: Vec<_> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                            let status = share(
                                count,
                                at_once,
                                || 0,
                                |mine, i| {
                                    *mine += 1;
                                    seen[i].fetch_add(1, Ordering::Relaxed);
                                    values(i)
                                },
                            );
                            assert!(seen.iter().all(|n| n.load(Ordering::Relaxed) == 1));
                            assert_eq!(status, values((0..count).sum()));
                        }
                    };
                    pool.install(all);
                    // As `lead` outside the pool.
                    std::thread::scope(|scope| {
                        scope.spawn(|| led_by(&pool, all));
                    });
                }
            }
        }
    }

    /// [`lead`] with the threads of a pool.
    fn led_by<T: Send>(pool: &rayon::ThreadPool, work: impl FnOnce() -> T + Send) -> T {
        pool.install(|| lead_here(work))
    }

    #[test]
    fn a_loop_within_a_loop_and_other_work_of_rayons_go_on() {
        let pool = ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let status = led_by(&pool, || {
            let inner = share(10, 1, || (), |(), _| share(10, 1, || (), |(), i| values(i)));
            let (a, b) = both(|| share(4, 1, || (), |(), i| values(i)), Status::default);
            let sum: usize = (0..1000).into_par_iter().sum();
            inner.plus(a).plus(b).plus(values(sum))
        });
        assert_eq!(status, values(10 * 45 + 6 + 499_500));
    }

    #[test]
    fn a_panic_of_any_thread_is_the_leaders() {
        let pool = ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        for index in [0, 15] {
            let panics = || {
                led_by(&pool, || {
                    share(
                        16,
                        1,
                        || (),
                        |(), i| {
                            assert_ne!(i, index);
                            values(i)
                        },
                    )
                })
            };
            assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
        }
        assert_eq!(
            led_by(&pool, || share(16, 1, || (), |(), i| values(i))),
            values(120)
        );
    }

    #[test]
    fn teams_of_several_callers_do_not_wait_for_each_other() {
        let sums: Vec<Status> = std::thread::scope(|scope| {
            let callers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        lead(|| {
                            (0..200).fold(Status::default(), |sum, _| {
                                let _: usize = (0..100).into_par_iter().sum();
                                sum.plus(share(50, 1, || (), |(), i| values(i)))
                            })
                        })
                    })
                })
                .collect();
            callers
                .into_iter()
                .map(|caller| caller.join().unwrap())
                .collect()
        });
        assert_eq!(sums, vec![values(200 * 1225); 4]);
    }
}
