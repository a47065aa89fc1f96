//! What README.md, the pages in docs/ and the examples say, against what the code says: whatever no
//! test checks, drifts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::BytesMut;
use wheelhouse::config::{AtLimit, Keepalive, Refusal};
use wheelhouse::health::EndpointConfig;
use wheelhouse::pool::PoolConfig;
use wheelhouse::sim::{End, Sim};
use wheelhouse::stats::Stats;
use wheelhouse::{Config, Conn, Handler, ListenConfig, Reactor};

const README: &str = include_str!("../README.md");
const ARCHITECTURE: &str = include_str!("../docs/architecture.md");
const GUIDE: &str = include_str!("../docs/guide.md");
const OPERATIONS: &str = include_str!("../docs/operations.md");
const PERFORMANCE: &str = include_str!("../docs/performance.md");
const STANDARD: &str = include_str!("../docs/standard.md");

const PAGES: [(&str, &str); 6] = [
    ("README.md", README),
    ("docs/architecture.md", ARCHITECTURE),
    ("docs/guide.md", GUIDE),
    ("docs/operations.md", OPERATIONS),
    ("docs/performance.md", PERFORMANCE),
    ("docs/standard.md", STANDARD),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All Rust files below `directory`.
fn sources(directory: &str) -> Vec<PathBuf> {
    let (mut files, mut waiting) = (Vec::new(), vec![root().join(directory)]);
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files
}

/// What stands between the first `before` and the `after` that follows it.
fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let (_, rest) = text.split_once(before).unwrap_or_else(|| panic!("no {before:?}"));
    rest.split_once(after).unwrap_or_else(|| panic!("no {after:?} after {before:?}")).0
}

