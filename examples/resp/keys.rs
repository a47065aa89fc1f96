//! Commands on keys, whatever they hold.

use wheelhouse::{Conn, Context};

use crate::glob;
use crate::parse::Args;
use crate::reply::{self, Fault};
use crate::resp::number;
use crate::store::{Millis, Store, now};
use crate::strings::bad_time;

type Done = Result<(), Fault>;

/// The loop's time that a client means: so many units from now, or since 1970. `None` if that is
/// beyond all times of Redis, which count the milliseconds since 1970; the loop's begin later, and what
/// is before them is as good as the first.
pub(crate) fn deadline(
    cx: &Context<'_>,
    time: i64,
    unit: i64,
    is_absolute: bool,
) -> Option<Millis> {
    let millis = time.checked_mul(unit)?;
    let unix = i64::try_from(cx.now_unix().as_millis()).ok()?;
    let since_1970 = if is_absolute { millis } else { millis.checked_add(unix)? };
    Some(since_1970.saturating_sub(unix).saturating_add(now(cx)))
}

pub(crate) fn del(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    let removed = args.from(1).filter(|key| store.remove(conn.cx(), key)).count();
    reply::count(conn, removed);
    Ok(())
}

pub(crate) fn exists(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    let there = args.from(1).filter(|key| store.has(conn.cx(), key)).count();
    reply::count(conn, there);
    Ok(())
}

pub(crate) fn type_of(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    let name = store.get(conn.cx(), &args[1]).map_or("none", |value| value.type_name());
    reply::simple(conn, name);
    Ok(())
}

pub(crate) fn keys(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    let now = now(conn.cx());
    let matches = |key: &&[u8]| glob::matches(&args[1], key);
    let count = store.keys(now).filter(matches).count();
    reply::array(conn, count);
    store.keys(now).filter(matches).for_each(|key| reply::bulk(conn, key));
    Ok(())
}

pub(crate) fn dbsize(store: &mut Store, conn: &mut Conn<'_>, _: Args<'_>) -> Done {
    reply::count(conn, store.len());
    Ok(())
}

pub(crate) fn flush(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    let is_mode =
        |word: &[u8]| [&b"SYNC"[..], b"ASYNC"].iter().any(|it| word.eq_ignore_ascii_case(it));
    if args.len() > 2 || !args.from(1).all(is_mode) {
        return Err(Fault::SYNTAX);
    }
    store.clear(conn.cx());
    reply::ok(conn);
    Ok(())
}

pub(crate) fn expire(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    expire_at(store, conn, args, "expire", (1_000, false))
}

pub(crate) fn pexpire(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    expire_at(store, conn, args, "pexpire", (1, false))
}

pub(crate) fn expireat(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    expire_at(store, conn, args, "expireat", (1_000, true))
}

pub(crate) fn pexpireat(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    expire_at(store, conn, args, "pexpireat", (1, true))
}

/// When EXPIRE and its like change something.
#[derive(Default)]
struct Conditions {
    if_lasting: bool,
    if_expiring: bool,
    if_later: bool,
    if_earlier: bool,
}

impl Conditions {
    fn parse(args: Args<'_>) -> Result<Self, Fault> {
        let mut parsed = Self::default();
        for word in args.from(3) {
            match word.to_ascii_uppercase()[..] {
                [b'N', b'X'] => parsed.if_lasting = true,
                [b'X', b'X'] => parsed.if_expiring = true,
                [b'G', b'T'] => parsed.if_later = true,
                [b'L', b'T'] => parsed.if_earlier = true,
                _ => {
                    let text = [b"ERR Unsupported option ", word].concat();
                    return Err(Fault::quoting(text));
                }
            }
        }
        if parsed.if_lasting && (parsed.if_expiring || parsed.if_later || parsed.if_earlier) {
            let text = "ERR NX and XX, GT or LT options at the same time are not compatible";
            return Err(Fault::of(text));
        }
        if parsed.if_later && parsed.if_earlier {
            return Err(Fault::of("ERR GT and LT options at the same time are not compatible"));
        }
        Ok(parsed)
    }

    /// Whether a key that expires at `current` is to expire at `last`. One that lasts does so later
    /// than any other.
    fn hold(&self, current: Option<Millis>, last: Millis) -> bool {
        !(self.if_lasting && current.is_some()
            || self.if_expiring && current.is_none()
            || self.if_later && current.is_none_or(|current| last <= current)
            || self.if_earlier && current.is_some_and(|current| last >= current))
    }
}

fn expire_at(
    store: &mut Store,
    conn: &mut Conn<'_>,
    args: Args<'_>,
    name: &str,
    (unit, is_absolute): (i64, bool),
) -> Done {
    let conditions = Conditions::parse(args)?;
    let time = number(&args[2]).ok_or(Fault::NO_INTEGER)?;
    let last = deadline(conn.cx(), time, unit, is_absolute).ok_or_else(|| bad_time(name))?;
    let current = store.expiry(conn.cx(), &args[1]);
    let expires = current.is_some_and(|current| conditions.hold(current, last))
        && store.expire(conn.cx(), &args[1], last);
    reply::integer(conn, expires.into());
    Ok(())
}

pub(crate) fn persist(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    let persists = store.persist(conn.cx(), &args[1]);
    reply::integer(conn, persists.into());
    Ok(())
}

pub(crate) fn ttl(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    time_left(store, conn, args, |millis| millis.saturating_add(500) / 1_000)
}

pub(crate) fn pttl(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    time_left(store, conn, args, |millis| millis)
}

fn time_left(
    store: &mut Store,
    conn: &mut Conn<'_>,
    args: Args<'_>,
    unit: impl FnOnce(Millis) -> i64,
) -> Done {
    let left = match store.expiry(conn.cx(), &args[1]) {
        Some(Some(last)) => unit(last - now(conn.cx())),
        Some(None) => -1,
        None => -2,
    };
    reply::integer(conn, left);
    Ok(())
}
