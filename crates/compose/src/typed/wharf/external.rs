//! Services that run outside the cluster: a host and ports that others reach by the service's name.
//!
//! `x-wharf: {external: {host: …}}`, or `external:` in the service itself as the Swarm-era Alibaba Container Service had it.

use std::collections::BTreeMap;

use wharf_model::{ExternalService, Mode, NetworkAttachment};

use crate::diagnostic::{Complaint, Key};
use crate::node::{Entry, Mapping, Node};
use crate::typed::{Typing, values};

/// Where a service says that it runs outside.
fn written(service: &Mapping) -> [Option<&Entry>; 2] {
    let own = service.get("x-wharf").and_then(Node::as_mapping).and_then(|wharf| wharf.entry("external"));
    [own, service.entry("external")]
}

/// Whether a service runs outside.
pub(in crate::typed) fn is_external(service: &Node) -> bool {
    service.as_mapping().is_some_and(|service| written(service).iter().any(Option::is_some))
}

impl Typing<'_, '_> {
    pub(in crate::typed) fn external(&mut self, entry: &Entry, key: &Key<'_>) -> Option<ExternalService> {
        let service = entry.node.as_mapping()?;
        let outside = match written(service) {
            [Some(own), Some(old)] => {
                let message = "`external` and `x-wharf.external` say the same";
                self.report()
                    .error(Complaint::Conflict, old.key, &key.field("external"), message)
                    .hint("keep `x-wharf: {external: …}`");
                self.report().relate(own.key, "the other one");
                own
            }
            [one, other] => one.or(other)?,
        };
        for (field, value) in service.iter() {
            let key = key.field(field);
            match field {
                "external" | "networks" | "profiles" => {}
                "x-wharf" => {
                    for (field, value) in values::entries(value).filter(|(field, _)| *field != "external") {
                        self.beside_external(value, &key.field(field));
                    }
                }
                _ => self.beside_external(value, &key),
            }
        }
        let key = key.field("external");
        let mapping = outside.node.as_mapping()?;
        let host = mapping.entry("host")?;
        let written = values::full_text(self.report(), host, &key.field("host"))?;
        let parsed = match written.parse() {
            Ok(parsed) => Some(parsed),
            Err(_) => {
                let message = format!("`{written}` is neither an IP address nor a domain name");
                let alone = written.split("://").last().and_then(|rest| rest.split(['/', ':']).next());
                let hint = match alone.filter(|alone| alone.parse::<wharf_model::ExternalHost>().is_ok()) {
                    Some(alone) => format!("write the host alone: `host: {alone}`; ports stand in `ports`"),
                    None => "write for example `host: 10.0.0.7` or `host: db.example.com`".to_owned(),
                };
                self.report()
                    .error(Complaint::InvalidValue, host.place(), &key.field("host"), message)
                    .hint(hint);
                None
            }
        };
        let mut ports = Vec::new();
        if let Some(entry) = mapping.entry("ports") {
            let key = key.field("ports");
            for (index, item) in entry.node.as_sequence().unwrap_or_default().iter().enumerate() {
                let item = Entry { key: item.span, node: item.clone() };
                ports.extend(values::whole::<u16>(self.report(), &item, &key.item(index), 1..=65_535));
            }
        }
        let networks = match service.entry("networks") {
            Some(entry) => self.attachments(entry, &key.field("networks"), Mode::default()),
            None => {
                self.networks.insert("default".to_owned(), ());
                let default = "default".parse().ok()?;
                BTreeMap::from([(default, NetworkAttachment::default())])
            }
        };
        Some(ExternalService { host: parsed?, ports, networks })
    }

    fn beside_external(&mut self, entry: &Entry, key: &Key<'_>) {
        let name = key.name();
        let message =
            format!("`{name}` has no effect on a service outside the cluster, which has no container");
        self.report()
            .error(Complaint::Conflict, entry.key, key, message)
            .hint(format!("remove `{name}`, or `external`"));
    }
}
