//! What is answered, decided without sockets, and the same over loopback sockets with upstream resolvers of the test's own.
//!
//! Answers are read by another implementation than the one that wrote them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, CNAME, SOA},
    },
};
use proptest::{prelude::*, test_runner::RngSeed};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{Notify, oneshot},
    time::timeout,
};
use wharf_model::{DnsTable, ExternalHost, Ipv6Addresses, NamedPort, NetworkId, Protocol, Revision};
use wharf_process::{Shutdown, Tasks};

use super::{
    Listen, Responder, Source, Sources, Upstreams,
    answer::{Answer, Asker, Known, Transport, answer},
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

/// The same, with names outside the cluster on network 1.
fn with_externals(mut table: DnsTable, externals: &[(&str, &str)]) -> DnsTable {
    let external = |(name, host): &(&str, &str)| ((*name).to_owned(), host.parse::<ExternalHost>().unwrap());
    table.externals.insert(network(1), externals.iter().map(external).collect());
    table
}

/// The same, with what addresses of network 1 are called.
fn with_hosts(mut table: DnsTable, hosts: &[(Ipv4Addr, &str)]) -> DnsTable {
    let host = |(address, name): &(Ipv4Addr, &str)| (*address, (*name).to_owned());
    table.hosts.insert(network(1), hosts.iter().map(host).collect());
    table
}

/// The same, with IPv6 addresses on network 1; who has `asker` asked for one.
fn with_ipv6(mut table: DnsTable, asker: Ipv4Addr, asked: &str) -> DnsTable {
    let subnet = "fd00:1:2:3::/64".parse().unwrap();
    let asked = BTreeMap::from([(asker, asked.parse().unwrap())]);
    table.ipv6.insert(network(1), Ipv6Addresses { subnet, asked });
    table
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn extended(mut message: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    message.set_edns(edns);
    message
}

fn known(table: &DnsTable) -> Known {
    known_by(table, &Sources::new())
}
fn known_by(table: &DnsTable, sources: &Sources) -> Known {
    Known { zone: Zone::new(table, sources, 0), ours: vec!["10.192.0.0/20".parse().unwrap()] }
}

/// The answer to a container without a task, on network 1.
fn ask(known: &Known, message: &Message) -> Message {
    sent(ask_from(known, message, address(200), Transport::Udp)).1
}

fn ask_from(known: &Known, message: &Message, from: Ipv4Addr, transport: Transport) -> (Answer, Vec<u8>) {
    let asker = Asker { address: from, network: network(1) };
    let mut out = Vec::new();
    (answer(&message.to_vec().unwrap(), asker, transport, known, &mut out), out)
}

fn sent((answer, bytes): (Answer, Vec<u8>)) -> (Vec<u8>, Message) {
    assert_eq!(answer, Answer::Send);
    let message = Message::from_vec(&bytes).unwrap();
    (bytes, message)
}

/// Whether an upstream resolver has to say.
fn is_forwarded(known: &Known, message: &Message) -> bool {
    matches!(ask_from(known, message, address(200), Transport::Udp).0, Answer::Forward(_))
}

fn addresses(reply: &Message) -> Vec<Ipv4Addr> {
    let address = |record: &Record| match &record.data {
        RData::A(A(address)) => Some(*address),
        _ => None,
    };
    reply.answers.iter().filter_map(address).collect()
}

/// Owner, type and data of each answer.
fn answers(reply: &Message) -> Vec<String> {
    let text = |record: &Record| format!("{} {} {}", record.name, record.record_type(), record.data);
    reply.answers.iter().map(text).collect()
}

fn code(reply: &Message) -> ResponseCode {
    reply.metadata.response_code
}

#[test]
fn a_name_is_found_in_any_case_and_its_answer_is_short_lived() {
    let known = known(&table(&[(1, "Db", &[address(5)])]));
    let reply = ask(&known, &query("dB.", RecordType::A));
    assert_eq!(addresses(&reply), [address(5)]);
    assert_eq!(reply.metadata.id, 4711);
    assert!(reply.metadata.authoritative && reply.metadata.recursion_available);
    assert_eq!(reply.answers[0].ttl, 1);
    assert_eq!(reply.queries[0].name().to_ascii(), "dB.", "the question comes back as it was asked");
}

#[test]
fn a_known_name_has_no_other_records_and_an_unknown_one_does_not_exist() {
    let known = known(&table(&[(1, "db", &[address(5)]), (1, "starting", &[])]));
    for (name, kind) in [
        ("db.", RecordType::AAAA),
        ("db.", RecordType::MX),
        ("starting.", RecordType::A),
        ("db.", RecordType::HTTPS),
    ] {
        let none = ask(&known, &query(name, kind));
        assert_eq!((code(&none), none.answers.len()), (ResponseCode::NoError, 0), "{name} {kind}");
        let RData::SOA(soa) = &none.authorities[0].data else { panic!("an SOA") };
        assert_eq!((soa.minimum, soa.serial), (1, 7), "kept for a second; the serial is the version");
        assert!(none.authorities[0].name.is_root(), "the owner has to be a parent of the name");
    }
    let unknown = ask(&known, &query("dbx.", RecordType::A));
    assert_eq!(code(&unknown), ResponseCode::NXDomain);
    assert_eq!(unknown.authorities[0].record_type(), RecordType::SOA);
}

#[test]
fn names_with_dots_are_ours_if_the_table_has_them_and_the_worlds_otherwise() {
    let known = known(&table(&[(1, "tasks.db", &[address(5)]), (1, "dev", &[address(6)])]));
    assert_eq!(addresses(&ask(&known, &query("tasks.db.", RecordType::A))), [address(5)]);
    assert!(is_forwarded(&known, &query("example.org.", RecordType::A)));
    assert!(
        is_forwarded(&known, &query("www.example.dev.", RecordType::A)),
        "a service may be called as a domain"
    );
    assert!(
        is_forwarded(&known, &query(".", RecordType::NS))
            && is_forwarded(&known, &query("org.", RecordType::DS))
    );
    assert_eq!(code(&ask(&known, &query("org.", RecordType::A))), ResponseCode::NXDomain);
    let mut iterative = query("example.org.", RecordType::A);
    iterative.metadata.recursion_desired = false;
    assert_eq!(
        code(&ask(&known, &iterative)),
        ResponseCode::Refused,
        "others are asked only if that is wanted"
    );
}

#[test]
fn a_task_sees_the_names_of_its_networks_in_their_order_and_no_others() {
    let table = table(&[
        (1, "db", &[address(5)]),
        (1, "web", &[address(9)]),
        (2, "db", &[address(6)]),
        (2, "cache", &[address(7)]),
        (2, "web", &[]),
        (3, "secret", &[address(8)]),
    ]);
    let known = known_by(&table, &Sources::from([(address(50), vec![network(2), network(1)].into())]));
    let a = |from, name: &str| sent(ask_from(&known, &query(name, RecordType::A), from, Transport::Udp)).1;
    assert_eq!(addresses(&a(address(50), "db.")), [address(6)]);
    assert_eq!(addresses(&a(address(50), "cache.")), [address(7)]);
    assert_eq!(addresses(&a(address(50), "web.")), [address(9)], "a name that leads nowhere hides no other");
    assert_eq!(addresses(&a(address(51), "db.")), [address(5)], "no task: the network it asked on");
    assert_eq!(code(&a(address(51), "cache.")), ResponseCode::NXDomain);
    assert_eq!(code(&a(address(50), "secret.")), ResponseCode::NXDomain);
}

#[test]
fn who_has_resolvers_of_its_own_is_told_what_is_ours_and_asks_them_for_the_rest() {
    let table = with_externals(
        with_hosts(table(&[(1, "db", &[address(5)]), (1, "web", &[])]), &[(address(5), "shop-db-1")]),
        &[("outside", "db.example.org")],
    );
    let own = Source { networks: vec![network(1)], asks_others: true };
    let known = known_by(&table, &Sources::from([(address(50), own)]));
    let a = |name: &str| sent(ask_from(&known, &query(name, RecordType::A), address(50), Transport::Udp)).1;
    assert_eq!(addresses(&a("db.")), [address(5)]);
    assert_eq!((code(&a("web.")), a("web.").answers.len()), (ResponseCode::NoError, 0), "ours, and nowhere");
    assert_eq!(code(&a("_http._tcp.db.")), ResponseCode::NXDomain, "ours, too");
    for theirs in ["nothing.", "www.example.org.", "8.8.8.8.in-addr.arpa.", "0.0.0.0.ip6.arpa."] {
        assert_eq!(code(&a(theirs)), ResponseCode::ServFail, "{theirs}");
    }
    let asked = query("outside.", RecordType::A);
    let outside = ask_from(&known, &asked, address(50), Transport::Udp);
    assert!(matches!(outside.0, Answer::Forward(_)), "they do not know that it is an alias");
    let pointed = query("9.0.192.10.in-addr.arpa.", RecordType::PTR);
    let pointed = sent(ask_from(&known, &pointed, address(50), Transport::Udp)).1;
    assert_eq!(code(&pointed), ResponseCode::NXDomain, "an address of ours");
}

#[test]
fn an_address_is_called_as_its_task() {
    let table = with_hosts(table(&[]), &[(address(5), "shop-web-1")]);
    let known = known_by(&table, &Sources::from([(address(50), vec![network(2)].into())]));
    let of = |name: &str, from| sent(ask_from(&known, &query(name, RecordType::PTR), from, Transport::Udp)).1;
    assert_eq!(
        answers(&of("5.0.192.10.IN-ADDR.arpa.", address(1))),
        ["5.0.192.10.IN-ADDR.arpa. PTR shop-web-1."]
    );
    assert_eq!(
        code(&of("9.0.192.10.in-addr.arpa.", address(1))),
        ResponseCode::NXDomain,
        "nobody else can know it"
    );
    assert_eq!(
        code(&of("5.0.192.10.in-addr.arpa.", address(50))),
        ResponseCode::NXDomain,
        "it is on another network"
    );
    let other = ask(&known, &query("5.0.192.10.in-addr.arpa.", RecordType::A));
    assert_eq!((code(&other), other.answers.len()), (ResponseCode::NoError, 0));
    for elsewhere in [
        "8.8.8.8.in-addr.arpa.",
        "0.192.10.in-addr.arpa.",
        "5.5.0.192.10.in-addr.arpa.",
        "300.0.192.10.in-addr.arpa.",
    ] {
        assert!(is_forwarded(&known, &query(elsewhere, RecordType::PTR)), "{elsewhere}");
    }
}

#[test]
fn names_lead_to_ipv6_addresses_where_the_network_has_them() {
    let table = table(&[(1, "web", &[address(5), address(6)]), (1, "idle", &[]), (2, "db", &[address(7)])]);
    let table = with_externals(with_ipv6(table, address(6), "fd00:1:2:3::cafe"), &[("here", "web")]);
    let known = known_by(&table, &Sources::from([(address(50), vec![network(1), network(2)].into())]));
    let of = |name: &str, kind| {
        let reply = sent(ask_from(&known, &query(name, kind), address(50), Transport::Udp)).1;
        assert_eq!(code(&reply), ResponseCode::NoError, "{name} {kind}");
        let mut found = answers(&reply);
        found.sort();
        found
    };
    let both = ["web. AAAA fd00:1:2:3::ac0:5", "web. AAAA fd00:1:2:3::cafe"];
    assert_eq!(of("web.", RecordType::AAAA), both);
    assert_eq!(of("web.", RecordType::A), ["web. A 10.192.0.5", "web. A 10.192.0.6"]);
    assert_eq!(of("web.", RecordType::ANY).len(), 4);
    assert_eq!(of("here.", RecordType::AAAA), ["here. CNAME web.", both[0], both[1]]);
    for none in ["idle.", "db."] {
        assert_eq!(of(none, RecordType::AAAA), Vec::<String>::new(), "{none}");
    }
}

#[test]
fn an_ipv6_address_is_called_as_its_task() {
    let hosts = [(address(5), "shop-web-1"), (address(6), "shop-db-1")];
    let table = with_ipv6(with_hosts(table(&[]), &hosts), address(6), "fd00:1:2:3::cafe");
    let known = known_by(&table, &Sources::from([(address(50), vec![network(2)].into())]));
    let name = |of: &str| {
        let digits = u128::from(of.parse::<std::net::Ipv6Addr>().unwrap());
        let labels: String = (0..32).map(|place| format!("{:x}.", digits >> (4 * place) & 15)).collect();
        format!("{labels}ip6.arpa.")
    };
    let of = |name: &str, from| sent(ask_from(&known, &query(name, RecordType::PTR), from, Transport::Udp)).1;
    for (of_whom, called) in [("fd00:1:2:3::ac0:5", "shop-web-1."), ("fd00:1:2:3::cafe", "shop-db-1.")] {
        let found = of(&name(of_whom).to_uppercase(), address(1));
        assert_eq!(found.answers[0].data.to_string(), called);
        let elsewhere = of(&name(of_whom), address(50));
        assert_eq!(code(&elsewhere), ResponseCode::NXDomain, "it is on another network");
    }
    for nobody in ["fd00:1:2:3::ac0:6", "fd00:1:2:3::1"] {
        assert_eq!(code(&of(&name(nobody), address(1))), ResponseCode::NXDomain, "nobody else can know it");
    }
    let short = name("fd00:1:2:3::ac0:5");
    for elsewhere in
        [name("2001:db8::1").as_str(), &short[2..], &format!("0.{short}"), &format!("g{}", &short[1..])]
    {
        assert!(is_forwarded(&known, &query(elsewhere, RecordType::PTR)), "{elsewhere}");
    }
}

#[test]
fn ports_are_found_by_name_and_number_with_the_tasks_that_have_them() {
    let both = [address(5), address(6)];
    let mut table = with_hosts(
        table(&[(1, "web", &both), (1, "idle", &[])]),
        &[(both[0], "shop-web-1"), (both[1], "shop-web-2")],
    );
    let port =
        |port, protocol, name: Option<&str>| NamedPort { port, protocol, name: name.map(str::to_owned) };
    let web = vec![port(8080, Protocol::Tcp, Some("http")), port(53, Protocol::Udp, None)];
    let ports =
        BTreeMap::from([("web".to_owned(), web), ("idle".to_owned(), vec![port(1, Protocol::Tcp, None)])]);
    table.ports.insert(network(1), ports);
    let table = with_ipv6(table, address(9), "fd00:1:2:3::cafe");
    let known = known(&table);
    let srv = |name: &str| ask(&known, &query(name, RecordType::SRV));
    for (name, number) in [("_http._tcp.web.", 8080), ("_8080._tcp.web.", 8080), ("_53._UDP.web.", 53)] {
        let reply = srv(name);
        let mut found = answers(&reply);
        found.sort();
        let expected = [1, 2].map(|slot| format!("{name} SRV 0 1 {number} shop-web-{slot}."));
        assert_eq!(found, expected);
        let added: BTreeSet<String> =
            reply.additionals.iter().map(|record| format!("{} {}", record.name, record.data)).collect();
        assert_eq!(
            added,
            BTreeSet::from(
                [
                    "shop-web-1. 10.192.0.5",
                    "shop-web-1. fd00:1:2:3::ac0:5",
                    "shop-web-2. 10.192.0.6",
                    "shop-web-2. fd00:1:2:3::ac0:6"
                ]
                .map(str::to_owned)
            )
        );
    }
    assert_eq!(code(&srv("_53._tcp.web.")), ResponseCode::NXDomain, "and nobody else is asked");
    assert_eq!((code(&srv("_1._tcp.idle.")), srv("_1._tcp.idle.").answers.len()), (ResponseCode::NoError, 0));
    assert_eq!(ask(&known, &query("_http._tcp.web.", RecordType::A)).answers.len(), 0);
    assert!(is_forwarded(&known, &query("_http._tcp.example.org.", RecordType::SRV)));
}

#[test]
fn names_outside_lead_to_their_address_or_to_another_name() {
    let table = with_externals(
        table(&[(1, "web", &[address(5)])]),
        &[
            ("db", "192.0.2.7"),
            ("db6", "2001:db8::7"),
            ("here", "web"),
            ("twice", "here"),
            ("round", "round-again"),
            ("round-again", "round"),
            ("far", "db.example.org"),
        ],
    );
    let known = known_by(&table, &Sources::from([(address(50), vec![network(2)].into())]));
    assert_eq!(answers(&ask(&known, &query("DB.", RecordType::A))), ["DB. A 192.0.2.7"]);
    assert_eq!(answers(&ask(&known, &query("db6.", RecordType::AAAA))), ["db6. AAAA 2001:db8::7"]);
    for (name, kind) in [("db.", RecordType::AAAA), ("db6.", RecordType::A)] {
        let none = ask(&known, &query(name, kind));
        assert_eq!((code(&none), none.answers.len()), (ResponseCode::NoError, 0), "{name} {kind}");
    }
    let found = ask(&known, &query("twice.", RecordType::A));
    assert_eq!(answers(&found), ["twice. CNAME here.", "here. CNAME web.", "web. A 10.192.0.5"]);
    assert_eq!(answers(&ask(&known, &query("far.", RecordType::CNAME))), ["far. CNAME db.example.org."]);
    assert_eq!(code(&ask(&known, &query("round.", RecordType::A))), ResponseCode::ServFail);
    let Answer::Forward(forward) =
        ask_from(&known, &query("far.", RecordType::A), address(1), Transport::Udp).0
    else {
        panic!("a name of the world is asked upstream")
    };
    assert_eq!(&*forward.ask.asked, b"\x02db\x07example\x03org\0\0\x01\0\x01");
    let other = sent(ask_from(&known, &query("db.", RecordType::A), address(50), Transport::Udp)).1;
    assert_eq!(code(&other), ResponseCode::NXDomain, "it is outside for those of its network");
}

#[test]
fn what_is_no_question_of_ours_is_refused_in_dns() {
    let known = Known::default();
    let code = |message: &Message| code(&ask(&known, message));
    let mut notify = query("db.", RecordType::A);
    notify.metadata.op_code = OpCode::Notify;
    assert_eq!(code(&notify), ResponseCode::NotImp);
    let mut two = query("db.", RecordType::A);
    two.add_query(Query::query(Name::from_ascii("b.").unwrap(), RecordType::A));
    assert_eq!(code(&two), ResponseCode::FormErr);
    let mut newer = extended(query("db.", RecordType::A), 1232);
    newer.edns.as_mut().unwrap().set_version(1);
    assert_eq!(u16::from(code(&newer)), 16, "BADVERS, whose number is BADSIG's as well");
    let mut chaos = query("version.bind.", RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&chaos), ResponseCode::Refused);
    assert_eq!(code(&query("example.org.", RecordType::AXFR)), ResponseCode::Refused);
    let mut reply = query("db.", RecordType::A);
    reply.metadata.message_type = MessageType::Response;
    let nothing = ask_from(&known, &reply, address(1), Transport::Udp);
    assert_eq!(nothing, (Answer::Nothing, Vec::new()), "answering an answer could go on for ever");
}

#[test]
fn extensions_are_answered_if_they_were_sent() {
    let known = known(&table(&[(1, "db", &[address(5)])]));
    assert!(ask(&known, &query("db.", RecordType::A)).edns.is_none());
    let mut signed = extended(query("db.", RecordType::A), 4096);
    signed.edns.as_mut().unwrap().set_dnssec_ok(true);
    let edns = ask(&known, &signed).edns.unwrap();
    assert_eq!((edns.max_payload(), edns.version(), edns.flags().dnssec_ok), (1232, 0, true));
}

fn many(count: u8) -> Vec<Ipv4Addr> {
    (0..count).map(address).collect()
}

#[test]
fn an_answer_too_long_for_udp_says_so_and_is_whole_by_tcp() {
    let known = known(&table(&[(1, "web", &many(200))]));
    let plain = query("web.", RecordType::A);
    let udp = |message: &Message| sent(ask_from(&known, message, address(1), Transport::Udp));
    let (bytes, reply) = udp(&plain);
    assert!(bytes.len() <= 512 && reply.metadata.truncation);
    assert!(addresses(&reply).len() >= 25, "as many as fit: {}", addresses(&reply).len());

    let (bytes, reply) = udp(&extended(plain.clone(), 4096));
    assert!(bytes.len() > 1200 && bytes.len() <= 1232 && reply.metadata.truncation, "{}", bytes.len());
    assert!(reply.edns.is_some());
    assert!(udp(&extended(plain.clone(), 100)).0.len() <= 512, "less than 512 is not believed");

    let whole = sent(ask_from(&known, &plain, address(1), Transport::Tcp)).1;
    assert_eq!(addresses(&whole).into_iter().collect::<BTreeSet<_>>(), many(200).into_iter().collect());
    assert!(!whole.metadata.truncation);
}

#[test]
fn look_ups_of_both_families_spread_over_all_addresses() {
    let both = [address(5), address(6)];
    let known = known(&table(&[(1, "web", &both), (1, "db", &both)]));
    // As the C library asks; and another name between must not keep them in step.
    let first = || {
        ask(&known, &query("web.", RecordType::AAAA));
        ask(&known, &query("db.", RecordType::A));
        addresses(&ask(&known, &query("web.", RecordType::A)))[0]
    };
    assert_ne!(first(), first());
}

#[test]
fn answers_of_resolvers_age_and_are_kept_as_long_as_they_say() {
    use super::reply::Reply;
    use super::wire::Request;
    let question = query("web.example.org.", RecordType::A);
    let asked = b"\x03web\x07example\x03org\0\0\x01\0\x01";
    let now = tokio::time::Instant::now();
    let read = |message: &Message| Reply::read(&message.to_vec().unwrap(), 4711, asked, now).unwrap();
    let lifetime = |message: &Message| read(message).lifetime(1).as_secs();
    let alias = |ttl| {
        let target = RData::CNAME(CNAME(Name::from_ascii("other.example.org.").unwrap()));
        Record::from_rdata(Name::from_ascii("web.example.org.").unwrap(), ttl, target)
    };
    let mut found = reply(&question, address(1));
    assert_eq!(lifetime(&found), 300);
    found.add_answer(alias(20));
    assert_eq!(lifetime(&found), 20, "the shortest counts");
    assert_eq!(lifetime(&denial(&question, 60)), 60);
    assert_eq!(lifetime(&denial(&question, 5000)), 900, "no longer than the SOA itself");
    let mut nothing = denial(&question, 60);
    nothing.metadata.response_code = ResponseCode::NoError;
    assert_eq!(lifetime(&nothing), 60);
    nothing.add_answer(alias(20));
    assert_eq!(lifetime(&nothing), 20, "an alias of a name without addresses");
    assert_eq!(lifetime(&failure(&question, ResponseCode::NXDomain)), 0, "nobody says how long");
    let mut long = reply(&question, address(1));
    long.answers[0].ttl = 1_000_000;
    assert_eq!(lifetime(&long), 3600);

    let bytes = question.to_vec().unwrap();
    let Request::Question(asker) = Request::read(&bytes) else { panic!("a question") };
    for (age, left) in [(0, 300), (10, 290), (1000, 0)] {
        let mut out = Vec::new();
        let reply = read(&reply(&question, address(1)));
        reply.write(&asker, &[], 512, now + Duration::from_secs(age), &mut out);
        let passed_on = Message::from_vec(&out).unwrap();
        assert_eq!((passed_on.answers[0].ttl, passed_on.metadata.authoritative), (left, false));
    }
}

/// Questions of all kinds, from which broken ones are made.
fn samples() -> Vec<Vec<u8>> {
    let mut samples: Vec<Vec<u8>> = [
        ("web.", RecordType::A),
        ("_http._tcp.web.", RecordType::SRV),
        ("5.0.192.10.in-addr.arpa.", RecordType::PTR),
        ("far.", RecordType::A),
    ]
    .iter()
    .flat_map(|(name, kind)| [query(name, *kind), extended(query(name, *kind), 1232)])
    .map(|message| message.to_vec().unwrap())
    .collect();
    samples.push(reply(&query("web.", RecordType::A), address(1)).to_vec().unwrap());
    samples
}

fn sample_table() -> DnsTable {
    let table = with_hosts(table(&[(1, "web", &many(200))]), &[(address(5), "shop-web-1")]);
    with_externals(table, &[("far", "db.example.org")])
}

proptest! {
    #[test]
    fn every_address_is_first_as_often_as_every_other(count in 1_u8..60) {
        let known = known(&table(&[(1, "web", &many(count))]));
        let mut first: Vec<Ipv4Addr> = (0..count)
            .map(|_| sent(ask_from(&known, &query("web.", RecordType::A), address(250), Transport::Tcp)).1)
            .map(|reply| addresses(&reply)[0])
            .collect();
        first.sort();
        prop_assert_eq!(first, many(count));
    }

}

proptest! {
    // The same cases every time.
    #![proptest_config(ProptestConfig { cases: 2000, rng_seed: RngSeed::Fixed(4711), ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_comes_in_is_a_panic_and_every_answer_can_be_read(
        bytes in prop::collection::vec(any::<u8>(), 0..600),
        sample in 0_usize..9,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let known = known(&sample_table());
        let asker = Asker { address: address(250), network: network(1) };
        let mut changed = samples().swap_remove(sample);
        for (index, byte) in changes {
            let index = index.index(changed.len());
            changed[index] = byte;
        }
        changed.truncate(cut.index(changed.len()) + 1);
        for message in [bytes, changed] {
            let mut out = Vec::new();
            let decided = answer(&message, asker, Transport::Udp, &known, &mut out);
            prop_assert_eq!(decided == Answer::Send, !out.is_empty());
            if decided == Answer::Send {
                prop_assert!(out.len() <= 1232);
                prop_assert_eq!(&out[..2], &message[..2], "it carries the question's identifier");
                let read = Message::from_vec(&out);
                prop_assert!(read.is_ok(), "{:?}", read);
            }
        }
    }

    #[test]
    fn nothing_that_a_resolver_says_is_a_panic_and_what_is_passed_on_can_be_read(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in any::<prop::sample::Index>(),
        limit in 512_usize..700,
        aliases in 0_usize..3,
    ) {
        use super::{reply::Reply, wire::{Question, Request}};
        let question = extended(query("web.example.org.", RecordType::A), 1232);
        let mut said = reply(&question, address(1));
        for number in 0..40_u8 {
            let target = RData::CNAME(CNAME(Name::from_ascii(format!("host{number}.example.org.")).unwrap()));
            said.add_answer(Record::from_rdata(Name::from_ascii("alias.example.org.").unwrap(), 300, target));
        }
        let mut said = said.to_vec().unwrap();
        for (index, byte) in changes {
            // The header and the question decide whether it is an answer of ours at all.
            let index = 4 + index.index(said.len() - 4);
            said[index] = byte;
        }
        said.truncate(said.len() - cut.index(said.len()) / 8);
        let bytes = question.to_vec().unwrap();
        let Request::Question(question) = Request::read(&bytes) else { panic!("a question") };
        let asked = b"\x03web\x07example\x03org\0\0\x01\0\x01";
        let now = tokio::time::Instant::now();
        let Some(read) = Reply::read(&said, 4711, asked, now) else { return Ok(()) };
        let chain: Vec<Box<[u8]>> = [&b"\x01a"[..], b"\x03web\x07example\x03org"][..aliases].iter().map(|name| (*name).into()).collect();
        for question in [question, Question { extension: None, ..question }] {
            let mut out = Vec::new();
            read.write(&question, &chain, limit, now + Duration::from_secs(10), &mut out);
            prop_assert!(out.len() <= limit, "{} of {limit}", out.len());
            prop_assert!(Reply::read(&out, 4711, asked, now).is_some());
        }
    }
}

