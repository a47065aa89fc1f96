//! The page in a real browser, without a window: Chromium, over its DevTools protocol.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::{env, fs, process, thread};

use serde_json::{Value, json};
use wheelhouse::{Address, Config, Handle, Reactor};

use crate::shorthands::with_places;
use crate::world::Echo;

const BROWSERS: [&str; 4] =
    ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

/// A browser with one page.
struct Browser {
    process: Child,
    commands: Option<ChildStdin>,
    messages: BufReader<ChildStdout>,
    profile: PathBuf,
    session: Option<String>,
    sent: u64,
    /// What it said that is no answer.
    events: Vec<Value>,
}

impl Browser {
    /// Starts one; `None` where none is installed.
    fn start() -> Option<Self> {
        let answers = |name: &&&str| {
            let asked = Command::new(name).arg("--version").stderr(Stdio::null()).output();
            asked.is_ok_and(|output| output.status.success())
        };
        let Some(name) = BROWSERS.iter().find(answers) else {
            eprintln!("skipped: no browser here, none of {BROWSERS:?}");
            return None;
        };
        let profile = env::temp_dir().join(format!("wheelhouse-browser-{}", process::id()));
        // The protocol has the descriptors 3 and 4. It ends with them, and if it hangs by the clock.
        let mut process = Command::new("timeout")
            .args(["-k", "5", "120", "sh", "-c", "exec \"$0\" \"$@\" 3<&0 4>&1", name])
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"])
            .args(["--disable-dev-shm-usage", "--no-first-run", "--remote-debugging-pipe"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let commands = process.stdin.take();
        let messages = BufReader::new(process.stdout.take().unwrap());
        let (session, events) = (None, Vec::new());
        let mut browser = Self { process, commands, messages, profile, session, sent: 0, events };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let target = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.call("Target.attachToTarget", target);
        browser.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Page", "Log", "Runtime", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.sent += 1;
        let mut message = json!({ "id": self.sent, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        write!(self.commands.as_mut().unwrap(), "{message}\0").unwrap();
        loop {
            let message = self.receive();
            if message["id"] == self.sent {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].clone();
            }
            self.events.push(message);
        }
    }

    fn receive(&mut self) -> Value {
        let mut message = Vec::new();
        std::io::BufRead::read_until(&mut self.messages, 0, &mut message).unwrap();
        assert_eq!(message.pop(), Some(0), "the browser ended");
        serde_json::from_slice(&message).unwrap()
    }

    fn resize(&mut self, width: u32, scheme: &str) {
        let size =
            json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", size);
        let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
        self.call("Emulation.setEmulatedMedia", json!({ "features": [feature] }));
    }

    fn go_to(&mut self, url: &str) {
        self.call("Page.navigate", json!({ "url": url }));
        while !self.events.iter().any(|event| event["method"] == "Page.loadEventFired") {
            let event = self.receive();
            self.events.push(event);
        }
    }

    /// The value of an expression, or what it promises.
    fn value(&mut self, expression: &str) -> Value {
        let asked =
            json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let answer = self.call("Runtime.evaluate", asked);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Waits until a condition holds; it is tested with each frame.
    fn wait_for(&mut self, condition: &str) {
        let held = self.value(&format!(
            "new Promise((done) => {{
                const end = performance.now() + 30e3;
                const test = () => {{
                    if ({condition}) done(true);
                    else if (performance.now() > end) done(document.body.innerText);
                    else setTimeout(test, 20);
                }};
                test();
            }})"
        ));
        assert_eq!(held, true, "{condition}");
    }

    fn picture(&mut self, name: &str) -> Vec<u8> {
        let whole = json!({ "captureBeyondViewport": true });
        let answer = self.call("Page.captureScreenshot", whole);
        let picture = from_base64(answer["data"].as_str().unwrap());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::write(&path, &picture).unwrap();
        eprintln!("{}", path.display());
        picture
    }

    /// What was wrong with the page, or reached out of it.
    fn complaints(&self, origin: &str) -> Vec<&Value> {
        let is_bad = |event: &&Value| match event["method"].as_str() {
            Some("Log.entryAdded" | "Runtime.exceptionThrown" | "Runtime.consoleAPICalled") => true,
            Some("Network.requestWillBeSent") => {
                let url = event["params"]["request"]["url"].as_str().unwrap();
                !url.starts_with(origin) && !url.starts_with("data:")
            }
            _ => false,
        };
        self.events.iter().filter(is_bad).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.commands = None;
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.profile);
    }
}

fn from_base64(text: &str) -> Vec<u8> {
    let value = |letter: u8| match letter {
        b'A'..=b'Z' => letter - b'A',
        b'a'..=b'z' => letter - b'a' + 26,
        b'0'..=b'9' => letter - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let letters: Vec<_> = text.bytes().filter(|letter| *letter != b'=').collect();
    letters
        .chunks(4)
        .flat_map(|four| {
            let bits =
                four.iter().fold(0_u32, |bits, letter| bits << 6 | u32::from(value(*letter)));
            let bytes = (bits << (6 * (4 - four.len()))).to_be_bytes();
            bytes[1..four.len()].to_vec()
        })
        .collect()
}

/// A server on a thread of its own, which echoes at a path and at a port.
struct Running {
    metrics: String,
    echo: String,
    handle: Handle<Echo>,
    thread: thread::JoinHandle<()>,
}

fn run_server(path: PathBuf) -> Running {
    let (send, receive) = std::sync::mpsc::channel();
    let thread = thread::spawn(move || {
        let config = Config { shutdown_timeout: None, ..with_places(100) };
        let mut reactor = Reactor::new(config).unwrap();
        reactor.listen(Address::Unix(path)).unwrap();
        let echo = reactor.listen("127.0.0.1:0").unwrap();
        let echo = reactor.local_addr(echo).to_string();
        let metrics = reactor.serve_metrics("127.0.0.1:0").unwrap();
        send.send((metrics.to_string(), echo, reactor.handle())).unwrap();
        reactor.run(&mut Echo::default()).unwrap();
    });
    let (metrics, echo, handle) = receive.recv().unwrap();
    Running { metrics, echo, handle, thread }
}

/// A connection that was echoed to.
fn client(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"hello").unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
    stream
}

