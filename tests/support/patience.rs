//! How long tests wait for what must come. The bounds are in real time and far beyond every honest wait, on the
//! slowest machine: they decide nothing, they only end what would hang for ever, and tell what the world looked like then.
//!
//! One file for the unit tests (`crate::patience`) and for those in `tests/`. A test that waits does it by one of these;
//! where it waits inside the product itself, [`watch`] ends the process and names the test.

// Each test binary uses a part of it.
#![allow(dead_code)]

use std::collections::HashMap;
use std::io::Write;
use std::sync::mpsc::{Receiver, RecvError, RecvTimeoutError};
use std::sync::{Mutex, Once, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The longest wait for one thing.
pub const LIMIT: Duration = Duration::from_secs(300);
/// The longest test.
const WHOLE: Duration = Duration::from_secs(1_500);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(1);

/// Ends a wait that is over, if it is; tell it to whoever waits in a way of its own.
#[derive(Clone, Copy, Debug)]
pub struct Patience(Instant);

impl Patience {
    /// Begins a wait.
    pub fn begin() -> Self {
        Self(Instant::now())
    }

    /// Fails once the wait has lasted too long. `world` tells what is seen.
    #[track_caller]
    pub fn hold(&self, what: &str, world: impl FnOnce() -> String) {
        assert!(
            self.0.elapsed() < LIMIT,
            "waited {} s for this and it never came: {what}; {}",
            LIMIT.as_secs(),
            world()
        );
    }
}

/// Waits until something holds.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let patience = Patience::begin();
    while !holds() {
        patience.hold(what, String::new);
        std::thread::sleep(LOOK);
    }
}

/// Waits for what another thread says. As [`Receiver::recv`]: an error where nobody can say anything any more.
#[track_caller]
pub fn hear<T>(from: &Receiver<T>) -> Result<T, RecvError> {
    match from.recv_timeout(LIMIT) {
        Ok(heard) => Ok(heard),
        Err(RecvTimeoutError::Disconnected) => Err(RecvError),
        Err(RecvTimeoutError::Timeout) => panic!("waited {} s, and nothing was said", LIMIT.as_secs()),
    }
}

/// Waits for the end of a thread.
#[track_caller]
pub fn join<T>(thread: JoinHandle<T>) -> std::thread::Result<T> {
    until("the end of a thread", || thread.is_finished());
    thread.join()
}

/// Runs something asynchronous to its end, on a runtime whose clock is the real one.
pub async fn within<F: Future>(future: F) -> F::Output {
    match tokio::time::timeout(LIMIT, future).await {
        Ok(output) => output,
        Err(_) => panic!("it does not end within {} s", LIMIT.as_secs()),
    }
}

/// Watches the test on this thread from here on: if it lasts far too long the process ends, and says which it was. For
/// tests in which the product itself waits. Called again it changes nothing, so any helper of a test may call it.
pub fn watch() {
    thread_local! {
        static WATCHED: Watched = Watched::begin();
    }
    WATCHED.with(|_| ());
}

/// Ends with its thread: each test has one of its own.
struct Watched(u64);

/// What is watched: the test, and since when.
static TESTS: Mutex<Option<HashMap<u64, (String, Instant)>>> = Mutex::new(None);

fn tests<R>(f: impl FnOnce(&mut HashMap<u64, (String, Instant)>) -> R) -> R {
    let mut tests = TESTS.lock().unwrap_or_else(PoisonError::into_inner);
    f(tests.get_or_insert_default())
}

impl Watched {
    fn begin() -> Self {
        static LOOKING: Once = Once::new();
        LOOKING.call_once(|| drop(std::thread::spawn(look)));
        let name = std::thread::current().name().unwrap_or("a thread").to_owned();
        Self(tests(|tests| {
            let number = tests.keys().max().map_or(0, |last| last + 1);
            tests.insert(number, (name, Instant::now()));
            number
        }))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        tests(|tests| tests.remove(&self.0));
    }
}

fn look() {
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let late = tests(|tests| {
            let late = |(name, since): &(String, Instant)| (since.elapsed() > WHOLE).then(|| name.clone());
            tests.values().find_map(late)
        });
        if let Some(test) = late {
            let line = "!".repeat(100);
            // Past the harness, which keeps back what a test prints until it ends; this one does not.
            let told = format!(
                "{line}\n{test} HANGS: it runs for {} s. {}\n{line}\n",
                WHOLE.as_secs(),
                threads()
            );
            let _ = std::io::stderr().write_all(told.as_bytes());
            std::process::abort();
        }
    }
}

/// The threads of this process and where the kernel has them, as far as it says so.
fn threads() -> String {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else {
        return String::new();
    };
    let of = |task: std::fs::DirEntry| {
        let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        format!("{} ({})", read("comm").trim(), read("wchan").trim())
    };
    let all: Vec<String> = tasks.flatten().map(of).collect();
    format!("Its threads: {}", all.join(", "))
}
