//! Decides what a container's network namespace should have: rules that spread connections to virtual addresses, and ways back to
//! gateways. Without input or output.
//!
//! - A connection to a virtual address goes to one of the service's ready tasks, each as likely as the others, the own one among them. It
//!   stays there: only its first packet is decided about.
//! - Without a ready task it is refused at once. One whose task is gone is reset.
//! - An answer to a connection that came from a gateway goes back to that gateway, whoever's address it goes to.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::Ipv6Net;
use wharf_model::{VirtualService, ipv6_for, mac_for};

use super::ways::{Family, Hop, Ways};

/// What belongs into the namespace of a task's container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sandbox {
    /// The task's own addresses, by which its namespace is known.
    pub own: BTreeSet<Ipv4Addr>,
    /// Virtual addresses on its networks, and what is behind each.
    pub vips: BTreeMap<Ipv4Addr, Behind>,
    /// Gateways on its first network that connect from their clients' addresses.
    pub entries: BTreeSet<Ipv4Addr>,
    /// The IPv6 subnet of its first network, on which gateways have the addresses that follow from `entries`.
    pub subnet6: Option<Ipv6Net>,
}

/// The tasks behind a virtual address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Behind {
    /// Those that get connections.
    pub tasks: BTreeSet<Ipv4Addr>,
    /// Those that keep the ones they have.
    pub leaving: BTreeSet<Ipv4Addr>,
}

impl From<&VirtualService> for Behind {
    fn from(service: &VirtualService) -> Self {
        Self { tasks: service.tasks.clone(), leaving: service.leaving.clone() }
    }
}

impl Sandbox {
    /// Whether nothing belongs there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.vips.is_empty() && self.entries.is_empty()
    }

    /// The addresses of gateways of a family to which it can send answers back once all is written that belongs there.
    #[must_use]
    pub fn answers(&self, family: Family) -> BTreeSet<IpAddr> {
        self.entries.iter().filter_map(|entry| self.address(family, *entry)).collect()
    }

    /// The address of a gateway.
    fn address(&self, family: Family, entry: Ipv4Addr) -> Option<IpAddr> {
        match family {
            Family::V4 => Some(entry.into()),
            Family::V6 => Some(ipv6_for(self.subnet6?, entry).into()),
        }
    }

    /// The content of a family's table; none if there shall be none.
    pub(super) fn body(&self, family: Family) -> Option<String> {
        let mut body = String::new();
        // Writing to a string does not fail.
        let _ = match family {
            Family::V4 => self.write_vips(&mut body).and_then(|()| self.write_entries(&mut body)),
            Family::V6 if self.subnet6.is_some() => self.write_entries(&mut body),
            Family::V6 => Ok(()),
        };
        (!body.is_empty()).then_some(body)
    }

    fn write_vips(&self, out: &mut String) -> std::fmt::Result {
        if self.vips.is_empty() {
            return Ok(());
        }
        let mut spread = Vec::new();
        for (vip, behind) in &self.vips {
            let name = format!("to_{:08x}", u32::from(*vip));
            let target = match behind.tasks.len() {
                0 => continue,
                1 => list(&behind.tasks),
                count => {
                    let numbered = behind.tasks.iter().enumerate().map(|(n, task)| format!("{n} : {task}"));
                    format!("numgen random mod {count} map {{ {} }}", numbered.collect::<Vec<_>>().join(", "))
                }
            };
            writeln!(out, "chain {name} {{\n dnat to {target}\n}}")?;
            spread.push(format!("{vip} : goto {name}"));
        }
        let alive = self.alive();
        writeln!(out, "set vips {{\n type ipv4_addr\n elements = {{ {} }}\n}}", list(self.vips.keys()))?;
        writeln!(out, "set alive {{\n type ipv4_addr")?;
        if !alive.is_empty() {
            writeln!(out, " elements = {{ {} }}", list(&alive))?;
        }
        writeln!(out, "}}\nchain spread {{\n type nat hook output priority -100")?;
        if !spread.is_empty() {
            writeln!(out, " ip daddr vmap {{ {} }}", spread.join(", "))?;
        }
        out.push_str(
            "}\nchain refuse {\n meta l4proto tcp reject with tcp reset\n reject with icmp port-unreachable\n}\n\
             chain guard {\n type filter hook output priority 0\n ip daddr @vips goto refuse\n \
             ct direction original ct original ip daddr @vips ip daddr != @alive goto refuse\n}\n",
        );
        Ok(())
    }

    /// Behind virtual addresses, with connections or without.
    pub(super) fn alive(&self) -> BTreeSet<Ipv4Addr> {
        self.vips.values().flat_map(|behind| behind.tasks.iter().chain(&behind.leaving)).copied().collect()
    }

    fn write_entries(&self, out: &mut String) -> std::fmt::Result {
        if self.entries.is_empty() {
            return Ok(());
        }
        let came = self.entries.iter().map(|entry| {
            let mac = mac_for(*entry).map(|byte| format!("{byte:02x}")).join(":");
            format!("{mac} : {:#010x}", mark_of(*entry))
        });
        let came = came.collect::<Vec<_>>().join(", ");
        let marks = self.entries.iter().map(|entry| format!("{:#010x}", mark_of(*entry)));
        let marks = marks.collect::<Vec<_>>().join(", ");
        writeln!(out, "set marks {{\n type mark\n elements = {{ {marks} }}\n}}")?;
        writeln!(out, "chain came {{\n type filter hook prerouting priority -150")?;
        writeln!(out, " ct direction original ct mark set ether saddr map {{ {came} }}\n}}")?;
        writeln!(out, "chain back {{\n type route hook output priority -150")?;
        writeln!(out, " ct direction reply ct mark @marks meta mark set ct mark\n}}")
    }

    /// The ways back: what has a gateway's mark goes to that gateway.
    pub(super) fn ways(&self, family: Family) -> Ways {
        let way = |entry: &Ipv4Addr| Some((mark_of(*entry), Hop::Via(self.address(family, *entry)?)));
        self.entries.iter().filter_map(way).collect()
    }
}