/// A responder on loopback, with the upstream resolvers of a test.
struct Fixture {
    responder: Responder,
    at: SocketAddr,
    tasks: Tasks,
}

/// A responder with a table without names.
async fn responder(upstreams: Vec<SocketAddr>) -> Fixture {
    let fixture = new_responder(upstreams).await;
    fixture.responder.publish(&table(&[]), &Sources::new());
    fixture
}

/// A responder that has no table yet.
async fn new_responder(upstreams: Vec<SocketAddr>) -> Fixture {
    let tasks = Tasks::new(&Shutdown::new());
    let responder = Responder::new(Upstreams::Fixed(upstreams), &tasks);
    let at = free_address().await;
    responder.listen(&BTreeMap::from([(network(1), loopback(at))])).await;
    assert_eq!(responder.problems(), [""; 0]);
    Fixture { responder, at, tasks }
}

/// A network of this machine's own addresses.
fn loopback(address: SocketAddr) -> Listen {
    Listen { address, subnet: "127.0.0.0/8".parse().unwrap() }
}

/// Waits for something that comes soon.
async fn until(is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, waiting).await.unwrap();
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

async fn next_reply(stream: &mut TcpStream) -> Message {
    let mut buffer = vec![0; stream.read_u16().await.unwrap().into()];
    stream.read_exact(&mut buffer).await.unwrap();
    Message::from_vec(&buffer).unwrap()
}

