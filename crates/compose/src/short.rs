//! Takes the short forms of ports, volumes and devices apart.
//!
//! A long form passes through, with the defaults that the specification gives it.

use crate::diagnostic::{Complaint, Key, Report, Span};
use crate::node::{Mapping, Node, Value};

fn mapping(span: Span, fields: Vec<(&str, Value)>) -> Node {
    let mut mapping = Mapping::default();
    for (name, value) in fields {
        mapping.insert(name, span, Node::new(span, value));
    }
    Node::new(span, Value::Mapping(mapping))
}
fn text(text: impl Into<String>) -> Value {
    Value::String(text.into())
}

/// What a port's short form says.
struct Port {
    host_ip: Option<String>,
    published: Option<String>,
    target: u16,
    protocol: String,
}

pub(crate) fn ports(report: &mut Report, item: Node, key: &Key<'_>) -> Vec<Node> {
    let span = item.span;
    let short = match &item.value {
        Value::Mapping(_) => return vec![long_port(item)],
        _ => match item.scalar_text() {
            Some(text) => text,
            None => return vec![item],
        },
    };
    match short_ports(&short) {
        Ok(ports) if !report.may_expand(ports.len()) => {
            report
                .error(Complaint::InvalidValue, span, key, "there are more ports than the loader accepts")
                .hint("publish smaller ranges, or use `network_mode: host`");
            vec![]
        }
        Ok(ports) => ports
            .into_iter()
            .map(|port| {
                let mut fields = vec![("mode", text("ingress"))];
                fields.extend(port.host_ip.map(|ip| ("host_ip", text(ip))));
                fields.push(("target", Value::Int(i64::from(port.target))));
                fields.extend(port.published.map(|published| ("published", text(published))));
                fields.push(("protocol", text(port.protocol)));
                mapping(span, fields)
            })
            .collect(),
        Err((message, hint)) => {
            report.error(Complaint::InvalidValue, span, key, message).hint(hint);
            vec![]
        }
    }
}

fn long_port(mut item: Node) -> Node {
    let span = item.span;
    if let Some(port) = item.as_mapping_mut() {
        for (name, default) in [("mode", "ingress"), ("protocol", "tcp")] {
            if !port.contains(name) {
                port.insert(name, span, Node::string(span, default));
            }
        }
        if let Some(published) = port.get_mut("published")
            && let Some(text) = published.scalar_text()
        {
            published.value = Value::String(text);
        }
    }
    item
}

const FORM: &str = "write `published:target`, such as \"8080:80\"";

/// What is wrong, and what to write.
type Refusal = (String, &'static str);

/// `[[ip:]published:]target[/protocol]`, where both ports may be ranges.
fn short_ports(short: &str) -> Result<Vec<Port>, Refusal> {
    let (rest, protocol) = match short.rsplit_once('/') {
        Some((rest, protocol)) => (rest, protocol.to_ascii_lowercase()),
        None => (short, "tcp".to_owned()),
    };
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err((format!("`{protocol}` is not a protocol of a port"), "write `/tcp` or `/udp`"));
    }
    let mut parts = rest.rsplitn(3, ':');
    let target = parts.next().unwrap_or_default();
    let published = parts.next();
    let address = parts.next();
    if target.is_empty() {
        return Err((format!("`{short}` names no port of the container"), FORM));
    }
    let targets = range(target, short, "container")?;
    let host_ip = match address {
        None => None,
        Some(address) => {
            let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
            if bare.is_empty() || bare.parse::<std::net::IpAddr>().is_ok() {
                Some(bare.to_owned()).filter(|bare| !bare.is_empty())
            } else {
                return Err((format!("`{address}` in `{short}` is not an IP address"), FORM));
            }
        }
    };
    let published = published.filter(|published| !published.is_empty());
    let (first, last) = targets;
    let port = |target: u16, published: Option<String>| Port {
        host_ip: host_ip.clone(),
        published,
        target,
        protocol: protocol.clone(),
    };
    // In the order of their texts, as the reference has them.
    let ordered = |mut ports: Vec<Port>| {
        ports.sort_by_cached_key(|port| format!("{}/", port.target));
        ports
    };
    let Some(published) = published else {
        return Ok(ordered((first..=last).map(|target| port(target, None)).collect()));
    };
    let (from, to) = range(published, short, "host")?;
    if first == last && from != to {
        return Ok(vec![port(first, Some(format!("{from}-{to}")))]);
    }
    if to - from != last - first {
        return Err((
            format!(
                "`{short}` maps {} ports of the host to {} of the container",
                u32::from(to - from) + 1,
                u32::from(last - first) + 1
            ),
            "give both ranges the same length",
        ));
    }
    let pairs = (first..=last).zip(from..=to);
    Ok(ordered(pairs.map(|(target, host)| port(target, Some(host.to_string()))).collect()))
}

