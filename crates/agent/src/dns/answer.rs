//! Decides what to answer to a DNS message: from the table, by refusing, or by asking another resolver.
//!
//! - Pure: the message, who asked, the zone and a number that rotates the answers go in.
//! - A name with one label is ours alone: what the table does not have does not exist, and nobody is asked.
//! - A name the table has exists for every type; for types we have nothing of, the answer is empty.

use std::net::{IpAddr, Ipv4Addr};

use hickory_proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, PTR, SOA},
    },
    serialize::binary::BinEncodable,
};
use ipnet::{IpNet, Ipv4Net};
use wharf_model::NetworkId;

use super::zone::Zone;

/// How long an answer may be kept: as long as it may take until a task that was replaced gets no more requests.
const TTL: u32 = 5;
/// The largest answer by UDP to a client that announces more: what fits a packet everywhere.
const LARGEST: u16 = 1232;
/// What a client takes that announces nothing.
const SMALLEST: u16 = 512;

/// Where a question came from and in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asker {
    pub(super) address: Ipv4Addr,
    /// The network of the address that was asked.
    pub(super) network: NetworkId,
}

/// How a message came, and goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// What to do about a message.
#[derive(Debug)]
pub(super) enum Answer {
    /// Send this.
    Send(Vec<u8>),
    /// Ask an upstream resolver this question; if there is none, the name does not exist.
    Forward(Box<Message>),
    /// It is no question.
    Nothing,
}

/// The answer to `message`. `ours` are the networks whose addresses nobody else can name.
pub(super) fn answer(
    message: &[u8],
    asker: Asker,
    transport: Transport,
    zone: &Zone,
    ours: &[Ipv4Net],
    turn: usize,
) -> Answer {
    let Ok(request) = Message::from_vec(message) else { return malformed(message) };
    if request.metadata.message_type == MessageType::Response {
        return Answer::Nothing;
    }
    if request.metadata.op_code != OpCode::Query {
        return send(&failure(&request, ResponseCode::NotImp), transport, &request);
    }
    if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return send(&failure(&request, ResponseCode::BADVERS), transport, &request);
    }
    let [query] = request.queries.as_slice() else {
        return send(&failure(&request, ResponseCode::FormErr), transport, &request);
    };
    if query.query_class() != DNSClass::IN {
        return send(&failure(&request, ResponseCode::Refused), transport, &request);
    }
    match find(query, asker, zone, ours, turn) {
        Found::Records(records) => {
            let mut reply = authoritative(&request, ResponseCode::NoError);
            reply.add_answers(records);
            send(&reply, transport, &request)
        }
        Found::NoRecords => {
            let mut reply = authoritative(&request, ResponseCode::NoError);
            reply.add_authority(start_of_authority(query.name()));
            send(&reply, transport, &request)
        }
        Found::NoName => send(&no_such_name(&request), transport, &request),
        Found::Elsewhere => Answer::Forward(Box::new(request)),
    }
}

/// The answer that a name does not exist.
pub(super) fn no_such_name(request: &Message) -> Message {
    let mut reply = authoritative(request, ResponseCode::NXDomain);
    if let Some(query) = request.queries.first() {
        reply.add_authority(start_of_authority(query.name()));
    }
    reply
}

/// An answer without records.
pub(super) fn failure(request: &Message, code: ResponseCode) -> Message {
    let mut reply = Message::new(request.metadata.id, MessageType::Response, request.metadata.op_code);
    reply.metadata = Metadata::response_from_request(&request.metadata);
    reply.metadata.recursion_available = true;
    reply.metadata.response_code = code;
    reply.add_queries(request.queries.iter().cloned());
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(LARGEST);
        edns.set_rcode_high(code.high());
        reply.set_edns(edns);
    }
    reply
}

/// The most bytes the asker takes in one datagram.
pub(super) fn limit(request: &Message) -> usize {
    let announced = request.edns.as_ref().map_or(SMALLEST, Edns::max_payload);
    announced.clamp(SMALLEST, LARGEST).into()
}