/// The least contrast between a text and what it stands on (WCAG 2.2, 1.4.3), and that text.
const CONTRAST: &str = "(() => {
    const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (colour) => {
        const [r, g, b] = parts(colour).map((part) => {
            const share = part / 255;
            return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (element) => {
        const colour = getComputedStyle(element).backgroundColor;
        return parts(colour)[3] === 0 ? ground(element.parentElement) : colour;
    };
    let least = [21, ''];
    for (const element of document.body.querySelectorAll('*')) {
        const text = [...element.childNodes].some((it) => it.nodeType === 3 && it.data.trim());
        if (!text || !element.checkVisibility()) continue;
        const pair = [light(getComputedStyle(element).color), light(ground(element))];
        const contrast = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
        if (contrast < least[0]) least = [contrast, element.textContent];
    }
    return least;
})()";

#[test]
fn a_browser_shows_the_page_wide_and_narrow_light_and_dark_with_scripts_and_without() {
    let Some(mut browser) = Browser::start() else { return };
    let hostile = format!("wheelhouse-<img src=x onerror=alert(1)>-{}", process::id());
    let server = run_server(env::temp_dir().join(hostile));
    let origin = format!("http://{}/", server.metrics);
    let mut clients: Vec<_> = (0..30).map(|_| client(&server.echo)).collect();

    browser.resize(1280, "light");
    browser.go_to(&origin);
    // Each plot has some points, and a table shows what came after the page.
    browser.wait_for(
        "document.querySelectorAll('.card svg').length === 6 && \
         document.querySelectorAll('.card svg path.line').length === 7 && \
         [...document.querySelectorAll('path.line')].every((it) => it.getAttribute('d').split('L').length > 2)",
    );
    clients.extend((0..5).map(|_| client(&server.echo)));
    browser.wait_for("document.querySelector('#connections .value').textContent === '35'");
    browser.wait_for("document.querySelector('#states').textContent.includes('idle35')");
    clients.truncate(20);
    browser.wait_for("document.querySelector('#ends .recent')?.textContent === '+15'");
    assert_eq!(browser.value("document.querySelectorAll('#top tbody tr').length"), 20);
    let peer = clients[0].local_addr().unwrap().to_string();
    let peers = browser.value("document.querySelector('#top').textContent");
    assert!(peers.as_str().unwrap().contains(&peer), "{peer} in {peers}");

    // A name is text and nothing else.
    let title = browser.value("document.title");
    assert!(title.as_str().unwrap().contains("<img src=x onerror=alert(1)>"), "{title}");
    assert_eq!(browser.value("document.images.length + ' ' + document.scripts.length"), "0 1");
    for (width, scheme) in [(1280, "light"), (1280, "dark"), (400, "light"), (400, "dark")] {
        browser.resize(width, scheme);
        let wider = browser.value("document.documentElement.scrollWidth - innerWidth");
        assert_eq!(wider, 0, "at {width}");
        let contrast = browser.value(CONTRAST);
        assert!(contrast[0].as_f64().unwrap() >= 4.5, "{scheme}: {contrast}");
        let picture = browser.picture(&format!("page-{width}-{scheme}.png"));
        assert!(picture.starts_with(b"\x89PNG\r\n"));
        assert_eq!(picture[16..20], width.to_be_bytes());
        assert!(picture.len() > 20_000, "{} bytes", picture.len());
    }
    // Everything that is named for those who do not see it has its name.
    let unnamed = "[...document.querySelectorAll('[aria-labelledby]')]\
        .filter((it) => !document.getElementById(it.getAttribute('aria-labelledby'))?.textContent).length\
        + [...document.querySelectorAll('svg')].filter((it) => !it.ariaLabel).length\
        + [...document.querySelectorAll('th')].filter((it) => !it.scope).length";
    assert_eq!(browser.value(unnamed), 0);
    assert_eq!(browser.complaints(&origin), Vec::<&Value>::new());

    // Without scripts the tables are those that the server wrote.
    browser.call("Emulation.setScriptExecutionDisabled", json!({ "value": true }));
    browser.events.clear();
    browser.go_to(&origin);
    let seen = "[document.querySelector('.hint').checkVisibility(), document.querySelectorAll('svg').length, \
        document.querySelectorAll('#top tbody tr').length, document.querySelector('.live').checkVisibility(), \
        document.querySelector('noscript meta').content].join()";
    assert_eq!(browser.value(seen), "true,0,20,false,5");
    assert_eq!(browser.value("document.documentElement.scrollWidth - innerWidth"), 0);
    browser.picture("page-400-without-scripts.png");
    assert_eq!(browser.complaints(&origin), Vec::<&Value>::new());

    // The end of the server is seen.
    browser.call("Emulation.setScriptExecutionDisabled", json!({ "value": false }));
    browser.events.clear();
    browser.go_to(&origin);
    browser.wait_for("document.querySelectorAll('.card svg').length === 6");
    drop(clients);
    server.handle.shutdown();
    server.thread.join().unwrap();
    browser
        .wait_for("document.querySelector('#status.unready')?.textContent.startsWith('no answer')");
}
