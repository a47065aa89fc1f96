//! What a reactor promises and what can be seen of it from outside, on every transport: by the bytes
//! that its peers read and by the callbacks that its handler gets.
//!
//! Every behaviour is one function over a [`World`](harness::World), and each world runs the same
//! functions: TCP, Unix-domain sockets, and a simulated world of each personality. There is a file for
//! each topic. A rule that needs virtual time, an injected fault or a look into the simulated world is
//! in the file of that name in `tests/simulated/rules/`; what only the operating system does is in
//! `tests/os/`.

mod harness;

/// Runs behaviours in every world; in those that have windows, resets and names; in those of them
/// that hint at a reset before it is read; and in those whose time passes by itself. A new world is
/// one line here.
macro_rules! behaviours {
    (
        $(everywhere { $($any:ident)* })?
        $(over_tcp { $($tcp:ident)* })?
        $(with_hints { $($hinted:ident)* })?
        $(in_real_time { $($real:ident)* })?
    ) => {
        world!(tcp, crate::harness::Os::tcp(),
            $($($any)*)? $($($tcp)*)? $($($hinted)*)? $($($real)*)?);
        world!(unix, crate::harness::Os::unix(), $($($any)*)? $($($real)*)?);
        world!(sim_epoll, crate::harness::Sim::of(Epoll),
            $($($any)*)? $($($tcp)*)? $($($hinted)*)?);
        world!(sim_kqueue, crate::harness::Sim::of(Kqueue),
            $($($any)*)? $($($tcp)*)? $($($hinted)*)?);
        world!(sim_weakest, crate::harness::Sim::of(Weakest), $($($any)*)? $($($tcp)*)?);
    };
}

/// Makes a module of tests that run behaviours of the surrounding module in one world.
macro_rules! world {
    ($module:ident, $world:expr, $($behaviour:ident)*) => {
        mod $module {
            #[allow(unused_imports)]
            use wheelhouse::sim::Personality::{Epoll, Kqueue, Weakest};

            $(#[test]
            fn $behaviour() {
                super::$behaviour(&mut $world);
            })*
        }
    };
}

mod behaviour {
    mod admission;
    mod backpressure;
    mod bytes;
    mod closing;
    mod counters;
    mod dialling;
    mod fairness;
    mod handler_close;
    mod health;
    mod input;
    mod listeners;
    mod overload;
    mod panics;
    mod pools;
    mod reactor_end;
    mod relays;
    mod requests;
    mod settings;
    mod shutdown;
    mod threads;
    mod timeouts;
    mod timers;
}