/// A message as it is sent: if it is too long for the way back, as many answers as fit and the mark that there are more.
pub(super) fn encode(reply: &Message, transport: Transport, request: &Message) -> Option<Vec<u8>> {
    let limit = match transport {
        Transport::Udp => limit(request),
        Transport::Tcp => u16::MAX.into(),
    };
    let bytes = reply.to_bytes().ok()?;
    if bytes.len() <= limit {
        return Some(bytes);
    }
    let mut short = reply.truncate();
    let (empty, all) = (short.to_bytes().ok()?.len(), reply.answers.len().max(1));
    // Answers of one kind to one name are about equally long; the rest is dropped one by one.
    let each = (bytes.len() - empty).div_ceil(all).max(1);
    let mut count = (limit.saturating_sub(empty) / each).min(reply.answers.len());
    loop {
        short.answers = reply.answers[..count].to_vec();
        let bytes = short.to_bytes().ok()?;
        if bytes.len() <= limit || count == 0 {
            return Some(bytes);
        }
        count -= 1;
    }
}

enum Found {
    Records(Vec<Record>),
    /// The name exists, without records of that type.
    NoRecords,
    NoName,
    /// Not for us to say.
    Elsewhere,
}

fn find(query: &Query, asker: Asker, zone: &Zone, ours: &[Ipv4Net], turn: usize) -> Found {
    let name = text(query.name());
    if let Some(addresses) = zone.addresses(asker.address, asker.network, &name) {
        return if matches!(query.query_type(), RecordType::A | RecordType::ANY) {
            Found::Records(rotated(query.name(), addresses, turn))
        } else {
            Found::NoRecords
        };
    }
    if let Some(address) = reverse(query.name()) {
        return find_name(query, address, asker, zone, ours);
    }
    if query.name().num_labels() > 1 { Found::Elsewhere } else { find_single(query) }
}

/// A single label that the table does not have. The root is nobody's name, but it has servers, and resolvers ask for them.
fn find_single(query: &Query) -> Found {
    if query.name().is_root() { Found::Elsewhere } else { Found::NoName }
}

fn find_name(query: &Query, address: Ipv4Addr, asker: Asker, zone: &Zone, ours: &[Ipv4Net]) -> Found {
    let Some(name) = zone.name(asker.address, asker.network, address) else {
        let own = ours.iter().any(|network| network.contains(&address));
        return if own { Found::NoName } else { Found::Elsewhere };
    };
    match Name::from_ascii(format!("{name}.")) {
        Ok(target) if matches!(query.query_type(), RecordType::PTR | RecordType::ANY) => {
            let record = Record::from_rdata(query.name().clone(), TTL, RData::PTR(PTR(target)));
            Found::Records(vec![record])
        }
        _ => Found::NoRecords,
    }
}

/// The address that a name under `in-addr.arpa` stands for.
fn reverse(name: &Name) -> Option<Ipv4Addr> {
    let mut name = name.clone();
    name.set_fqdn(true);
    match name.parse_arpa_name().ok()? {
        IpNet::V4(net) if net.prefix_len() == 32 => match IpAddr::V4(net.addr()) {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        },
        IpNet::V4(_) | IpNet::V6(_) => None,
    }
}

/// A name as the table writes it.
fn text(name: &Name) -> String {
    let mut text = name.to_lowercase().to_ascii();
    if text.len() > 1 && text.ends_with('.') {
        text.pop();
    }
    text
}

fn rotated(name: &Name, addresses: &[Ipv4Addr], turn: usize) -> Vec<Record> {
    let (after, before) = addresses.split_at(turn % addresses.len().max(1));
    let record = |address: &Ipv4Addr| Record::from_rdata(name.clone(), TTL, RData::A(A(*address)));
    before.iter().chain(after).map(record).collect()
}

fn authoritative(request: &Message, code: ResponseCode) -> Message {
    let mut reply = failure(request, code);
    reply.metadata.authoritative = true;
    reply
}

/// Says how long a negative answer may be kept: as short as a positive one, because the task may be about to start.
fn start_of_authority(name: &Name) -> Record {
    let soa = SOA::new(Name::root(), Name::root(), 1, 60, 60, 60, TTL);
    Record::from_rdata(name.clone(), TTL, RData::SOA(soa))
}

fn send(reply: &Message, transport: Transport, request: &Message) -> Answer {
    encode(reply, transport, request).map_or(Answer::Nothing, Answer::Send)
}

/// The answer to what cannot be read: its identifier is in the first two bytes, and the third says whether it is an answer itself.
fn malformed(message: &[u8]) -> Answer {
    let [first, second, flags, ..] = message else { return Answer::Nothing };
    if message.len() < 12 || flags & 0x80 != 0 {
        return Answer::Nothing;
    }
    let reply =
        Message::error_msg(u16::from_be_bytes([*first, *second]), OpCode::Query, ResponseCode::FormErr);
    reply.to_bytes().map_or(Answer::Nothing, Answer::Send)
}
