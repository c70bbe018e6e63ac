//! Reads hosts and paths of requests as servers do.
//!
//! - A path that can be read in one way only has one reading, and costs nothing.
//! - Servers disagree about encoded slashes, `..`, empty segments and `;parameters`. A path with any of these has every reading that
//!   some server may have, so that whoever chooses by paths can see to it that none of them passes by a rule.
//! - In a reading letters are decoded once, a trailing slash says nothing, and the root is empty: `/a%62/c/` is `/ab/c`.

use std::borrow::Cow;

/// Beyond this a path is not read in more than one way: nobody means it, and it would take long.
const LONGEST: usize = 4096;

/// Every way in which a path may be understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Readings<'p> {
    /// What most servers understand.
    pub(crate) usual: Cow<'p, [u8]>,
    /// What others may, each once.
    pub(crate) others: Vec<Vec<u8>>,
}

/// A path that no two servers agree about, or that is meant to deceive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unreadable;

/// How one server reads.
#[derive(Debug, Clone, Copy)]
struct Manner {
    /// `%2F`, `%5C` and `\` part segments.
    decodes_slashes: bool,
    /// `.` and `..` are followed.
    follows_dots: bool,
    /// `//` is `/`.
    merges: bool,
    /// What follows `;` in a segment is no part of it.
    cuts_parameters: bool,
}

/// The usual one.
const USUAL: Manner =
    Manner { decodes_slashes: false, follows_dots: true, merges: true, cuts_parameters: false };

/// Every reading of a request's path, which is without its query.
pub(crate) fn read(path: &str) -> Result<Readings<'_>, Unreadable> {
    let raw = path.as_bytes();
    if is_plain(raw) {
        return Ok(Readings { usual: Cow::Borrowed(without_last_slash(raw)), others: Vec::new() });
    }
    let usual = reading(raw, USUAL)?;
    let slashes = raw.iter().enumerate().any(|(at, byte)| *byte == b'\\' || encodes_slash(&raw[at..]));
    let parameters = raw.contains(&b';');
    let literal = reading(raw, Manner { follows_dots: false, merges: false, ..USUAL })?;
    if !slashes && !parameters && literal == usual {
        return Ok(Readings { usual: Cow::Owned(usual), others: Vec::new() });
    }
    if raw.len() > LONGEST {
        return Err(Unreadable);
    }
    let mut others = Vec::new();
    for number in 0..16_u8 {
        let has = |bit: u8| number & bit != 0;
        if (has(1) && !slashes) || (has(8) && !parameters) {
            continue;
        }
        let manner =
            Manner { decodes_slashes: has(1), follows_dots: has(2), merges: has(4), cuts_parameters: has(8) };
        let other = reading(raw, manner)?;
        if other != usual && !others.contains(&other) {
            others.push(other);
        }
    }
    Ok(Readings { usual: Cow::Owned(usual), others })
}

/// The form in which a route's own path is compared with readings.
pub(crate) fn of_route(path: &str) -> Vec<u8> {
    reading(path.as_bytes(), USUAL).unwrap_or_default()
}

/// The host of a `Host` header or an `:authority`: lower case, without port and final dot; an IPv6 address without brackets. What is no
/// host is left as it is, and matches nothing.
pub(crate) fn host(authority: &str) -> Cow<'_, str> {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or(authority, |(address, _port)| address),
        // More than one colon: an address that somebody forgot to put into brackets.
        None => {
            authority.split_once(':').filter(|(_, port)| !port.contains(':')).map_or(authority, |it| it.0)
        }
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

/// Whether a reading is at or below another: whole segments.
pub(crate) fn is_below(path: &[u8], above: &[u8]) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.first().is_none_or(|byte| *byte == b'/'))
}

fn is_plain(raw: &[u8]) -> bool {
    let mut before = 0;
    for byte in raw {
        match byte {
            b'%' | b'\\' | b';' => return false,
            b'/' | b'.' if before == b'/' => return false,
            _ => before = *byte,
        }
    }
    raw.first() == Some(&b'/')
}

fn without_last_slash(path: &[u8]) -> &[u8] {
    path.strip_suffix(b"/").unwrap_or(path)
}

fn encodes_slash(text: &[u8]) -> bool {
    matches!(text, [b'%', b'2', b'f' | b'F', ..] | [b'%', b'5', b'c' | b'C', ..])
}

fn reading(raw: &[u8], manner: Manner) -> Result<Vec<u8>, Unreadable> {
    // What is not a path (`*` of OPTIONS) is its own only segment.
    let decoded = decode(raw.strip_prefix(b"/").unwrap_or(raw), manner)?;
    let mut segments: Vec<&[u8]> = Vec::new();
    for segment in decoded.split(|byte| *byte == b'/') {
        match segment {
            b"" if manner.merges => {}
            b"." if manner.follows_dots => {}
            b".." if manner.follows_dots => drop(segments.pop()),
            _ => segments.push(segment),
        }
    }
    let mut path = Vec::with_capacity(decoded.len() + 1);
    for segment in segments {
        path.push(b'/');
        path.extend_from_slice(segment);
    }
    if path.last() == Some(&b'/') {
        path.pop();
    }
    Ok(path)
}