/// The cells of a table's rows whose first one is `code`, that one without its marks.
fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().filter(|line| line.starts_with("| `")).map(|line| {
        line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`')).collect()
    })
}

/// What stands between two backticks, code blocks left out.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    let prose = text.split("```").step_by(2);
    prose.flat_map(|prose| prose.split('`').skip(1).step_by(2))
}

#[test]
fn the_readme_states_the_msrv_of_the_manifest() {
    let manifest = read("Cargo.toml");
    let msrv = between(&manifest, "\nrust-version = \"", "\"");
    let stated: Vec<_> = README
        .match_indices("Rust 1.")
        .map(|(at, _)| README[at + "Rust ".len()..].split([' ', ',', '\n']).next().unwrap())
        .collect();
    assert_eq!(stated, [msrv]);
}

#[test]
fn the_readme_names_the_licences_of_the_manifest() {
    let manifest = read("Cargo.toml");
    assert!(README.contains(between(&manifest, "\nlicense = \"", "\"")));
    for file in quoted(README).filter(|quoted| quoted.starts_with("LICENSE")) {
        assert!(root().join(file).is_file(), "{file}");
    }
}

#[test]
fn the_commands_of_the_readme_are_those_that_are_checked() {
    for command in ["cargo run --release --example echo", "cargo test"] {
        assert!(README.contains(&format!("```sh\n{command}\n```")), "{command}");
    }
    assert!(root().join("examples/echo.rs").is_file());
    // It is not part of the package.
    if let Ok(checks) = fs::read_to_string(root().join(".ci/run")) {
        assert!(checks.contains("cargo test"));
    }
}

#[test]
fn the_defaults_are_quoted() {
    let quoted = |text, section| -> BTreeMap<_, _> {
        let rows = rows(between(text, section, "\n## "));
        rows.map(|cells| (cells[0].to_owned(), cells[1].to_owned())).collect()
    };
    assert_eq!(quoted(OPERATIONS, "\n## Settings\n"), defaults());
    // The README has some of them.
    let defaults = defaults();
    let some = quoted(README, "\n## What is on by default\n");
    assert!(some.len() >= 10, "{some:?}");
    for (setting, default) in some {
        assert_eq!(Some(&default), defaults.get(&setting), "{setting}");
    }
}

#[test]
fn the_deadlines_are_those_of_the_code() {
    let source = read("src/core/deadlines.rs");
    let list = between(&source, "\ndeadlines! {", "\n}");
    let code: Vec<_> = list.split('"').skip(1).step_by(2).collect();
    let table = between(ARCHITECTURE, "\n### Deadlines\n", "*Open*");
    let rows = table.lines().filter(|line| line.starts_with("| ")).skip(2);
    let documented: Vec<_> = rows.map(|row| row.split('|').nth(1).unwrap().trim()).collect();
    assert!(code.len() > 10, "{code:?}");
    assert_eq!(documented, code);
}

#[test]
fn settings_in_prose_are_there() {
    let settings = defaults();
    for (name, text) in PAGES {
        for setting in quoted(text) {
            let group = setting.split('.').next().unwrap_or_default();
            let is_setting = ["timeouts", "limits", "socket"].contains(&group)
                && setting.contains('.')
                && !setting.contains([' ', '(']);
            let is_there = settings.keys().any(|known| {
                known
                    .strip_prefix(setting)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            });
            assert!(!is_setting || is_there, "{name}: {setting}");
        }
    }
}

/// Every setting, and its default as the documents put it.
fn defaults() -> BTreeMap<String, String> {
    let Config { timeouts, limits, watermarks, socket, .. } = Config::default();
    let Config { shutdown_timeout, shutdown_spread, shutdown_busy, .. } = Config::default();
    let stall_report = Config::default().stall_report.unwrap();
    assert_eq!(Config::default().panic_limit, None);
    let listen = ListenConfig::default();
    assert_eq!((limits.max_connections, limits.requests_max), (None, None));
    assert_eq!(timeouts.request_rate, None);
    assert_eq!((limits.clients.connections, limits.clients.rate), (None, None));
    assert_eq!((limits.accept_rate, &limits.at_limit), (None, &AtLimit::EvictIdle));
    assert_eq!((limits.clients.refusal, limits.clients.allowed.len()), (Refusal::Close, 0));
    assert_eq!((listen.timeouts, listen.exempt, listen.mode), (None, false, None));
    let Keepalive { idle, interval, retries } = socket.keepalive.unwrap();
    let keepalive = format!("{}, {}, {retries}", time(Some(idle)), time(Some(interval)));
    let defaults = [
        ("timeouts.connect", time(timeouts.connect)),
        ("timeouts.connect_attempt", time(timeouts.connect_attempt)),
        ("timeouts.connect_stagger", millis(timeouts.connect_stagger.unwrap())),
        ("timeouts.first_byte", time(timeouts.first_byte)),
        ("timeouts.request", time(timeouts.request)),
        ("timeouts.read", time(timeouts.read)),
        ("timeouts.response", time(timeouts.response)),
        ("timeouts.write", time(timeouts.write)),
        ("timeouts.idle", time(timeouts.idle)),
        ("timeouts.request_rate", "off".into()),
        ("timeouts.ping_after", time(timeouts.ping_after)),
        ("timeouts.ping", time(timeouts.ping)),
        ("timeouts.half_closed", time(timeouts.half_closed)),
        ("timeouts.flush", time(timeouts.flush)),
        ("timeouts.linger_read", time(timeouts.linger_read)),
        ("timeouts.linger", time(timeouts.linger)),
        ("timeouts.tunnel", time(timeouts.tunnel)),
        ("timeouts.lifetime", time(timeouts.lifetime)),
        ("limits.max_connections", "from the system".into()),
        ("limits.at_limit", "evict idle".into()),
        ("limits.clients.connections", "unlimited".into()),
        ("limits.clients.rate", "unlimited".into()),
        ("limits.clients.refusal", "close".into()),
        ("limits.clients.prefix_v4", number(limits.clients.prefix_v4.into())),
        ("limits.clients.prefix_v6", number(limits.clients.prefix_v6.into())),
        ("limits.clients.allowed", "none".into()),
        ("limits.accept_rate", "unlimited".into()),
        ("limits.input_max", size(limits.input_max)),
        ("limits.output_max", size(limits.output_max)),
        ("limits.buffered_max", size(limits.buffered_max)),
        ("limits.lag_max", millis(limits.lag_max.unwrap())),
        ("limits.shrink_idle_from", format!("{} %", limits.shrink_idle_from.unwrap())),
        ("limits.requests_max", "unlimited".into()),
        ("limits.flush_rate", format!("{} B/s", limits.flush_rate)),
        ("limits.mailbox_max", number(limits.mailbox_max)),
        ("watermarks", format!("{}, {}", size(watermarks.low()), size(watermarks.high()))),
        ("socket.nodelay", if socket.nodelay { "on" } else { "off" }.into()),
        ("socket.keepalive", keepalive),
        ("socket.user_timeout", time(socket.user_timeout)),
        ("socket.notsent_lowat", size(socket.notsent_lowat.unwrap() as usize)),
        ("socket.local", if socket.local.is_some() { "set" } else { "any" }.into()),
        ("stall_report", millis(stall_report)),
        ("panic_limit", "unlimited".into()),
        ("shutdown_timeout", time(shutdown_timeout)),
        ("shutdown_spread", time(shutdown_spread)),
        ("shutdown_busy", time(shutdown_busy)),
        ("backlog", number(listen.backlog as usize)),
        ("exempt", "off".into()),
        ("mode", "the umask's".into()),
    ];
    defaults.into_iter().map(|(setting, default)| (setting.to_owned(), default)).collect()
}

/// The structs are open to new fields, so the compiler does not ask for these to be listed.
#[test]
fn no_setting_is_left_out() {
    let config: String = sources("src/config").into_iter().map(read).collect();
    let mut settings = BTreeSet::new();
    for (name, prefix) in [
        ("Config", ""),
        ("Timeouts", "timeouts."),
        ("Limits", "limits."),
        ("ClientLimits", "limits.clients."),
        ("SocketOptions", "socket."),
        ("ListenConfig", ""),
    ] {
        let fields = between(&config, &format!("pub struct {name} {{\n"), "\n}");
        let names = fields.lines().filter_map(|line| {
            line.trim_start().strip_prefix("pub ")?.split_once(':').map(|(name, _)| name)
        });
        // Its last field only makes room for others.
        let names = names.filter(|name| *name != "_more");
        settings.extend(names.map(|name| format!("{prefix}{name}")));
    }
    for group in ["timeouts", "limits", "limits.clients", "socket"] {
        assert!(settings.remove(group), "{group}");
    }
    assert_eq!(settings, defaults().into_keys().collect());
}

fn time(timeout: Option<Duration>) -> String {
    match timeout.map(|timeout| timeout.as_secs()) {
        None => "off".into(),
        Some(seconds) if seconds.is_multiple_of(3_600) => format!("{} h", seconds / 3_600),
        Some(seconds) => format!("{seconds} s"),
    }
}

fn millis(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}

fn size(bytes: usize) -> String {
    const KIB: usize = 1_024;
    match bytes {
        _ if bytes.is_multiple_of(KIB * KIB) => format!("{} MiB", bytes / KIB / KIB),
        _ if bytes.is_multiple_of(KIB) => format!("{} KiB", bytes / KIB),
        _ => format!("{bytes} B"),
    }
}

fn number(number: usize) -> String {
    if number < 1_000 {
        number.to_string()
    } else {
        format!("{},{:03}", number / 1_000, number % 1_000)
    }
}

#[test]
fn the_readme_knows_the_options_of_the_examples() {
    let examples: String = sources("examples").into_iter().map(read).collect();
    let options: BTreeSet<_> =
        README.split("`--").skip(1).map(|rest| rest.split(['`', ' ']).next().unwrap()).collect();
    // Not of an example, but of rustc.
    for option in options.into_iter().filter(|option| *option != "cfg") {
        let field = format!("{}: ", option.replace('-', "_"));
        assert!(examples.contains(&field), "--{option}");
    }
}

/// As many descriptors as the most connections there are by default, and the reserve.
#[test]
fn the_unit_of_systemd_has_descriptors_for_all_connections() {
    let reactor = read("src/reactor/mod.rs");
    let constant = |name| -> usize {
        let value = between(&reactor, &format!("const {name}: usize = "), ";");
        value.replace('_', "").parse().unwrap()
    };
    let descriptors = constant("CONNECTIONS_DEFAULT_MAX") + constant("DESCRIPTORS_RESERVED");
    assert!(OPERATIONS.contains(&format!("\nLimitNOFILE={descriptors}\n")), "{descriptors}");
    assert!(OPERATIONS.contains(&format!("\nmust be {} (", number(descriptors))));
}

#[test]
fn the_profile_for_profilers_is_the_one_that_pages_show() {
    let manifest = read("Cargo.toml");
    let (_, profile) = manifest.split_once("\n[profile.profiling]\n").expect("it is there");
    let profile = profile.split("\n\n").next().unwrap_or_default().trim_end();
    let profile = format!("```toml\n[profile.profiling]\n{profile}\n```");
    for page in [GUIDE, &read("docs/perf.md")] {
        assert!(page.contains(&profile), "{profile}");
    }
    let command = "cargo build --profile profiling";
    for page in [README, GUIDE, &read("docs/perf.md")] {
        assert!(page.contains(&format!("RUSTFLAGS='-C force-frame-pointers=yes' {command}")));
        assert!(page.contains("perf record -e cpu-clock -g target/profiling/"));
    }
}

#[test]
fn the_map_is_the_tree() {
    let listed: Vec<_> = between(ARCHITECTURE, "## The map\n", "\n```\n\n")
        .split_once("```text\n")
        .expect("the map is a block of text")
        .1
        .lines()
        .map(|line| line.split_whitespace().next().unwrap_or_default().to_owned())
        .collect();
    let paths: BTreeSet<_> = listed.iter().cloned().collect();
    assert_eq!(paths.len(), listed.len(), "a file is listed twice");
    let source = root().join("src");
    let files: BTreeSet<_> = sources("src")
        .iter()
        .map(|path| path.strip_prefix(&source).unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(paths, files);
}

#[test]
fn paths_in_prose_lead_somewhere() {
    for (name, text) in PAGES {
        let paths = quoted(text).filter(|quoted| {
            let is_file = [".rs", ".md", ".toml"].iter().any(|end| quoted.ends_with(end));
            (is_file || quoted.ends_with('/')) && !quoted.contains([' ', '*'])
        });
        for path in paths {
            let found = ["", "docs", "src", "src/reactor"]
                .into_iter()
                .any(|directory| root().join(directory).join(path).exists());
            assert!(found, "{name}: {path}");
        }
    }
}

/// The name by which a page links to one of its headings.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|letter| letter.is_alphanumeric() || " -".contains(*letter));
    kept.map(|letter| if letter == ' ' { '-' } else { letter.to_ascii_lowercase() }).collect()
}

/// What a page links to within itself.
fn links(text: &str) -> BTreeSet<&str> {
    text.split("](#").skip(1).map(|rest| rest.split(')').next().unwrap_or_default()).collect()
}

#[test]
fn the_table_of_the_guide_has_each_section() {
    let prose: String = GUIDE.split("\n```").step_by(2).collect();
    let headings: BTreeSet<_> = prose
        .lines()
        .filter(|line| line.starts_with("## ") || line.starts_with("### "))
        .map(|line| anchor(line.trim_start_matches('#').trim()))
        .collect();
    let table = between(GUIDE, "\n| you want | read |\n", "\n\n");
    assert_eq!(links(table), headings.iter().map(String::as_str).collect());
}

#[test]
fn links_within_a_page_lead_somewhere() {
    let pages = PAGES.into_iter().map(|(name, text)| (name, text.to_owned()));
    let others = ["docs/perf.md", "docs/testing.md"].map(|name| (name, read(name)));
    for (name, text) in pages.chain(others) {
        let named = text.split("<a id=\"").skip(1).filter_map(|rest| rest.split('"').next());
        let headings = text.lines().filter(|line| line.starts_with('#'));
        let anchors = headings.map(|line| anchor(line.trim_start_matches('#').trim()));
        let anchors: BTreeSet<_> = anchors.chain(named.map(str::to_owned)).collect();
        for link in links(&text) {
            assert!(anchors.contains(link), "{name}: #{link}");
        }
    }
}

#[test]
fn the_plots_are_there() {
    let plots: Vec<_> = PERFORMANCE
        .split("](performance/")
        .skip(1)
        .map(|rest| rest.split(')').next().unwrap())
        .collect();
    assert!(plots.len() > 8, "{plots:?}");
    for plot in plots {
        assert!(root().join("docs/performance").join(plot).is_file(), "{plot}");
    }
}

#[test]
fn the_steps_of_a_turn_are_told_in_order() {
    let reactor = read("src/reactor/mod.rs");
    let body = between(&reactor, "fn turn_once(", "\n    }\n");
    let calls: Vec<_> = body
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("self.")?.split('(').next())
        .filter(|call| !call.contains('.'))
        .collect();
    let stated: Vec<_> = between(ARCHITECTURE, "## One turn\n", "\n## ")
        .lines()
        .filter(|line| line.starts_with(|first: char| first.is_ascii_digit()))
        .map(|line| quoted(line).next().unwrap_or_else(|| panic!("{line}")))
        .collect();
    assert_eq!(stated, calls);
}

