//! Whatever is said to the API, it answers as its document says.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};
use tests::gateway::full;
use tests::random::Random;

use super::http::{Answer, say};
use super::schema::{Schemas, spoil};
use crate::cluster::Cluster;

/// A method of a path of the document.
struct Operation {
    path: String,
    method: String,
    about: Value,
}

/// What is sent.
struct Saying {
    bytes: Vec<u8>,
    /// Whether the body fits the document; none if it has none or is no JSON at all.
    fits: Option<bool>,
    /// The body is no JSON.
    broken: bool,
}

struct Fuzzer {
    cluster: Cluster,
    socket: PathBuf,
    schemas: Schemas,
    operations: Vec<Operation>,
    random: Random,
    /// How often each operation gave each status.
    seen: BTreeMap<(usize, u16), u64>,
}

/// Methods that routes may not have.
const METHODS: [&str; 8] = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"];
/// Parts of paths and queries that are awkward.
const PARTS: [&str; 14] = [
    "1",
    "2",
    "disk",
    "blue",
    "%ff",
    "%",
    "%zz",
    "..",
    "a%2fb",
    "%00",
    "18446744073709551616",
    "-1",
    "volume%2F1",
    "%F0%9F%A6%80",
];

impl Fuzzer {
    fn new(test: &str, seed: u64) -> Fuzzer {
        let cluster = Cluster::start(test, 1);
        cluster.volume("disk", "one");
        let socket = cluster.socket();
        let served = say(&socket, &request("GET", "/v1/openapi.json", "", b""), false).expect("an answer");
        let schemas = Schemas(serde_json::from_slice(&served.body).expect("JSON"));
        let mut operations = Vec::new();
        for (path, methods) in schemas.0["paths"].as_object().expect("paths") {
            for (method, about) in methods.as_object().expect("methods") {
                operations.push(Operation {
                    path: path.clone(),
                    method: method.to_uppercase(),
                    about: about.clone(),
                });
            }
        }
        Fuzzer { cluster, socket, schemas, operations, random: Random::new(seed), seen: BTreeMap::new() }
    }

