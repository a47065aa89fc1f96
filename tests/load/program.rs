//! The program before the example servers.

use std::process::{Command, Output};
use std::time::{Duration, Instant};
use std::{fs, thread};

use crate::programs::redis::Redis;
use crate::programs::{PATIENCE, Program, Server, TempPath, example, refusal, unreachable_address};

fn load(args: &[&str]) -> Output {
    example("load").args(args).output().expect("it runs")
}

/// Runs a short load with these options, and returns what it printed.
fn measured(server: &Server, mode: &str, options: &[&str]) -> String {
    measured_at(&server.addr, mode, options)
}

fn measured_at(address: &str, mode: &str, options: &[&str]) -> String {
    let short = [mode, address, "-d", "300ms", "-w", "50ms", "-c", "8"];
    let output = load(&[&short, options].concat());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let failed = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{mode}: {text}{failed}");
    text
}

#[test]
fn each_mode_measures_its_server() {
    for (name, mode) in
        [("echo", "echo"), ("echo", "churn"), ("echo", "idle"), ("ping", "ping"), ("http", "http")]
    {
        let server = Server::start(name, &[]);
        let text = measured(&server, mode, &[]);
        assert!(text.contains("errors     none"), "{mode}: {text}");
        if mode == "idle" {
            assert!(text.contains("connected  8"), "{text}");
        } else {
            assert!(text.contains("latency    p50 "), "{mode}: {text}");
        }
    }
}

/// Pipelined and at a given rate too, and that what is counted are replies to SET and GET in turn.
#[test]
fn a_server_of_keys_and_a_real_redis_are_measured_alike() {
    let server = Server::start("resp", &[]);
    let redis = Redis::start();
    let addresses = [Some(&server.addr), redis.as_ref().map(|redis| &redis.address)];
    for address in addresses.into_iter().flatten() {
        for options in [&[][..], &["-p", "16"], &["-s", "20000"], &["--rate", "2000"]] {
            let text = measured_at(address, "resp", &[&["--json"], options].concat());
            let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            assert!(report["replies"].as_u64() > Some(0), "{options:?}: {text}");
            let errors = report["errors"].as_object().expect("errors by kind");
            assert!(errors.values().all(|count| count.as_u64() == Some(0)), "{options:?}: {text}");
        }
    }
}

/// A server that replied nothing has used no time for each reply.
#[test]
fn the_processor_time_of_a_reply_is_told_where_there_are_replies() {
    let server = Server::start("echo", &[]);
    let pid = server.program.pid();
    let text = measured(&server, "idle", &["--pid", &pid]);
    assert!(text.contains("% of one processor"), "{text}");
    assert!(!text.contains("for each reply"), "{text}");
    let text = measured(&server, "idle", &["--pid", &pid, "--json"]);
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert!(report["server_cpu"]["ns_per_reply"].is_null(), "{text}");
    assert!(report["server_cpu"]["share"].is_number(), "{text}");
    let text = measured(&server, "echo", &["--pid", &pid]);
    assert!(text.contains(" of its processor for each reply, "), "{text}");
}

