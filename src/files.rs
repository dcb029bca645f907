//! Creates the files and folders below `node.data`. Everything there holds what records hold, so only the owner may
//! read it: files are 0600, folders 0700 (I9). sled makes its files itself; its folder closes them.
//!
//! A folder that others can enter comes from an older version, or from another hand: [`tighten`] closes it at start. A
//! folder that is open to its group only was opened on purpose (a backup, say), and stays.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

const FILE: u32 = 0o600;
const FOLDER: u32 = 0o700;
/// Permissions of everybody but owner and group.
const OTHERS: u32 = 0o007;

/// Options that create for the owner alone, if they create.
pub fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(FILE);
    options
}

/// As [`File::create`].
///
/// # Errors
/// What the system says.
pub fn create(path: &Path) -> io::Result<File> {
    options().write(true).create(true).truncate(true).open(path)
}

/// As [`std::fs::write`].
///
/// # Errors
/// What the system says.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    create(path)?.write_all(bytes)
}

/// Makes a folder and those above it that are missing, and syncs what names them: a folder that was made before a
/// power cut is there after it.
///
/// # Errors
/// What the system says.
pub fn folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let above = match path.parent() {
        Some(above) if !above.as_os_str().is_empty() => above,
        _ => Path::new("."),
    };
    folder(above)?;
    match DirBuilder::new().mode(FOLDER).create(path) {
        // Another thread was faster.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => return Ok(()),
        made => made?,
    }
    File::open(above)?.sync_all()
}

/// Closes folders that everybody can enter; answers which it has closed. What is not there is left alone.
///
/// # Errors
/// The folder whose permissions cannot be read or changed, and why.
pub fn tighten(folders: &[PathBuf]) -> Result<Vec<&Path>, (&Path, io::Error)> {
    let mut closed = Vec::new();
    for path in folders {
        match close(path) {
            Ok(true) => closed.push(path.as_path()),
            Ok(false) => {}
            Err(e) => return Err((path, e)),
        }
    }
    Ok(closed)
}

fn close(path: &Path) -> io::Result<bool> {
    let mode = match path.metadata() {
        Ok(found) if found.is_dir() => found.permissions().mode(),
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => return Ok(false),
    };
    let open = mode & OTHERS != 0;
    if open {
        std::fs::set_permissions(path, Permissions::from_mode(FOLDER))?;
    }
    Ok(open)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().expect("there").permissions().mode() & 0o777
    }

    #[test]
    fn what_is_made_is_for_its_owner_and_what_is_open_to_all_is_closed() {
        let dir = tempfile::tempdir().expect("folder");
        let deep = dir.path().join("a/b/c");
        folder(&deep).expect("made");
        folder(&deep).expect("there already");
        let file = deep.join("f");
        write(&file, b"x").expect("written");
        assert_eq!(
            (mode(&deep), mode(&dir.path().join("a")), mode(&file)),
            (0o700, 0o700, 0o600)
        );
        assert!(folder(&file).is_err(), "a file is no folder");

        let set =
            |path: &Path, mode| std::fs::set_permissions(path, Permissions::from_mode(mode)).expect("set");
        let (open, group) = (dir.path().join("a"), dir.path().join("a/b"));
        set(&open, 0o755);
        set(&group, 0o750);
        let all = [
            open.clone(),
            group.clone(),
            dir.path().join("absent"),
            deep.clone(),
        ];
        assert_eq!(tighten(&all).expect("closed"), [open.as_path()]);
        assert_eq!((mode(&open), mode(&group)), (0o700, 0o750));
    }
}