#[test]
fn the_budgets_of_a_turn_are_the_constants() {
    let source: String = sources("src").into_iter().map(read).collect();
    let budgets: Vec<_> = rows(between(ARCHITECTURE, "## One turn\n", "\n## ")).collect();
    assert!(budgets.len() >= 5, "{budgets:?}");
    for cells in budgets {
        let name = cells[0];
        let value = between(&source, &format!("const {name}: "), ";");
        let value: usize = value
            .split_once('=')
            .unwrap()
            .1
            .split('*')
            .map(|factor| factor.trim().replace('_', "").parse::<usize>().unwrap())
            .product();
        let quoted = match cells[1] {
            cell if cell.ends_with('B') => size(value),
            cell if cell.ends_with("ms") => format!("{} ms", value / 1_000_000),
            _ => number(value),
        };
        assert_eq!(cells[1], quoted, "{name}");
    }
}

#[test]
fn the_tests_of_the_requirements_are_there() {
    let tests: String = ["tests", "src"].into_iter().flat_map(sources).map(read).collect();
    let rows = STANDARD.lines().filter(|line| line.starts_with("| ") && line.contains(".rs`"));
    let mut named = 0;
    for row in rows {
        let last = row.trim_end_matches('|').rsplit('|').next().unwrap_or_default();
        let test = quoted(last).next().unwrap_or_else(|| panic!("no test: {row}"));
        assert!(tests.contains(&format!("fn {test}")), "{test}");
        named += 1;
    }
    assert!(named > 25, "{named}");
}

