//! What an application plugs in.

use std::io;

use bytes::BytesMut;

use crate::close::{CloseReason, Closed};
use crate::conn::Conn;
use crate::context::Context;
use crate::error::AcquireError;
use crate::id::{AlarmId, ConnId, ListenerId, WaitId};
use crate::metrics::MetricsWriter;

/// A protocol: its callbacks are the transitions of a connection's life.
///
/// One value serves all connections of a reactor. What they share lives in `self`, what one of them
/// needs in its [`Session`](Handler::Session). Two methods make an echo server; every other has a
/// default that is safe to keep.
///
/// # Order
///
/// Every session enters once, by [`on_open`](Handler::on_open), and leaves once, by
/// [`on_closed`](Handler::on_closed); [`on_closing`](Handler::on_closing) comes before that, also
/// once. In between, [`on_connected`](Handler::on_connected) comes first and once,
/// [`on_idle`](Handler::on_idle) and [`on_active`](Handler::on_active) alternate, and
/// [`on_eof`](Handler::on_eof) comes at most once, after which there is no
/// [`on_data`](Handler::on_data) with new bytes.
///
/// # What a callback may do
///
/// Anything that does not block. It records what it wants on the [`Conn`], and the reactor acts
/// when it has returned: no callback runs inside another and none makes a system call. A callback
/// that takes long delays every other connection; work that takes long belongs on another thread,
/// which answers through a [`Handle`](crate::Handle).
///
/// # Panics
///
/// A panic in a callback of a connection discards what that callback queued and aborts the
/// connection with [`HandlerPanic`](CloseReason::HandlerPanic): [`on_closing`](Handler::on_closing)
/// and [`on_closed`](Handler::on_closed) come with the session as the panic left it, and the other
/// connections go on. One in [`on_closed`](Handler::on_closed) is only counted, as nothing is left
/// to abort. A panic in a callback of the whole loop ([`on_start`](Handler::on_start), an alarm, a
/// posted closure, [`on_listener_failed`](Handler::on_listener_failed),
/// [`on_shutdown`](Handler::on_shutdown)) stops the reactor: shared state may be half-changed.
/// Panics of connections stop it only where [`Config::panic_limit`](crate::Config::panic_limit) is
/// set. With `panic = "abort"` none of this can happen.
///
/// What the reactor drops for the handler may panic too: the payload of a panic, a closure that was
/// posted and cannot run, a session where the reactor is dropped, the owner of shared bytes
/// ([`Bytes::from_owner`](bytes::Bytes::from_owner)). That ends nothing. Only a `Drop` that panics
/// while a panic unwinds past it ends the process, as everywhere in Rust.
///
/// # Examples
///
/// ```
/// use bytes::BytesMut;
/// use wheelhouse::{Conn, Handler};
///
/// struct Echo;
///
/// impl Handler for Echo {
///     type Session = ();
///
///     fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
///         Some(())
///     }
///
///     fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
///         conn.write(input);
///         input.clear();
///     }
/// }
/// ```
#[allow(unused_variables)]
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no handler",
    label = "this needs an `impl Handler`",
    note = "a handler has a type `Session` and the methods `on_open` and `on_data`"
)]
pub trait Handler: Sized {
    /// What the application keeps per connection; an enum where connections have different roles.
    type Session;

