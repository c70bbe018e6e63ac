//! What is answered, decided without sockets, and the same over loopback sockets with upstream resolvers of the test's own.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::A},
};
use ipnet::Ipv4Net;
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};
use wharf_model::{DnsTable, NetworkId, Revision};
use wharf_process::{Shutdown, Tasks};

use super::{
    Listen, Responder, Sources, Upstreams,
    answer::{Answer, Asker, Transport, answer},
    zone::Zone,
};

const SOON: Duration = Duration::from_secs(5);

fn network(number: u8) -> NetworkId {
    NetworkId::from_parts(1, [number; 10])
}

fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 192, 0, last)
}

fn table(names: &[(u8, &str, &[Ipv4Addr])]) -> DnsTable {
    let mut networks: BTreeMap<NetworkId, BTreeMap<String, Vec<Ipv4Addr>>> = BTreeMap::new();
    for (number, name, addresses) in names {
        networks.entry(network(*number)).or_default().insert((*name).to_owned(), addresses.to_vec());
    }
    DnsTable { version: Revision(7), networks, ..DnsTable::default() }
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

/// The answer to a container without a task, on network 1.
fn ask(zone: &Zone, message: &Message) -> Answer {
    ask_from(zone, message, address(200), Transport::Udp)
}

fn ask_from(zone: &Zone, message: &Message, from: Ipv4Addr, transport: Transport) -> Answer {
    let asker = Asker { address: from, network: network(1) };
    let ours = ["10.192.0.0/20".parse().unwrap()];
    answer(&message.to_vec().unwrap(), asker, transport, zone, &ours, 0)
}

fn sent(answer: Answer) -> Message {
    match answer {
        Answer::Send(bytes) => Message::from_vec(&bytes).unwrap(),
        other => panic!("an answer, not {other:?}"),
    }
}

fn addresses(reply: &Message) -> Vec<Ipv4Addr> {
    let address = |record: &Record| match &record.data {
        RData::A(A(address)) => Some(*address),
        _ => None,
    };
    reply.answers.iter().filter_map(address).collect()
}

#[test]
fn a_name_is_found_in_any_case_and_its_answer_is_short_lived() {
    let zone = Zone::new(&table(&[(1, "db", &[address(5)])]), &Sources::new());
    let reply = sent(ask(&zone, &query("DB.", RecordType::A)));
    assert_eq!(addresses(&reply), [address(5)]);
    assert_eq!(reply.metadata.id, 4711);
    assert!(reply.metadata.authoritative && reply.metadata.recursion_available);
    assert!(reply.answers[0].ttl <= 5);
    assert_eq!(reply.queries[0].name().to_ascii(), "DB.", "the question comes back as it was asked");
}

#[test]
fn a_known_name_has_no_other_records_and_an_unknown_one_does_not_exist() {
    let zone = Zone::new(&table(&[(1, "db", &[address(5)])]), &Sources::new());
    let none = sent(ask(&zone, &query("db.", RecordType::AAAA)));
    assert_eq!((none.metadata.response_code, none.answers.len()), (ResponseCode::NoError, 0));
    assert_eq!(none.authorities[0].record_type(), RecordType::SOA);
    let unknown = sent(ask(&zone, &query("dbx.", RecordType::A)));
    assert_eq!(unknown.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(unknown.authorities[0].record_type(), RecordType::SOA);
}

#[test]
fn names_with_dots_are_ours_if_the_table_has_them_and_the_worlds_otherwise() {
    let zone = Zone::new(&table(&[(1, "tasks.db", &[address(5)])]), &Sources::new());
    assert_eq!(addresses(&sent(ask(&zone, &query("tasks.db.", RecordType::A)))), [address(5)]);
    assert!(matches!(ask(&zone, &query("example.org.", RecordType::A)), Answer::Forward(_)));
}

#[test]
fn a_task_sees_the_names_of_its_networks_in_their_order_and_no_others() {
    let table = table(&[
        (1, "db", &[address(5)]),
        (2, "db", &[address(6)]),
        (2, "cache", &[address(7)]),
        (3, "secret", &[address(8)]),
    ]);
    let sources = Sources::from([(address(50), vec![network(2), network(1)])]);
    let zone = Zone::new(&table, &sources);
    let a = |from, name: &str| sent(ask_from(&zone, &query(name, RecordType::A), from, Transport::Udp));
    assert_eq!(addresses(&a(address(50), "db.")), [address(6)]);
    assert_eq!(addresses(&a(address(50), "cache.")), [address(7)]);
    assert_eq!(addresses(&a(address(51), "db.")), [address(5)], "no task: the network it asked on");
    assert_eq!(a(address(51), "cache.").metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(a(address(50), "secret.").metadata.response_code, ResponseCode::NXDomain);
}

#[test]
fn an_address_is_called_by_its_most_specific_name() {
    let table = table(&[
        (1, "a-service-of-the-shop", &[address(5), address(6)]),
        (1, "alias", &[address(5)]),
        (1, "shop-web-1", &[address(5)]),
    ]);
    let zone = Zone::new(&table, &Sources::new());
    let reply = sent(ask(&zone, &query("5.0.192.10.in-addr.arpa.", RecordType::PTR)));
    assert_eq!(reply.answers[0].data.to_string(), "shop-web-1.");
    let unknown = sent(ask(&zone, &query("9.0.192.10.in-addr.arpa.", RecordType::PTR)));
    assert_eq!(unknown.metadata.response_code, ResponseCode::NXDomain, "nobody else can know it");
    assert!(matches!(ask(&zone, &query("8.8.8.8.in-addr.arpa.", RecordType::PTR)), Answer::Forward(_)));
}

#[test]
fn what_is_no_question_of_ours_is_refused_in_dns() {
    let zone = Zone::default();
    let code = |message: &Message| sent(ask(&zone, message)).metadata.response_code;
    let mut notify = query("db.", RecordType::A);
    notify.metadata.op_code = OpCode::Notify;
    assert_eq!(code(&notify), ResponseCode::NotImp);
    let mut two = query("db.", RecordType::A);
    two.add_query(Query::query(Name::from_ascii("b.").unwrap(), RecordType::A));
    assert_eq!(code(&two), ResponseCode::FormErr);
    let mut newer = query("db.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_version(1);
    newer.set_edns(edns);
    assert_eq!(u16::from(code(&newer)), 16, "BADVERS, whose number is BADSIG's as well");
    let mut reply = query("db.", RecordType::A);
    reply.metadata.message_type = MessageType::Response;
    assert!(matches!(ask(&zone, &reply), Answer::Nothing), "answering an answer could go on for ever");
}

fn many(count: u8) -> Vec<Ipv4Addr> {
    (0..count).map(address).collect()
}

#[test]
fn an_answer_too_long_for_udp_says_so_and_is_whole_by_tcp() {
    let zone = Zone::new(&table(&[(1, "web", &many(200))]), &Sources::new());
    let plain = query("web.", RecordType::A);
    let Answer::Send(bytes) = ask(&zone, &plain) else { panic!("an answer") };
    let reply = Message::from_vec(&bytes).unwrap();
    assert!(bytes.len() <= 512 && reply.metadata.truncation);
    assert!(addresses(&reply).len() >= 25, "as many as fit: {}", addresses(&reply).len());

    let mut extended = plain.clone();
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    extended.set_edns(edns);
    let Answer::Send(bytes) = ask(&zone, &extended) else { panic!("an answer") };
    assert!(bytes.len() > 512 && bytes.len() <= 1232, "{}", bytes.len());
    assert!(Message::from_vec(&bytes).unwrap().edns.is_some());

    let whole = sent(ask_from(&zone, &plain, address(1), Transport::Tcp));
    assert_eq!(addresses(&whole), many(200));
    assert!(!whole.metadata.truncation);
}

#[test]
fn an_answer_whose_records_differ_in_length_is_cut_to_fit_as_well() {
    let request = query("web.", RecordType::A);
    let mut reply = super::answer::failure(&request, ResponseCode::NoError);
    for number in 0..40 {
        // The long ones come first.
        let name =
            if number < 10 { format!("{}.example.", "x".repeat(60 - number)) } else { "web.".to_owned() };
        let data = RData::A(A(address(1)));
        reply.add_answer(Record::from_rdata(Name::from_ascii(name).unwrap(), 5, data));
    }
    let bytes = super::answer::encode(&reply, Transport::Udp, &request).unwrap();
    let cut = Message::from_vec(&bytes).unwrap();
    assert!(bytes.len() <= 512 && cut.metadata.truncation && !cut.answers.is_empty());
}

proptest! {
    #[test]
    fn every_address_is_first_as_often_as_every_other(count in 1_u8..60) {
        let zone = Zone::new(&table(&[(1, "web", &many(count))]), &Sources::new());
        let bytes = query("web.", RecordType::A).to_vec().unwrap();
        let asker = Asker { address: address(250), network: network(1) };
        let mut first: Vec<Ipv4Addr> = (0..usize::from(count))
            .map(|turn| addresses(&sent(answer(&bytes, asker, Transport::Tcp, &zone, &[], turn)))[0])
            .collect();
        first.sort();
        prop_assert_eq!(first, many(count));
    }

    #[test]
    fn nothing_that_comes_in_is_a_panic_and_no_answer_is_too_long(
        bytes in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        let zone = Zone::new(&table(&[(1, "web", &many(200))]), &Sources::new());
        let asker = Asker { address: address(250), network: network(1) };
        if let Answer::Send(reply) = answer(&bytes, asker, Transport::Udp, &zone, &[], 3) {
            prop_assert!(reply.len() <= 1232);
            prop_assert_eq!(&reply[..2], &bytes[..2], "it carries the question's identifier");
        }
    }
}

/// A responder on loopback, with the upstream resolvers of a test.
struct Fixture {
    responder: Responder,
    at: SocketAddr,
    _tasks: Tasks,
}

async fn responder(upstreams: Vec<SocketAddr>) -> Fixture {
    let tasks = Tasks::new(&Shutdown::new());
    let responder = Responder::new(Upstreams::Fixed(upstreams), &tasks);
    let at = free_address().await;
    let subnet: Ipv4Net = "127.0.0.0/8".parse().unwrap();
    responder.listen(&BTreeMap::from([(network(1), Listen { address: at, subnet })])).await;
    assert_eq!(responder.problems(), [""; 0]);
    Fixture { responder, at, _tasks: tasks }
}

async fn free_address() -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    socket.local_addr().unwrap()
}

async fn by_udp(at: SocketAddr, message: &Message) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&message.to_vec().unwrap(), at).await.unwrap();
    let mut buffer = [0; 4096];
    let (length, _) = timeout(SOON * 2, socket.recv_from(&mut buffer)).await.unwrap().unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

async fn by_tcp(at: SocketAddr, messages: &[Message]) -> Vec<Message> {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let mut replies = Vec::new();
    for message in messages {
        let bytes = message.to_vec().unwrap();
        stream.write_u16(bytes.len().try_into().unwrap()).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        let length = timeout(SOON, stream.read_u16()).await.unwrap().unwrap();
        let mut buffer = vec![0; length.into()];
        timeout(SOON, stream.read_exact(&mut buffer)).await.unwrap().unwrap();
        replies.push(Message::from_vec(&buffer).unwrap());
    }
    replies
}

/// What an upstream of a test does with a question.
#[derive(Clone, Copy)]
enum Habit {
    Answers(Ipv4Addr),
    /// By UDP it says that the answer was cut.
    AnswersByTcpOnly(Ipv4Addr),
    /// Sends forgeries before the answer.
    IsForged(Ipv4Addr),
    Fails,
    IsSilent,
}

async fn upstream(tasks: &Tasks, habit: Habit) -> SocketAddr {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = tcp.local_addr().unwrap();
    let udp = Arc::new(UdpSocket::bind(at).await.unwrap());
    tasks.spawn("upstream udp", async move {
        let mut buffer = [0; 4096];
        while let Ok((length, client)) = udp.recv_from(&mut buffer).await {
            let question = Message::from_vec(&buffer[..length]).unwrap();
            if let Habit::IsForged(_) = habit {
                let mut other = question.clone();
                other.metadata.id = question.metadata.id.wrapping_add(1);
                let forged = reply(&other, address(66)).to_vec().unwrap();
                udp.send_to(&forged, client).await.unwrap();
                let mut renamed = query("forged.example.", RecordType::A);
                renamed.metadata.id = question.metadata.id;
                udp.send_to(&reply(&renamed, address(66)).to_vec().unwrap(), client).await.unwrap();
            }
            let answer = match habit {
                Habit::Answers(address) | Habit::IsForged(address) => reply(&question, address),
                Habit::AnswersByTcpOnly(_) => reply(&question, address(66)).truncate(),
                Habit::Fails => super::answer::failure(&question, ResponseCode::ServFail),
                Habit::IsSilent => continue,
            };
            udp.send_to(&answer.to_vec().unwrap(), client).await.unwrap();
        }
    });
    tasks.spawn("upstream tcp", async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let (Habit::Answers(address) | Habit::AnswersByTcpOnly(address)) = habit else { continue };
            let mut buffer = vec![0; stream.read_u16().await.unwrap().into()];
            stream.read_exact(&mut buffer).await.unwrap();
            let bytes = reply(&Message::from_vec(&buffer).unwrap(), address).to_vec().unwrap();
            stream.write_u16(bytes.len().try_into().unwrap()).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
        }
    });
    at
}