async fn by_tcp(at: SocketAddr, messages: &[Message]) -> Vec<Message> {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let mut replies = Vec::new();
    for message in messages {
        let bytes = message.to_vec().unwrap();
        stream.write_u16(bytes.len().try_into().unwrap()).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        replies.push(timeout(SOON, next_reply(&mut stream)).await.unwrap());
    }
    replies
}

/// What an upstream of a test does with a question.
#[derive(Clone)]
enum Habit {
    Answers(Ipv4Addr),
    /// By UDP it says that the answer was cut.
    AnswersByTcpOnly(Ipv4Addr),
    /// With so many addresses, by TCP; by UDP it says that they were cut.
    AnswersMuch(u8),
    /// Sends forgeries before the answer.
    IsForged(Ipv4Addr),
    /// As a server of the time before extensions.
    IsOld(Ipv4Addr),
    /// Not before it is told to.
    Waits(Ipv4Addr, Arc<Notify>),
    /// There is no such name, which may be kept for so many seconds.
    Denies(u32),
    Fails,
    IsSilent,
}

struct Upstream {
    at: SocketAddr,
    /// How many questions came by UDP.
    asked: Arc<AtomicUsize>,
}
impl Upstream {
    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

async fn upstream(tasks: &Tasks, habit: Habit) -> Upstream {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = tcp.local_addr().unwrap();
    let udp = Arc::new(UdpSocket::bind(at).await.unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let (count, by_udp) = (Arc::clone(&asked), habit.clone());
    tasks.spawn("upstream udp", async move {
        let mut buffer = [0; 4096];
        while let Ok((length, client)) = udp.recv_from(&mut buffer).await {
            count.fetch_add(1, Ordering::SeqCst);
            let question = Message::from_vec(&buffer[..length]).unwrap();
            let answer = match &by_udp {
                Habit::Answers(address) => reply(&question, *address),
                Habit::IsForged(address) => {
                    let mut other = question.clone();
                    other.metadata.id = question.metadata.id.wrapping_add(1);
                    let mut renamed = query("forged.example.", RecordType::A);
                    renamed.metadata.id = question.metadata.id;
                    for forged in [reply(&other, address_of_nobody()), reply(&renamed, address_of_nobody())] {
                        udp.send_to(&forged.to_vec().unwrap(), client).await.unwrap();
                    }
                    reply(&question, *address)
                }
                Habit::AnswersByTcpOnly(_) | Habit::AnswersMuch(_) => {
                    reply(&question, address_of_nobody()).truncate()
                }
                Habit::IsOld(_) if question.edns.is_some() => failure(&question, ResponseCode::FormErr),
                Habit::IsOld(address) => reply(&question, *address),
                Habit::Waits(address, told) => {
                    told.notified().await;
                    reply(&question, *address)
                }
                Habit::Denies(seconds) => denial(&question, *seconds),
                Habit::Fails => failure(&question, ResponseCode::ServFail),
                Habit::IsSilent => continue,
            };
            udp.send_to(&answer.to_vec().unwrap(), client).await.unwrap();
        }
    });
    tasks.spawn("upstream tcp", async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let mut buffer = vec![0; stream.read_u16().await.unwrap().into()];
            stream.read_exact(&mut buffer).await.unwrap();
            let question = Message::from_vec(&buffer).unwrap();
            let answer = match &habit {
                Habit::AnswersByTcpOnly(address) => reply(&question, *address),
                Habit::AnswersMuch(count) => {
                    let mut answer = failure(&question, ResponseCode::NoError);
                    many(*count).into_iter().for_each(|address| add(&mut answer, address));
                    answer
                }
                _ => continue,
            };
            let bytes = answer.to_vec().unwrap();
            stream.write_u16(bytes.len().try_into().unwrap()).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
        }
    });
    Upstream { at, asked }
}

