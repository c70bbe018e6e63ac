//! What a file says of IPv6, and what does not go together.

use crate::folder::Folder;

#[test]
fn a_network_with_ipv6_is_as_its_file_says() {
    let folder = Folder::with(
        "services:\n  web:\n    image: i:1\n    networks:\n      a: {ipv6_address: 'fd00:5::7', link_local_ips: ['fe80::1', 169.254.8.8]}\n      b: {}\nnetworks:\n  a:\n    enable_ipv6: true\n    ipam: {config: [{subnet: 10.5.0.0/24}, {subnet: 'fd00:5::1/64', aux_addresses: {printer: 'fd00:5::9'}}]}\n  b: {enable_ipv6: true}\n",
    );
    let app = folder.app();
    assert_eq!(folder.complaints(), "");
    let networks: Vec<_> = app.networks.values().collect();
    assert!(networks.iter().all(|network| network.enable_ipv6));
    let subnets = networks.iter().map(|network| network.subnet6.map(|subnet| subnet.to_string()));
    assert_eq!(subnets.collect::<Vec<_>>(), [Some("fd00:5::/64".to_owned()), None]);
    assert_eq!(networks[0].subnet.unwrap().to_string(), "10.5.0.0/24");
    let on = app.services.values().next().unwrap().networks.values().next().unwrap();
    assert_eq!(on.ipv6_address.unwrap().to_string(), "fd00:5::7");
    assert_eq!(on.endpoint.link_local_ips.len(), 2);
}

#[test]
fn what_does_not_go_together_is_refused_where_it_stands() {
    let said = |web: &str, network: &str| {
        let folder = Folder::with(&format!(
            "services:\n  web: {{image: 'i:1', networks: {{a: {web}}}}}\n  db: {{image: 'i:1', networks: {{a: {{ipv6_address: 'fd00:5::8'}}}}}}\nnetworks:\n  a: {network}\n"
        ));
        folder.complaints()
    };
    let dual = "{enable_ipv6: true, ipam: {config: [{subnet: 10.5.0.0/24}, {subnet: 'fd00:5::/64', gateway: 'fd00:5::1'}]}}";
    let all = [
        ("{ipv6_address: 'fd00:5::8'}", dual),
        ("{ipv6_address: 'fd00:5::1'}", dual),
        ("{ipv6_address: 'fd00:6::1'}", dual),
        ("{ipv6_address: 'fd00:5::a05:9'}", dual),
        ("{ipv6_address: nonsense, link_local_ips: ['fd00::1']}", dual),
        ("{}", "{}"),
        ("{}", "{enable_ipv6: true}"),
        ("{}", "{ipam: {config: [{subnet: 'fd00:5::/64'}]}}"),
        ("{}", "{enable_ipv6: true, ipam: {config: [{subnet: 'fd00:5::/112'}]}}"),
        ("{}", "{enable_ipv6: true, ipam: {config: [{subnet: 'fe80::/64'}]}}"),
        ("{}", "{enable_ipv6: true, ipam: {config: [{gateway: 'fd00:5::1'}]}}"),
        (
            "{}",
            "{enable_ipv6: true, ipam: {config: [{subnet: 'fd00:5::/64', ip_range: 'fd00:5::/80', aux_addresses: {x: 'fd00:7::1'}}, {subnet: 'fd00:8::/64'}]}}",
        ),
        (
            "{}",
            "{enable_ipv6: true, enable_ipv4: false, x-wharf: {backend: routed}, ipam: {config: [{subnet: 'fd00:5::/64'}]}}",
        ),
    ];
    let said: Vec<_> = all.iter().map(|(web, network)| said(web, network)).collect();
    insta::assert_snapshot!(said.join("\n"));
}