fn reply(question: &Message, address: Ipv4Addr) -> Message {
    let mut reply = super::answer::failure(question, ResponseCode::NoError);
    let name = question.queries[0].name().clone();
    reply.add_answer(Record::from_rdata(name, 300, RData::A(A(address))));
    reply
}

#[tokio::test]
async fn tables_are_served_by_udp_and_tcp_as_soon_as_they_are_published() {
    let fixture = responder(Vec::new()).await;
    assert_eq!(fixture.responder.version(), None);
    fixture.responder.publish(&table(&[(1, "db", &[address(5)])]), &Sources::new());
    assert_eq!(fixture.responder.version(), Some(Revision(7)));
    let question = query("db.", RecordType::A);
    assert_eq!(addresses(&by_udp(fixture.at, &question).await), [address(5)]);
    let replies = by_tcp(fixture.at, &[question.clone(), query("db.", RecordType::AAAA), question]).await;
    assert_eq!(replies.iter().map(|reply| reply.answers.len()).collect::<Vec<_>>(), [1, 0, 1]);
}

#[tokio::test]
async fn other_names_are_asked_upstream_until_one_answers() {
    let tasks = Tasks::new(&Shutdown::new());
    let failing = upstream(&tasks, Habit::Fails).await;
    let closed = free_address().await;
    let answering = upstream(&tasks, Habit::Answers(address(9))).await;
    let fixture = responder(vec![failing, closed, answering]).await;
    let question = query("example.org.", RecordType::A);
    let reply = by_udp(fixture.at, &question).await;
    assert_eq!((addresses(&reply), reply.metadata.id), (vec![address(9)], 4711));
    assert_eq!(addresses(&by_tcp(fixture.at, &[question]).await[0]), [address(9)]);
    assert_eq!(fixture.responder.counters().forwarded, 2);
}

