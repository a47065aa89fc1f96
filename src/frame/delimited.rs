//! Messages that end with certain bytes.

use super::search::find;
use super::{Error, Frame, Framing, Head, too_long};

/// The most bytes of a delimiter.
const END_MAX: usize = 8;

/// Lines of at most `max` bytes. A line ends with `\n`; one `\r` before that belongs to the end too.
///
/// [`find`](Framing::find) takes nothing off, so it suits lines that announce what follows them: the
/// handler finds the line, leaves it in the input until all that it announces is there, and finds it
/// again in the next call. That searches the line anew, which is at most `max` bytes long.
///
/// ```
/// use bytes::BytesMut;
/// use wheelhouse::frame::{self, Framing, Lines};
///
/// /// Takes a line that says a length, and the body of that length behind it, once both are there.
/// fn take_body(lines: &mut Lines, input: &mut BytesMut) -> Option<Vec<u8>> {
///     let line = lines.find(input).ok()??;
///     let body: usize = str::from_utf8(&input[line.payload.clone()]).ok()?.parse().ok()?;
///     let whole = line.len.checked_add(body).filter(|whole| *whole <= input.len())?;
///     let body = input[line.len..whole].to_vec();
///     frame::take_off(input, whole);
///     Some(body)
/// }
///
/// let mut lines = frame::lines(16);
/// let mut input = BytesMut::from("5\r\nhel");
/// assert_eq!(take_body(&mut lines, &mut input), None);
/// input.extend_from_slice(b"lo3\r\n");
/// assert_eq!(take_body(&mut lines, &mut input), Some(b"hello".to_vec()));
/// assert_eq!(take_body(&mut lines, &mut input), None);
/// assert_eq!(&input[..], b"3\r\n");
/// ```
///
/// # Panics
///
/// If `max` is so near `usize::MAX` that no end fits beside it.
pub const fn lines(max: usize) -> Lines {
    assert!(max <= usize::MAX - 2, "no input is that long");
    Lines { max, searched: 0, ends: Ends::Either }
}

/// A framing: see [`lines()`](lines()).
#[derive(Clone, Debug)]
pub struct Lines {
    max: usize,
    /// So much of the input is known to hold no `\n`.
    searched: usize,
    ends: Ends,
}

/// What ends a line.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Ends {
    /// `\n`, or `\r\n`.
    Either,
    /// `\r\n`; it is an error if `\n` stands alone.
    CrLf,
    /// `\n`; a `\r` before it belongs to the line.
    Lf,
}

impl Lines {
    /// Only `\r\n` ends a line. A `\n` without `\r` is a [`BadEnd`](Error::BadEnd): programs that
    /// differ in what they make of it can be played off against each other.
    pub const fn strict(self) -> Self {
        Self { ends: Ends::CrLf, ..self }
    }

    /// Only `\n` ends a line, and a `\r` before it belongs to the line.
    pub const fn lf(self) -> Self {
        Self { ends: Ends::Lf, ..self }
    }

    /// What was searched before says nothing of what may come after an error.
    const fn refuse<T>(&mut self, error: Error) -> Result<T, Error> {
        self.searched = 0;
        Err(error)
    }

    const fn error<T>(&mut self) -> Result<T, Error> {
        self.refuse(Error::TooLong { max: self.max, length: None })
    }

    /// No end is in sight: whether there may still be one in time.
    #[inline]
    fn wait(&mut self, input: &[u8]) -> Result<Option<Frame>, Error> {
        // A `\r` at the end may belong to it.
        let more = usize::from(self.ends != Ends::Lf && input.last() == Some(&b'\r'));
        if input.len() - more > self.max {
            return self.error();
        }
        self.searched = input.len();
        Ok(None)
    }
}