fn address_of_nobody() -> Ipv4Addr {
    address(66)
}

fn failure(question: &Message, code: ResponseCode) -> Message {
    let mut reply = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
    reply.metadata.response_code = code;
    reply.metadata.recursion_available = true;
    reply.add_queries(question.queries.iter().cloned());
    if question.edns.is_some() && code != ResponseCode::FormErr {
        reply.set_edns(Edns::new());
    }
    reply
}

fn add(reply: &mut Message, address: Ipv4Addr) {
    let name = reply.queries[0].name().clone();
    reply.add_answer(Record::from_rdata(name, 300, RData::A(A(address))));
}

/// `address` for a question about addresses, and nothing for others.
fn reply(question: &Message, address: Ipv4Addr) -> Message {
    let mut reply = failure(question, ResponseCode::NoError);
    if question.queries[0].query_type() == RecordType::A {
        add(&mut reply, address);
    }
    reply
}

fn denial(question: &Message, seconds: u32) -> Message {
    let mut reply = failure(question, ResponseCode::NXDomain);
    let soa = SOA::new(Name::root(), Name::root(), 1, 60, 60, 60, seconds);
    reply.add_authority(Record::from_rdata(Name::from_ascii("org.").unwrap(), 900, RData::SOA(soa)));
    reply
}

