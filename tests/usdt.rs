//! The static tracepoints are in the program, each with its arguments, as `docs/perf.md` lists them.

use std::collections::BTreeMap;
use std::env;
use std::process::Command;

use bytes::BytesMut;
use wheelhouse::pool::{AcquireOptions, PoolConfig};
use wheelhouse::sim::Sim;
use wheelhouse::{Config, Conn, Context, Handler};

struct Echo;

impl Handler for Echo {
    type Session = ();

    /// Only for its probe: what no program uses is not compiled into it.
    fn on_start(&mut self, cx: &mut Context<'_>) {
        let pool = cx.add_pool("10.0.0.2:7", &PoolConfig::default()).unwrap();
        let wait = cx.acquire(pool, AcquireOptions::default()).unwrap();
        assert!(cx.cancel_acquire(wait));
    }

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        conn.write(input);
        input.clear();
    }
}

/// The names of probes and how many arguments each has, as the page has them.
fn documented() -> BTreeMap<String, usize> {
    let page = include_str!("../docs/perf.md");
    let rows = page.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.strip_suffix(" |")?.split(" | ");
        let name = cells.next()?.strip_suffix('`')?;
        let arguments = cells.nth(1)?;
        Some((name.to_owned(), arguments.split(", ").count()))
    });
    rows.collect()
}

/// The same, of this program, as readelf(1) prints them.
fn compiled() -> BTreeMap<String, usize> {
    let program = env::current_exe().expect("the path of this program");
    let output = Command::new("readelf").arg("--notes").arg(program).output();
    let text = String::from_utf8(output.expect("readelf of the binutils").stdout).expect("UTF-8");
    let (mut probes, mut name) = (BTreeMap::new(), None);
    let mut provider = "";
    for line in text.lines().map(str::trim) {
        if let Some(found) = line.strip_prefix("Provider: ") {
            provider = found;
        } else if let Some(found) = line.strip_prefix("Name: ") {
            name = (provider == "wheelhouse").then(|| found.to_owned());
        } else if let Some(arguments) = line.strip_prefix("Arguments: ")
            && let Some(name) = name.take()
        {
            let count = arguments.split_whitespace().count();
            assert_eq!(*probes.entry(name).or_insert(count), count, "{line}");
        }
    }
    probes
}

#[test]
fn each_probe_is_in_the_program_as_it_is_documented() {
    let mut sim = Sim::new(1);
    let server = sim.serve("10.0.0.1:7", Config::default(), Echo);
    let peer = sim.connect(&server);
    peer.send(b"hello");
    sim.settle();
    peer.expect(b"hello");
    assert_eq!(compiled(), documented());
    assert_eq!(compiled().len(), 12);
}
