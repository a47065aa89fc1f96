//! Orderly ends on signals, with the feature `signals`.

use std::{io, thread};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use crate::handler::Handler;
use crate::reactor::Handle;

impl<H: Handler + 'static> Handle<H> {
    /// Shuts the reactor down when the process gets SIGTERM, as service managers send it, or SIGINT, as
    /// Ctrl-C does: with the feature `signals`.
    ///
    /// The first signal asks for a [`shutdown`](Handle::shutdown), the second resets what is left, and
    /// the third does what it would do without this call: it ends the process, also where a callback
    /// never returns. A thread of its own waits for them, to the end of the process. Call it once for each
    /// reactor: with a second call the first signal would count twice. The handler is `'static`, as the
    /// thread keeps this handle.
    ///
    /// # Errors
    ///
    /// If the signals cannot be caught or the thread cannot be started. Where it is the thread, the
    /// signals do nothing from then on, so the program should end.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use wheelhouse::{Config, Handler, Reactor};
    /// # fn serve<H: Handler + 'static>(mut handler: H) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut reactor = Reactor::new(Config::default())?;
    /// reactor.listen("127.0.0.1:7000")?;
    /// reactor.handle().shutdown_on_signals()?;
    /// println!("{}", reactor.run(&mut handler)?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn shutdown_on_signals(self) -> io::Result<()> {
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        let wait = move || {
            for (before, signal) in signals.forever().enumerate() {
                if before < 2 {
                    self.shutdown();
                } else {
                    // Where that fails the next one tries again.
                    let _ = emulate_default_handler(signal);
                }
            }
        };
        thread::Builder::new().name("signals".into()).spawn(wait).map(drop)
    }
}
