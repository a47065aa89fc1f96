//! Commands on hashes.

use wheelhouse::Conn;

use crate::parse::Args;
use crate::reply::{self, Fault};
use crate::store::Store;
use crate::value::Value;

type Done = Result<(), Fault>;

pub(crate) fn hset(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    let added = insert(store, conn, args, "hset")?;
    reply::count(conn, added);
    Ok(())
}

pub(crate) fn hmset(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    insert(store, conn, args, "hmset")?;
    reply::ok(conn);
    Ok(())
}

/// Returns how many fields are new.
fn insert(
    store: &mut Store,
    conn: &mut Conn<'_>,
    args: Args<'_>,
    name: &str,
) -> Result<usize, Fault> {
    if !args.len().is_multiple_of(2) {
        return Err(Fault::wrong_arity(name));
    }
    store.change_or_insert(
        conn.cx(),
        &args[1],
        || Value::Hash(Box::default()),
        |value| {
            let hash = value.hash_mut()?;
            let pairs = args.pairs_from(2);
            Ok(pairs.filter(|(field, value)| hash.insert(field, value)).count())
        },
    )
}

pub(crate) fn hget(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    let hash = store.get(conn.cx(), &args[1]).map(Value::hash).transpose()?;
    let value = hash.and_then(|hash| hash.fields().get(&args[2]));
    reply::optional_bulk(conn, value.map(|value| &**value));
    Ok(())
}

pub(crate) fn hmget(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    let hash = store.get(conn.cx(), &args[1]).map(Value::hash).transpose()?;
    reply::array(conn, args.len() - 2);
    for field in args.from(2) {
        let value = hash.and_then(|hash| hash.fields().get(field));
        reply::optional_bulk(conn, value.map(|value| &**value));
    }
    Ok(())
}

pub(crate) fn hdel(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    let removed = store.change(conn.cx(), &args[1], |value| {
        let hash = value.hash_mut()?;
        Ok(args.from(2).filter(|field| hash.remove(field)).count())
    });
    reply::count(conn, removed.transpose()?.unwrap_or(0));
    Ok(())
}

pub(crate) fn hlen(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    let hash = store.get(conn.cx(), &args[1]).map(Value::hash).transpose()?;
    let len = hash.map_or(0, |hash| hash.fields().len());
    reply::count(conn, len);
    Ok(())
}

pub(crate) fn hexists(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    let hash = store.get(conn.cx(), &args[1]).map(Value::hash).transpose()?;
    let is_there = hash.is_some_and(|hash| hash.fields().contains_key(&args[2]));
    reply::integer(conn, is_there.into());
    Ok(())
}

pub(crate) fn hgetall(store: &mut Store, conn: &mut Conn<'_>, args: Args<'_>) -> Done {
    let hash = store.get(conn.cx(), &args[1]).map(Value::hash).transpose()?;
    reply::array(conn, hash.map_or(0, |hash| 2 * hash.fields().len()));
    if let Some(hash) = hash {
        for (field, value) in hash.fields() {
            reply::bulk(conn, field);
            reply::bulk(conn, value);
        }
    }
    Ok(())
}
