//! What the commands share: a request and its key, names that become ids, waiting for work, and printing.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use contract::{Answer, Command, Operation, OperationId, Phase, Request, Revision};
use http_body_util::BodyExt;
use hyper::StatusCode;
use indicatif::{ProgressBar, ProgressStyle};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::client::{AskError, Client};
use crate::table::Table;

/// Time between two looks at work that is waited for.
const LOOK: Duration = Duration::from_millis(100);
/// How long a control plane may be away while its work is waited for.
const ABSENCE: Duration = Duration::from_secs(30);

/// Why a command did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The control plane.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The work that was waited for.
    #[error("{0}")]
    Operation(String),
    /// What was compared is not the same.
    #[error("{0} decisions differ; each is printed above")]
    Different(u64),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl Failure {
    /// What was asked for is not there.
    pub fn is_missing(&self) -> bool {
        matches!(self, Failure::Ask(AskError::Refused { status: StatusCode::NOT_FOUND, .. }))
    }

    /// Nobody answers, or not now.
    fn may_pass(&self) -> bool {
        match self {
            Failure::Ask(AskError::Refused { status, .. }) => *status == StatusCode::SERVICE_UNAVAILABLE,
            Failure::Ask(_) => true,
            _ => false,
        }
    }

    /// The exit code; the help lists them.
    pub fn code(&self) -> u8 {
        match self {
            Failure::Ask(AskError::Unreachable { .. } | AskError::Silent) => 5,
            missing if missing.is_missing() => 3,
            Failure::Ask(AskError::Refused { status, .. }) if status.is_client_error() => 4,
            Failure::Operation(_) => 6,
            Failure::Different(_) => 7,
            Failure::Ask(_) | Failure::Other(_) => 1,
        }
    }
}

/// Some objects.
#[derive(Deserialize)]
struct Items<T> {
    items: Vec<T>,
    more: bool,
}

/// Asks, and prints.
pub struct Asker {
    /// Who is asked.
    pub client: Client,
    /// Print for programs.
    pub json: bool,
}

impl Asker {
    /// All objects of a sort.
    pub async fn all<T: DeserializeOwned>(
        &self,
        sort: &str,
        id: impl Fn(&T) -> u64,
    ) -> Result<Vec<T>, Failure> {
        let mut all: Vec<T> = Vec::new();
        loop {
            let after = all.last().map_or(0, &id);
            let page: Items<T> = self.client.get(&format!("/v1/{sort}?after={after}")).await?;
            let ends = !page.more || page.items.is_empty();
            all.extend(page.items);
            if ends {
                return Ok(all);
            }
        }
    }

    /// The objects of one answer, and none of what may follow.
    pub async fn some<T: DeserializeOwned>(&self, asked: &str) -> Result<Vec<T>, Failure> {
        Ok(self.client.get::<Items<T>>(&format!("/v1/{asked}")).await?.items)
    }

    /// One object by its id or name. `volume/7`, `7` and a name are the same.
    pub async fn one<T: DeserializeOwned>(&self, sort: &str, id: &str) -> Result<T, Failure> {
        let id = id.rsplit_once('/').map_or(id, |(_, id)| id);
        Ok(self.client.get(&format!("/v1/{sort}/{}", encoded(id))).await?)
    }

    /// Asks for a change. The key makes it happen once, also if the answer is lost and asked for again.
    pub async fn change(&self, command: Command, expected: Option<u64>) -> Result<Answer, Failure> {
        let request = Request { idempotency_key: key(), expected_revision: expected.map(Revision), command };
        let asked = self.client.post("/v1/requests", &request).await;
        match asked {
            // Whether it was done is not known: the same key gets the same answer.
            Err(AskError::Broken(_) | AskError::Silent) => {
                Ok(self.client.post("/v1/requests", &request).await?)
            }
            asked => Ok(asked?),
        }
    }

    /// Asks for a change, waits for its work if asked to, and says what came of it.
    pub async fn change_and_tell(
        &self,
        command: Command,
        expected: Option<u64>,
        wait: bool,
    ) -> Result<(), Failure> {
        let answer = self.change(command, expected).await?;
        if self.json && !wait {
            return self.json(&answer);
        }
        match answer.operation {
            Some(operation) if wait => {
                let done = self.wait(operation).await?;
                if self.json { self.json(&done) } else { print(&format!("{operation} is done\n")) }
            }
            Some(operation) => print(&format!(
                "{operation} is under way; `tidegate operation get {}` shows it\n",
                operation.0
            )),
            None => print("done\n"),
        }
    }

    /// Waits for an operation and shows how far it is.
    pub async fn wait(&self, id: OperationId) -> Result<Operation, Failure> {
        let bar =
            if std::io::stderr().is_terminal() { ProgressBar::no_length() } else { ProgressBar::hidden() };
        // INVARIANT: the template is a constant that indicatif takes.
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {elapsed}") {
            bar.set_style(style);
        }
        loop {
            let number = id.0.to_string();
            let operation: Operation =
                patient(ABSENCE, async || self.one("operations", &number).await).await?;
            if operation.phase.is_over() {
                bar.finish_and_clear();
                return match operation.phase {
                    Phase::Done => Ok(operation),
                    _ => Err(Failure::Operation(format!(
                        "{id} of {} {}: {}",
                        operation.volume,
                        if operation.phase == Phase::Cancelled { "was cancelled" } else { "failed" },
                        operation.why
                    ))),
                };
            }
            let step =
                operation.steps.get(usize::from(operation.at)).map_or(String::new(), ToString::to_string);
            let held = operation.blocked_on.as_ref().map_or(String::new(), |blocked| format!(", {blocked}"));
            bar.set_message(format!("{id} {step}{held}"));
            bar.set_length(operation.progress.total_bytes);
            bar.set_position(operation.progress.done_bytes);
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Prints something for programs.
    pub fn json(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value).map_err(|error| Failure::Other(error.to_string()))?;
        print(&format!("{text}\n"))
    }

