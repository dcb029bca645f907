//! File systems of a test's own: an image on a loop device, whose copy at the moment of a kill is what a power cut
//! leaves; and a small tmpfs that gets full. Both need root: where the machine does not allow them a test says so
//! loudly and ends.

// Each test that takes this in uses a part of it.
#![allow(dead_code, clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A mounted file system, unmounted at the end.
pub struct Mount(pub PathBuf);

impl Mount {
    fn new(args: &[&str], at: &Path) -> Result<Mount, String> {
        fs::create_dir_all(at).map_err(|e| e.to_string())?;
        run(Command::new("mount").args(args).arg(at))?;
        Ok(Mount(at.to_owned()))
    }

    /// Mounts an image at a loop device.
    pub fn image(image: &Path, at: &Path) -> Result<Mount, String> {
        let image = image.to_str().ok_or("the folder's name is no text")?;
        Mount::new(&["-o", "loop", image], at)
    }

    /// Makes an image of so many MiB with an empty ext4, and mounts it.
    pub fn new_image(image: &Path, mib: u64, at: &Path) -> Result<Mount, String> {
        let made = File::create(image).and_then(|f| f.set_len(mib << 20));
        made.map_err(|e| e.to_string())?;
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(image))?;
        Mount::image(image, at)
    }

    /// Mounts a tmpfs of so many MiB.
    pub fn tmpfs(mib: u64, at: &Path) -> Result<Mount, String> {
        Mount::new(&["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"], at)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(e) = run(Command::new("umount").arg("--lazy").arg(&self.0)) {
            eprintln!("cannot unmount {}: {e}", self.0.display());
        }
    }
}

/// Copies an image as it stands: what the file system had handed to the device is in it, what was only in its page
/// cache is not, as when the power fails. (A drive that loses its own cache would do worse still.)
pub fn copy_image(image: &Path, copy: &Path) {
    run(Command::new("cp").arg("--sparse=always").arg(image).arg(copy)).unwrap();
}

fn run(command: &mut Command) -> Result<(), String> {
    let out = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    match out.status.success() {
        true => Ok(()),
        false => Err(format!(
            "{command:?}: {}",
            String::from_utf8_lossy(&out.stderr).trim()
        )),
    }
}

/// Starts this test binary once more with its `child` test alone. `variable` tells that one its folder.
pub fn spawn_child(variable: &str, folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "child",
            "--ignored",
            "--nocapture",
            "--test-threads",
            "1",
        ])
        .env(variable, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Says loudly that something is not tested here.
pub fn not_tested(what: &str, why: &str) {
    let line = "!".repeat(100);
    eprintln!("{line}\nNOT TESTED: {what}. This machine does not allow it: {why}\n{line}");
    // Past the harness, which keeps back what a passing test writes.
    if let Ok(mut tty) = fs::OpenOptions::new().write(true).open("/dev/stderr") {
        let _ = writeln!(tty, "NOT TESTED: {what}: {why}");
    }
}

/// Keeps the other tests of this binary away until it is dropped. A process that one of them starts holds, between fork
/// and exec, every lock that this process has, so a folder that was just closed cannot be opened for a moment.
pub fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