#[tokio::test]
async fn a_silent_resolver_costs_one_timeout_and_is_then_asked_last() {
    let tasks = Tasks::new(&Shutdown::new());
    let silent = upstream(&tasks, Habit::IsSilent).await;
    let answering = upstream(&tasks, Habit::Answers(address(9))).await;
    let fixture = responder(vec![silent, answering]).await;
    let question = query("example.org.", RecordType::A);
    assert_eq!(addresses(&by_udp(fixture.at, &question).await), [address(9)]);
    let second = timeout(Duration::from_millis(1900), by_udp(fixture.at, &question)).await;
    assert_eq!(addresses(&second.expect("less than a resolver's timeout")), [address(9)]);
}

#[tokio::test]
async fn forged_answers_are_not_passed_on() {
    let tasks = Tasks::new(&Shutdown::new());
    let forged = upstream(&tasks, Habit::IsForged(address(9))).await;
    let fixture = responder(vec![forged]).await;
    assert_eq!(addresses(&by_udp(fixture.at, &query("example.org.", RecordType::A)).await), [address(9)]);
}

#[tokio::test]
async fn a_cut_answer_is_passed_on_as_such_and_is_whole_by_tcp() {
    let tasks = Tasks::new(&Shutdown::new());
    let by_tcp_only = upstream(&tasks, Habit::AnswersByTcpOnly(address(9))).await;
    let fixture = responder(vec![by_tcp_only]).await;
    let question = query("example.org.", RecordType::A);
    assert!(by_udp(fixture.at, &question).await.metadata.truncation);
    assert_eq!(addresses(&by_tcp(fixture.at, &[question]).await[0]), [address(9)]);
}

