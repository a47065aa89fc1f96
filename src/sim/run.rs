//! Scenarios under many seeds, and under every single failure.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;
use std::{env, fmt, thread};

use super::fault::{Call, Faults};
use super::net::{Link, Personality};
use super::random::Random;
use super::{Sim, net};

/// What a [`swarm`] or a [`torture`] went through.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Summary {
    /// How often the scenario ran.
    pub runs: u64,
    /// How much time passed in all the runs.
    pub simulated: Duration,
    /// Faults injected.
    pub faults: u64,
    /// Calls that were made to fail, with the errors they returned.
    pub pairs: BTreeSet<(Call, i32)>,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "runs={} simulated_hours={:.1} faults={} call_errno_pairs={}",
            self.runs,
            self.simulated.as_secs_f64() / 3_600.0,
            self.faults,
            self.pairs.len()
        )
    }
}

impl Summary {
    fn add(&mut self, sim: &Sim) {
        self.runs += 1;
        self.simulated += sim.now() - crate::Instant::EPOCH;
        let net::Tally { faults, pairs } = sim.tally();
        self.faults += faults;
        self.pairs.extend(pairs);
    }
}

/// The variables that replay one run.
const SEED: &str = "SIM_SEED";
const FAULT: &str = "SIM_FAULT";

/// Runs `scenario` under `seeds` seeds, from `first` on: in each a random part of all
/// [faults](Faults) happens at random rates, over links and with [personalities](Personality) drawn
/// too. When the scenario returns the faults stop, and every connection must come to its end.
///
/// A scenario makes servers and peers and lets time pass; it must not count on anything that a fault
/// may prevent. What must hold whatever happens is checked by the world.
///
/// With the variable `SIM_SEED` set only that seed is run.
///
/// ```
/// use std::time::Duration;
/// use wheelhouse::sim;
/// # use bytes::BytesMut;
/// # use wheelhouse::{Config, Conn, Handler};
/// # struct Echo;
/// # impl Handler for Echo {
/// #     type Session = ();
/// #     fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> { Some(()) }
/// #     fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
/// #         conn.write(input);
/// #         input.clear();
/// #     }
/// # }
///
/// let summary = sim::swarm(0, 20, |sim| {
///     let server = sim.serve("10.0.0.1:7", Config::default(), Echo);
///     let peer = sim.connect(server.address());
///     peer.send(b"hello");
///     sim.advance(Duration::from_secs(5));
///     let echoed = peer.take();
///     assert!(b"hello".starts_with(&echoed), "what comes back is what was sent");
/// });
/// assert!(summary.faults > 0);
/// ```
///
/// # Panics
///
/// If a run fails. The panic is that of the run; before it, the seed and a command that replays it
/// are printed.
pub fn swarm(first: u64, seeds: u64, mut scenario: impl FnMut(&mut Sim)) -> Summary {
    let mut summary = Summary::default();
    let only = number_in(SEED);
    let seeds = match only {
        Some(seed) => seed..=seed,
        None => first..=first.saturating_add(seeds.saturating_sub(1)),
    };
    for seed in seeds {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let mut sim = hostile(seed);
            scenario(&mut sim);
            sim.converge();
            sim.assert_clean();
            summary.add(&sim);
        }));
        if let Err(panic) = outcome {
            report(&format!("seed {seed:#x} fails"), &format!("{SEED}={seed:#x}"));
            resume_unwind(panic);
        }
    }
    summary
}

/// A world in which what follows from `seed` goes wrong.
fn hostile(seed: u64) -> Sim {
    let mut sim = Sim::new(seed);
    // The choice of faults must not depend on how a run draws its own numbers.
    let mut random = Random::new(!seed);
    if let Some(personality) = random.pick(&Personality::ALL) {
        sim.set_personality(*personality);
    }
    let slow = random.below(2) == 0;
    let micros = |random: &mut Random, most| Duration::from_micros(random.below(most));
    sim.set_link(Link {
        latency: if slow { micros(&mut random, 200_000) } else { Duration::ZERO },
        jitter: if slow { micros(&mut random, 50_000) } else { Duration::ZERO },
        bandwidth: (random.below(3) == 0).then(|| 10_000 + random.below(10_000_000)),
        segment: *random.pick(&[1, 7, 536, 1_460, 65_536]).unwrap_or(&1_460),
    });
    let size = |random: &mut Random| 1 << (9 + random.below(10));
    let (send, receive) = (size(&mut random), size(&mut random));
    sim.set_buffers(send, receive);
    sim.set_faults(Faults::random(&mut random));
    sim
}

/// Runs `scenario` once as it is, and then once for each call that its reactors made and each
/// [error](Call::errnos) that the call can return: in that run the call fails so. Where there are
/// more than `runs` of these, as many are drawn from them. When the scenario returns every
/// connection must come to its end.
///
/// With the variable `SIM_FAULT` set, as in `SIM_FAULT=17:104`, only that call fails, with that
/// errno.
///
/// # Panics
///
/// If a run fails; before it, the call, the error and a command that replays it are printed.
pub fn torture(runs: usize, mut scenario: impl FnMut(&mut Sim)) -> Summary {
    const SEED: u64 = 1;
    let mut summary = Summary::default();
    let mut run = |fault: Option<(u64, i32)>, summary: &mut Summary| {
        let mut sim = Sim::new(SEED);
        {
            let mut net = sim.net.borrow_mut();
            net.inject = fault;
            net.start_log();
        }
        scenario(&mut sim);
        // From here on nothing fails any more.
        let calls = sim.net.borrow_mut().take_log();
        sim.converge();
        sim.assert_clean();
        summary.add(&sim);
        calls
    };
    let calls = run(None, &mut summary);
    let mut plan: Vec<(u64, i32)> = calls
        .iter()
        .enumerate()
        .flat_map(|(k, call)| call.errnos().iter().map(move |errno| (k as u64, *errno)))
        .collect();
    if plan.len() > runs {
        Random::new(SEED).shuffle(&mut plan);
        plan.truncate(runs);
    }
    if let Some(only) = env::var(FAULT).ok().and_then(|text| fault_of(&text)) {
        plan = vec![only];
    }
    for (k, errno) in plan {
        let outcome = catch_unwind(AssertUnwindSafe(|| run(Some((k, errno)), &mut summary)));
        if let Err(panic) = outcome {
            let call = calls.get(k as usize).map_or_else(|| "?".into(), ToString::to_string);
            report(
                &format!("call {k}, {call}, fails with errno {errno}, and so does the scenario"),
                &format!("{FAULT}={k}:{errno}"),
            );
            resume_unwind(panic);
        }
    }
    summary
}

fn fault_of(text: &str) -> Option<(u64, i32)> {
    let (k, errno) = text.split_once(':')?;
    Some((k.parse().ok()?, errno.parse().ok()?))
}

fn number_in(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

#[expect(clippy::print_stderr, reason = "for whoever reads the output of a failing test")]
fn report(what: &str, variable: &str) {
    let thread = thread::current();
    let test = thread.name().filter(|name| *name != "main").unwrap_or("");
    eprintln!("{what}; replay it with\n    {variable} cargo test -- --exact {test} --nocapture");
}