fn range(text: &str, short: &str, whose: &str) -> Result<(u16, u16), Refusal> {
    let number = |text: &str| -> Result<u16, Refusal> {
        match text.parse::<u64>() {
            Ok(number) if !text.starts_with('+') => u16::try_from(number).map_err(|_| {
                (format!("the {whose} port {number} in `{short}` is out of range"), "ports are 1 to 65535")
            }),
            _ => Err((format!("`{text}` in `{short}` is not a port of the {whose}"), FORM)),
        }
    };
    let (from, to) = match text.split_once('-') {
        Some((from, to)) => (number(from)?, number(to)?),
        None => (number(text)?, number(text)?),
    };
    if from > to {
        return Err((
            format!("the range {from}-{to} in `{short}` runs backwards"),
            "write the smaller port first",
        ));
    }
    Ok((from, to))
}

const PROPAGATIONS: [&str; 6] = ["rprivate", "private", "rshared", "shared", "rslave", "slave"];

/// `[source:]target[:options]`; paths stay as they are written.
pub(crate) fn volume(report: &mut Report, item: Node, key: &Key<'_>) -> Vec<Node> {
    let span = item.span;
    let short = match &item.value {
        Value::Mapping(_) => return vec![item],
        Value::String(text) => text.clone(),
        _ => return vec![],
    };
    let parts = sections(&short);
    if parts.iter().any(|part| part.is_empty()) {
        let message = format!("`{short}` has an empty part between its colons");
        report
            .error(Complaint::InvalidValue, span, key, message)
            .hint("write `source:target`, such as `data:/var/lib/data`");
        return vec![];
    }
    let (source, target, options) = match parts.as_slice() {
        [target] => (None, target.clone(), None),
        [source, target] => (Some(source.clone()), target.clone(), None),
        [source, target, options] => (Some(source.clone()), target.clone(), Some(options.clone())),
        _ => {
            let message = format!("`{short}` has more than the parts source, target and options");
            report
                .error(Complaint::InvalidValue, span, key, message)
                .hint("use the long form: `type`, `source`, `target`");
            return vec![];
        }
    };
    let binds = source.as_deref().is_some_and(is_path);
    let mut fields = vec![("type", text(if binds { "bind" } else { "volume" }))];
    fields.extend(source.map(|source| ("source", text(source))));
    fields.push(("target", text(target)));
    let (mut bind, mut volume) = (Mapping::default(), Mapping::default());
    if binds {
        bind.insert("create_host_path", span, Node::new(span, Value::Bool(true)));
    }
    for option in options.iter().flat_map(|options| options.split(',')) {
        match option {
            "ro" => fields.push(("read_only", Value::Bool(true))),
            "rw" => {}
            "nocopy" => volume.insert("nocopy", span, Node::new(span, Value::Bool(true))),
            "z" | "Z" => bind.insert("selinux", span, Node::string(span, option)),
            propagation if PROPAGATIONS.contains(&propagation) => {
                bind.insert("propagation", span, Node::string(span, propagation));
            }
            "cached" | "delegated" | "consistent" => {
                let message = format!("the option `{option}` has no effect on Linux");
                report.warn(Complaint::Obsolete, span, key, message).hint("leave it out");
            }
            _ => {
                let known = ["ro", "rw", "nocopy", "z", "Z"].into_iter().chain(PROPAGATIONS);
                let hint = crate::diagnostic::did_you_mean(option, known.clone())
                    .unwrap_or_else(|| format!("options are {}", known.collect::<Vec<_>>().join(", ")));
                let message = format!("`{option}` is not an option of a volume");
                report.unsupported(span, key, message).hint(hint);
            }
        }
    }
    if binds && !volume.is_empty() {
        report
            .warn(Complaint::Obsolete, span, key, "the option `nocopy` has no effect on a bind")
            .hint("leave it out");
    }
    if !binds && !bind.is_empty() {
        let names: Vec<&str> = bind.iter().filter_map(|(_, entry)| entry.node.as_str()).collect();
        let message = format!("the option `{}` has no effect on a named volume", names.join(","));
        report.warn(Complaint::Obsolete, span, key, message).hint("leave it out");
    }
    if binds || !bind.is_empty() {
        fields.push(("bind", Value::Mapping(bind)));
    }
    if !binds || !volume.is_empty() {
        fields.push(("volume", Value::Mapping(volume)));
    }
    vec![mapping(span, fields)]
}

