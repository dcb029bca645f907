//! The one place that writes, syncs and allocates: so that tests can make any step fail, or stop the disk there.

use super::wire::align8;
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A step that touches the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Bytes are written inside preallocated room.
    Write,
    /// Those bytes are made durable.
    Sync,
    /// Room for a segment is taken.
    Allocate,
    /// The file system is asked for that room at once.
    Fallocate,
}

/// What a test lets happen instead of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The system refuses with this error number.
    Error(i32),
    /// The power fails: of a write at most so many bytes arrive, and no later step does anything.
    Cut(usize),
    /// A sync is taken for done; any other step happens. For tests that find the files in the page cache all the same: where a
    /// sync takes 50 ms, the thousands that they make take an hour.
    Unsynced,
}

/// Asked before each step, with the step's number since opening; `None` lets it happen.
pub type FaultHook = Arc<dyn Fn(Step, u64) -> Option<Fault> + Send + Sync>;

/// Bytes of zeros that are written at once while a spare is prepared.
const PIECE: usize = 128 * 1024;

/// Files through which faults can be led.
#[derive(Clone, Default)]
pub(super) struct Disk {
    hook: Option<FaultHook>,
    steps: Arc<AtomicU64>,
    dead: Arc<AtomicBool>,
}

impl Disk {
    pub(super) fn new(hook: Option<FaultHook>) -> Self {
        Self {
            hook,
            ..Self::default()
        }
    }

    fn fault(&self, step: Step) -> Option<Fault> {
        let hook = self.hook.as_ref()?;
        if self.dead.load(Ordering::Acquire) {
            return Some(Fault::Cut(0));
        }
        let fault = hook(step, self.steps.fetch_add(1, Ordering::AcqRel));
        if matches!(fault, Some(Fault::Cut(_))) {
            self.dead.store(true, Ordering::Release);
        }
        fault.filter(|fault| *fault != Fault::Unsynced || step == Step::Sync)
    }

    fn refused(fault: Fault) -> io::Error {
        match fault {
            Fault::Error(number) => io::Error::from_raw_os_error(number),
            Fault::Cut(_) => io::Error::other("the power was cut"),
            Fault::Unsynced => io::Error::other("nothing was synced"),
        }
    }

    pub(super) fn write(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        match self.fault(Step::Write) {
            None => file.write_all_at(bytes, at),
            Some(fault) => {
                if let Fault::Cut(n) = fault {
                    file.write_all_at(&bytes[..n.min(bytes.len())], at)?;
                }
                Err(Self::refused(fault))
            }
        }
    }

    pub(super) fn sync(&self, file: &File) -> io::Result<()> {
        match self.fault(Step::Sync) {
            None => file.sync_data(),
            Some(Fault::Unsynced) => Ok(()),
            Some(fault) => Err(Self::refused(fault)),
        }
    }

    /// A new file of `size` bytes whose room is taken, under its final name, durably. The first `zeroed` bytes
    /// are written as well: a sync of written blocks costs less than half of one into merely allocated ones.
    /// `pace` is called between pieces; it may sleep, and gives up by returning false.
    pub(super) fn allocate(
        &self,
        path: &Path,
        size: u64,
        zeroed: u64,
        mut pace: impl FnMut(usize) -> bool,
    ) -> io::Result<Option<File>> {
        if let Some(fault) = self.fault(Step::Allocate) {
            return Err(Self::refused(fault));
        }
        let temporary = path.with_extension("new");
        let made = (|| {
            let file = crate::files::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(&temporary)?;
            let at_once = match self.fault(Step::Fallocate) {
                Some(fault) => Err(Self::refused(fault)),
                None => fallocate(&file, FallocateFlags::empty(), 0, size).map_err(io::Error::from),
            };
            match at_once {
                Ok(()) => {}
                Err(e) if cannot(&e) => _ = fill(&file, size, &mut |_| true)?,
                Err(e) => return Err(e),
            }
            if !fill(&file, zeroed.min(size), &mut pace)? {
                return Ok(None);
            }
            file.sync_all()?;
            std::fs::rename(&temporary, path)?;
            sync_folder(path)?;
            Ok(Some(file))
        })();
        if !matches!(made, Ok(Some(_))) {
            // What is left takes room that others may need; where even this fails, opening removes it.
            let _ = std::fs::remove_file(&temporary);
        }
        made
    }
}

/// Whether a file system, or what stands in front of it, does not know how to take room at once: there, only writing
/// takes it. EINVAL is what some answer to a call they do not know, ENOSYS what an old kernel or a filter of calls does.
fn cannot(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let these = [Errno::OPNOTSUPP, Errno::NOSYS, Errno::INVAL];
    Errno::from_io_error(error).is_some_and(|errno| these.contains(&errno))
}

/// Writes zeros in small pieces, each made durable at once: a large dirty file would make the next commit wait.
fn fill(file: &File, size: u64, pace: &mut dyn FnMut(usize) -> bool) -> io::Result<bool> {
    let zeros = vec![0u8; PIECE];
    let mut at = 0;
    while at < size {
        let n = (size - at).min(PIECE as u64) as usize;
        file.write_all_at(&zeros[..n], at)?;
        at += n as u64;
        if at.is_multiple_of(8 * PIECE as u64) {
            file.sync_data()?;
        }
        if !pace(n) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Makes a file's name durable.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Reads exactly `n` bytes into `out`, or as many as the file has.
pub(super) fn read_at(file: &File, at: u64, n: usize, out: &mut Vec<u8>) -> io::Result<()> {
    out.resize(n, 0);
    let got = read_into(file, at, out)?;
    out.truncate(got);
    Ok(())
}

/// Fills `out`, or as much of it as the file has; how much that was.
pub(super) fn read_into(file: &File, at: u64, out: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < out.len() {
        match file.read_at(&mut out[got..], at + got as u64) {
            Ok(0) => break,
            Ok(k) => got += k,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(got)
}

/// The file of a slot.
pub(super) fn slot_path(dir: &Path, slot: u32) -> PathBuf {
    dir.join(format!("seg-{slot:06}.log"))
}

/// The slot that a file name stands for.
pub(super) fn slot_of(name: &str) -> Option<u32> {
    name.strip_prefix("seg-")?.strip_suffix(".log")?.parse().ok()
}

/// Writes a small file anew: a reader sees the old or the new one, never half of it.
pub(super) fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    crate::files::write(&temporary, bytes)?;
    File::open(&temporary)?.sync_all()?;
    std::fs::rename(&temporary, path)?;
    sync_folder(path)
}

/// First place for a frame behind `n` bytes of header and catalogue.
pub(super) const fn after(n: usize) -> u64 {
    align8(n as u64)
}