#[tokio::test]
async fn without_a_resolver_that_answers_the_asker_is_told_at_once() {
    let question = query("example.org.", RecordType::A);
    let alone = responder(Vec::new()).await;
    assert_eq!(by_udp(alone.at, &question).await.metadata.response_code, ResponseCode::NXDomain);
    let refusing = responder(vec![free_address().await]).await;
    assert_eq!(by_udp(refusing.at, &question).await.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn networks_that_stay_keep_their_sockets_and_others_are_closed() {
    let fixture = responder(Vec::new()).await;
    fixture.responder.publish(&table(&[(1, "db", &[address(5)])]), &Sources::new());
    let mut stream = TcpStream::connect(fixture.at).await.unwrap();
    let subnet: Ipv4Net = "127.0.0.0/8".parse().unwrap();
    let other = Listen { address: free_address().await, subnet };
    let both = BTreeMap::from([(network(1), Listen { address: fixture.at, subnet }), (network(2), other)]);
    fixture.responder.listen(&both).await;
    let bytes = query("db.", RecordType::A).to_vec().unwrap();
    stream.write_u16(bytes.len().try_into().unwrap()).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    assert!(timeout(SOON, stream.read_u16()).await.unwrap().is_ok(), "the connection went on");

    fixture.responder.listen(&BTreeMap::from([(network(2), other)])).await;
    let mut rest = Vec::new();
    timeout(SOON, stream.read_to_end(&mut rest)).await.expect("the connection is closed").unwrap();
    assert!(by_udp(other.address, &query("x.", RecordType::A)).await.answers.is_empty());
    let rebound = async {
        while UdpSocket::bind(fixture.at).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, rebound).await.expect("the address is free again");
}