/// Splits at colons, but not after a drive letter.
fn sections(short: &str) -> Vec<String> {
    let mut parts: Vec<String> = vec![String::new()];
    for c in short.chars() {
        let last = parts.last_mut();
        match (c, last) {
            (':', Some(part)) if part.len() != 1 || !part.starts_with(|c: char| c.is_ascii_alphabetic()) => {
                parts.push(String::new());
            }
            (c, Some(part)) => part.push(c),
            (_, None) => {}
        }
    }
    parts
}

fn is_path(source: &str) -> bool {
    source.starts_with(['.', '/', '~']) || source.starts_with(r"\\") || is_windows(source)
}

/// `C:\data`
pub(crate) fn is_windows(source: &str) -> bool {
    let mut characters = source.chars();
    characters.next().is_some_and(|c| c.is_ascii_alphabetic()) && characters.next() == Some(':')
}

/// `source[:target[:permissions]]`.
pub(crate) fn device(report: &mut Report, item: Node, key: &Key<'_>) -> Vec<Node> {
    let span = item.span;
    let short = match &item.value {
        Value::Mapping(_) => return vec![long_device(item)],
        Value::String(text) => text.clone(),
        _ => return vec![],
    };
    let parts: Vec<&str> = short.split(':').collect();
    let permissions = |text: &str| !text.is_empty() && text.chars().all(|c| "rwm".contains(c));
    let (source, target, mode) = match parts.as_slice() {
        [source] => (*source, *source, "rwm"),
        [source, target] => (*source, *target, "rwm"),
        [source, target, mode] => {
            if !permissions(mode) {
                let message = format!("`{mode}` is not what a device may be used for");
                report.unsupported(span, key, message).hint("write some of `r`, `w` and `m`, such as `rwm`");
            }
            (*source, *target, *mode)
        }
        _ => {
            let message = format!("`{short}` is not a device");
            report
                .error(Complaint::InvalidValue, span, key, message)
                .hint("write `source:target:permissions`, such as `/dev/ttyUSB0:/dev/ttyUSB0:rwm`");
            return vec![];
        }
    };
    vec![mapping(span, vec![("source", text(source)), ("target", text(target)), ("permissions", text(mode))])]
}

fn long_device(mut item: Node) -> Node {
    let span = item.span;
    if let Some(device) = item.as_mapping_mut() {
        let source = device.get("source").and_then(Node::as_str).unwrap_or_default().to_owned();
        for (name, default) in [("target", source.as_str()), ("permissions", "rwm")] {
            if !device.contains(name) {
                device.insert(name, span, Node::string(span, default));
            }
        }
    }
    item
}
