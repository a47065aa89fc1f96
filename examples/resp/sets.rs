//! Commands on sets.

use wheelhouse::Conn;

use crate::lists::most;
use crate::parse::Args;
use crate::reply::{self, Fault};
use crate::store::Store;
use crate::value::Value;

type Done = Result<(), Fault>;

pub(crate) fn sadd(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    let added = store.change_or_insert(
        conn.cx(),
        &args[1],
        || Value::Set(Box::default()),
        |value| {
            let set = value.set_mut()?;
            Ok(args.from(2).filter(|member| set.insert(member)).count())
        },
    );
    reply::count(conn, added?);
    Ok(())
}

pub(crate) fn srem(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    let removed = store.change(conn.cx(), &args[1], |value| {
        let set = value.set_mut()?;
        Ok(args.from(2).filter(|member| set.remove(member)).count())
    });
    reply::count(conn, removed.transpose()?.unwrap_or(0));
    Ok(())
}

pub(crate) fn sismember(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    let set = store.get(conn.cx(), &args[1]).map(Value::set).transpose()?;
    let is_member = set.is_some_and(|set| set.members().contains(&args[2]));
    reply::integer(conn, is_member.into());
    Ok(())
}

pub(crate) fn scard(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    let set = store.get(conn.cx(), &args[1]).map(Value::set).transpose()?;
    let count = set.map_or(0, |set| set.members().len());
    reply::count(conn, count);
    Ok(())
}

pub(crate) fn smembers(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    let set = store.get(conn.cx(), &args[1]).map(Value::set).transpose()?;
    reply::array(conn, set.map_or(0, |set| set.members().len()));
    if let Some(set) = set {
        set.members().iter().for_each(|member| reply::bulk(conn, member));
    }
    Ok(())
}

pub(crate) fn spop(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    if args.len() > 3 {
        return Err(Fault::SYNTAX);
    }
    let most = args.get(2).map(most).transpose()?;
    let set = store.get(conn.cx(), &args[1]).map(Value::set).transpose()?;
    let len = set.map_or(0, |set| set.members().len());
    let count = most.unwrap_or(1).min(len);
    match most {
        Some(_) => reply::array(conn, count),
        None if len == 0 => reply::nil(conn),
        None => {}
    }
    for left in (0..len).rev().take(count) {
        let place = store.random_below(left + 1);
        let member =
            store.change(conn.cx(), &args[1], |value| Ok(value.set_mut()?.remove_at(place)));
        reply::optional_bulk(conn, member.transpose()?.flatten().as_deref());
    }
    Ok(())
}
