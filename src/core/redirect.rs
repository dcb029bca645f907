//! Which redirects a request follows. Pure.
//!
//! A redirect is an answer: it says whether the request was taken. 307 and 308 say that it was not, and is to be
//! made again, as it is, at another address. 301 and 302 say the same of a GET; for anything else clients have made
//! a GET without a body of it ever since, whose 200 says nothing of the message. 303 says that the request was dealt
//! with, and where to read how.
//!
//! Each request to follow has a start slot and an intent of its own (I2, I5), so a redirect ends an attempt and is
//! never followed within one. Credentials, and what a record says, go to the address that the configuration names
//! and to no other, unless it names that too (decision 0008).

/// What is to be done with a redirect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The same request goes to the new address; certainly it was not taken at this one.
    Follow,
    /// The same, but it may have been taken: what is not answered with success there is in doubt.
    FollowUnsure,
    /// It is an answer as any other. Why, in words.
    Stay(&'static str),
}

/// What a redirect of this status means. `safe`: the method is GET or HEAD. `followed`: redirects that led here, of
/// which there may be `most`. `may_go`: whether the new address is of the same origin, or one that is named.
pub fn step(status: u16, safe: bool, followed: u32, most: u32, may_go: bool) -> Step {
    let follow = match status {
        301 | 307 | 308 if safe => Step::Follow,
        302 | 303 if safe => Step::FollowUnsure,
        307 | 308 => Step::Follow,
        301..=303 => return Step::Stay("only 307 and 308 keep the request as it is"),
        _ => return Step::Stay("it is none that can be followed"),
    };
    if followed >= most {
        return Step::Stay(if most == 0 {
            "redirects = 0"
        } else {
            "more redirects than `redirects` allows"
        });
    }
    if !may_go {
        return Step::Stay("it leads to another origin, which redirect_to does not name");
    }
    follow
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_followed() {
        let only = Step::Stay("only 307 and 308 keep the request as it is");
        for (status, post, get) in [
            (
                300,
                Step::Stay("it is none that can be followed"),
                Step::Stay("it is none that can be followed"),
            ),
            (301, only, Step::Follow),
            (302, only, Step::FollowUnsure),
            (303, only, Step::FollowUnsure),
            (
                304,
                Step::Stay("it is none that can be followed"),
                Step::Stay("it is none that can be followed"),
            ),
            (307, Step::Follow, Step::Follow),
            (308, Step::Follow, Step::Follow),
        ] {
            assert_eq!(step(status, false, 0, 1, true), post, "{status}");
            assert_eq!(step(status, true, 0, 1, true), get, "{status}");
        }
        assert_eq!(step(307, false, 0, 0, true), Step::Stay("redirects = 0"));
        assert_eq!(
            step(307, false, 2, 2, true),
            Step::Stay("more redirects than `redirects` allows")
        );
        assert_eq!(
            step(307, false, 0, 2, false),
            Step::Stay("it leads to another origin, which redirect_to does not name")
        );
    }
}
