//! Commands on lists.

use wheelhouse::Conn;

use crate::parse::Args;
use crate::reply::{self, Fault};
use crate::resp::number;
use crate::store::Store;
use crate::value::{Side, Value};

type Done = Result<(), Fault>;

pub(crate) fn lpush(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    push(store, conn, args, Side::Left)
}

pub(crate) fn rpush(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    push(store, conn, args, Side::Right)
}

fn push(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>, side: Side) -> Done {
    let len = store.change_or_insert(
        conn.cx(),
        &args[1],
        || Value::List(Box::default()),
        |value| {
            let list = value.list_mut()?;
            args.from(2).for_each(|item| list.push(side, item));
            Ok(list.items().len())
        },
    );
    reply::count(conn, len?);
    Ok(())
}

pub(crate) fn lpop(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    pop(store, conn, args, Side::Left)
}

pub(crate) fn rpop(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    pop(store, conn, args, Side::Right)
}

fn pop(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>, side: Side) -> Done {
    if args.len() > 3 {
        return Err(Fault::wrong_arity(match side {
            Side::Left => "lpop",
            Side::Right => "rpop",
        }));
    }
    let most = args.get(2).map(most).transpose()?;
    let Some(len) = store.get(conn.cx(), &args[1]).map(Value::list).transpose()? else {
        match most {
            Some(_) => reply::nil_array(conn),
            None => reply::nil(conn),
        }
        return Ok(());
    };
    let len = len.items().len();
    let count = most.unwrap_or(1).min(len);
    if most.is_some() {
        reply::array(conn, count);
    }
    for _ in 0..count {
        let popped = store.change(conn.cx(), &args[1], |value| Ok(value.list_mut()?.pop(side)));
        reply::optional_bulk(conn, popped.transpose()?.flatten().as_deref());
    }
    Ok(())
}

/// The most elements that are to be taken.
pub(crate) fn most(text: &[u8]) -> Result<usize, Fault> {
    let number = number(text).ok_or(Fault::NOT_POSITIVE)?;
    usize::try_from(number).map_err(|_| Fault::NOT_POSITIVE)
}

pub(crate) fn llen(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    let list = store.get(conn.cx(), &args[1]).map(Value::list).transpose()?;
    let len = list.map_or(0, |list| list.items().len());
    reply::count(conn, len);
    Ok(())
}

pub(crate) fn lindex(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    let list = store.get(conn.cx(), &args[1]).map(Value::list).transpose()?;
    let Some(list) = list else {
        reply::nil(conn);
        return Ok(());
    };
    let index = number(&args[2]).ok_or(Fault::NO_INTEGER)?;
    let index = if index < 0 { index + list.items().len() as i64 } else { index };
    let item = usize::try_from(index).ok().and_then(|index| list.items().get(index));
    reply::optional_bulk(conn, item.map(|item| &**item));
    Ok(())
}

pub(crate) fn lrange(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    let bound = |index| number(&args[index]).ok_or(Fault::NO_INTEGER);
    let (first, last) = (bound(2)?, bound(3)?);
    let list = store.get(conn.cx(), &args[1]).map(Value::list).transpose()?;
    let Some(list) = list else {
        reply::array(conn, 0);
        return Ok(());
    };
    let len = list.items().len() as i64;
    let from_front = |index: i64| if index < 0 { index + len } else { index };
    // Within the list both are small enough to calculate with.
    let first = from_front(first).clamp(0, len);
    let last = from_front(last).clamp(-1, len - 1);
    let count = usize::try_from(last - first + 1).unwrap_or(0);
    reply::array(conn, count);
    let first = usize::try_from(first).unwrap_or(0);
    list.items().iter().skip(first).take(count).for_each(|item| reply::bulk(conn, item));
    Ok(())
}
