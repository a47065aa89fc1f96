//! The page in a real browser, which is skipped where there is none.

use std::fs;
use std::net::TcpStream;
use std::process::{Command, Stdio};

use crate::programs::{Program, TempPath, example, exchange};

/// A headless Chromium, if one is there; says so if none is.
fn browser() -> Option<&'static str> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let is_there = |name: &&str| {
        let found = Command::new("sh").args(["-c", &format!("command -v {name}")]).output();
        found.is_ok_and(|output| output.status.success())
    };
    let found = names.into_iter().find(is_there);
    if found.is_none() {
        eprintln!("skipped: no chromium here");
    }
    found
}

/// What forbids scripts in a profile of the browser.
const NO_SCRIPTS: &str = r#"{"profile":{"default_content_setting_values":{"javascript":2}}}"#;

/// Runs the browser on a page, with scripts or without, for at most a minute, and returns what it
/// printed.
fn browse(browser: &str, scripts: bool, options: &[&str], url: &str) -> String {
    let profile = TempPath::new();
    fs::create_dir_all(profile.0.join("Default")).expect("a place for temporary files");
    if !scripts {
        let preferences = profile.0.join("Default/Preferences");
        fs::write(preferences, NO_SCRIPTS).expect("a place for temporary files");
    }
    let output = Command::new("timeout")
        .args([
            "60",
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
        ])
        .arg(format!("--user-data-dir={}", profile.0.display()))
        .args(options)
        .arg(url)
        .stdin(Stdio::null())
        .output()
        .expect("it was there before");
    let _ = fs::remove_dir_all(&profile.0);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// A server with some clients, and the address of its page.
fn server() -> (Program, Vec<TcpStream>, String) {
    let options =
        ["--listen", "127.0.0.1:0", "--max-connections", "100", "--metrics", "127.0.0.1:0"];
    let echo = Program::start(example("echo").args(options));
    let address = echo.stdout.next().replace("listening on ", "");
    let clients = (0..5)
        .map(|_| {
            let mut client = TcpStream::connect(&address).expect("a server that listens");
            exchange(&mut client, b"hello", b"hello");
            client
        })
        .collect();
    let url = echo.stdout.next().replace("metrics on ", "http://");
    (echo, clients, format!("{url}/"))
}

#[test]
fn the_page_draws_its_plots_and_its_table() {
    let Some(browser) = browser() else { return };
    let (_echo, clients, url) = server();
    let dom = browse(browser, true, &["--virtual-time-budget=9000", "--dump-dom"], &url);
    let status = dom.split("id=\"status\"").nth(1).and_then(|rest| rest.split('<').next());
    let status = status.unwrap_or_else(|| panic!("no status in {dom}"));
    assert!(status.contains("up ") && status.contains(", ready."), "{status}");
    // Several points in each of four plots.
    let lines: Vec<_> = dom.split("<polyline points=\"").skip(1).collect();
    assert_eq!(lines.len(), 4, "{dom}");
    for line in lines {
        let points = line.split('"').next().unwrap_or_default();
        assert!(points.split(' ').count() >= 2, "{points}");
    }
    let peer = clients[0].local_addr().expect("it is connected").to_string();
    assert!(dom.contains(&format!("<td>{peer}</td>")), "{dom}");
}

#[test]
fn the_page_is_readable_without_scripts() {
    let Some(browser) = browser() else { return };
    let (_echo, clients, url) = server();
    let dom = browse(browser, false, &["--dump-dom"], &url);
    let peer = clients[0].local_addr().expect("it is connected").to_string();
    assert!(dom.contains(&format!("<td>{peer}</td>")), "{dom}");
    assert!(dom.contains("Load it again for what is so now."), "{dom}");
    assert!(!dom.contains("<polyline"), "{dom}");
}

/// The width and the height that a PNG says it has.
fn size_of(png: &[u8]) -> (u32, u32) {
    let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().expect("four bytes"));
    assert_eq!(&png[1..4], b"PNG");
    (number(16), number(20))
}

/// `PAGE_SCREENSHOTS` names a folder in which they are kept.
#[test]
fn the_page_is_drawn_at_two_widths() {
    let Some(browser) = browser() else { return };
    let (_echo, _clients, url) = server();
    for (width, scripts) in [(1280, true), (1280, false), (500, true), (500, false)] {
        let shot = TempPath(TempPath::new().0.with_extension("png"));
        let file = format!("--screenshot={}", shot.0.display());
        let window = format!("--window-size={width},900");
        let budget = if scripts { "--virtual-time-budget=9000" } else { "--hide-scrollbars" };
        browse(browser, scripts, &[&file, &window, "--hide-scrollbars", budget], &url);
        let png = fs::read(&shot.0).expect("a screenshot");
        assert_eq!(size_of(&png), (width, 900));
        assert!(png.len() > 10_000, "it is not empty: {} bytes", png.len());
        if let Ok(kept) = std::env::var("PAGE_SCREENSHOTS") {
            let how = if scripts { "" } else { "-plain" };
            fs::write(format!("{kept}/page-{width}{how}.png"), &png).expect("a folder for it");
        }
    }
}