/// What is none of RESP is an error, and no reply.
#[test]
fn replies_that_are_none_are_counted_as_errors() {
    let server = Server::start("echo", &[]);
    let output = load(&["resp", &server.addr, "-d", "200ms", "-w", "0s", "-c", "2"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!text.contains("errors     none"), "{text}");
}

/// Also of replies that come in many parts.
#[test]
fn the_bytes_of_whole_replies_are_counted() {
    let cases = [
        ("echo", &["-s", "500000"][..], 20 * 500_000),
        ("http", &["--path", "/bytes/500000"], 20 * 500_000),
        // Every other one is to a GET.
        ("resp", &["-s", "500000"], 10 * 500_000),
    ];
    for (name, options, bodies) in cases {
        let server = Server::start(name, &[]);
        let short = [name, &server.addr, "--json", "-c", "1", "-n", "20", "-w", "0s"];
        let output = load(&[&short, options].concat());
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(report["replies"].as_u64(), Some(20), "{name}: {report}");
        let bytes = report["bytes"].as_u64().expect("a count");
        // What frames them comes on top.
        assert!((bodies..bodies + 20 * 400).contains(&bytes), "{name}: {report}");
    }
}

#[test]
fn a_report_is_text_json_and_a_page() {
    let server = Server::start("echo", &[]);
    let pid = server.program.pid();
    let page = TempPath::new();
    let path = page.0.to_str().expect("UTF-8");
    let text = measured(&server, "echo", &["--json", "--html", path, "--pid", &pid, "-p", "4"]);
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let replies = report["replies"].as_u64().expect("a count");
    assert!(replies > 0);
    assert_eq!(report["bytes"].as_u64(), Some(replies * 64));
    let quantiles = &report["latency_ns"]["quantiles"];
    assert!(quantiles["p50"].as_u64() <= quantiles["max"].as_u64());
    assert!(report["server_cpu"]["ns_per_reply"].as_u64() > Some(0), "{report}");
    let page = fs::read_to_string(path).expect("a page");
    assert_eq!(page.matches("<svg").count(), 3);
    assert_eq!(page.matches("http").count(), page.matches("http://www.w3.org/2000/svg").count());
    assert!(page.contains("<table>") && page.contains("p99.9"));
}

#[test]
fn a_process_that_is_not_there_and_a_page_that_cannot_be_written_are_named() {
    let server = Server::start("echo", &[]);
    for (option, value, said) in [
        ("--pid", "4294967295", "error: cannot read the processor time of process 4294967295: "),
        ("--html", "/nowhere/page.html", "error: cannot write /nowhere/page.html: "),
    ] {
        let output = load(&["echo", &server.addr, "-n", "1", "-w", "0s", option, value]);
        let failed = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{failed}");
        assert!(failed.starts_with(said) && failed.lines().count() == 1, "{failed}");
        // What was measured is told all the same.
        assert_eq!(output.stdout.is_empty(), option == "--pid");
    }
}

#[test]
fn idle_connections_come_from_several_sources() {
    let server = Server::start("echo", &["--max-per-client", "3"]);
    let text = measured(&server, "idle", &["--sources", "3"]);
    assert!(text.contains("connected  8"), "{text}");
}

#[test]
fn options_that_mean_nothing_together_are_refused() {
    for options in [
        &["idle", "--rate", "5"][..],
        &["idle", "--count", "5"],
        &["echo", "--sources", "3"],
        &["churn", "--pipeline", "2"],
        &["idle", "--sources", "3", "--connections", "2"],
    ] {
        let output = load(&[&options[..1], &["127.0.0.1:7"], &options[1..]].concat());
        assert_eq!(output.status.code(), Some(1), "{options:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(said.lines().count(), 1, "{options:?}: {said}");
    }
}

/// What would not fit into memory is refused before anything is allocated.
#[test]
fn sizes_are_bounded() {
    for (option, value) in [
        ("--size", "67108865"),
        ("--size", "99999999999"),
        ("--size", "99999999999999999999"),
        ("--size", "0"),
        ("--pipeline", "65537"),
        ("--pipeline", "99999999999"),
        ("--connections", "1048577"),
        ("--connections", "99999999999"),
    ] {
        let said = refusal("load", &["echo", "127.0.0.1:7", option, value]);
        assert!(said.contains("a whole number from 1 to "), "{said}");
    }
    // Each of them would do.
    let together = ["--size", "67108864", "--pipeline", "65536"];
    let output = load(&[&["echo", "127.0.0.1:7"], &together[..]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
}

/// More is due at once than a computer counts to.
#[test]
fn any_rate_ends_in_its_time_and_at_a_signal() {
    let server = Server::start("echo", &[]);
    for rate in ["1000000000", "18446744073709551615"] {
        for mode in ["echo", "churn"] {
            let begun = Instant::now();
            let options = ["-d", "200ms", "-w", "0s", "-c", "8", "--rate", rate];
            let output = load(&[&[mode, &server.addr], &options[..]].concat());
            let text = String::from_utf8_lossy(&output.stdout);
            assert_eq!(output.status.code(), Some(1), "{text}");
            assert!(text.contains("too many waited to be sent"), "{text}");
            assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
        }
        let options = ["-d", "1h", "-c", "8", "--rate", rate];
        let mut program =
            Program::start(example("load").args(["echo", &server.addr]).args(options));
        thread::sleep(Duration::from_millis(500));
        program.signal("INT");
        assert_eq!(program.exit_code(), Some(1));
    }
}

#[test]
fn without_a_server_it_fails() {
    let output = load(&["echo", &unreachable_address(), "-d", "200ms", "-w", "0s", "-c", "2"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("replies    0"), "{text}");
    assert!(!text.contains("errors     none"), "{text}");
}

/// What a browser makes of a page, after the script has written into it what was laid out.
const LAID_OUT: &str = r#"<script>
const seen = [...document.querySelectorAll("svg")].map(svg => {
    const box = svg.getBoundingClientRect();
    const lines = [...svg.querySelectorAll("polyline, path")].map(line => line.getTotalLength());
    const texts = [...svg.querySelectorAll("text")].filter(it => it.getBBox().width > 0);
    return [box.width > 200 && box.height > 100, Math.max(0, ...lines) > 50, texts.length > 3];
});
const loaded = performance.getEntriesByType("resource").map(it => it.name);
document.body.dataset.seen = JSON.stringify(seen);
document.body.dataset.loaded = JSON.stringify(loaded);
</script>"#;

#[test]
fn a_browser_shows_the_plots_and_loads_nothing() {
    let Some(browser) = ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok())
    else {
        eprintln!("skipped: no chromium here");
        return;
    };
    let server = Server::start("echo", &[]);
    let page = TempPath::new();
    let path = page.0.with_extension("html");
    measured(&server, "echo", &["--html", path.to_str().expect("UTF-8")]);
    let text = fs::read_to_string(&path).expect("a page");
    fs::write(&path, text.replace("</body>", &format!("{LAID_OUT}</body>"))).expect("its copy");
    let profile = TempPath::new();
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"])
        .args(["--window-size=1200,1600", "--no-first-run", "--disable-dev-shm-usage"])
        .arg(format!("--user-data-dir={}", profile.0.display()))
        .arg(format!("file://{}", path.display()))
        .output()
        .expect("it was there before");
    fs::remove_file(&path).ok();
    fs::remove_dir_all(&profile.0).ok();
    let dom = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    let is_there = |name: &str, value: &str| dom.contains(&format!("data-{name}=\"{value}\""));
    let plots = "[[true,true,true],[true,true,true],[true,true,true]]";
    assert!(is_there("seen", plots) && is_there("loaded", "[]"), "{dom}{said}");
}
