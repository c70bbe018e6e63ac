//! Asks a responder for the addresses of names, over the network like any container does. It reads and writes its own messages,
//! so that an error in the responder's code is not made twice and thereby hidden.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use socket2::Type;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, UdpSocket},
    time::{Instant, timeout},
};
use wharf_api::transport::diagnose::NameAnswer;

use super::{Place, socket_in};

/// Questions under way at once.
const WINDOW: usize = 128;
/// A question by UDP is given up after so many.
const TRIES: u32 = 3;

/// A message that was read.
#[derive(Debug, PartialEq, Eq)]
struct Message {
    id: u16,
    truncated: bool,
    answer: NameAnswer,
}

/// Asks for all of them by UDP; what is truncated is asked again by TCP.
pub(super) async fn by_udp(
    place: &Place,
    from: Option<IpAddr>,
    server: SocketAddr,
    names: &[String],
    patience: Duration,
) -> io::Result<Vec<NameAnswer>> {
    let socket = UdpSocket::from_std(socket_in(place, Type::DGRAM, from, server).await?.into())?;
    socket.connect(server).await?;
    let mut answers = vec![NameAnswer::Silent; names.len()];
    let mut truncated = Vec::new();
    for window in (0..names.len()).collect::<Vec<_>>().chunks(WINDOW) {
        ask_window(&socket, names, window, patience, &mut answers, &mut truncated).await?;
    }
    if !truncated.is_empty() {
        let again: Vec<String> = truncated.iter().map(|position| names[*position].clone()).collect();
        let whole = by_tcp(place, from, server, &again, patience).await?;
        for (position, answer) in truncated.into_iter().zip(whole) {
            answers[position] = answer;
        }
    }
    Ok(answers)
}

async fn ask_window(
    socket: &UdpSocket,
    names: &[String],
    window: &[usize],
    patience: Duration,
    answers: &mut [NameAnswer],
    truncated: &mut Vec<usize>,
) -> io::Result<()> {
    let first = rand::random::<u16>();
    let ids: HashMap<u16, usize> = window
        .iter()
        .enumerate()
        .map(|(count, position)| (first.wrapping_add(u16::try_from(count).unwrap_or_default()), *position))
        .collect();
    let mut open: BTreeMap<usize, u16> = ids.iter().map(|(id, position)| (*position, *id)).collect();
    for _ in 0..TRIES {
        for (position, id) in &open {
            // What cannot be written as a question is no name; nobody will answer it.
            let Some(question) = question(*id, &names[*position]) else {
                answers[*position] = NameAnswer::Broken("this is no name".into());
                continue;
            };
            // A refusal of an earlier datagram is told here.
            if let Err(error) = socket.send(&question).await {
                answers[*position] = NameAnswer::Broken(error.to_string());
            }
        }
        let until = Instant::now() + patience / TRIES;
        let mut buffer = vec![0_u8; 65_536];
        while !open.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            let Ok(received) = timeout(left, socket.recv(&mut buffer)).await else { break };
            let length = match received {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    for position in open.keys() {
                        answers[*position] = NameAnswer::Broken("nothing listens there".into());
                    }
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            let Some(message) = read(&buffer[..length]) else { continue };
            let Some(position) = ids.get(&message.id).filter(|position| open.contains_key(position)) else {
                continue;
            };
            open.remove(position);
            if message.truncated {
                truncated.push(*position);
            }
            answers[*position] = message.answer;
        }
        if open.is_empty() {
            break;
        }
    }
    Ok(())
}

/// Asks for all of them over one connection, one after the other.
pub(super) async fn by_tcp(
    place: &Place,
    from: Option<IpAddr>,
    server: SocketAddr,
    names: &[String],
    patience: Duration,
) -> io::Result<Vec<NameAnswer>> {
    let socket = socket_in(place, Type::STREAM, from, server).await?;
    let socket = TcpSocket::from_std_stream(socket.into());
    let late = || io::Error::new(io::ErrorKind::TimedOut, "no answer");
    let mut stream = timeout(patience, socket.connect(server)).await.map_err(|_| late())??;
    let mut answers = Vec::with_capacity(names.len());
    for (count, name) in names.iter().enumerate() {
        let id = u16::try_from(count & 0xffff).unwrap_or_default();
        let Some(question) = question(id, name) else {
            answers.push(NameAnswer::Broken("this is no name".into()));
            continue;
        };
        let asked = async {
            let length = u16::try_from(question.len()).unwrap_or_default();
            stream.write_all(&[&length.to_be_bytes()[..], &question].concat()).await?;
            let length = stream.read_u16().await?;
            let mut message = vec![0_u8; usize::from(length)];
            stream.read_exact(&mut message).await?;
            io::Result::Ok(message)
        };
        match timeout(patience, asked).await {
            Ok(Ok(message)) => answers.push(match read(&message) {
                Some(message) if message.id == id => message.answer,
                Some(_) => NameAnswer::Broken("this answers another question".into()),
                None => NameAnswer::Broken("this is no answer".into()),
            }),
            Ok(Err(error)) => {
                answers.push(NameAnswer::Broken(error.to_string()));
                break;
            }
            Err(_late) => {
                answers.push(NameAnswer::Silent);
                break;
            }
        }
    }
    // After a connection broke, what is left was not asked.
    answers.resize(names.len(), NameAnswer::Silent);
    Ok(answers)
}