#[test]
fn the_defaults_of_pools_are_those_of_the_documents() {
    let config = PoolConfig::default();
    let seconds = |time: Duration| format!("{} s", time.as_secs());
    let values = [
        ("acquire", seconds(config.acquire)),
        ("size", config.size.to_string()),
        ("waiters_max", number(config.waiters_max)),
        ("idle", seconds(config.idle.unwrap())),
        ("lifetime", format!("{} min", config.lifetime.unwrap().as_secs() / 60)),
        ("backoff", format!("{} ms", config.backoff.as_millis())),
        ("backoff_max", seconds(config.backoff_max)),
        ("ping_after", seconds(config.ping_after.unwrap())),
        ("ping", seconds(config.ping)),
    ];
    for (name, value) in values {
        let stated = format!("`PoolConfig::{name}` {value}");
        assert!(STANDARD.contains(&stated), "{stated}");
    }
}

#[test]
fn the_defaults_of_endpoints_are_those_of_the_documents() {
    let config = EndpointConfig::default();
    let seconds = |time: Duration| format!("{} s", time.as_secs());
    let values = [
        ("interval", seconds(config.interval)),
        ("fast_interval", millis(config.fast_interval)),
        ("down_interval", seconds(config.down_interval)),
        ("timeout", seconds(config.timeout)),
        ("rise", config.rise.to_string()),
        ("fall", config.fall.to_string()),
        ("slow_start", seconds(config.slow_start.unwrap())),
        ("eject_after", config.eject_after.unwrap().to_string()),
        ("ejection", seconds(config.ejection)),
        ("ejection_max", seconds(config.ejection_max)),
    ];
    for (name, value) in values {
        let stated = format!("`EndpointConfig::{name}` {value}");
        assert!(STANDARD.contains(&stated), "{stated}");
    }
}