#[tokio::test]
async fn tables_are_served_by_udp_and_tcp_as_soon_as_they_are_published() {
    let fixture = new_responder(Vec::new()).await;
    assert_eq!(fixture.responder.version(), None);
    let early = by_udp(fixture.at, &query("db.", RecordType::A)).await;
    assert_eq!(code(&early), ResponseCode::ServFail, "who knows nothing yet denies nothing");
    fixture.responder.publish(&table(&[(1, "db", &[address(5)])]), &Sources::new());
    assert_eq!(fixture.responder.version(), Some(Revision(7)));
    let question = query("db.", RecordType::A);
    assert_eq!(addresses(&by_udp(fixture.at, &question).await), [address(5)]);
    let replies = by_tcp(fixture.at, &[question.clone(), query("db.", RecordType::AAAA), question]).await;
    assert_eq!(replies.iter().map(|reply| reply.answers.len()).collect::<Vec<_>>(), [1, 0, 1]);
}

#[tokio::test]
async fn other_names_are_asked_upstream_until_one_answers_and_then_remembered() {
    let tasks = Tasks::new(&Shutdown::new());
    let failing = upstream(&tasks, Habit::Fails).await;
    let answering = upstream(&tasks, Habit::Answers(address(9))).await;
    let fixture = responder(vec![failing.at, free_address().await, answering.at]).await;
    let question = query("example.org.", RecordType::A);
    let reply = by_udp(fixture.at, &question).await;
    assert_eq!((addresses(&reply), reply.metadata.id), (vec![address(9)], 4711));
    assert_eq!(
        addresses(&by_tcp(fixture.at, &[query("EXAMPLE.org.", RecordType::A)]).await[0]),
        [address(9)]
    );
    let counters = fixture.responder.counters();
    assert_eq!((counters.questions, counters.forwarded, counters.upstream), (2, 2, 1));
    assert_eq!((failing.asked(), answering.asked()), (1, 1));
    let signed = extended(question, 1232);
    assert!(by_udp(fixture.at, &signed).await.edns.is_some());
}

