//! Which address an endpoint sees, in a network namespace of the test's own that has all the addresses.
//!
//! Needs root and `ip`. Without root the tests say so and pass, unless `WHARF_REQUIRE_ENGINE` is `1`.

#![expect(clippy::print_stderr, reason = "a skipped test says so")]

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4},
    process::Command,
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, unshare};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, UdpSocket},
    time::timeout,
};
use wharf_gateway::{Gateway, GatewayOptions};
use wharf_model::{AppKey, Endpoint, Protocol, Revision, Route, RouteTable, ServiceKey, TaskId};
use wharf_process::{Shutdown, Tasks};

const SOON: Duration = Duration::from_secs(10);
const GATEWAY: u16 = 8080;
const TASK: u16 = 7000;
const TASK4: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const TASK6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0x0a09, 2);
const CLIENT4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);

/// Runs `test` on a thread of a namespace with everybody's addresses.
fn in_a_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    if !nix::unistd::geteuid().is_root() {
        let required = std::env::var_os("WHARF_REQUIRE_ENGINE").is_some_and(|value| value == "1");
        assert!(!required, "this needs root");
        eprintln!("skipped: needs root");
        return;
    }
    let work = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root may");
        ip("link set lo up");
        for address in [IpAddr::from(TASK4), CLIENT4.into()] {
            ip(&format!("addr add {address}/32 dev lo"));
        }
        for address in [IpAddr::from(TASK6), CLIENT6.into()] {
            ip(&format!("addr add {address}/128 dev lo nodad"));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async { timeout(SOON * 3, test()).await.expect("it ends") });
    };
    if let Err(panic) = thread::scope(|scope| scope.spawn(work).join()) {
        std::panic::resume_unwind(panic);
    }
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("`ip` is installed");
    assert!(status.success(), "ip {arguments}");
}

/// A gateway with one route, to a task that answers clients at both its addresses whether or not it listens there.
async fn gateway(protocol: Protocol) -> (Gateway, Tasks) {
    let tasks = Tasks::new(&Shutdown::new());
    let gateway = Gateway::new(GatewayOptions::default(), &tasks);
    let app = AppKey { environment: "prod".parse().expect("a name"), name: "shop".parse().expect("a name") };
    let task = Endpoint::new(TaskId::from_parts(1, [1; 10]), SocketAddrV4::new(TASK4, TASK));
    let route = Route {
        service: ServiceKey { app, name: "web".parse().expect("a name") },
        port: GATEWAY,
        protocol,
        host_ip: None,
        endpoints: vec![Endpoint { keeps_client: true, keeps_client6: Some(TASK6), ..task }],
    };
    gateway.apply(&RouteTable::of_ports(Revision(1), vec![route])).await;
    assert_eq!(gateway.problems(), [""; 0]);
    (gateway, tasks)
}

/// A task that says whom it sees, at these addresses.
async fn listen(tasks: &Tasks, protocol: Protocol, addresses: impl IntoIterator<Item = IpAddr>) {
    for address in addresses {
        match protocol {
            Protocol::Tcp => {
                let listener = TcpListener::bind((address, TASK)).await.expect("nothing else listens");
                tasks.spawn("task", async move {
                    while let Ok((mut stream, from)) = listener.accept().await {
                        let _ = stream.write_all(from.ip().to_string().as_bytes()).await;
                    }
                });
            }
            Protocol::Udp => {
                let socket = UdpSocket::bind((address, TASK)).await.expect("nothing else listens");
                tasks.spawn("task", async move {
                    let mut buffer = [0; 2000];
                    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                        let said = String::from_utf8_lossy(&buffer[..length]).into_owned();
                        let _ = socket.send_to(format!("{said} {}", from.ip()).as_bytes(), from).await;
                    }
                });
            }
        }
    }
}

/// Where a client of this address finds the gateway.
fn at_gateway(client: IpAddr) -> SocketAddr {
    let loopback: IpAddr =
        if client.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    SocketAddr::new(loopback, GATEWAY)
}

/// Whom the task sees when this client calls.
async fn seen(client: impl Into<IpAddr>) -> String {
    let client = client.into();
    let socket = if client.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.expect("a socket");
    socket.bind(SocketAddr::new(client, 0)).expect("it is there");
    let mut text = String::new();
    let answer = async {
        let mut stream = socket.connect(at_gateway(client)).await?;
        stream.read_to_string(&mut text).await
    };
    timeout(SOON, answer).await.expect("in time").expect("an answer");
    text
}

/// What comes back to a client that says all this without waiting for an answer.
async fn answers(client: impl Into<IpAddr>, said: &[&str]) -> Vec<String> {
    let client = client.into();
    let socket = UdpSocket::bind(SocketAddr::new(client, 0)).await.expect("it is there");
    for text in said {
        socket.send_to(text.as_bytes(), at_gateway(client)).await.expect("the port is open");
    }
    let mut answers = Vec::new();
    for _ in said {
        let mut buffer = [0; 2000];
        // From whichever of the machine's addresses, which are all here.
        let answer = timeout(SOON, socket.recv_from(&mut buffer)).await.expect("in time");
        let (length, _) = answer.expect("an answer");
        answers.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
    }
    answers
}

const BOTH: [IpAddr; 2] = [IpAddr::V4(TASK4), IpAddr::V6(TASK6)];

#[test]
fn a_task_sees_clients_of_both_families_where_it_listens_on_both() {
    in_a_namespace(|| async {
        let (gateway, tasks) = gateway(Protocol::Tcp).await;
        listen(&tasks, Protocol::Tcp, BOTH).await;
        assert_eq!(seen(CLIENT4).await, CLIENT4.to_string());
        assert_eq!(seen(CLIENT6).await, CLIENT6.to_string());
        assert_eq!(seen(Ipv6Addr::LOCALHOST).await, TASK4.to_string(), "a connection of the gateway's own");
        assert_eq!(gateway.problems(), [""; 0]);
    });
}

#[test]
fn a_task_that_listens_on_ipv4_alone_serves_clients_with_ipv6_addresses_as_well() {
    in_a_namespace(|| async {
        let (gateway, tasks) = gateway(Protocol::Tcp).await;
        listen(&tasks, Protocol::Tcp, [TASK4.into()]).await;
        for _ in 0..2 {
            assert_eq!(seen(CLIENT6).await, TASK4.to_string());
            assert_eq!(seen(CLIENT4).await, CLIENT4.to_string());
        }
        assert_eq!(gateway.problems(), [""; 0], "it may");
    });
}

#[test]
fn datagrams_of_clients_with_ipv6_addresses_show_who_sent_them() {
    in_a_namespace(|| async {
        let (_gateway, tasks) = gateway(Protocol::Udp).await;
        listen(&tasks, Protocol::Udp, BOTH).await;
        assert_eq!(answers(CLIENT6, &["a", "b"]).await, ["a", "b"].map(|said| format!("{said} {CLIENT6}")));
        assert_eq!(answers(CLIENT4, &["a"]).await, [format!("a {CLIENT4}")]);
    });
}

#[test]
fn no_datagram_is_lost_on_a_task_that_listens_on_ipv4_alone() {
    in_a_namespace(|| async {
        let (gateway, tasks) = gateway(Protocol::Udp).await;
        listen(&tasks, Protocol::Udp, [TASK4.into()]).await;
        for _ in 0..2 {
            let mut answers = answers(CLIENT6, &["a", "b", "c"]).await;
            answers.sort_unstable();
            assert_eq!(answers, ["a", "b", "c"].map(|said| format!("{said} {TASK4}")));
        }
        assert_eq!(gateway.problems(), [""; 0], "it may");
    });
}
