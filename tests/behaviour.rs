//! What a reactor promises, seen from outside: by the bytes its peers get and by what its handler
//! is told.
//!
//! Every behaviour is one function over a [`World`](harness::World), and each world runs the same
//! functions.

mod harness;

/// Runs behaviours in every world; in those that have windows, resets and names; in those of them
/// that hint at a reset that is not read; and in those whose time passes by itself. A new world is one
/// line here.
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
    mod dialling;
    mod ends;
    mod fairness;
    mod input;
    mod limits;
    mod listeners;
    mod overload;
    mod panics;
    mod shutdown;
    mod stops;
    mod threads;
    mod timeouts;
    mod timers;
}