#[tokio::test]
async fn a_silent_resolver_costs_less_than_a_second_and_is_then_asked_last() {
    let tasks = Tasks::new(&Shutdown::new());
    let silent = upstream(&tasks, Habit::IsSilent).await;
    let answering = upstream(&tasks, Habit::Answers(address(9))).await;
    let fixture = responder(vec![silent.at, answering.at]).await;
    let ask = |name| async move {
        let reply =
            timeout(Duration::from_millis(1500), by_udp(fixture.at, &query(name, RecordType::A))).await;
        addresses(&reply.expect("soon"))
    };
    assert_eq!(ask("one.example.org.").await, [address(9)]);
    assert_eq!(ask("two.example.org.").await, [address(9)]);
    assert_eq!((silent.asked(), answering.asked()), (1, 2));
}

#[tokio::test]
async fn forged_answers_are_not_passed_on() {
    let tasks = Tasks::new(&Shutdown::new());
    let forged = upstream(&tasks, Habit::IsForged(address(9))).await;
    let fixture = responder(vec![forged.at]).await;
    assert_eq!(addresses(&by_udp(fixture.at, &query("example.org.", RecordType::A)).await), [address(9)]);
}

#[tokio::test]
async fn a_resolver_that_knows_no_extensions_is_asked_without() {
    let tasks = Tasks::new(&Shutdown::new());
    let old = upstream(&tasks, Habit::IsOld(address(9))).await;
    let fixture = responder(vec![old.at]).await;
    let reply = by_udp(fixture.at, &extended(query("example.org.", RecordType::A), 1232)).await;
    assert_eq!((addresses(&reply), reply.edns.is_some(), old.asked()), (vec![address(9)], true, 2));
}