#[test]
fn what_is_named_of_a_type_is_there() {
    let source: String = sources("src").into_iter().map(read).collect();
    let way = between(ARCHITECTURE, "## The way of a message\n", "\n## ");
    let named = way.split_whitespace().filter(|word| word.contains("::"));
    for path in named.chain(PAGES.into_iter().flat_map(|(_, text)| quoted(text))) {
        let Some((owner, name)) = path.split_once("::") else {
            continue;
        };
        // Of the language, not of this crate; or an address.
        let is_address = owner.starts_with(|first: char| first.is_ascii_digit());
        if owner == "Duration" || path.contains(' ') || is_address {
            continue;
        }
        let items = [
            "pub mod NAME;",
            "fn NAME(",
            "fn NAME<",
            "pub NAME: ",
            "const NAME: ",
            "\n    NAME,",
            "\n    NAME: counter;",
            "\n    NAME: gauge;",
        ];
        let mut items = items.into_iter().map(|item| item.replace("NAME", name));
        assert!(items.any(|item| source.contains(&item)), "{path}");
    }
}

#[test]
fn the_size_of_a_record_is_the_one_asserted() {
    let table = read("src/core/record.rs");
    let size = between(&table, "size_of::<Record>() == ", ",");
    assert!(ARCHITECTURE.contains(&format!("its record, {size} bytes")));
}

