//! What a reactor promises, seen from outside: by the bytes its peers get and by what its handler
//! is told.
//!
//! Every behaviour is one function over a [`World`](harness::World), and each world runs the same
//! functions.

mod harness;

/// Runs behaviours in every world, and in those that have windows, resets and names. A new world is
/// one line here.
macro_rules! behaviours {
    ($(everywhere { $($any:ident)* })? $(over_tcp { $($tcp:ident)* })?) => {
        world!(tcp, crate::harness::Os::tcp(), $($($any)*)? $($($tcp)*)?);
        world!(unix, crate::harness::Os::unix(), $($($any)*)?);
    };
}

/// Makes a module of tests that run behaviours of the surrounding module in one world.
macro_rules! world {
    ($module:ident, $world:expr, $($behaviour:ident)*) => {
        mod $module {
            $(#[test]
            fn $behaviour() {
                super::$behaviour(&mut $world);
            })*
        }
    };
}

mod behaviour {
    mod backpressure;
    mod bytes;
    mod closing;
    mod dialling;
    mod ends;
    mod fairness;
    mod limits;
    mod listeners;
    mod panics;
    mod shutdown;
    mod threads;
    mod timeouts;
    mod timers;
}
