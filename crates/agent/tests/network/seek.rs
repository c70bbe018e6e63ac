//! Machines that the kernel has lost.

use std::{net::UdpSocket, time::Duration};

use wharf_agent::network::Seeker;

use super::*;

/// Two machines on a wire; the first waits a minute before it asks a second time who has an address.
fn two() -> (Namespace, Namespace) {
    let (one, two) = (Namespace::new("one"), Namespace::new("two"));
    ip(&format!("link add wire netns {} type veth peer name wire netns {}", one.name, two.name));
    for (namespace, number) in [(&one, 1), (&two, 2)] {
        namespace.ip(&format!("addr add 10.9.0.{number}/24 dev wire"));
        namespace.ip(&format!("addr add fd09::{number}/64 dev wire nodad"));
        namespace.ip("link set wire up");
    }
    for family in ["ipv4", "ipv6"] {
        let set = format!("/proc/sys/net/{family}/neigh/wire/retrans_time_ms");
        one.run(move || std::fs::write(set, "60000")).join().expect("it ends").expect("it can be set");
    }
    (one, two)
}

#[test]
fn a_machine_that_is_back_is_found_before_the_kernel_asks_again() {
    if !can_run() {
        return;
    }
    let (one, two) = two();
    for (to, all, length) in [("10.9.0.2", "0.0.0.0", 24), ("fd09::2", "::", 64)] {
        let (to, all): (IpAddr, IpAddr) = (to.parse().unwrap(), all.parse().unwrap());
        let seek = move || Seeker::open().unwrap().seek(to).unwrap();
        assert!(!one.run(seek).join().unwrap(), "nobody wants to know where it is");

        two.ip(&format!("addr del {to}/{length} dev wire"));
        let hear = two.run(move || UdpSocket::bind((all, PORT))).join().unwrap().unwrap();
        hear.set_read_timeout(Some(SOON)).unwrap();
        let said = one.run(move || -> io::Result<UdpSocket> {
            let socket = UdpSocket::bind((all, 0))?;
            socket.send_to(b"hello", (to, PORT))?;
            Ok(socket)
        });
        let socket = said.join().unwrap().unwrap();
        let state = || one.ip(&format!("neigh show {to} dev wire"));
        assert!(state().contains("INCOMPLETE"), "{}", state());
        assert!(one.run(seek).join().unwrap());
        std::thread::sleep(Duration::from_millis(50));
        assert!(state().contains("INCOMPLETE"), "it is still away: {}", state());

        two.ip(&format!("addr add {to}/{length} dev wire{}", if to.is_ipv6() { " nodad" } else { "" }));
        assert!(one.run(seek).join().unwrap());
        eventually(&true, || state().contains("REACHABLE"));
        let mut heard = [0; 16];
        let (length, _) = hear.recv_from(&mut heard).expect("what was kept for it is sent");
        assert_eq!(&heard[..length], b"hello");
        assert!(!one.run(seek).join().unwrap(), "it is known");
        drop(socket);
    }
}
