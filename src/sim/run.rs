//! Scenarios under many seeds, and under every single failure.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::time::Duration;
use std::{env, fmt, thread};

use super::errno::{self, Named};
use super::fault::{Call, Faults};
use super::net::{Injection, Link, Personality};
use super::random::Random;
use super::{Sim, net};
use crate::time::Instant;

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
        self.simulated += sim.now() - Instant::EPOCH;
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
/// The first seed is run twice, and the two runs must be the same to the last event: a handler or a
/// scenario that depends on something outside of the world could not be replayed.
///
/// With the variable `SIM_SEED` set, as in `SIM_SEED=0xb`, only that seed is run.
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
    let only = variable(SEED).map(|text| seed_of(&text).unwrap_or_else(|what| panic!("{what}")));
    if let Some(seed) = only {
        print(&format!("{SEED} is set: seed {seed:#x} is run, and no other"));
    }
    let (first, seeds) = only.map_or((first, seeds), |seed| (seed, 1));
    for seed in (0..seeds).map(|index| first.wrapping_add(index)) {
        let replay = format!("{SEED}={seed:#x}");
        let hash = reporting(&format!("seed {seed:#x} fails"), Some(&replay), || {
            let sim = converged(hostile(seed), &mut scenario);
            summary.add(&sim);
            sim.trace_hash()
        });
        if seed == first {
            let what = format!("seed {seed:#x} passed, and fails when it is run again: {DIFFERS}");
            let again = reporting(&what, Some(&replay), || {
                let sim = hostile(seed);
                // With a trace this has been printed.
                sim.net.borrow_mut().history.stop_tracing();
                converged(sim, &mut scenario).trace_hash()
            });
            assert!(hash == again, "seed {seed:#x} was run twice: {DIFFERS}");
        }
    }
    summary
}

const DIFFERS: &str = "it is not the same run each time. Something decides that does not follow from \
    the seed: the order of a std HashMap or HashSet, std::time, a random number, a thread, or \
    something that the scenario keeps from one run to the next";

/// The world after its scenario, when everything has ended.
fn converged(mut sim: Sim, scenario: &mut impl FnMut(&mut Sim)) -> Sim {
    scenario(&mut sim);
    sim.converge();
    sim.assert_clean();
    sim
}