#[test]
fn a_whole_server_takes_sixty_lines_beside_its_protocol() {
    let section = between(GUIDE, "\n## A whole server\n", "\n## ");
    let program = between(section, "\n// -- the protocol is", "\n```");
    // The rest of the comment, empty lines and closing brackets alone are no lines of code.
    let is_code = |line: &&str| line.chars().any(char::is_alphanumeric) && !line.starts_with("# ");
    let lines = program.lines().skip(1).filter(is_code).count();
    assert!((30..=60).contains(&lines), "{lines}");
    for part in
        ["frame::each", "serve_metrics", "serve_console", "shutdown_on_signals", "lossy(true)"]
    {
        assert!(program.contains(part), "{part}");
    }
}

/// Echoes, and takes its time over a message that says so.
struct Echo {
    stall: Box<dyn Fn(Duration)>,
}

impl Handler for Echo {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        if input.starts_with(b"report") {
            (self.stall)(Duration::from_millis(400));
        }
        conn.write_buf(input);
    }
}

/// What an operator asks in it, and what the console answers, follow from what happens here.
#[test]
fn the_incident_of_the_operator_is_what_the_console_says() {
    let mut sim = Sim::new(1);
    let stall = Box::new(sim.stall());
    let mut config = Config::default();
    config.limits.clients.connections = Some(4);
    let server = sim.serve("10.0.0.1:7000", config, Echo { stall });
    let connect = |sim: &mut Sim, host: u8, port: u16| {
        let client = sim.connect_from(format!("192.0.2.{host}:{port}"), "10.0.0.1:7000");
        sim.advance(Duration::from_millis(700));
        client.send(b"hello");
        client
    };
    let few: Vec<_> = (1..4).map(|host| connect(&mut sim, host, 4_000)).collect();
    let deaf = connect(&mut sim, 66, 5_000);
    deaf.stop_reading();
    deaf.send(&vec![b'x'; 1_000_000]);
    let proxied: Vec<_> = (0..7).map(|port| connect(&mut sim, 80, 6_000 + port)).collect();
    sim.advance(Duration::from_secs(20));
    few[0].send(b"report");
    sim.advance(Duration::from_secs(4));
    assert_eq!(proxied.iter().filter(|client| client.is_open()).count(), 4);
    let section = between(OPERATIONS, "\n### An incident\n", "\n## ");
    let blocks = section.split("```console\n").skip(1);
    let told: String = blocks.map(|block| block.split("```").next().unwrap_or_default()).collect();
    let questions = told.lines().filter_map(|line| line.strip_prefix("$ "));
    let mut said = String::new();
    for question in questions {
        let (asked, word) = question.split_once(" | grep ").unwrap_or((question, ""));
        let reply = server.ask(asked.strip_prefix("console /run/echo.console ").unwrap());
        let lines = reply.lines().filter(|line| !line.is_empty() && line.contains(word));
        said.push_str(&format!("$ {question}\n"));
        said.extend(lines.map(|line| format!("{line}\n")));
        sim.settle();
    }
    assert_eq!(told, said, "\n{said}");
    assert_eq!(deaf.closed(), Some(End::Reset));
    assert_eq!(server.stats().buffered, 0);
}

