//! Output that many connections queue and that is in memory once.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use bytes::Bytes;

use crate::unwind::drop_caught;

/// Bytes to be written to many connections, in memory once and counted once.
///
/// [`Context::share`](crate::Context::share) makes it and
/// [`Conn::write_shared`](crate::Conn::write_shared) queues it. Its length counts against
/// [`Limits::buffered_max`](crate::Limits::buffered_max) from the first queue it is in to the last,
/// however many queues that are, while [`Conn::write_bytes`](crate::Conn::write_bytes) counts it in
/// each of them. In the limit of one connection,
/// [`Limits::output_max`](crate::Limits::output_max), it counts with all of its length.
///
/// Cloning it copies no bytes. The bytes are freed with the last clone and the last queue. It
/// belongs to the reactor that made it: to the connections of another one it is written as plain
/// [`Bytes`] are.
///
/// ```
/// use bytes::BytesMut;
/// use wheelhouse::{Conn, Handler};
///
/// /// Sends what a client says to all clients.
/// struct Chat;
///
/// impl Handler for Chat {
///     type Session = ();
///
///     fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
///         Some(())
///     }
///
///     fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
///         let said = conn.cx().share(input.split().freeze());
///         for id in conn.cx().ids() {
///             if let Some(mut other) = conn.other(id) {
///                 other.write_shared(&said);
///             }
///         }
///     }
/// }
/// ```
#[derive(Clone)]
pub struct Shared {
    piece: Arc<SharedPiece>,
}

/// Bytes, how many queues they are in, and the gauge that counts them.
pub(crate) struct SharedPiece {
    bytes: Foreign,
    queues: AtomicU32,
    gauge: Arc<SharedGauge>,
}

/// Bytes given by the application. Their owner may be a type of its own ([`Bytes::from_owner`]), and
/// panic when it is dropped, which it is where the last byte leaves: outside of all callbacks.
#[derive(Debug)]
pub(crate) struct Foreign(pub(crate) Bytes);

impl Drop for Foreign {
    fn drop(&mut self) {
        drop_caught(std::mem::take(&mut self.0));
    }
}

/// The bytes of all shared pieces of one reactor that are in a queue. Only that reactor's thread
/// queues and takes off.
#[derive(Debug, Default)]
pub(crate) struct SharedGauge(AtomicU64);

impl SharedGauge {
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Shared {
    pub(crate) fn new(bytes: Bytes, gauge: &Arc<SharedGauge>) -> Self {
        let gauge = Arc::clone(gauge);
        let bytes = Foreign(bytes);
        Self { piece: Arc::new(SharedPiece { bytes, queues: AtomicU32::new(0), gauge }) }
    }

    /// The bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.piece.bytes.0
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.piece.bytes.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.piece.bytes.0.is_empty()
    }

    /// Whether `gauge` counts it.
    pub(crate) fn is_counted_by(&self, gauge: &Arc<SharedGauge>) -> bool {
        Arc::ptr_eq(&self.piece.gauge, gauge)
    }

    /// Puts it into one more queue.
    pub(crate) fn enqueue(&self) -> QueuedShare {
        if self.piece.queues.fetch_add(1, Relaxed) == 0 {
            self.piece.gauge.0.fetch_add(self.len() as u64, Relaxed);
        }
        QueuedShare { piece: Arc::clone(&self.piece) }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// One queue's hold on a shared piece.
pub(crate) struct QueuedShare {
    piece: Arc<SharedPiece>,
}

impl QueuedShare {
    /// All of its bytes.
    pub(crate) fn bytes(&self) -> Bytes {
        self.piece.bytes.0.clone()
    }

    /// What tells it from other shared pieces, and its length.
    pub(crate) fn identity(&self) -> (usize, u64) {
        (Arc::as_ptr(&self.piece).addr(), self.piece.bytes.0.len() as u64)
    }
}

impl Drop for QueuedShare {
    fn drop(&mut self) {
        if self.piece.queues.fetch_sub(1, Relaxed) == 1 {
            self.piece.gauge.0.fetch_sub(self.piece.bytes.0.len() as u64, Relaxed);
        }
    }
}

impl fmt::Debug for QueuedShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuedShare")
            .field("len", &self.piece.bytes.0.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_piece_counts_once_from_the_first_queue_to_the_last() {
        let gauge = Arc::default();
        let shared = Shared::new(Bytes::from_static(b"hello"), &gauge);
        assert_eq!(gauge.get(), 0, "it is in no queue");
        let first = shared.enqueue();
        let second = shared.enqueue();
        assert_eq!(gauge.get(), 5);
        drop(first);
        assert_eq!(gauge.get(), 5);
        drop(shared);
        assert_eq!(gauge.get(), 5, "a queue holds it still");
        drop(second);
        assert_eq!(gauge.get(), 0);
    }

    #[test]
    fn a_shared_piece_may_be_sent_between_threads() {
        const fn needs<T: Send + Sync + Clone>() {}
        needs::<Shared>();
    }
}