#[tokio::test]
async fn a_cut_answer_is_fetched_whole_and_cut_for_those_who_take_less() {
    let tasks = Tasks::new(&Shutdown::new());
    let question = query("example.org.", RecordType::A);
    let by_tcp_only = upstream(&tasks, Habit::AnswersByTcpOnly(address(9))).await;
    let fixture = responder(vec![by_tcp_only.at]).await;
    let reply = by_udp(fixture.at, &question).await;
    assert_eq!((addresses(&reply), reply.metadata.truncation), (vec![address(9)], false));

    let much = upstream(&tasks, Habit::AnswersMuch(200)).await;
    let fixture = responder(vec![much.at]).await;
    let cut = by_udp(fixture.at, &question).await;
    assert!(cut.metadata.truncation && addresses(&cut).len() > 25, "as much as fits");
    assert_eq!(addresses(&by_tcp(fixture.at, &[question]).await[0]).len(), 200);
    assert_eq!(much.asked(), 1, "the whole answer is remembered");
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_remembered_as_long_as_its_zone_says() {
    let tasks = Tasks::new(&Shutdown::new());
    for (seconds, times) in [(60, 1), (0, 2)] {
        let denying = upstream(&tasks, Habit::Denies(seconds)).await;
        let fixture = responder(vec![denying.at]).await;
        for _ in 0..2 {
            let reply = by_udp(fixture.at, &query("nonesuch.org.", RecordType::A)).await;
            assert_eq!((code(&reply), reply.authorities.len()), (ResponseCode::NXDomain, 1));
        }
        assert_eq!(denying.asked(), times, "{seconds} s");
    }
}

#[tokio::test]
async fn without_a_resolver_that_answers_the_asker_is_told_at_once() {
    let question = query("example.org.", RecordType::A);
    let alone = responder(Vec::new()).await;
    assert_eq!(code(&by_udp(alone.at, &question).await), ResponseCode::NXDomain);
    let refusing = responder(vec![free_address().await]).await;
    assert_eq!(code(&by_udp(refusing.at, &question).await), ResponseCode::ServFail);
}

#[tokio::test]
async fn a_question_that_is_under_way_is_not_asked_again() {
    let tasks = Tasks::new(&Shutdown::new());
    let told = Arc::new(Notify::new());
    let waiting = upstream(&tasks, Habit::Waits(address(9), Arc::clone(&told))).await;
    let fixture = responder(vec![waiting.at]).await;
    let question = query("example.org.", RecordType::A);
    let ask = || by_udp(fixture.at, &question);
    let all = async {
        let (one, two, three) =
            tokio::join!(ask(), ask(), by_tcp(fixture.at, std::slice::from_ref(&question)));
        [addresses(&one), addresses(&two), addresses(&three[0])]
    };
    let tell = async {
        until(|| fixture.responder.counters().forwarded >= 3).await;
        told.notify_one();
    };
    let (said, ()) = tokio::join!(all, tell);
    assert_eq!(said, [[address(9)], [address(9)], [address(9)]].map(Vec::from));
    assert_eq!(fixture.responder.counters().upstream, 1);
}

#[tokio::test]
async fn what_waited_for_a_resolver_is_decided_again_when_the_table_has_changed() {
    let tasks = Tasks::new(&Shutdown::new());
    let told = Arc::new(Notify::new());
    let waiting = upstream(&tasks, Habit::Waits(address(9), Arc::clone(&told))).await;
    let fixture = responder(vec![waiting.at]).await;
    let question = query("web.shop.", RecordType::A);
    let change = async {
        until(|| waiting.asked() > 0).await;
        fixture.responder.publish(&table(&[(1, "web.shop", &[address(5)])]), &Sources::new());
        told.notify_one();
    };
    let (udp, tcp, ()) = tokio::join!(
        by_udp(fixture.at, &question),
        by_tcp(fixture.at, std::slice::from_ref(&question)),
        change
    );
    assert_eq!((addresses(&udp), addresses(&tcp[0])), (vec![address(5)], vec![address(5)]));
}

#[tokio::test]
async fn a_question_that_waits_holds_up_no_other_of_its_connection() {
    let tasks = Tasks::new(&Shutdown::new());
    let told = Arc::new(Notify::new());
    let waiting = upstream(&tasks, Habit::Waits(address(9), Arc::clone(&told))).await;
    let fixture = responder(vec![waiting.at]).await;
    fixture.responder.publish(&table(&[(1, "db", &[address(5)])]), &Sources::new());
    let mut stream = TcpStream::connect(fixture.at).await.unwrap();
    for name in ["example.org.", "db."] {
        let bytes = query(name, RecordType::A).to_vec().unwrap();
        stream.write_u16(bytes.len().try_into().unwrap()).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
    }
    // Who has asked all it wants may say so, and still gets its answers.
    stream.shutdown().await.unwrap();
    let first = timeout(SOON, next_reply(&mut stream)).await.unwrap();
    told.notify_one();
    let second = timeout(SOON, next_reply(&mut stream)).await.unwrap();
    assert_eq!((addresses(&first), addresses(&second)), (vec![address(5)], vec![address(9)]));
}

#[tokio::test]
async fn a_domain_outside_is_found_under_its_name_in_the_cluster() {
    let tasks = Tasks::new(&Shutdown::new());
    let answering = upstream(&tasks, Habit::Answers(address(9))).await;
    let fixture = responder(vec![answering.at]).await;
    let outside = with_externals(table(&[]), &[("db", "db.example.org")]);
    fixture.responder.publish(&outside, &Sources::new());
    let question = query("DB.", RecordType::A);
    let expected = ["DB. CNAME db.example.org.", "db.example.org. A 10.192.0.9"];
    assert_eq!(answers(&by_udp(fixture.at, &question).await), expected);
    assert_eq!(answers(&by_tcp(fixture.at, &[extended(question, 1232)]).await[0]), expected);
    let none = by_udp(fixture.at, &query("db.", RecordType::AAAA)).await;
    assert_eq!(
        (code(&none), answers(&none)),
        (ResponseCode::NoError, vec!["db. CNAME db.example.org.".to_owned()])
    );
    let unknown = upstream(&tasks, Habit::Denies(60)).await;
    let fixture = responder(vec![unknown.at]).await;
    fixture.responder.publish(&outside, &Sources::new());
    assert_eq!(code(&by_udp(fixture.at, &query("db.", RecordType::A)).await), ResponseCode::NXDomain);
}

/// Tables are published one after the other, each with another address, while questions pour in; the kernel says when each answer
/// arrived, which by loopback is when it was sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_of_an_older_table_leaves_once_a_newer_one_is_published() {
    const TABLES: usize = 300;
    let fixture = responder(Vec::new()).await;
    let numbered = |version: u16| {
        let [high, low] = version.to_be_bytes();
        let addresses = [Ipv4Addr::new(10, 192, high, low)];
        DnsTable { version: Revision(version.into()), ..table(&[(1, "db", &addresses)]) }
    };
    fixture.responder.publish(&numbered(0), &Sources::new());
    let asking = asking_socket();
    // How many answers there are, and of how many tables.
    let (answered, seen) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let (published, answers) = std::thread::scope(|scope| {
        let ask = scope.spawn(|| {
            let question = query("db.", RecordType::A).to_vec().unwrap();
            let mut answers: Vec<(Duration, u16)> = Vec::new();
            let mut versions = BTreeSet::new();
            while versions.len() < TABLES {
                for _ in 0..20 {
                    asking.send_to(&question, fixture.at).unwrap();
                }
                for _ in 0..20 {
                    let answer = receive(&asking);
                    versions.insert(answer.1);
                    answers.push(answer);
                    answered.fetch_add(1, Ordering::SeqCst);
                }
                seen.store(versions.len(), Ordering::SeqCst);
            }
            answers
        });
        let publish = |version| {
            fixture.responder.publish(&numbered(version), &Sources::new());
            (time_of_day(), version)
        };
        // A new table each time an answer has come.
        let mut before = 0;
        let is_wanted = |_: &u16| {
            while answered.load(Ordering::SeqCst) == before && !ask.is_finished() {
                std::thread::yield_now();
            }
            before = answered.load(Ordering::SeqCst);
            seen.load(Ordering::SeqCst) < TABLES && !ask.is_finished()
        };
        let published: Vec<_> = (1..u16::MAX).take_while(is_wanted).map(publish).collect();
        (published, ask.join().unwrap())
    });
    for (at, version) in answers {
        let before = published.partition_point(|(returned, _)| *returned <= at);
        let newest = before.checked_sub(1).map_or(0, |index| published[index].1);
        assert!(version >= newest, "an answer of {version} left when {newest} was published");
    }
}

#[expect(clippy::disallowed_methods, reason = "compared with the times that the kernel notes")]
fn time_of_day() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap()
}