#[test]
fn the_settings_that_may_change_are_those_of_the_documents() {
    let mut sim = Sim::new(1);
    let stall = Box::new(sim.stall());
    let server = sim.serve("10.0.0.1:7000", Config::default(), Echo { stall });
    let limits = server.ask("limits");
    // All but those of one listener, and the line that counts them.
    let mut settings: BTreeSet<_> = defaults().into_keys().collect();
    for of_listener in ["backlog", "exempt", "mode"] {
        assert!(settings.remove(of_listener), "{of_listener}");
    }
    let rows = limits.lines().skip(1).filter(|line| !line.starts_with("shown"));
    let names = rows.filter_map(|line| line.split_whitespace().next()).map(str::to_owned);
    assert_eq!(names.collect::<BTreeSet<_>>(), settings);
    let listed: BTreeSet<_> = limits
        .lines()
        .filter(|line| line.ends_with("  yes"))
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    let section = between(OPERATIONS, "\n## The console\n", "\n### ");
    let table = between(section, "| setting | value |", "\n\n");
    let told: BTreeSet<_> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split_once(" | "))
        .flat_map(|(names, _)| names.split(", "))
        .map(|name| name.trim_matches('`'))
        .filter(|name| !name.starts_with("---"))
        .collect();
    assert_eq!(told, listed);
    // Each question of `help` is in the table, and the other way round.
    let word = |line: &str| line.split([' ', '[']).next().unwrap_or_default().to_owned();
    let help = server.ask("help");
    let asked = help.lines().filter(|line| line.starts_with(char::is_alphabetic));
    let asked: BTreeSet<_> = asked.map(word).filter(|name| name != "json").collect();
    let rows = rows_of_questions(between(section, "| question | answer |", "\n\n"));
    assert_eq!(rows.iter().map(|question| word(question)).collect::<BTreeSet<_>>(), asked);
}