/// A world in which what follows from `seed` goes wrong.
fn hostile(seed: u64) -> Sim {
    let mut sim = Sim::new(seed);
    // The choice of faults must not depend on how a run draws its own numbers.
    let mut random = Random::new(!seed);
    if let Some(personality) = random.choose(&Personality::ALL) {
        sim.set_personality(*personality);
    }
    let slow = random.below(2) == 0;
    let micros = |random: &mut Random, most| Duration::from_micros(random.below(most));
    sim.set_link(Link {
        latency: if slow { micros(&mut random, 200_000) } else { Duration::ZERO },
        jitter: if slow { micros(&mut random, 50_000) } else { Duration::ZERO },
        bandwidth: (random.below(3) == 0).then(|| 10_000 + random.below(10_000_000)),
        segment: *random.choose(&[1, 7, 536, 1_460, 65_536]).unwrap_or(&1_460),
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
/// With the variable `SIM_FAULT` set, as in `SIM_FAULT=17:Read:ECONNRESET` or `17:Read:104`, only
/// that call fails, with that error. If the call of that number is of another kind by now, the
/// scenario has changed, and that fails too. A test that is to be replayed so runs one torture.
///
/// # Panics
///
/// If a run fails; before it, the call, the error and a command that replays it are printed.
pub fn torture(runs: usize, mut scenario: impl FnMut(&mut Sim)) -> Summary {
    const WORLD: u64 = 1;
    let mut summary = Summary::default();
    let mut run = |injection: Option<Injection>, summary: &mut Summary| {
        let mut sim = Sim::new(WORLD);
        {
            let mut net = sim.net.borrow_mut();
            net.inject = injection;
            net.start_log();
        }
        scenario(&mut sim);
        // From here on nothing fails any more.
        let calls = sim.net.borrow_mut().take_log();
        let left = sim.net.borrow().inject;
        if let Some(Injection { number, call, .. }) = left {
            panic!("call {number}, {call}, is not made in this run: {DIFFERS}");
        }
        sim.converge();
        sim.assert_clean();
        summary.add(&sim);
        calls
    };
    let whole = "the scenario fails as it is, before any call is made to fail";
    let calls = reporting(whole, None, || run(None, &mut summary));
    let each = (0..).zip(&calls).flat_map(|(number, call)| {
        let injection = move |errno: &i32| Injection { number, call: *call, errno: *errno };
        call.errnos().iter().map(injection)
    });
    let mut plan: Vec<_> = each.collect();
    if plan.len() > runs {
        Random::new(WORLD).shuffle(&mut plan);
        plan.truncate(runs);
    }
    if let Some(text) = variable(FAULT) {
        let only = fault_of(&text).unwrap_or_else(|what| panic!("{what}"));
        if let Err(what) = is_made(&calls, only) {
            panic!("{FAULT}={text}: {what}");
        }
        print(&format!("{FAULT} is set: {} fails, and no other call", only.describe()));
        plan = vec![only];
    }
    for injection in plan {
        let what = format!("{} fails, and so does the scenario", injection.describe());
        let Injection { number, call, errno } = injection;
        let replay = format!("{FAULT}={number}:{call}:{errno}");
        reporting(&what, Some(&replay), || run(Some(injection), &mut summary));
    }
    summary
}

impl Injection {
    fn describe(&self) -> String {
        format!("call {}, {}, with {}", self.number, self.call, Named(self.errno))
    }
}

/// Whether a scenario that makes these calls makes this one.
fn is_made(calls: &[Call], injection: Injection) -> Result<(), String> {
    let Injection { number, call, .. } = injection;
    match calls.get(number as usize) {
        Some(made) if *made == call => Ok(()),
        Some(made) => Err(format!("call {number} is {made} by now: the scenario has changed")),
        None => {
            let count = calls.len();
            Err(format!("the scenario makes {count} calls, from 0 on: this one is never made"))
        }
    }
}

/// What a variable is set to; empty is as good as not set.
fn variable(name: &str) -> Option<String> {
    let text = env::var_os(name)?.to_string_lossy().into_owned();
    (!text.is_empty()).then_some(text)
}

fn seed_of(text: &str) -> Result<u64, String> {
    let seed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    seed.map_err(|_| format!("{SEED} is {text:?}; expected a number, such as 11 or 0xb"))
}

fn fault_of(text: &str) -> Result<Injection, String> {
    let parse = || {
        let (number, rest) = text.split_once(':')?;
        let (call, errno) = rest.split_once(':')?;
        let number = number.parse().ok()?;
        let call = Call::ALL.into_iter().find(|it| it.to_string() == call)?;
        Some(Injection { number, call, errno: errno::parse(errno)? })
    };
    parse().ok_or_else(|| {
        format!(
            "{FAULT} is {text:?}; expected the number of a call, its kind and an error, such as \
             11:Write:ENOBUFS or 11:Write:105"
        )
    })
}

/// Does `run`, and if it fails says what it was and how to replay it.
fn reporting<T>(what: &str, replay: Option<&str>, run: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let how = replay.map(command).unwrap_or_default();
        print(&format!("{what}{how}"));
        resume_unwind(panic)
    })
}

/// The command that replays a run: the name of a test is that of its thread.
fn command(variable: &str) -> String {
    let cargo = format!("{variable} cargo test{}", target().unwrap_or_default());
    // A test that is left out by default runs only where that is asked for again.
    let runs_all = env::args_os().any(|it| it == "--ignored" || it == "--include-ignored");
    let ignored = if runs_all { " --include-ignored" } else { "" };
    match thread::current().name().filter(|name| *name != "main") {
        Some(test) => {
            format!("; replay it with\n    {cargo} -- --exact {test} --nocapture{ignored}")
        }
        None => {
            format!("; replay it in the test that ran it with\n    {cargo} -- --nocapture{ignored}")
        }
    }
}

/// The option that makes cargo build and run this program only, which is named after its source.
fn target() -> Option<String> {
    let program = env::current_exe().ok()?;
    let (name, _hash) = program.file_stem()?.to_str()?.rsplit_once('-')?;
    let tests = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR")?).join("tests");
    if tests.join(format!("{name}.rs")).exists() || tests.join(name).join("main.rs").exists() {
        return Some(format!(" --test {name}"));
    }
    let package = env::var("CARGO_PKG_NAME").ok()?;
    (name == package.replace('-', "_")).then(|| " --lib".to_owned())
}

#[expect(clippy::print_stderr, reason = "the output of a failing test")]
fn print(what: &str) {
    eprintln!("{what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    const ECHO: [Call; 3] = [Call::Wait, Call::Accept, Call::Read];

    #[test]
    fn a_seed_is_decimal_or_hexadecimal_and_nothing_else() {
        assert_eq!(seed_of("11"), Ok(11));
        assert_eq!(seed_of("0xb"), Ok(11));
        for text in ["b", "0x", "-1", "11 ", "0xg", "1e3"] {
            assert!(seed_of(text).is_err_and(|what| what.contains("0xb")), "{text}");
        }
    }

    #[test]
    fn a_fault_names_its_call_and_its_error() {
        let want = Injection { number: 3, call: Call::Accept, errno: libc::ECONNABORTED };
        assert_eq!(fault_of("3:Accept:ECONNABORTED"), Ok(want));
        assert_eq!(fault_of(&format!("3:Accept:{}", libc::ECONNABORTED)), Ok(want));
        for text in ["3", "3:103", "3:accept:103", "x:Accept:103", "3:Accept:EWHAT", "3:Accept:"] {
            assert!(fault_of(text).is_err_and(|what| what.contains("ENOBUFS")), "{text}");
        }
    }

    #[test]
    fn a_fault_is_one_that_the_scenario_meets() {
        let at = |number, call| is_made(&ECHO, Injection { number, call, errno: libc::EINTR });
        assert_eq!(at(2, Call::Read), Ok(()));
        assert!(at(2, Call::Write).is_err_and(|what| what.contains("changed")));
        assert!(at(3, Call::Read).is_err_and(|what| what.contains("never made")));
    }
}