    /// Says something to an operation and judges the answer.
    fn turn(&mut self, at: usize) {
        let saying = self.saying(at);
        let answer = say(&self.socket, &saying.bytes, true);
        if let Err(why) = self.judge(at, &saying, answer.as_ref()) {
            let shown = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(1_500)]).into_owned();
            let answer = answer.map(|answer| format!("{} {}", answer.status, shown(&answer.body)));
            panic!("{why}\n--- said\n{}\n--- heard\n{answer:?}{}", shown(&saying.bytes), self.cluster.logs());
        }
    }

    fn saying(&mut self, at: usize) -> Saying {
        let random = &mut self.random;
        let operation = &self.operations[at];
        let mut path = operation.path.clone();
        if path.contains("{id}") {
            let id = if random.chance(5) { "9".repeat(4_000) } else { (*random.pick(&PARTS)).to_owned() };
            path = path.replace("{id}", &id);
        }
        let (mut query, mut headers) = (Vec::new(), String::new());
        for parameter in operation.about["parameters"].as_array().into_iter().flatten() {
            let name = parameter["name"].as_str().expect("a name");
            let made = self.schemas.make(&parameter["schema"], random);
            let plain = made.as_str().map_or_else(|| made.to_string(), str::to_owned);
            let wrong = random.chance(30);
            match parameter["in"].as_str() {
                Some("query") if random.chance(60) => {
                    let value = if wrong { (*random.pick(&PARTS)).to_owned() } else { encoded(&plain) };
                    query.push(format!("{name}={value}"));
                }
                Some("header") if random.chance(60) => {
                    let numbers = ["0", "1", "18446744073709551615", "18446744073709551616", "x", "-1"];
                    headers += &format!("{name}: {}\r\n", random.pick(&numbers));
                }
                _ => {}
            }
        }
        if random.chance(10) {
            query.push((*random.pick(&["surplus=1", "&&&", "limit", "a=%zz", "after=1&after=2"])).to_owned());
        }
        if !query.is_empty() {
            path = format!("{path}?{}", query.join("&"));
        }
        let (mut body, mut fits, mut broken) = (Vec::new(), None, false);
        if let Some((content, about)) =
            operation.about["requestBody"]["content"].as_object().and_then(|all| all.iter().next())
        {
            headers += &format!("Content-Type: {content}\r\n");
            if content == "application/json" {
                let mut made = self.schemas.make(&about["schema"], random);
                if random.chance(50) {
                    spoil(&mut made, random);
                }
                fits = Some(self.schemas.check(&about["schema"], &made).is_ok());
                body = made.to_string().into_bytes();
                if random.chance(15) {
                    breaks(&mut body, random);
                    (fits, broken) = (None, serde_json::from_slice::<Value>(&body).is_err());
                }
            } else {
                body = (0..random.below(300)).map(|_| random.any() as u8).collect();
            }
        }
        Saying { bytes: request(&operation.method, &path, &headers, &body), fits, broken }
    }

    fn judge(&mut self, at: usize, saying: &Saying, answer: Option<&Answer>) -> Result<(), String> {
        let operation = &self.operations[at];
        let answer = answer.ok_or("it hung up without a word")?;
        *self.seen.entry((at, answer.status)).or_default() += 1;
        let responses = &operation.about["responses"];
        let documented = &responses[answer.status.to_string()];
        if documented.is_null() {
            return Err(format!("{} is not in the document", answer.status));
        }
        if answer.status >= 500 {
            return Err("the server failed".to_owned());
        }
        if answer.status != 200 {
            sentence(answer)?;
        } else if let Some((content, about)) =
            documented["content"].as_object().and_then(|all| all.iter().next())
        {
            if !answer.content.starts_with(content.as_str()) {
                return Err(format!("{} is not {content}", answer.content));
            }
            if content == "application/json" {
                let body: Value = serde_json::from_slice(&answer.body).map_err(|error| error.to_string())?;
                self.schemas.check(&about["schema"], &body)?;
            }
        }
        match (saying.fits, saying.broken, answer.status) {
            (Some(true), _, 400 | 415) => Err("what fits the document is not even read".to_owned()),
            (Some(false), _, 200) | (_, true, 200) => {
                Err("what does not fit the document is done".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// A method that a path does not have, or a path that is not there.
    fn strange(&mut self) {
        let operation = self.random.below(self.operations.len());
        let path = self.operations[operation].path.replace("{id}", "1");
        let has = |method: &str| {
            self.operations
                .iter()
                .any(|one| one.path == self.operations[operation].path && one.method == method)
        };
        let absent: Vec<&str> = METHODS.into_iter().filter(|method| !has(method)).collect();
        let method = *self.random.pick(&absent);
        let (path, status) = match self.random.below(3) {
            0 => (format!("{path}/surplus/x"), if path.starts_with("/v1/explain/") { 405 } else { 404 }),
            _ => (path, 405),
        };
        let answer = say(&self.socket, &request(method, &path, "", b"{}"), false).expect("an answer");
        assert_eq!(answer.status, status, "{method} {path}");
        sentence(&answer).unwrap_or_else(|why| panic!("{method} {path}: {why}"));
    }

    fn answers(&self) -> bool {
        say(&self.socket, &request("GET", "/v1/status", "", b""), false)
            .is_some_and(|answer| answer.status == 200)
    }

    /// Most memory that the control plane had, bytes.
    fn memory_peak(&self) -> u64 {
        let process = self.cluster.controlplane.as_ref().expect("it runs").0.id();
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it lives");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its memory");
        peak.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
    }
}

fn request(method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn encoded(text: &str) -> String {
    let byte = |byte: u8| {
        if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") }
    };
    text.bytes().map(byte).collect()
}

/// Makes a body of JSON, mostly, something else.
fn breaks(body: &mut Vec<u8>, random: &mut Random) {
    match random.below(6) {
        0 => body.truncate(random.below(body.len().max(1))),
        1 => body.extend_from_slice(b"}"),
        2 => *body = b"[".repeat(1 + random.below(100_000)),
        3 => *body = "{\"a\":".repeat(50_000).into_bytes(),
        4 => *body = b"{\"command\":{\"valve_open\":1e999}}".to_vec(),
        _ => {
            let at = random.below(body.len().max(1));
            body.insert(at, random.any() as u8 | 0x80);
        }
    }
}

/// A refusal says in JSON what is wrong.
fn sentence(answer: &Answer) -> Result<(), String> {
    let body: Value = serde_json::from_slice(&answer.body).map_err(|error| format!("not JSON: {error}"))?;
    let said = body["error"].as_str().unwrap_or_default();
    if said.len() < 12 || !said.contains(' ') || body.as_object().is_none_or(|all| all.len() != 1) {
        return Err(format!("{body} does not help"));
    }
    Ok(())
}

#[test]
fn every_route_answers_whatever_is_said_to_it() {
    let turns = if full() { 100_000 } else { 4_000 };
    let seed = std::env::var("TIDEGATE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    println!("TIDEGATE_SEED={seed}");
    let mut fuzzer = Fuzzer::new("fuzz", seed);
    let before = fuzzer.memory_peak();
    let changes = fuzzer.operations.iter().position(|one| one.path == "/v1/requests").expect("it is there");
    for turn in 0..turns {
        // What changes things has the most to say: every other turn is its.
        let any = turn / 2 % fuzzer.operations.len();
        fuzzer.turn(if turn % 2 == 0 { changes } else { any });
        if turn % 10 == 0 {
            fuzzer.strange();
        }
    }
    assert!(fuzzer.answers(), "{}", fuzzer.cluster.logs());
    for (at, operation) in fuzzer.operations.iter().enumerate() {
        let statuses: Vec<_> =
            fuzzer.seen.range((at, 0)..(at + 1, 0)).map(|((_, status), count)| (status, count)).collect();
        println!("{:5} {:24} {statuses:?}", operation.method, operation.path);
        assert!(!statuses.is_empty());
    }
    println!("memory at most {} MiB before, {} MiB after", before >> 20, fuzzer.memory_peak() >> 20);
    assert!(fuzzer.memory_peak() - before < 256 << 20, "it keeps what it is told");
}

#[test]
fn what_is_no_http_or_too_long_is_refused_and_takes_no_memory() {
    let fuzzer = Fuzzer::new("noise", 1);
    let before = fuzzer.memory_peak();
    let status = |bytes: &[u8]| say(&fuzzer.socket, bytes, false).map(|answer| answer.status);
    let header = "Content-Type: application/json\r\n";
    let long = vec![b' '; 64 << 20];
    for _ in 0..4 {
        assert_eq!(status(&request("POST", "/v1/requests", header, &long)), Some(413));
        assert_eq!(status(&request("POST", "/v1/policies", "", &long)), Some(413));
        assert_eq!(status(&request("GET", "/v1/status", "", &long[..1 << 20])), Some(200));
    }
    assert_eq!(status(&request("POST", "/v1/requests", "", b"{}")), Some(415));
    // What would not fit in the store is refused before it gets there, and not remembered under its key.
    for (rules, refused) in [(5_000, 429), (60_000, 422)] {
        let rule = json!({ "to": "", "action": "drop" });
        let command =
            json!({ "tenant_put": { "name": "red", "vni": null, "weight": 1, "rules": vec![rule; rules] } });
        let asked = json!({ "idempotency_key": format!("{rules}"), "command": command }).to_string();
        assert_eq!(
            status(&request("POST", "/v1/requests", header, asked.as_bytes())),
            Some(refused),
            "{rules}"
        );
    }
    let long = json!([{ "to": "x".repeat(1_500_000), "action": "drop" }]);
    let command = json!({ "tenant_put": { "name": "red", "vni": null, "weight": 1, "rules": long } });
    let asked = json!({ "idempotency_key": "long", "command": command }).to_string();
    assert_eq!(status(&request("POST", "/v1/requests", header, asked.as_bytes())), Some(422));
    let chunked = "Transfer-Encoding: chunked\r\n";
    let head = format!(
        "POST /v1/requests HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{header}{chunked}\r\n"
    );
    assert_eq!(status(&[head.as_bytes(), b"zz\r\n"].concat()), Some(400));
    for noise in [
        "\0\0\0\0\r\n\r\n",
        "GET\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "GET /v1/status HTTP/1.1\r\nHost\r\n\r\n",
    ] {
        assert!(status(noise.as_bytes()).is_none_or(|status| (400..500).contains(&status)), "{noise:?}");
    }
    let path = "x".repeat(200_000);
    assert!(status(&request("GET", &format!("/v1/{path}"), "", b"")).is_none_or(|status| status >= 400));
    assert!(
        status(&request("GET", "/v1/status", &format!("X: {path}{path}{path}\r\n"), b""))
            .is_none_or(|status| status >= 400)
    );
    assert!(fuzzer.answers(), "{}", fuzzer.cluster.logs());
    let more = fuzzer.memory_peak() - before;
    assert!(more < 96 << 20, "{} MiB for bodies that are refused", more >> 20);
}
