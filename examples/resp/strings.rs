//! Commands on strings.

use wheelhouse::Conn;

use crate::keys::deadline;
use crate::parse::Args;
use crate::reply::{self, Fault};
use crate::resp::number;
use crate::store::{Store, refuse_too_long};
use crate::value::{Text, Value};

type Done = Result<(), Fault>;

#[inline]
pub(crate) fn get(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    match store.get(conn.cx(), &args[1]) {
        Some(value) => value.with_text(|text| reply::bulk(conn, text)),
        None => {
            reply::nil(conn);
            Ok(())
        }
    }
}

/// The options of SET.
#[derive(Default)]
struct Options<'a> {
    if_absent: bool,
    if_there: bool,
    replies_old: bool,
    keeps_expiry: bool,
    /// The unit of a time, whether that is an absolute one, and the word that should be the time.
    expiry: Option<((i64, bool), &'a [u8])>,
}

impl<'a> Options<'a> {
    /// One that is given more than once counts as it was given last. What excludes another one is an
    /// error, and that before a time that is none.
    fn parse(args: Args<'a>) -> Result<Self, Fault> {
        let (mut options, mut words) = (Self::default(), args.from(3));
        while let Some(word) = words.next() {
            let is = |name: &str| word.eq_ignore_ascii_case(name.as_bytes());
            if is("NX") && !options.if_there {
                options.if_absent = true;
            } else if is("XX") && !options.if_absent {
                options.if_there = true;
            } else if is("GET") {
                options.replies_old = true;
            } else if is("KEEPTTL") && options.expiry.is_none() {
                options.keeps_expiry = true;
            } else if !options.keeps_expiry
                && let Some(kind) = time_option(word)
                && options.expiry.is_none_or(|(other, _)| other == kind)
            {
                options.expiry = Some((kind, words.next().ok_or(Fault::SYNTAX)?));
            } else {
                return Err(Fault::SYNTAX);
            }
        }
        Ok(options)
    }
}

/// The unit of a time that follows, in milliseconds, and whether that is an absolute one.
fn time_option(word: &[u8]) -> Option<(i64, bool)> {
    let options =
        [("EX", (1_000, false)), ("PX", (1, false)), ("EXAT", (1_000, true)), ("PXAT", (1, true))];
    let found = options.into_iter().find(|(name, _)| word.eq_ignore_ascii_case(name.as_bytes()));
    found.map(|(_, option)| option)
}

pub(crate) fn set(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    if args.len() == 3 {
        store.set_text(conn.cx(), &args[1], &args[2], false);
        reply::ok(conn);
        return Ok(());
    }
    let options = Options::parse(args)?;
    let expiry = match options.expiry {
        Some(((unit, absolute), time)) => {
            let time = number(time).ok_or(Fault::NO_INTEGER)?;
            let last = deadline(conn.cx(), time, unit, absolute).filter(|_| time > 0);
            Some(last.ok_or_else(|| bad_time("set"))?)
        }
        None => None,
    };
    let key = &args[1];
    let is_there = store.has(conn.cx(), key);
    if options.replies_old {
        match store.get(conn.cx(), key) {
            Some(old) => old.with_text(|text| reply::bulk(conn, text))?,
            None => reply::nil(conn),
        }
    }
    let sets = !(options.if_absent && is_there || options.if_there && !is_there);
    if sets {
        store.set_text(conn.cx(), key, &args[2], options.keeps_expiry);
        if let Some(last) = expiry {
            store.expire(conn.cx(), key, last);
        }
    }
    match options.replies_old {
        true => {}
        false if sets => reply::ok(conn),
        false => reply::nil(conn),
    }
    Ok(())
}

/// A time to live that is none.
pub(crate) fn bad_time(command: &str) -> Fault {
    Fault::quoting(format!("ERR invalid expire time in '{command}' command").into_bytes())
}

pub(crate) fn setnx(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    let is_new = !store.has(conn.cx(), &args[1]);
    if is_new {
        store.set_text(conn.cx(), &args[1], &args[2], false);
    }
    reply::integer(conn, is_new.into());
    Ok(())
}

pub(crate) fn setex(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    set_for(store, conn, args, 1_000, "setex")
}

pub(crate) fn psetex(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    set_for(store, conn, args, 1, "psetex")
}

fn set_for(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>, unit: i64, name: &str) -> Done {
    let time = number(&args[2]).ok_or(Fault::NO_INTEGER)?;
    let last = deadline(conn.cx(), time, unit, false).filter(|_| time > 0);
    let last = last.ok_or_else(|| bad_time(name))?;
    store.set_text(conn.cx(), &args[1], &args[3], false);
    store.expire(conn.cx(), &args[1], last);
    reply::ok(conn);
    Ok(())
}

pub(crate) fn getset(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    get(store, conn, args)?;
    store.set_text(conn.cx(), &args[1], &args[2], false);
    Ok(())
}

pub(crate) fn getdel(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    get(store, conn, args)?;
    store.remove(conn.cx(), &args[1]);
    Ok(())
}

pub(crate) fn mget(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    reply::array(conn, args.len() - 1);
    for key in args.from(1) {
        let value = store.get(conn.cx(), key);
        if value.is_none_or(|value| value.with_text(|text| reply::bulk(conn, text)).is_err()) {
            reply::nil(conn);
        }
    }
    Ok(())
}

pub(crate) fn mset(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    if args.len().is_multiple_of(2) {
        return Err(Fault::wrong_arity("mset"));
    }
    for (key, value) in args.pairs_from(1) {
        store.set_text(conn.cx(), key, value, false);
    }
    reply::ok(conn);
    Ok(())
}

pub(crate) fn strlen(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    let len = match store.get(conn.cx(), &args[1]) {
        Some(value) => value.with_text(<[u8]>::len)?,
        None => 0,
    };
    reply::count(conn, len);
    Ok(())
}

pub(crate) fn append(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    let tail = &args[2];
    let before = match store.get(conn.cx(), &args[1]) {
        Some(value) => value.with_text(<[u8]>::len)?,
        None => 0,
    };
    refuse_too_long(store, before + tail.len())?;
    let len = store.change_or_insert(
        conn.cx(),
        &args[1],
        || Value::Text(Text::default()),
        |value| {
            let text = value.buffer_mut()?;
            text.extend_from_slice(tail);
            Ok(text.len())
        },
    );
    reply::count(conn, len?);
    Ok(())
}

pub(crate) fn incr(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    add(store, conn, &args[1], 1)
}

pub(crate) fn decr(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    add(store, conn, &args[1], -1)
}

pub(crate) fn incrby(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    let by = number(&args[2]).ok_or(Fault::NO_INTEGER)?;
    add(store, conn, &args[1], by)
}

pub(crate) fn decrby(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    let by = number(&args[2]).ok_or(Fault::NO_INTEGER)?;
    let by = by.checked_neg().ok_or(Fault::of("ERR decrement would overflow"))?;
    add(store, conn, &args[1], by)
}

fn add(store: &mut Store, conn: &mut Conn<'_>, key: &[u8], by: i64) -> Done {
    let sum = store.change_or_insert(
        conn.cx(),
        key,
        || Value::Number(0),
        |value| {
            let sum = value.number()?.checked_add(by).ok_or(Fault::OVERFLOW)?;
            *value = Value::Number(sum);
            Ok(sum)
        },
    );
    reply::integer(conn, sum?);
    Ok(())
}
