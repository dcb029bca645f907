//! What the other end of a TCP connection has acknowledged, as the kernel knows it.
//!
//! The only unsafe code of this project: no library that is kept well offers this question safely.

use tokio::net::TcpStream;

/// Bytes that the kernel took and the other end's machine has not acknowledged. `None` where the system cannot say.
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
#[allow(unsafe_code)]
pub(super) fn unacknowledged(stream: &TcpStream) -> Option<u64> {
    use rustix::ioctl::{Getter, Opcode, ioctl};
    // `TIOCOUTQ`, for sockets called `SIOCOUTQ` (tcp(7)); the same number on both machines.
    const SIOCOUTQ: Opcode = 0x5411;
    // SAFETY: for a TCP socket this request writes one `int`, the size of the send queue, and changes nothing. The
    // descriptor is borrowed from a stream that lives through the call.
    let queued: i32 = unsafe { ioctl(stream, Getter::<SIOCOUTQ, i32>::new()) }.ok()?;
    u64::try_from(queued).ok()
}

/// Nothing is known here, so that nothing speaks against an answer.
#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
pub(super) fn unacknowledged(_: &TcpStream) -> Option<u64> {
    None
}

#[cfg(all(
    test,
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
mod tests {
    use super::*;
    use std::io::Read;

    /// What does not fit into the other end's buffers is not acknowledged until it is read there.
    #[test]
    fn what_the_other_end_has_no_room_for_is_not_acknowledged() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (mut server, _) = listener.accept().unwrap();
            assert_eq!(unacknowledged(&client), Some(0));
            let (mut written, piece) = (0, [0; 64 * 1024]);
            client.writable().await.unwrap();
            while let Ok(n) = client.try_write(&piece) {
                written += n;
            }
            let held = unacknowledged(&client).unwrap();
            assert!((1..=written as u64).contains(&held), "{held} of {written}");
            let mut left = written;
            while left > 0 {
                left -= server.read(&mut vec![0; left]).unwrap();
            }
            crate::patience::until("all is acknowledged", || unacknowledged(&client) == Some(0));
        });
    }
}