/// What stands between backticks in the first cells of a table.
fn rows_of_questions(table: &str) -> Vec<String> {
    let cells = table.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" | "));
    cells.flat_map(|(cell, _)| quoted(cell).map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[test]
fn the_programs_of_the_guide_include_what_it_shows() {
    let store = read("docs/guide/store.rs");
    for part in store.split("\n#[derive(Default)]\n") {
        let (_, part) = part
            .rsplit_once("use wheelhouse::frame::{self, Error, Framing, Length, Width};\n")
            .unwrap_or(("", part));
        assert!(GUIDE.contains(part.trim()), "{part}");
    }
}

/// The reasons for each mode of closing, as the tables of `close.rs` have them: a line there is
/// `Name: "label", Mode, Fault, "text";`.
fn modes() -> BTreeMap<String, BTreeSet<String>> {
    let close = read("src/close.rs");
    let mut modes: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for table in ["\nreasons! {\n", "\ntimeouts! {\n"] {
        for line in between(&close, table, "\n}\n").lines().filter(|line| line.ends_with("\";")) {
            let (reason, rest) = line.split_once(": \"").expect("a line of the table");
            let reason = reason.trim().split('(').next().expect("a name");
            let mode = rest.split(", ").nth(1).expect("a mode");
            modes.entry(mode.to_owned()).or_default().insert(reason.to_owned());
        }
    }
    modes
}

#[test]
fn the_modes_are_those_of_the_reasons() {
    let modes = modes();
    assert_eq!(modes.values().map(BTreeSet::len).sum::<usize>(), stats().closed_by_label().count());
    let sections = [(ARCHITECTURE, "\n### Endings\n"), (GUIDE, "\n| mode | reasons |\n")];
    for (text, section) in sections {
        for (mode, reasons) in &modes {
            let row = between(between(text, section, "\n## "), &format!("\n| {mode} | "), " |");
            let stated: BTreeSet<_> = quoted(row).filter(|name| *name != "Timeout").collect();
            assert_eq!(stated, reasons.iter().map(String::as_str).collect(), "{section} {mode}");
        }
    }
}

/// The counters of a reactor that has done nothing.
fn stats() -> Stats {
    struct Idle;
    impl Handler for Idle {
        type Session = ();
        fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
            None
        }
        fn on_data(&mut self, _: &mut Conn<'_>, _: &mut (), _: &mut BytesMut) {}
    }
    let mut config = Config::default();
    // Tests that run at the same time share the process's descriptors.
    config.limits.max_connections = Some(1);
    Reactor::<Idle>::new(config).unwrap().handle().stats()
}

#[test]
fn the_metrics_are_those_of_the_documents() {
    let text = stats().prometheus().to_string();
    let types: BTreeMap<_, _> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let stated: BTreeMap<_, _> = rows(between(OPERATIONS, "\n## Metrics\n", "\n## "))
        .map(|cells| (cells[0], cells[1]))
        .collect();
    assert_eq!(stated, types);
    let names = OPERATIONS.split(|letter: char| !letter.is_alphanumeric() && letter != '_');
    for name in names.filter(|name| name.starts_with("wheelhouse_")) {
        let name = name.strip_suffix("_bucket").unwrap_or(name);
        assert!(types.contains_key(name), "{name}");
    }
    for state in quoted(between(OPERATIONS, "connections now, by `state`: ", " |")) {
        assert!(text.contains(&format!("{{state=\"{state}\"}}")), "{state}");
    }
}

#[test]
fn the_close_reasons_are_those_of_the_documents() {
    let stats = stats();
    let labels: BTreeSet<_> = stats.closed_by_label().map(|(label, _)| label).collect();
    let stated: Vec<_> =
        rows(between(OPERATIONS, "\n## Close reasons\n", "\n## ")).map(|cells| cells[0]).collect();
    assert!(stated.is_sorted(), "{stated:?}");
    assert_eq!(stated.into_iter().collect::<BTreeSet<_>>(), labels);
}

#[test]
fn the_events_are_those_of_the_documents() {
    let simulated = root().join("src/sim");
    let files = sources("src").into_iter().filter(|path| !path.starts_with(&simulated));
    let source: String = files.map(read).collect();
    let mut events = BTreeMap::new();
    for level in ["error", "warn", "info", "debug", "trace"] {
        for (at, call) in source.match_indices(&format!("{level}!(")) {
            // Not the end of another name.
            if !source[..at].ends_with(|letter: char| letter.is_alphanumeric() || letter == '_') {
                events.insert(between(&source[at + call.len()..], "\"", "\""), level);
            }
        }
    }
    let stated: BTreeMap<_, _> = rows(between(OPERATIONS, "\n## Logs\n", "\n## "))
        .map(|cells| (cells[0], cells[1]))
        .collect();
    assert_eq!(stated, events);
}

#[test]
fn the_thresholds_of_overload_are_the_constants() {
    let pressure = read("src/core/pressure.rs");
    let stated: Vec<_> = between(OPERATIONS, "\n| pressure | what follows |\n", "\n\n")
        .lines()
        .filter_map(|line| line.strip_prefix("| from ")?.split_once(" %"))
        .map(|(percent, _)| percent.rsplit(' ').next().unwrap().parse::<u32>().unwrap() * 10)
        .collect();
    let mut constants = vec![u32::from(Config::default().limits.shrink_idle_from.unwrap()) * 10];
    constants.extend(["NO_KEEP_ALIVE", "EVICTS_FROM"].map(|name| {
        between(&pressure, &format!("const {name}: Permille = "), ";").parse::<u32>().unwrap()
    }));
    assert_eq!(stated, constants);
}
