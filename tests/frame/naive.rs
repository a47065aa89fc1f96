//! The framings beside parsers that are as simple as can be: one byte after the other, from the front,
//! with no state.

use wheelhouse::frame::{
    self, Counts, Delimited, Error, Fixed, Frame, Framing, Head, Length, Lines, Varint, Width,
};

/// One of the framings.
#[derive(Clone, Debug)]
pub(crate) enum Any {
    Lines(Lines, Ends),
    Delimited(Delimited, &'static [u8]),
    Fixed(Fixed, usize),
    Varint(Varint),
    Length(Length, Field),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ends {
    Either,
    CrLf,
    Lf,
}

/// What a [`Length`] is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    pub(crate) width: Width,
    pub(crate) after: usize,
    pub(crate) then: usize,
    pub(crate) counts: Counts,
    pub(crate) little: bool,
    pub(crate) keeps: bool,
}

/// The greatest payload in these tests, small enough to be exceeded often.
pub(crate) const MAX: usize = 5;

impl Any {
    pub(crate) fn lines(ends: Ends) -> Self {
        let lines = frame::lines(MAX);
        let lines = match ends {
            Ends::Either => lines,
            Ends::CrLf => lines.strict(),
            Ends::Lf => lines.lf(),
        };
        Self::Lines(lines, ends)
    }

    pub(crate) fn delimited(end: &'static [u8]) -> Self {
        Self::Delimited(frame::delimited(end, MAX), end)
    }

    pub(crate) fn fixed(len: usize) -> Self {
        Self::Fixed(frame::fixed(len), len)
    }

    pub(crate) fn varint() -> Self {
        Self::Varint(frame::varint(MAX))
    }

    pub(crate) fn length(field: Field) -> Self {
        let Field { width, after, then, counts, little, keeps } = field;
        let mut length = frame::length(width, MAX).after(after).then(then).counts(counts);
        if little {
            length = length.little_endian();
        }
        if keeps {
            length = length.keep_header();
        }
        Self::Length(length, field)
    }

    /// The framing itself, as new.
    fn framing(&mut self) -> &mut dyn Framing {
        match self {
            Self::Lines(it, _) => it,
            Self::Delimited(it, _) => it,
            Self::Fixed(it, _) => it,
            Self::Varint(it) => it,
            Self::Length(it, _) => it,
        }
    }

    fn framing_ref(&self) -> &dyn Framing {
        match self {
            Self::Lines(it, _) => it,
            Self::Delimited(it, _) => it,
            Self::Fixed(it, _) => it,
            Self::Varint(it) => it,
            Self::Length(it, _) => it,
        }
    }

    /// What the front of `input` is, found in the simplest way.
    pub(crate) fn expected(&self, input: &[u8]) -> Result<Option<Frame>, Error> {
        match self {
            Self::Lines(_, ends) => line(input, *ends),
            Self::Delimited(_, end) => {
                for len in 0..=input.len() {
                    if input[..len].ends_with(end) {
                        return Ok(Some(Frame { payload: 0..len - end.len(), len }));
                    }
                    if len == MAX + end.len() {
                        return Err(Error::TooLong { max: MAX, length: None });
                    }
                }
                Ok(None)
            }
            Self::Fixed(_, len) => Ok(cut(input, 0..*len, *len)),
            Self::Varint(_) => varint(input),
            Self::Length(_, field) => length(input, *field),
        }
    }
}

impl Framing for Any {
    fn find(&mut self, input: &[u8]) -> Result<Option<Frame>, Error> {
        self.framing().find(input)
    }

    fn greatest(&self) -> usize {
        self.framing_ref().greatest()
    }

    fn head(&self, payload: usize) -> Result<Head, Error> {
        self.framing_ref().head(payload)
    }

    fn tail(&self) -> &[u8] {
        self.framing_ref().tail()
    }

    fn check(&self, payload: &[u8]) -> Result<(), Error> {
        self.framing_ref().check(payload)
    }
}

fn cut(input: &[u8], payload: std::ops::Range<usize>, len: usize) -> Option<Frame> {
    (input.len() >= len).then_some(Frame { payload, len })
}

fn line(input: &[u8], ends: Ends) -> Result<Option<Frame>, Error> {
    let too_long = Err(Error::TooLong { max: MAX, length: None });
    for (at, byte) in input.iter().enumerate() {
        let has_return = at > 0 && input[at - 1] == b'\r';
        let text = if has_return && ends != Ends::Lf { at - 1 } else { at };
        if *byte == b'\n' {
            return match ends {
                _ if text > MAX => too_long,
                Ends::CrLf if !has_return => Err(Error::BadEnd),
                _ => Ok(Some(Frame { payload: 0..text, len: at + 1 })),
            };
        }
        let may_end = *byte == b'\r' && ends != Ends::Lf;
        if at + usize::from(!may_end) > MAX {
            return too_long;
        }
    }
    Ok(None)
}

fn varint(input: &[u8]) -> Result<Option<Frame>, Error> {
    let mut value = 0_u128;
    for (at, byte) in input.iter().enumerate() {
        value += u128::from(byte & 127) << (7 * at);
        if value > u128::from(u64::MAX) {
            return Err(Error::BadVarint);
        }
        if *byte < 128 {
            if at > 0 && *byte == 0 {
                return Err(Error::BadVarint);
            }
            if value > MAX as u128 {
                return Err(Error::TooLong { max: MAX, length: Some(value as u64) });
            }
            let head = at + 1;
            return Ok(cut(input, head..head + value as usize, head + value as usize));
        }
        if at == 9 {
            return Err(Error::BadVarint);
        }
    }
    Ok(None)
}

fn length(input: &[u8], field: Field) -> Result<Option<Frame>, Error> {
    let width = match field.width {
        Width::U8 => 1,
        Width::U16 => 2,
        Width::U24 => 3,
        Width::U32 => 4,
        Width::U64 => 8,
    };
    if input.len() < field.after + width {
        return Ok(None);
    }
    let mut bytes = input[field.after..field.after + width].to_vec();
    if field.little {
        bytes.reverse();
    }
    let length = bytes.iter().fold(0_i128, |sum, byte| sum * 256 + i128::from(*byte));
    let header = field.after + width + field.then;
    let counted = match field.counts {
        Counts::Payload => 0,
        Counts::AfterField => field.then,
        Counts::FromField => width + field.then,
        Counts::Whole => header,
    };
    let payload = length - counted as i128;
    if payload < 0 {
        return Err(Error::BadLength);
    }
    if payload > MAX as i128 {
        return Err(Error::TooLong { max: MAX, length: Some(payload as u64) });
    }
    let len = header + payload as usize;
    Ok(cut(input, if field.keeps { 0..len } else { header..len }, len))
}