    /// The reactor begins its first turn: the moment to dial, or to set the first alarm. Called
    /// once, before all other callbacks. Listeners are bound by then, and nothing has been
    /// accepted.
    fn on_start(&mut self, cx: &mut Context<'_>) {}

    /// A connection begins: accepted or being dialled, as [`Conn::origin`] says. Called once per
    /// connection, before anything else; `None` refuses it, and no other callback follows. What was
    /// written to a connection that is refused is sent if the socket takes it at once.
    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<Self::Session>;

    /// There is input. `input` holds everything unread; what the handler wants no more it takes
    /// off the front (`advance`, `split_to`, `clear`), what it leaves comes again with more behind
    /// it.
    ///
    /// Called when bytes arrive, and without new ones after [`Conn::yield_now`], when reading
    /// resumes, and after [`on_drained`](Handler::on_drained), if input is left. A handler that has
    /// many requests at hand should stop when [`Conn::is_congested`] and will be called again.
    /// Input left over begins a request whose deadline runs; a handler that took it all in and
    /// waits for more of the same request says so by [`Conn::expect_more_input`]. One that knows
    /// how long a message is waits for all of it by [`Conn::expect_input`], without a call for each
    /// piece. `input` is empty only in the call that follows [`Conn::skip`].
    ///
    /// Bytes split off `input` share the loop's buffer: right for passing on, wrong for keeping,
    /// as ten bytes would keep 64 KiB alive. Copy what is kept.
    fn on_data(&mut self, conn: &mut Conn<'_>, session: &mut Self::Session, input: &mut BytesMut);

    /// [`Connecting`](crate::State::Connecting) → [`Connected`](crate::State::Connected): for an
    /// accepted connection right after [`on_open`](Handler::on_open), for a dialled one when the
    /// peer answered. Called once.
    fn on_connected(&mut self, conn: &mut Conn<'_>, session: &mut Self::Session) {}

    /// [`Connected`](crate::State::Connected) → [`Idle`](crate::State::Idle): no request is active,
    /// and everything written has left.
    fn on_idle(&mut self, conn: &mut Conn<'_>, session: &mut Self::Session) {}

    /// [`Idle`](crate::State::Idle) → [`Connected`](crate::State::Connected): a request begins.
    /// For one that the peer begins, this comes before its [`on_data`](Handler::on_data).
    fn on_active(&mut self, conn: &mut Conn<'_>, session: &mut Self::Session) {}

    /// Any state → [`Closing`](crate::State::Closing), for `reason`. Where the reason lets queued
    /// output be flushed, a last reply may be written here; elsewhere writes are dropped.
    fn on_closing(
        &mut self,
        conn: &mut Conn<'_>,
        session: &mut Self::Session,
        reason: &CloseReason,
    ) {
    }

    /// [`Closing`](crate::State::Closing) → [`Closed`](crate::State::Closed): the session is given
    /// back, and the connection's id resolves to nothing from now on.
    fn on_closed(&mut self, cx: &mut Context<'_>, closed: Closed, session: Self::Session) {}

    /// The peer sent its FIN, and [`on_data`](Handler::on_data) has seen all there was before it;
    /// `input` is what it left. It does not come while the handler has more to do with its input:
    /// after [`Conn::yield_now`], and while the connection is congested, paused or throttled.
    ///
    /// When it returns the reactor closes the connection with [`PeerEof`](CloseReason::PeerEof): an
    /// inbound one once nothing is owed ([`Conn::begin_request`]) and output is flushed, a dialled
    /// one at once, a tunnel once our own FIN is sent too.
    fn on_eof(&mut self, conn: &mut Conn<'_>, session: &mut Self::Session, input: &mut BytesMut) {}

    /// A congested connection's output fell to the low watermark: the moment to write more.
    /// [`on_data`](Handler::on_data) follows if input was left.
    fn on_drained(&mut self, conn: &mut Conn<'_>, session: &mut Self::Session) {}

    /// The time of [`Conn::set_timer`] has come.
    fn on_timer(&mut self, conn: &mut Conn<'_>, session: &mut Self::Session) {}

    /// The connection has been idle for [`Timeouts::ping_after`](crate::Timeouts::ping_after): the
    /// moment to send what its peer must answer. If nothing at all arrives within
    /// [`Timeouts::ping`](crate::Timeouts::ping) it is closed.
    ///
    /// For a connection that is idle in its pool it comes after
    /// [`PoolConfig::ping_after`](crate::pool::PoolConfig::ping_after), and
    /// [`Conn::ready`] ends the check.
    fn on_health_check(&mut self, conn: &mut Conn<'_>, session: &mut Self::Session) {}

    /// A check of an [endpoint](crate::health) by
    /// [`TestRequest`](crate::health::HealthCheck::TestRequest) stands: the moment to send a request.
    /// It comes once, right after [`on_connected`](Handler::on_connected).
    ///
    /// The reply comes to [`on_data`](Handler::on_data) as any other; if it is right, the handler
    /// calls [`Conn::ready`], which ends the connection with
    /// [`CheckPassed`](CloseReason::CheckPassed). Any other end is a failed check, also one after
    /// [`Conn::close`]. If this sends nothing and [begins no request](Conn::begin_request) the check
    /// has passed.
    fn on_test_request(&mut self, conn: &mut Conn<'_>, session: &mut Self::Session) {}

    /// The answer to [`Conn::acquire`]: a connection of the pool, leased to this one until it is
    /// [released](Conn::release), or why there is none. Called once for each `wait` that was not
    /// cancelled.
    ///
    /// [`conn.other(lease)`](Conn::other) reaches the leased connection, and no other connection does.
    /// What is written to it here leaves as soon as this callback has returned, as far as its socket
    /// takes it, and before what is written to this connection. Its session is in the hands of its own
    /// callbacks, where [`Conn::owner`] names this one. If it ends while it is leased, its
    /// [`on_closing`](Handler::on_closing) comes as always, and still knows its owner.
    fn on_acquired(
        &mut self,
        conn: &mut Conn<'_>,
        session: &mut Self::Session,
        wait: WaitId,
        lease: Result<ConnId, AcquireError>,
    ) {
        // A handler that asks for a connection has to use it.
        if let Ok(lease) = lease {
            conn.release(lease);
        }
    }

    /// The connection `lost` that was leased to this one has ended, and the request that was
    /// [sent](Conn::send_replayable) over it has been sent again: over `lease`, which is leased to
    /// this one in its place. Or there is none, and the request has failed.
    ///
    /// It comes once for each lease that is lost so, and
    /// [`PoolStats::replayed`](crate::pool::PoolStats::replayed) counts them.
    /// [`PoolStats::replaced`](crate::pool::PoolStats::replaced) counts something else: connections
    /// that the pool closes for their age, which are not leased then. The callbacks of the lost
    /// connection's end have come before, without an [owner](Conn::owner). What is written to the lease
    /// here leaves as in [`on_acquired`](Handler::on_acquired), behind the request.
    fn on_lease_replaced(
        &mut self,
        conn: &mut Conn<'_>,
        session: &mut Self::Session,
        lost: ConnId,
        lease: Result<ConnId, AcquireError>,
    ) {
        // A handler that has requests sent again has to know of those that are lost.
        if lease.is_err() {
            conn.close();
        }
    }

    /// The answer to [`Context::acquire`]. As [`on_acquired`](Handler::on_acquired), for a lease of
    /// the loop.
    fn on_loop_acquired(
        &mut self,
        cx: &mut Context<'_>,
        wait: WaitId,
        lease: Result<ConnId, AcquireError>,
    ) {
        if let Ok(lease) = lease {
            cx.release(lease);
        }
    }

    /// The [metrics](crate::Reactor::serve_metrics) are being collected: the moment to write those of
    /// the application. The library has written its own.
    ///
    /// Called once for each request of `/metrics`, every 15 to 60 s for each collector, on the loop's
    /// thread: it should only format numbers that are there. A panic here is counted and costs that scrape
    /// its reply; it does not count towards [`Config::panic_limit`](crate::Config::panic_limit), as a peer
    /// chooses when it comes.
    fn on_scrape(&mut self, cx: &mut Context<'_>, out: &mut MetricsWriter) {}

    /// The time of [`Context::set_alarm`] has come.
    fn on_alarm(&mut self, cx: &mut Context<'_>, alarm: AlarmId) {}

    /// A listener died of an error that no waiting mends, and is closed; the others live on. What
    /// it had accepted is not affected.
    fn on_listener_failed(
        &mut self,
        cx: &mut Context<'_>,
        listener: ListenerId,
        error: &io::Error,
    ) {
    }

    /// A shutdown began: what waited in the backlogs has been accepted, listeners other than exempt
    /// ones are closed, and connections will be when they have been served. Tunnels are the
    /// handler's to close. Called once.
    fn on_shutdown(&mut self, cx: &mut Context<'_>) {}
}