fn decode(raw: &[u8], manner: Manner) -> Result<Vec<u8>, Unreadable> {
    let mut decoded = Vec::with_capacity(raw.len());
    let mut rest = raw;
    let mut in_parameters = false;
    while let [byte, after @ ..] = rest {
        let mut length = 1;
        match byte {
            b'/' => {
                in_parameters = false;
                decoded.push(b'/');
            }
            b';' if manner.cuts_parameters => in_parameters = true,
            _ if in_parameters => {}
            b'\\' if manner.decodes_slashes => decoded.push(b'/'),
            b'%' if encodes_slash(rest) => {
                length = 3;
                if manner.decodes_slashes {
                    decoded.push(b'/');
                } else {
                    decoded.extend(rest[..3].iter().map(u8::to_ascii_uppercase));
                }
            }
            b'%' => match escaped(after) {
                // To some servers the path ends here.
                Some(0) => return Err(Unreadable),
                Some(byte) => {
                    length = 3;
                    decoded.push(byte);
                }
                None => decoded.push(b'%'),
            },
            _ => decoded.push(*byte),
        }
        rest = &rest[length..];
    }
    Ok(decoded)
}

fn escaped(digits: &[u8]) -> Option<u8> {
    let [high, low, ..] = digits else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(*high)? << 4 | digit(*low)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn usual(path: &str) -> String {
        String::from_utf8_lossy(&read(path).unwrap().usual).into_owned()
    }

    fn all(path: &str) -> Vec<String> {
        let readings = read(path).unwrap();
        let mut all: Vec<String> =
            readings.others.iter().map(|it| String::from_utf8_lossy(it).into_owned()).collect();
        all.push(String::from_utf8_lossy(&readings.usual).into_owned());
        all.sort();
        all
    }

    #[test]
    fn a_plain_path_is_read_as_it_is_and_not_copied() {
        for (path, read_as) in [("/", ""), ("/a/b", "/a/b"), ("/a/b/", "/a/b"), ("/a.b/c..", "/a.b/c..")] {
            let readings = read(path).unwrap();
            assert_eq!(readings.usual, Cow::Borrowed(read_as.as_bytes()));
            assert!(matches!(readings.usual, Cow::Borrowed(_)) && readings.others.is_empty(), "{path}");
        }
        // Neither is worth a second thought.
        assert_eq!(all("/.well-known/x"), ["/.well-known/x"]);
        assert_eq!(all("/caf%C3%A9/%20"), ["/café/ "]);
        assert_eq!(all("*"), ["/*"]);
        assert_eq!(all(""), [""]);
    }

    #[test]
    fn a_path_is_read_as_most_servers_do_and_as_others_may() {
        assert_eq!(usual("/%61dmin"), "/admin");
        assert_eq!(usual("/x/../admin"), "/admin");
        assert_eq!(usual("/x/%2e%2E/admin"), "/admin");
        assert_eq!(usual("//admin"), "/admin");
        assert_eq!(usual("/../../admin"), "/admin");
        assert_eq!(usual("/100%/x%zz"), "/100%/x%zz", "what is no escape stays");
        assert_eq!(all("//admin"), ["//admin", "/admin"]);
        assert_eq!(all("/admin%2fx"), ["/admin%2FX".replace('X', "x"), "/admin/x".into()]);
        assert_eq!(all("/admin;v=1/x"), ["/admin/x", "/admin;v=1/x"]);
        assert!(all("/a/..;/admin").contains(&"/admin".into()), "{:?}", all("/a/..;/admin"));
        assert!(all("/a/..%5cadmin").contains(&"/admin".into()));
        assert!(all("/a//../b").contains(&"/a/b".into()) && all("/a//../b").contains(&"/b".into()));
    }

    #[test]
    fn what_deceives_is_not_read() {
        assert_eq!(read("/admin%00.png"), Err(Unreadable));
        assert_eq!(read(&"/..".repeat(2000)), Err(Unreadable));
        assert!(read(&"/%41".repeat(4000)).is_ok(), "long, and clear");
    }

    #[test]
    fn hosts_are_compared_without_what_says_nothing() {
        for (authority, expected) in [
            ("shop.example.com", "shop.example.com"),
            ("Shop.Example.COM.:8443", "shop.example.com"),
            ("[2001:DB8::1]:80", "2001:db8::1"),
            ("[::1]", "::1"),
            ("::1", "::1"),
            ("192.0.2.1:80", "192.0.2.1"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("", ""),
            ("[", "["),
        ] {
            assert_eq!(host(authority), expected);
        }
    }

    #[test]
    fn below_means_whole_segments() {
        assert!(is_below(b"/a/b", b"/a") && is_below(b"/a", b"/a") && is_below(b"/a", b""));
        assert!(!is_below(b"/ab", b"/a") && !is_below(b"/a", b"/a/b"));
    }

    proptest! {
        #[test]
        fn reading_what_was_read_changes_nothing(path in "/[a-c./;%2Ff5\\\\]{0,24}") {
            if let Ok(readings) = read(&path) {
                let usual = readings.usual.clone().into_owned();
                prop_assert!(usual.is_empty() || usual.starts_with(b"/"));
                prop_assert!(!usual.windows(2).any(|two| two == b"//"), "{path}");
                prop_assert!(!usual.split(|byte| *byte == b'/').any(|it| it == b".." || it == b"."));
                prop_assert!(!readings.others.contains(&usual));
                prop_assert!(readings.others.len() < 16);
            }
        }

        #[test]
        fn letters_may_be_encoded_and_say_the_same(path in "(/[a-z]{1,5}){1,4}", which in any::<u64>()) {
            let encoded: String = path.char_indices().map(|(at, letter)| match letter {
                '/' => "/".to_owned(),
                _ if which >> (at % 64) & 1 == 1 => format!("%{:02x}", u32::from(letter)),
                _ => letter.to_string(),
            }).collect();
            prop_assert_eq!(usual(&encoded), path);
            prop_assert!(read(&encoded).unwrap().others.is_empty());
        }
    }
}