impl Framing for Lines {
    #[inline(always)]
    fn find(&mut self, input: &[u8]) -> Result<Option<Frame>, Error> {
        // What lies behind the longest line is not searched, however much there is.
        let longest = input.len().min(self.greatest());
        let from = if self.searched > longest { 0 } else { self.searched };
        let Some(at) = find(&input[from..longest], b'\n') else {
            return self.wait(&input[..longest]);
        };
        let newline = from + at;
        let line = &input[..newline];
        let end = match line.split_last() {
            // Mostly that is all there is to it.
            Some((last, _)) if *last != b'\r' && self.ends != Ends::CrLf => newline,
            Some((b'\r', text)) if self.ends != Ends::Lf => text.len(),
            _ if newline <= self.max && self.ends == Ends::CrLf => {
                return self.refuse(Error::BadEnd);
            }
            _ => newline,
        };
        if end > self.max {
            return self.error();
        }
        self.searched = 0;
        Ok(Some(Frame { payload: 0..end, len: newline + 1 }))
    }

    #[inline]
    fn greatest(&self) -> usize {
        self.max + if self.ends == Ends::Lf { 1 } else { 2 }
    }

    /// Empty.
    fn head(&self, payload: usize) -> Result<Head, Error> {
        if payload > self.max {
            return too_long(self.max, payload as u64);
        }
        Ok(Head::default())
    }

    fn tail(&self) -> &[u8] {
        if self.ends == Ends::CrLf { b"\r\n" } else { b"\n" }
    }

    fn check(&self, payload: &[u8]) -> Result<(), Error> {
        let runs_into = self.ends == Ends::Either && payload.last() == Some(&b'\r');
        if runs_into || find(payload, b'\n').is_some() { Err(Error::BadEnd) } else { Ok(()) }
    }
}

/// Messages of at most `max` bytes, each of which ends with `end`.
///
/// # Panics
///
/// If `end` does not have 1 to 8 bytes, or `max` is so near `usize::MAX` that it does not fit beside
/// it.
pub const fn delimited(end: &'static [u8], max: usize) -> Delimited {
    assert!(!end.is_empty() && end.len() <= END_MAX, "a delimiter has 1 to 8 bytes");
    assert!(max <= usize::MAX - END_MAX, "no input is that long");
    Delimited { end, max, searched: 0 }
}

/// A framing: see [`delimited()`](delimited()).
#[derive(Clone, Debug)]
pub struct Delimited {
    end: &'static [u8],
    max: usize,
    /// No delimiter ends in so much of the input.
    searched: usize,
}

impl Framing for Delimited {
    #[inline]
    fn find(&mut self, input: &[u8]) -> Result<Option<Frame>, Error> {
        let longest = input.len().min(self.greatest());
        let input = &input[..longest];
        let from = if self.searched > longest { 0 } else { self.searched };
        if let Some(len) = find_end(input, self.end, from) {
            self.searched = 0;
            return Ok(Some(Frame { payload: 0..len - self.end.len(), len }));
        }
        if longest == self.greatest() {
            self.searched = 0;
            return Err(Error::TooLong { max: self.max, length: None });
        }
        self.searched = longest;
        Ok(None)
    }

    #[inline]
    fn greatest(&self) -> usize {
        self.max + self.end.len()
    }

    /// Empty.
    fn head(&self, payload: usize) -> Result<Head, Error> {
        if payload > self.max {
            return too_long(self.max, payload as u64);
        }
        Ok(Head::default())
    }

    fn tail(&self) -> &[u8] {
        self.end
    }

    fn check(&self, payload: &[u8]) -> Result<(), Error> {
        // With the delimiter behind it, its end may make another one that comes earlier.
        let end = self.end;
        let most = end.len() - 1;
        let last = &payload[payload.len() - most.min(payload.len())..];
        let mut seam = [0; 2 * END_MAX];
        seam[..last.len()].copy_from_slice(last);
        seam[last.len()..last.len() + end.len()].copy_from_slice(end);
        let at_seam = find_end(&seam[..last.len() + end.len()], end, 0);
        let whole = find_end(payload, end, 0).is_none() && at_seam == Some(last.len() + end.len());
        if whole { Ok(()) } else { Err(Error::BadEnd) }
    }
}

/// Behind which byte the first `end` of `text` ends, if that is after `from`. Its last byte is searched
/// first.
#[inline]
fn find_end(text: &[u8], end: &[u8], from: usize) -> Option<usize> {
    let (last, before) = end.split_last()?;
    let mut from = from.max(before.len());
    loop {
        let at = from + find(text.get(from..)?, *last)?;
        if text[..at].ends_with(before) {
            return Some(at + 1);
        }
        from = at + 1;
    }
}