/// A question for the IPv4 addresses of a name; none if that is no name.
fn question(id: u16, name: &str) -> Option<Vec<u8>> {
    let mut message = Vec::with_capacity(name.len() + 32);
    message.extend(id.to_be_bytes());
    // Recursion desired; one question, and one record of EDNS that says how large an answer may be.
    message.extend([0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 1]);
    for label in name.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..64).contains(length))?;
        message.push(length);
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message.extend([0, 0, 41, 0x10, 0, 0, 0, 0, 0, 0, 0]);
    (name.len() <= 253).then_some(message)
}

/// Reads an answer; none if it is no message of DNS.
fn read(message: &[u8]) -> Option<Message> {
    let number = |at: usize| Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?));
    let (id, flags, questions, count) = (number(0)?, number(2)?, number(4)?, number(6)?);
    if flags & 0x8000 == 0 {
        return None;
    }
    let truncated = flags & 0x0200 != 0;
    let answer = match flags & 0x000f {
        0 => NameAnswer::Addresses(Vec::new()),
        2 => NameAnswer::Code("SERVFAIL".into()),
        3 => NameAnswer::Code("NXDOMAIN".into()),
        5 => NameAnswer::Code("REFUSED".into()),
        other => NameAnswer::Code(format!("code {other}")),
    };
    let NameAnswer::Addresses(mut addresses) = answer else { return Some(Message { id, truncated, answer }) };
    let mut at = 12;
    for _ in 0..questions {
        at = after_name(message, at)? + 4;
    }
    for _ in 0..count {
        at = after_name(message, at)?;
        let (kind, length) = (number(at)?, usize::from(number(at + 8)?));
        let data = message.get(at + 10..at + 10 + length)?;
        if kind == 1 {
            addresses.push(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?));
        }
        at += 10 + length;
    }
    addresses.sort_unstable();
    Some(Message { id, truncated, answer: NameAnswer::Addresses(addresses) })
}

/// Where a name ends that begins there.
fn after_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length if length >= 0xc0 => return Some(at + 2),
            length => at += usize::from(length) + 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr as _;

    use hickory_proto::{
        op::{Message as Hickory, MessageType, OpCode, ResponseCode},
        rr::{Name, RData, Record, rdata::A},
    };

    use super::*;

    fn reply(code: ResponseCode, addresses: &[[u8; 4]]) -> Vec<u8> {
        let asked = Hickory::from_vec(&question(7, "web.shop").unwrap()).unwrap();
        let mut reply = Hickory::new(7, MessageType::Response, OpCode::Query);
        reply.add_queries(asked.queries.clone());
        reply.metadata.response_code = code;
        for [a, b, c, d] in addresses {
            let name = Name::from_str("web.shop.").unwrap();
            reply.add_answer(Record::from_rdata(name, 1, RData::A(A::new(*a, *b, *c, *d))));
        }
        reply.to_vec().unwrap()
    }

    #[test]
    fn questions_are_what_others_take_for_questions() {
        let asked = Hickory::from_vec(&question(7, "web.shop").unwrap()).unwrap();
        assert_eq!(asked.queries[0].name().to_ascii(), "web.shop.");
        assert_eq!(question(7, "a..b"), None);
        assert_eq!(question(7, &"x".repeat(64)), None);
    }

    #[test]
    fn answers_of_others_are_understood() {
        let both = read(&reply(ResponseCode::NoError, &[[10, 0, 0, 9], [10, 0, 0, 2]])).unwrap();
        let wanted = vec![Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 9)];
        assert_eq!(both, Message { id: 7, truncated: false, answer: NameAnswer::Addresses(wanted) });
        let none = read(&reply(ResponseCode::NXDomain, &[])).unwrap();
        assert_eq!(none.answer, NameAnswer::Code("NXDOMAIN".into()));
    }

    #[test]
    fn what_is_cut_off_anywhere_is_no_answer_and_no_panic() {
        let whole = reply(ResponseCode::NoError, &[[10, 0, 0, 9], [10, 0, 0, 2]]);
        for length in 0..whole.len() {
            let _ = read(&whole[..length]);
        }
        assert_eq!(read(&whole[..whole.len() - 20]), None);
    }
}
