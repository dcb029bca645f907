//! Places where a test makes an actor panic. In a program without tests there is nothing here.

/// Panics if a test has armed this place: kind of actor, and whose it is.
#[inline(always)]
pub fn point(kind: &'static str, name: &str) {
    #[cfg(test)]
    armed::pass(kind, name);
    #[cfg(not(test))]
    let _ = (kind, name);
}

/// Arming places.
#[cfg(test)]
pub mod armed {
    use parking_lot::Mutex;

    struct Fault {
        kind: &'static str,
        name: String,
        left: u64,
    }

    static FAULTS: Mutex<Vec<Fault>> = Mutex::new(Vec::new());

    /// The `nth` time (from 1) that this place is passed it panics, once.
    pub fn arm(kind: &'static str, name: &str, nth: u64) {
        FAULTS.lock().push(Fault {
            kind,
            name: name.to_owned(),
            left: nth,
        });
    }

    /// Faults of this name that have not come yet.
    pub fn left(name: &str) -> usize {
        FAULTS.lock().iter().filter(|f| f.name == name).count()
    }

    pub(super) fn pass(kind: &'static str, name: &str) {
        let mut faults = FAULTS.lock();
        let found = faults.iter_mut().position(|f| {
            let mine = f.kind == kind && f.name == name;
            f.left -= u64::from(mine);
            mine && f.left == 0
        });
        if let Some(i) = found {
            faults.swap_remove(i);
            drop(faults);
            panic!("a test made the {kind} of {name} panic");
        }
    }
}