/// The mark of connections that came from a gateway: its address, which is nobody else's.
fn mark_of(entry: Ipv4Addr) -> u32 {
    entry.into()
}

fn list<'a>(addresses: impl IntoIterator<Item = &'a Ipv4Addr>) -> String {
    addresses.into_iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 9, 0, last)
    }
    fn behind(tasks: &[u8], leaving: &[u8]) -> Behind {
        let set = |of: &[u8]| of.iter().copied().map(at).collect();
        Behind { tasks: set(tasks), leaving: set(leaving) }
    }

    #[test]
    fn nothing_wanted_is_no_table() {
        assert_eq!(Sandbox { own: [at(1)].into(), ..Sandbox::default() }.body(Family::V4), None);
    }

    #[test]
    fn every_ready_task_has_one_turn_and_leaving_ones_have_none() {
        let sandbox = Sandbox {
            vips: [(at(200), behind(&[2, 3], &[4])), (at(201), behind(&[], &[]))].into(),
            ..Sandbox::default()
        };
        let body = sandbox.body(Family::V4).unwrap();
        for wanted in [
            "chain to_0a0900c8 {\n dnat to numgen random mod 2 map { 0 : 10.9.0.2, 1 : 10.9.0.3 }\n}",
            "set vips {\n type ipv4_addr\n elements = { 10.9.0.200, 10.9.0.201 }\n}",
            "set alive {\n type ipv4_addr\n elements = { 10.9.0.2, 10.9.0.3, 10.9.0.4 }\n}",
            " ip daddr vmap { 10.9.0.200 : goto to_0a0900c8 }\n",
        ] {
            assert!(body.contains(wanted), "{wanted}\nis not in\n{body}");
        }
    }

    #[test]
    fn one_task_is_no_matter_of_chance() {
        let sandbox = Sandbox { vips: [(at(200), behind(&[2], &[]))].into(), ..Sandbox::default() };
        assert!(sandbox.body(Family::V4).unwrap().contains(" dnat to 10.9.0.2\n"));
    }

    #[test]
    fn answers_go_back_to_the_gateway_that_asked() {
        let sandbox = Sandbox { entries: [at(253), at(254)].into(), ..Sandbox::default() };
        let body = sandbox.body(Family::V4).unwrap();
        let map = "02:42:0a:09:00:fd : 0x0a0900fd, 02:42:0a:09:00:fe : 0x0a0900fe";
        assert!(body.contains(&format!("ct mark set ether saddr map {{ {map} }}")), "{body}");
        let via = |last| Hop::Via(at(last).into());
        assert_eq!(sandbox.ways(Family::V4), [(0x0a09_00fd, via(253)), (0x0a09_00fe, via(254))].into());
        assert_eq!((sandbox.body(Family::V6), sandbox.ways(Family::V6)), (None, Ways::new()));
    }

    #[test]
    fn on_a_network_with_ipv6_answers_go_back_by_both_families() {
        let subnet6 = Some("fd00:1::/64".parse().unwrap());
        let vips = [(at(200), behind(&[2], &[]))].into();
        let sandbox = Sandbox { entries: [at(254)].into(), subnet6, vips, ..Sandbox::default() };
        let body = sandbox.body(Family::V6).unwrap();
        assert!(body.contains("ct mark set ether saddr map { 02:42:0a:09:00:fe : 0x0a0900fe }"), "{body}");
        assert!(!body.contains("vips"), "virtual addresses are IPv4 ones");
        let gateway: IpAddr = "fd00:1::a09:fe".parse().unwrap();
        assert_eq!(sandbox.ways(Family::V6), [(0x0a09_00fe, Hop::Via(gateway))].into());
        assert_eq!(sandbox.answers(Family::V6), [gateway].into());
        let without = Sandbox { entries: BTreeSet::new(), ..sandbox };
        assert_eq!(without.body(Family::V6), None);
    }
}
