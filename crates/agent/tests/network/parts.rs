//! Answers that are larger than what the network takes at once.

use hickory_proto::op::Edns;
use wharf_agent::dns::{Listen, Responder};

use super::*;

/// Names with as many addresses as they say, and a name of the world.
fn table() -> DnsTable {
    let id = NetworkId::from_parts(1, [1; 10]);
    let addresses = |count: u8| (1..=count).map(|last| Ipv4Addr::new(10, 0, 0, last)).collect();
    let names = [("few".to_owned(), addresses(3)), ("many".to_owned(), addresses(60))];
    DnsTable { version: Revision(1), networks: [(id, names.into())].into(), ..DnsTable::default() }
}

/// Asks for a name's addresses by UDP, from somebody who takes large answers: whether it was cut, and how many there were.
fn by_udp(at: SocketAddr, name: &str) -> (bool, usize) {
    let mut message = Message::new(99, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("a name"), RecordType::A));
    let mut extended = Edns::new();
    extended.set_max_payload(1232);
    message.set_edns(extended);
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("there is a port");
    socket.set_read_timeout(Some(SOON)).expect("it can be set");
    socket.send_to(&message.to_vec().expect("it encodes"), at).expect("it is sent");
    let mut reply = [0; 4096];
    let (length, _) = socket.recv_from(&mut reply).expect("an answer comes");
    let reply = Message::from_vec(&reply[..length]).expect("it can be read");
    assert_eq!((reply.metadata.id, reply.metadata.response_code), (99, ResponseCode::NoError));
    assert_eq!(reply.queries, message.queries);
    (reply.metadata.truncation, reply.answers.len())
}

#[test]
fn an_answer_that_would_go_in_parts_is_cut_instead() {
    if !can_run() {
        return;
    }
    let namespace = Namespace::new("parts");
    let served = |mtu: u32| {
        namespace.ip(&format!("link set lo mtu {mtu}"));
        let serve = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("it starts").block_on(async {
                let id = NetworkId::from_parts(1, [1; 10]);
                let at = SocketAddr::from((Ipv4Addr::LOCALHOST, 53));
                let tasks = Tasks::new(&Shutdown::new());
                // Its upstream is another that knows everything.
                let world = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), 53));
                let subnet = "127.0.0.0/8".parse().expect("a subnet");
                let responder = Responder::new(Upstreams::Fixed(vec![world]), &tasks);
                let upstream = Responder::new(Upstreams::Fixed(Vec::new()), &tasks);
                let mut known = table();
                for names in known.networks.values_mut() {
                    let many = names["many"].clone();
                    names.insert("many.example".to_owned(), many);
                }
                responder.publish(&table(), &Sources::new());
                upstream.publish(&known, &Sources::new());
                for (responder, address) in [(&responder, at), (&upstream, world)] {
                    responder.listen(&BTreeMap::from([(id, Listen { address, subnet })])).await;
                    assert_eq!(responder.problems(), [""; 0]);
                }
                let asked = tokio::task::spawn_blocking(move || {
                    ["few.", "many.", "few.", "many.example.", "many.example."].map(|name| by_udp(at, name))
                });
                asked.await.expect("all are answered")
            })
        };
        namespace.run(serve).join().expect("it ends")
    };
    assert_eq!(served(1500), [(false, 3), (false, 60), (false, 3), (false, 60), (false, 60)]);
    assert_eq!(served(600), [(false, 3), (true, 0), (false, 3), (true, 0), (true, 0)]);
}