    /// Prints objects: as they are for programs, as a table for people.
    pub fn show<T: Serialize>(&self, items: &[T], table: impl FnOnce(&[T]) -> Table) -> Result<(), Failure> {
        if self.json { self.json(&items) } else { print(&table(items).to_string()) }
    }

    /// Prints one object: as it is for programs, key by key for people.
    pub fn show_one(&self, value: &impl Serialize) -> Result<(), Failure> {
        if self.json {
            return self.json(value);
        }
        let value = serde_json::to_value(value).map_err(|error| Failure::Other(error.to_string()))?;
        let mut out = String::new();
        lines("", &value, &mut out);
        print(&out)
    }

    /// Prints changes as they happen.
    pub async fn watch(&self, prefix: &str) -> Result<(), Failure> {
        let mut body = self.client.open(&format!("/v1/watch?prefix={}", encoded(prefix))).await?;
        let mut kept = String::new();
        while let Some(frame) = body.frame().await {
            let frame =
                frame.map_err(|error| Failure::Other(format!("the watch ended: {error}; run it again")))?;
            let Some(bytes) = frame.data_ref() else { continue };
            kept.push_str(&String::from_utf8_lossy(bytes));
            while let Some((line, rest)) = kept.split_once('\n') {
                if let Some(data) = line.strip_prefix("data:") {
                    print(&format!("{}\n", data.trim_start()))?;
                }
                kept = rest.to_owned();
            }
        }
        Err(Failure::Other("the control plane ended the watch; run it again".to_owned()))
    }
}

/// Looks again while nobody answers, for so long: a control plane that is started again goes on with its work.
async fn patient<T>(
    patience: Duration,
    mut look: impl AsyncFnMut() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let began = Instant::now();
    loop {
        match look().await {
            Err(failure) if failure.may_pass() && began.elapsed() < patience => {
                tokio::time::sleep(LOOK).await
            }
            looked => return looked,
        }
    }
}

fn lines(prefix: &str, value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                lines(&key, value, out);
            }
        }
        Value::Array(all) if all.is_empty() => {}
        Value::Array(all) if all.iter().all(|one| !one.is_object()) => {
            let all: Vec<String> = all.iter().map(plain).collect();
            *out += &format!("{prefix:<28}  {}\n", all.join(", "));
        }
        Value::Array(all) => {
            for (number, one) in all.iter().enumerate() {
                lines(&format!("{prefix}[{number}]"), one, out);
            }
        }
        Value::Null => {}
        other => *out += &format!("{prefix:<28}  {}\n", plain(other)),
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A key that nobody else uses: what the system's generator gave, in hexadecimal digits.
fn key() -> String {
    use std::hash::{BuildHasher, RandomState};
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanos = now.map_or(0, |since| since.as_nanos());
    let (a, b) = (RandomState::new().hash_one(nanos), RandomState::new().hash_one(std::process::id()));
    format!("{a:016x}{b:016x}")
}

/// A text as part of a path or a query (RFC 3986, clause 2.1).
pub fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// Writes to standard output; a reader that goes away has had enough.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::Other(error.to_string()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_kind_of_failure_has_its_code() {
        let refused = |status| Failure::Ask(AskError::Refused { status, message: String::new() });
        assert_eq!(refused(StatusCode::NOT_FOUND).code(), 3);
        assert_eq!(refused(StatusCode::CONFLICT).code(), 4);
        assert_eq!(refused(StatusCode::UNAUTHORIZED).code(), 4);
        assert_eq!(refused(StatusCode::SERVICE_UNAVAILABLE).code(), 1);
        assert_eq!(Failure::Ask(AskError::Silent).code(), 5);
        assert_eq!(Failure::Operation(String::new()).code(), 6);
        assert_eq!(Failure::Different(1).code(), 7);
    }

    #[test]
    fn a_control_plane_that_is_away_for_a_while_is_waited_for() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let away = || Failure::Ask(AskError::Unreachable { address: String::new(), why: String::new() });
        let mut looks = 0;
        let back = async || {
            looks += 1;
            if looks < 3 { Err(away()) } else { Ok(()) }
        };
        assert!(runtime.block_on(patient(ABSENCE, back)).is_ok());
        let never = runtime.block_on(patient(2 * LOOK, async || Err::<(), _>(away())));
        assert!(never.is_err_and(|failure| failure.code() == 5));
        // What is known is not asked again.
        let mut looks = 0;
        let known = async || {
            looks += 1;
            let status = StatusCode::NOT_FOUND;
            Err::<(), _>(Failure::Ask(AskError::Refused { status, message: String::new() }))
        };
        assert!(runtime.block_on(patient(ABSENCE, known)).is_err_and(|failure| failure.code() == 3));
        assert_eq!(looks, 1);
    }

    #[test]
    fn keys_differ_and_values_become_lines() {
        assert_ne!(key(), key());
        let mut out = String::new();
        lines("", &json!({ "a": { "b": 1, "c": [1, 2] }, "d": null, "e": [{ "f": "x" }] }), &mut out);
        let words: Vec<&str> = out.split_whitespace().collect();
        assert_eq!(words, ["a.b", "1", "a.c", "1,", "2", "e[0].f", "x"]);
    }
}