/// A socket of which the kernel notes when datagrams arrive.
fn asking_socket() -> std::net::UdpSocket {
    use nix::sys::socket::{setsockopt, sockopt::ReceiveTimestampns};
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    setsockopt(&socket, ReceiveTimestampns, &true).unwrap();
    // It begins to do so a little later; until then it notes when they were read.
    loop {
        socket.send_to(&[0, 0], socket.local_addr().unwrap()).unwrap();
        let sent = time_of_day();
        std::thread::yield_now();
        if receive(&socket).0 <= sent {
            return socket;
        }
    }
}

/// When the next datagram arrived, and the number at its end.
fn receive(socket: &std::net::UdpSocket) -> (Duration, u16) {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg};
    use std::{io::IoSliceMut, os::fd::AsRawFd};
    let mut buffer = [0; 512];
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let mut space = nix::cmsg_space!(nix::sys::time::TimeSpec);
    let message =
        recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::empty()).unwrap();
    let noted = message.cmsgs().unwrap().find_map(|control| match control {
        ControlMessageOwned::ScmTimestampns(at) => Some(Duration::from(at)),
        _ => None,
    });
    let length = message.bytes;
    (noted.unwrap(), u16::from_be_bytes(*buffer[..length].last_chunk().unwrap()))
}

#[tokio::test]
async fn a_reader_that_is_too_slow_gets_no_mixture_of_tables() {
    let fixture = responder(Vec::new()).await;
    let numbered = |version: u8| {
        let addresses: Vec<_> = (0..250).map(|last| Ipv4Addr::new(10, 192, version, last)).collect();
        DnsTable { version: Revision(version.into()), ..table(&[(1, "web", &addresses)]) }
    };
    fixture.responder.publish(&numbered(1), &Sources::new());
    let stream = TcpStream::connect(fixture.at).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let bytes = query("web.", RecordType::A).to_vec().unwrap();
    let bytes = [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes.as_slice()].concat();
    // Until nobody takes any more: what is answered waits for us to read.
    while timeout(Duration::from_millis(300), writer.write_all(&bytes)).await.is_ok() {}
    fixture.responder.publish(&numbered(2), &Sources::new());
    let mut all = Vec::new();
    timeout(SOON, reader.read_to_end(&mut all)).await.expect("the connection is closed").ok();
    let mut rest = all.as_slice();
    let mut whole = 0;
    while let Some((length, behind)) = rest.split_first_chunk() {
        let Some((message, behind)) = behind.split_at_checked(u16::from_be_bytes(*length).into()) else {
            break;
        };
        let reply = Message::from_vec(message).unwrap();
        assert!(addresses(&reply).iter().all(|address| address.octets()[2] == 1));
        (rest, whole) = (behind, whole + 1);
    }
    assert!(whole > 10 && !rest.is_empty(), "{whole} answers of the first table, and a part of one");
}

#[tokio::test]
async fn networks_that_stay_keep_their_sockets_and_others_are_closed() {
    let fixture = responder(Vec::new()).await;
    fixture.responder.publish(&table(&[(1, "db", &[address(5)])]), &Sources::new());
    let mut stream = TcpStream::connect(fixture.at).await.unwrap();
    let other = loopback(free_address().await);
    let both = BTreeMap::from([(network(1), loopback(fixture.at)), (network(2), other)]);
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

/// Whether a task of this responder serves `what`.
fn is_served(tasks: &Tasks, what: &str, at: SocketAddr) -> bool {
    tasks.running().contains(&format!("dns {what} {at}"))
}

#[tokio::test]
async fn what_was_received_is_answered_and_the_rest_left_to_the_process_after() {
    let before = responder(Vec::new()).await;
    before.responder.publish(&table(&[(1, "db", &[address(5)])]), &Sources::new());
    let asking = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let question = query("db.", RecordType::A).to_vec().unwrap();
    let answer = async || {
        let mut buffer = [0; 512];
        let length = timeout(SOON, asking.recv(&mut buffer)).await.unwrap().unwrap();
        addresses(&Message::from_vec(&buffer[..length]).unwrap())
    };

    // Nothing can be decided while somebody holds what is known.
    let (holds, held) = oneshot::channel();
    let (releases, released) = oneshot::channel::<()>();
    let shared = Arc::clone(&before.responder.shared);
    let holder = std::thread::spawn(move || {
        let _known = shared.known.write();
        holds.send(()).unwrap();
        released.blocking_recv()
    });
    held.await.unwrap();
    asking.send_to(&question, before.at).await.unwrap();
    until(|| before.responder.counters().questions == 1).await;
    before.responder.retire();
    // Both tasks have heard of it once one of them has ended and others had their turn.
    until(|| !is_served(&before.tasks, "tcp", before.at)).await;
    tokio::task::yield_now().await;
    assert!(is_served(&before.tasks, "udp", before.at), "there is something to be answered");
    asking.send_to(&question, before.at).await.unwrap();
    releases.send(()).unwrap();
    holder.join().unwrap().unwrap();
    assert_eq!(answer().await, [address(5)]);
    until(|| !is_served(&before.tasks, "udp", before.at)).await;
    assert_eq!(before.responder.counters().questions, 1);

    let tasks = Tasks::new(&Shutdown::new());
    let after = Responder::new(Upstreams::Fixed(Vec::new()), &tasks);
    after.publish(&table(&[(1, "db", &[address(6)])]), &Sources::new());
    let (at, files) = before.responder.sockets().unwrap();
    after.adopt(at, files);
    after.listen(&BTreeMap::from([(network(1), loopback(before.at))])).await;
    assert_eq!(after.problems(), [""; 0]);
    assert_eq!(answer().await, [address(6)]);
}

/// Whether this process has a thread for this address.
fn has_thread(at: SocketAddr) -> bool {
    let name = format!("dns {}", at.ip());
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let is_named = |thread: std::fs::DirEntry| {
        std::fs::read_to_string(thread.path().join("comm")).is_ok_and(|found| found.trim_end() == name)
    };
    threads.flatten().any(is_named)
}

#[tokio::test]
async fn a_thread_ends_with_the_wish_for_it_and_with_its_task() {
    // Addresses that no other test has: threads are called by them.
    for (last, is_wanted) in [(1, false), (2, true)] {
        let at = SocketAddr::from(([127, 77, 0, last], free_address().await.port()));
        let tasks = Tasks::new(&Shutdown::new());
        let responder = Responder::new(Upstreams::Fixed(Vec::new()), &tasks);
        responder.listen(&BTreeMap::from([(network(1), loopback(at))])).await;
        assert_eq!(responder.problems(), [""; 0]);
        until(|| has_thread(at)).await;
        if is_wanted {
            tasks.abort();
        } else {
            responder.listen(&BTreeMap::new()).await;
        }
        until(|| !is_served(&tasks, "udp", at) && !has_thread(at)).await;
    }
}
