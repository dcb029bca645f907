//! Reading single entries: what a message was, where the fold says that it lies.

use super::*;

#[test]
fn payloads_and_keys_are_read_where_the_fold_says() {
    let log = lane();
    let waiting = log.say(Body::Waiting(Waiting {
        at: AT,
        id: id(2),
        offset: 2,
        round: 1,
        attempts: 1,
        when: Time(1),
        not_before: Time(2),
        kept: kept("waiting"),
    }));
    log.say(Body::Opened(Opened {
        at: AT,
        id: id(1),
        round: 2,
        when: Time(3),
        idempotency_key: "k-2".into(),
    }));
    let (state, ..) = folded(&log, log.next());
    let message = |n: u64| state.partitions[&AT].messages.get(&id(n)).unwrap();
    for (n, value) in [(1, "dead"), (3, "parked"), (2, "waiting")] {
        let (at, size) = message(n).payload.unwrap();
        let read = payload::kept(&log, LANE, at).unwrap();
        assert_eq!(
            (read.id, &*read.kept.value, read.offset),
            (id(n), value.as_bytes(), n)
        );
        let headers = Headers::encode([("a", &b"1"[..])]);
        assert_eq!(size as usize, value.len() + headers.0.len());
        // Also where it was carried to.
        let entry = payload::entry(&log, LANE, at).unwrap();
        let moved = log.say(entry.carry(at));
        assert_eq!(payload::kept(&log, LANE, moved).unwrap(), read);
    }
    assert_eq!(
        payload::idempotency_key(&log, LANE, message(1).opened).unwrap(),
        "k-2"
    );
    assert!(matches!(
        payload::kept(&log, LANE, 1),
        Err(PayloadError::Other {
            at: 1,
            what: "payload"
        })
    ));
    assert!(matches!(
        payload::idempotency_key(&log, LANE, waiting),
        Err(PayloadError::Other { .. })
    ));
    assert!(matches!(
        payload::kept(&log, LANE, log.next()),
        Err(PayloadError::Missing { .. })
    ));
    *log.first.lock() = 5;
    assert!(matches!(
        payload::kept(&log, LANE, 1),
        Err(PayloadError::Log { .. })
    ));
    let garbage = log.put(vec![1, kind::INTENT]);
    assert!(matches!(
        payload::kept(&log, LANE, garbage),
        Err(PayloadError::Damaged { .. })
    ));
}
