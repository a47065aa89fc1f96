//! What the server says of itself: INFO, CONFIG GET, HELLO and COMMAND.

use wheelhouse::Conn;

use crate::command::COMMANDS;
use crate::glob;
use crate::parse::Args;
use crate::reply::{self, Fault};
use crate::resp::number;
use crate::server::Core;
use crate::store::Store;

/// What there is, in numbers.
pub(crate) fn info(core: &Core, conn: &mut Conn<'_>) {
    let text = format!(
        "# Server\r\nredis_version:7.0.0\r\nredis_mode:standalone\r\n\r\n\
         # Clients\r\nconnected_clients:{}\r\n\r\n\
         # Memory\r\nused_memory:{}\r\nmaxmemory:{}\r\nmaxmemory_policy:noeviction\r\n\r\n\
         # Stats\r\ntotal_commands_processed:{}\r\nexpired_keys:{}\r\npubsub_channels:{}\r\n\r\n\
         # Keyspace\r\ndb0:keys={},expires={}\r\n",
        core.clients.len(),
        core.store.used(),
        core.store.used_max(),
        core.commands,
        core.store.expired(),
        core.channels.len(),
        core.store.len(),
        core.store.expiring(),
    );
    reply::bulk(conn, text.as_bytes());
}

/// Settings that clients ask for; none can be changed.
pub(crate) fn config(store: &Store, conn: &mut Conn<'_>, args: Args<'_>) {
    let settings = [
        ("save", String::new()),
        ("appendonly", "no".to_owned()),
        ("databases", "1".to_owned()),
        ("maxmemory", store.used_max().to_string()),
        ("maxmemory-policy", "noeviction".to_owned()),
        ("proto-max-bulk-len", store.text_max().to_string()),
    ];
    let matches = |name: &str| {
        args.from(2).any(|it| glob::matches(&it.to_ascii_lowercase(), name.as_bytes()))
    };
    let found: Vec<_> = settings.iter().filter(|(name, _)| matches(name)).collect();
    reply::array(conn, 2 * found.len());
    for (name, value) in found {
        reply::bulk(conn, name.as_bytes());
        reply::bulk(conn, value.as_bytes());
    }
}

/// Agrees on the protocol, of which there is one.
pub(crate) fn hello(conn: &mut Conn<'_>, client: u64, args: Args<'_>) -> Result<(), Fault> {
    match args.get(1).map(number) {
        None | Some(Some(2)) => {}
        Some(Some(_)) => return Err(Fault::of("NOPROTO unsupported protocol version")),
        Some(None) => {
            let text = "ERR Protocol version is not an integer or out of range";
            return Err(Fault::of(text));
        }
    }
    if let Some(option) = args.get(2) {
        let option = &option[..option.len().min(128)];
        let text = [b"ERR Syntax error in HELLO option '", option, b"'"].concat();
        return Err(Fault::quoting(text));
    }
    reply::array(conn, 14);
    for (name, value) in [("server", "redis"), ("version", "7.0.0")] {
        reply::bulk(conn, name.as_bytes());
        reply::bulk(conn, value.as_bytes());
    }
    reply::bulk(conn, b"proto");
    reply::integer(conn, 2);
    reply::bulk(conn, b"id");
    reply::integer(conn, client as i64);
    for (name, value) in [("mode", "standalone"), ("role", "master")] {
        reply::bulk(conn, name.as_bytes());
        reply::bulk(conn, value.as_bytes());
    }
    reply::bulk(conn, b"modules");
    reply::array(conn, 0);
    Ok(())
}

/// What COMMAND says: redis-cli goes without the documentation of commands.
pub(crate) fn command(conn: &mut Conn<'_>, args: Args<'_>) {
    match args.get(1) {
        Some(word) if word.eq_ignore_ascii_case(b"COUNT") => reply::count(conn, COMMANDS.len()),
        _ => reply::array(conn, 0),
    }
}
