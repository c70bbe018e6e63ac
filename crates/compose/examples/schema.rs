//! Prints a JSON Schema (`file` or `x-wharf`), or the reference of `x-wharf` as Markdown (`page`). `cargo xtask schema`
//! writes and checks with it.

use wharf_compose::schema;

#[expect(clippy::print_stdout, reason = "printing is what it is for")]
fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("file") => println!("{:#}", schema::file()),
        Some("x-wharf") => println!("{:#}", schema::wharf()),
        _ => print!("{}", page()),
    }
}

const INTRODUCTION: &str = r#"# `x-wharf`: Wharf's own settings

What the Compose Specification has no key for stands under `x-wharf`, in a service or at the top level of a file. Where Compose
has a key, that key is used: `deploy`, `healthcheck`, `ports`, `expose`, `restart`, `depends_on`. Other tools ignore keys that
begin with `x-`, so a file stays usable with them. Written by `cargo xtask schema` from `crates/compose/src/schema`.

Unknown keys, values out of their range and settings that exclude each other are errors with file, line and key. A change of a
setting here replaces no container, except where the number or the place of tasks changes by it.

```yaml
# yaml-language-server: $schema=compose.schema.json
name: shop
services:
  web:
    image: registry.example.com/shop:4
    expose: [8080]
    depends_on: [db]
    x-wharf:
      probe: {http: {port: 8080, path: /health}, interval: 5s, start_period: 20s}
  db:
    x-wharf:
      external: {host: db.example.com, ports: [5432]}
```

## What this version carries out

`probe`, `routes`, `release`, `hooks` and `external` are carried out; [how releases go](../howto/releases.md) has a page of its own.
The settings below are read and checked in full, and then refused as unsupported: an error, or with `--allow-unsupported` a
warning, and then they are left out of the release.

| setting | instead |
|---|---|
"#;

const REST: &str = r#"
## Services outside the cluster

A service with `external` has no container. Its name leads to the host on the service's networks (`default` if it names none), for
an IP address as its address, for a domain name by way of that domain. `depends_on` and `links` may name it: it counts as started
and healthy. `image`, `ports` and whatever else is about a container is refused beside it. `external: {host: …, ports: […]}` in the
service itself, as the Swarm-era Alibaba Container Service had it, means the same.

```yaml
services:
  web:
    image: wordpress:6
    environment: {WORDPRESS_DB_HOST: "db:3306"}
    links: ["db:mysql"]
  db:
    x-wharf: {external: {host: 10.0.0.7, ports: [3306]}}
```

## Everything in one file

```yaml
x-wharf:
  release: {strategy: rolling}
  hooks:
    before: [{service: web, command: [bin/migrate, up], timeout: 5m}]
services:
  web:
    image: registry.example.com/shop:4
    expose: [8080]
    deploy: {replicas: 3}
    x-wharf:
      probe: {grpc: {port: 9090, service: shop.Cart}}
      routes:
        - host: [shop.example.com, www.example.com]
          port: 8080
          tls: auto
          timeouts: {request: 30s}
          retries: 1
          rate_limit: {requests: 100, per: 1m}
        - {protocol: tcp, port: 6000, listen: 6000}
      release: {strategy: canary, steps: [5, 25, 50], judge: {errors_percent: 1}}
      autoscale: {min: 3, max: 12, metrics: {cpu: 60, requests: {above: 200, below: 50}}}
      logs: {access: {from: /var/log/shop/*.log, keep: 30d, format: json}}
      priority: high
      affinity: [{apart: web}]
      availability: {at_least: 3, soft: true}
jobs:
  report:
    image: registry.example.com/shop:4
    command: [bin/report]
    triggers: {schedule: "30 4 * * 1-5"}
```

## Editors

[compose.schema.json](compose.schema.json) is a JSON Schema of a whole Compose file with the keys below;
[x-wharf.schema.json](x-wharf.schema.json) is the part behind `x-wharf`. An editor with a YAML language server takes the first
line of the first example above, with the path or address of the file. The loader checks more than a schema can.

## Keys

After the meaning stand the range and, last, the default. Durations have units (`500ms`, `30s`, `5m`, `8h`, `30d`). A setting without a
default is absent unless written. Mappings are written from where they stand below `x-wharf`.
"#;

fn page() -> String {
    let mut text = INTRODUCTION.to_owned();
    for (setting, instead) in schema::not_carried_out() {
        text.push_str(&format!("| `{setting}` | {} |\n", cell(instead)));
    }
    text.push_str(REST);
    for section in schema::sections() {
        text.push_str(&format!("\n### `{}`\n\n| key | |\n|---|---|\n", section.path));
        for (key, meaning) in section.keys {
            text.push_str(&format!("| `{key}` | {} |\n", cell(meaning)));
        }
    }
    text
}

/// Text that stays within its cell.
fn cell(text: &str) -> String {
    text.replace('|', r"\|")
}
