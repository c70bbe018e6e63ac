//! Says in today's words what files of the Swarm-era Alibaba Container Service say in `aliyun.…` labels and in scheduling
//! directives among the variables of `environment:`.
//!
//! - A stage of its own between the merged tree and its meaning; what `wharf config` prints does not pass through it.
//! - Each translation is a note that shows the modern form. What has none is unsupported, with a reason or the closest name.
//! - Translated labels and directives leave the container: what they said is said elsewhere, and a container need not be
//!   replaced because of them.
//! - What the translation puts into the tree stands where the label stood, and is checked like anything written by hand.

use crate::diagnostic::{Complaint, Key, Report, Span};
use crate::node::{Mapping, Node, Value, same};

#[cfg(test)]
mod tests;

/// Something a file says in the old way.
struct Old<'a> {
    /// What it is called: `aliyun.scale`, `availability:az==3`.
    name: &'a str,
    /// The label's value; of a directive nothing.
    value: &'a str,
    /// Where the value stands.
    place: Span,
    key: Key<'a>,
}
impl Old<'_> {
    fn what(&self) -> &'static str {
        if is_label(self.name) { "label" } else { "variable" }
    }
}

/// The tree with modern words, if it has old ones in a service that `is_active`.
pub(crate) fn modernise(report: &mut Report, tree: &Node, is_active: impl Fn(&Node) -> bool) -> Option<Node> {
    let services = tree.as_mapping()?.get("services")?.as_mapping()?;
    if !services.iter().any(|(_, entry)| is_active(&entry.node) && is_old(&entry.node)) {
        return None;
    }
    let mut tree = tree.clone();
    let services = tree.as_mapping_mut()?.get_mut("services")?.as_mapping_mut()?;
    let group = Key::Root.field("services");
    for (name, entry) in services.iter_mut() {
        if is_active(&entry.node)
            && is_old(&entry.node)
            && let Some(service) = entry.node.as_mapping_mut()
        {
            Translation { report: &mut *report, service, key: &group.field(name) }.run();
        }
    }
    Some(tree)
}

fn is_old(service: &Node) -> bool {
    let Some(service) = service.as_mapping() else { return false };
    let has = |group: &str, is: fn(&str) -> bool| {
        service.get(group).and_then(Node::as_mapping).is_some_and(|group| group.keys().any(is))
    };
    has("labels", is_label) || has("environment", is_directive)
}

fn is_label(name: &str) -> bool {
    name.starts_with("aliyun.") || name == RESCHEDULE_POLICIES
}

const RESCHEDULE_POLICIES: &str = "com.docker.swarm.reschedule-policies";
const DIRECTIVES: [&str; 4] = ["constraint:", "affinity:", "availability:", "reschedule:"];

fn is_directive(name: &str) -> bool {
    DIRECTIVES.iter().any(|directive| name.starts_with(directive))
}

/// Labels with one meaning each, for suggestions; those that end in a port or a name stand with an example.
const KNOWN: [&str; 27] = [
    "aliyun.scale",
    "aliyun.global",
    "aliyun.depends",
    "aliyun.latest_image",
    "aliyun.rolling_updates",
    "aliyun.rolling_updates.parallelism",
    "aliyun.probe.url",
    "aliyun.probe.cmd",
    "aliyun.probe.timeout_seconds",
    "aliyun.probe.initial_delay_seconds",
    "aliyun.routing.port_80",
    "aliyun.routing.session_sticky",
    "aliyun.routing.weight",
    "aliyun.lb.port_80",
    "aliyun.gpu",
    "aliyun.auto_scaling.max_cpu",
    "aliyun.auto_scaling.min_cpu",
    "aliyun.auto_scaling.max_memory",
    "aliyun.auto_scaling.min_memory",
    "aliyun.auto_scaling.max_internetInRate",
    "aliyun.auto_scaling.min_internetInRate",
    "aliyun.auto_scaling.max_internetOutRate",
    "aliyun.auto_scaling.min_internetOutRate",
    "aliyun.auto_scaling.step",
    "aliyun.auto_scaling.min_instances",
    "aliyun.auto_scaling.max_instances",
    "aliyun.log_store_app",
];

/// Labels that there were and that mean nothing here: how they begin, and what to write instead.
const WITHOUT_EQUIVALENT: [(&str, &str); 10] = [
    ("aliyun.auto_scaling.period", "write `x-wharf: {autoscale: {window: 3m}}`"),
    ("aliyun.custom_addon", "remove it; the gateways route to services themselves: `x-wharf: {routes: …}`"),
    ("aliyun.log.timestamp", "remove it; every line of a log has its time"),
    ("aliyun.log_project", "remove it; logs are kept by the cluster"),
    ("aliyun.logs", "write `x-wharf: {logs: {NAME: {from: /var/log/app/*.log}}}`"),
    ("aliyun.monitoring.", "remove it; every service is measured"),
    ("aliyun.proxy.", "write `x-wharf: {routes: [{host: …}]}`"),
    ("aliyun.routing.", "write it in the route: `x-wharf: {routes: […]}`"),
    ("aliyun.vip.", "remove it; publish the port with `ports`"),
    ("aliyun.reschedule", "remove it; tasks of a lost node are started elsewhere without being asked"),
];

struct Translation<'t> {
    report: &'t mut Report,
    service: &'t mut Mapping,
    key: &'t Key<'t>,
}

impl Translation<'_> {
    fn run(&mut self) {
        let (labels_key, variables_key) = (self.key.field("labels"), self.key.field("environment"));
        let labels = self.take("labels", is_label);
        let labels: Vec<(String, String, Span)> = labels
            .into_iter()
            .map(|(name, entry)| {
                let value = entry.node.scalar_text().unwrap_or_default();
                (name, value.trim().to_owned(), entry.place())
            })
            .collect();
        let labels: Vec<Old<'_>> = labels
            .iter()
            .map(|(name, value, place)| Old { name, value, place: *place, key: labels_key.field(name) })
            .collect();
        labels.iter().for_each(|label| self.label(label));
        self.probe(&labels);
        self.routes(&labels);
        self.autoscale(&labels);
        self.logs(&labels);
        for (name, entry) in self.take("environment", is_directive) {
            let value = entry.node.scalar_text().unwrap_or_default();
            // Lists of variables are cut at the first `=`.
            let text = match value.as_str() {
                "" => name.clone(),
                value if value.starts_with("==") || value.starts_with("!=") => format!("{name}{value}"),
                value => format!("{name}={value}"),
            };
            let key = variables_key.field(&name);
            self.directive(&Old { name: &text, value: "", place: entry.key, key });
        }
    }

    /// Takes entries out of a mapping of the service.
    fn take(&mut self, group: &str, is: fn(&str) -> bool) -> Vec<(String, crate::node::Entry)> {
        let Some(mapping) = self.service.get_mut(group).and_then(Node::as_mapping_mut) else {
            return Vec::new();
        };
        let names: Vec<String> = mapping.keys().filter(|name| is(name)).map(str::to_owned).collect();
        names.into_iter().filter_map(|name| mapping.remove(&name).map(|entry| (name, entry))).collect()
    }

    // --- what is said ---

    fn note(&mut self, old: &Old<'_>, modern: &str) {
        let message = format!("`{}` is taken as `{modern}`", old.name);
        self.report
            .warn(Complaint::Note, old.place, &old.key, message)
            .hint(format!("write that in place of the {}", old.what()));
    }

    fn malformed(&mut self, old: &Old<'_>, problem: &str, hint: &str) {
        let message = match old.value {
            "" => format!("`{}`: {problem}", old.name),
            value => format!("`{}` is `{value}`: {problem}", old.name),
        };
        self.report.error(Complaint::InvalidValue, old.place, &old.key, message).hint(hint);
    }

    fn unsupported(&mut self, old: &Old<'_>, reason: &str, instead: &str) {
        let message = format!("`{}` {reason}", old.name);
        self.report.unsupported(old.place, &old.key, message).hint(instead);
    }

    // --- what is put into the tree ---

    /// Puts a value where a path leads, with a note; complains where another stands already.
    fn say(&mut self, old: &Old<'_>, path: &[&str], value: Value, modern: &str) {
        if self.put(old, path, value) {
            self.note(old, modern);
        }
    }

    fn put(&mut self, old: &Old<'_>, path: &[&str], value: Value) -> bool {
        let Some((last, parents)) = path.split_last() else { return false };
        let node = Node::new(old.place, value);
        let Some(parent) = mapping_at(self.service, parents, old.place) else { return false };
        let Some(other) = parent.entry(last).filter(|other| !other.node.is_null()) else {
            parent.insert(*last, old.place, node);
            return true;
        };
        if same(&other.node, &node) {
            return true;
        }
        let place = other.place();
        let said = |node: &Node| match node.scalar_text() {
            Some(text) => format!("says `{text}`"),
            None => "is there as well".to_owned(),
        };
        let path = path.join(".");
        let message = format!("`{}` {}, and `{path}` {}", old.name, said(&node), said(&other.node));
        self.report
            .error(Complaint::Conflict, old.place, &old.key, message)
            .hint(format!("keep `{path}`, and remove the {}", old.what()));
        self.report.relate(place, format!("`{path}` is here"));
        false
    }

    /// Appends to the list a path leads to.
    fn append(&mut self, old: &Old<'_>, path: &[&str], item: Value) {
        let Some((last, parents)) = path.split_last() else { return };
        let item = Node::new(old.place, item);
        let Some(parent) = mapping_at(self.service, parents, old.place) else { return };
        match parent.get_mut(last).map(|node| &mut node.value) {
            Some(Value::Sequence(items)) => items.push(item),
            _ => parent.insert(*last, old.place, Node::new(old.place, Value::Sequence(vec![item]))),
        }
    }

    // --- labels that mean something alone ---

    fn label(&mut self, old: &Old<'_>) {
        match old.name {
            "aliyun.scale" => {
                if let Some(count) = self.whole(old, 0..=10_000) {
                    let modern = format!("deploy: {{replicas: {count}}}");
                    self.say(old, &["deploy", "replicas"], Value::Int(count), &modern);
                }
            }
            "aliyun.global" => {
                if self.flag(old) == Some(true) {
                    let mode = Value::String("global".to_owned());
                    self.say(old, &["deploy", "mode"], mode, "deploy: {mode: global}");
                }
            }
            "aliyun.depends" => self.depends(old),
            "aliyun.latest_image" => {
                if self.flag(old) == Some(true) {
                    let always = Value::String("always".to_owned());
                    self.say(old, &["pull_policy"], always, "pull_policy: always");
                }
            }
            "aliyun.rolling_updates" => self.rolling(old),
            "aliyun.rolling_updates.parallelism" => {
                if let Some(count) = self.whole(old, 1..=10_000) {
                    let modern = format!("deploy: {{update_config: {{parallelism: {count}}}}}");
                    let path = ["deploy", "update_config", "parallelism"];
                    self.say(old, &path, Value::Int(count), &modern);
                }
            }
            "aliyun.gpu" => {
                if let Some(count) = self.whole(old, 1..=64) {
                    let request = mapping(old.place, [("count", Value::Int(count))]);
                    let requests = Value::Sequence(vec![Node::new(old.place, request)]);
                    self.say(old, &["gpus"], requests, &format!("gpus: [{{count: {count}}}]"));
                }
            }
            RESCHEDULE_POLICIES => self.rescheduled(old),
            name if name.starts_with("aliyun.lb.port_") => self.balancer(old),
            name if is_read_together(name) => {}
            name => {
                let known = WITHOUT_EQUIVALENT.iter().find(|(start, _)| name.starts_with(start));
                if let Some((_, instead)) = known {
                    self.unsupported(old, "has no equivalent", instead);
                } else {
                    let hint = self.report.did_you_mean(name, KNOWN);
                    let hint = hint.unwrap_or_else(|| "remove it".to_owned());
                    self.unsupported(old, "is not a label that is known", &hint);
                }
            }
        }
    }

    /// One after the other, or all at once; how many at a time another label says.
    fn rolling(&mut self, old: &Old<'_>) {
        let Some(rolling) = self.flag(old) else { return };
        let path = ["deploy", "update_config", "parallelism"];
        if !rolling {
            self.say(old, &path, Value::Int(0), "deploy: {update_config: {parallelism: 0}}");
            return;
        }
        // Tasks are replaced one by one unless a file says otherwise.
        let message = "`aliyun.rolling_updates` has no effect: tasks are replaced one by one as it is";
        self.report.warn(Complaint::Note, old.place, &old.key, message).hint("remove it");
    }

    fn depends(&mut self, old: &Old<'_>) {
        let names: Vec<&str> = old.value.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
        if names.is_empty() {
            self.malformed(old, "it names no service", "write for example `depends_on: [db, cache]`");
            return;
        }
        for name in &names {
            let condition = Value::String("service_started".to_owned());
            let depends_on = mapping_at(self.service, &["depends_on"], old.place);
            if let Some(depends_on) = depends_on.filter(|depends_on| !depends_on.contains(name)) {
                let dependency = Node::new(old.place, mapping(old.place, [("condition", condition)]));
                depends_on.insert(*name, old.place, dependency);
            }
        }
        self.note(old, &format!("depends_on: [{}]", names.join(", ")));
    }

    /// `tcp://balancer:80`, several separated by `;`: a port on the nodes that leads to the container's.
    fn balancer(&mut self, old: &Old<'_>) {
        let Some(target) = self.port_in_name(old, "aliyun.lb.port_") else { return };
        for one in old.value.split(';').map(str::trim).filter(|one| !one.is_empty()) {
            let form = "write `tcp://BALANCER:PORT`";
            let Some((scheme, rest)) = one.split_once("://") else {
                self.malformed(old, "there is no scheme", form);
                continue;
            };
            let front = match rest.rsplit_once(':') {
                Some((_, port)) => port.parse::<u16>().ok().filter(|port| *port > 0),
                None => Some(80),
            };
            let Some(front) = front else {
                self.malformed(old, "there is no port of 1 to 65535 at its end", form);
                continue;
            };
            match scheme {
                "tcp" | "http" | "udp" => {
                    let (protocol, suffix) = if scheme == "udp" { ("udp", "/udp") } else { ("tcp", "") };
                    let port = mapping(
                        old.place,
                        [
                            ("mode", Value::String("ingress".to_owned())),
                            ("target", Value::Int(i64::from(target))),
                            ("published", Value::String(front.to_string())),
                            ("protocol", Value::String(protocol.to_owned())),
                        ],
                    );
                    self.append(old, &["ports"], port);
                    self.note(old, &format!("ports: [\"{front}:{target}{suffix}\"]"));
                }
                "https" => self.unsupported(
                    old,
                    "takes a certificate from a balancer",
                    &format!(
                        "write `x-wharf: {{routes: [{{host: app.example.com, port: {target}, listen: {front}, tls: auto}}]}}`"
                    ),
                ),
                other => {
                    self.malformed(old, &format!("`{other}` is not `tcp`, `udp`, `http` or `https`"), form);
                }
            }
        }
    }

    fn rescheduled(&mut self, old: &Old<'_>) {
        let message = format!(
            "`{}` has no effect: tasks of a lost node are started elsewhere without being asked",
            old.name
        );
        self.report.warn(Complaint::Note, old.place, &old.key, message).hint("remove it");
    }

    // --- labels that say something together ---

    fn probe(&mut self, labels: &[Old<'_>]) {
        let find = |name: &str| labels.iter().find(|old| old.name == name);
        let (url, command) = (find("aliyun.probe.url"), find("aliyun.probe.cmd"));
        let (timeout, delay) =
            (find("aliyun.probe.timeout_seconds"), find("aliyun.probe.initial_delay_seconds"));
        let old = match (url, command) {
            (Some(url), Some(command)) => {
                let message = "`aliyun.probe.url` and `aliyun.probe.cmd` exclude each other";
                self.report
                    .error(Complaint::Conflict, command.place, &command.key, message)
                    .hint("keep one of them");
                self.report.relate(url.place, "`aliyun.probe.url` is here");
                return;
            }
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => {
                for old in [timeout, delay].into_iter().flatten() {
                    self.without(old, "`aliyun.probe.url` or `aliyun.probe.cmd`");
                }
                return;
            }
        };
        let Some((kind, check, mut modern)) =
            (if url.is_some() { self.probe_url(old) } else { self.probe_command(old) })
        else {
            return;
        };
        let mut probe = Mapping::default();
        probe.insert(kind, old.place, Node::new(old.place, check));
        for (old, field) in [(timeout, "timeout"), (delay, "start_period")] {
            let Some(old) = old else { continue };
            let Some(seconds) = self.whole(old, i64::from(field == "timeout")..=86_400) else { continue };
            modern.push_str(&format!(", {field}: {seconds}s"));
            probe.insert(field, old.place, Node::string(old.place, format!("{seconds}s")));
        }
        let modern = format!("x-wharf: {{probe: {{{modern}}}}}");
        self.say(old, &["x-wharf", "probe"], Value::Mapping(probe), &modern);
    }

    /// `http://container[:port]/path` or `tcp://container:port`.
    fn probe_url(&mut self, old: &Old<'_>) -> Option<(&'static str, Value, String)> {
        let form = "write `http://container:PORT/PATH` or `tcp://container:PORT`";
        let Some((scheme, rest)) = old.value.split_once("://") else {
            self.malformed(old, "there is no scheme", form);
            return None;
        };
        let (authority, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, "/"),
        };
        let (host, port) = match authority.split_once(':') {
            Some((host, port)) => (host, port.parse::<u16>().ok().filter(|port| *port > 0)),
            None => (authority, (scheme == "http").then_some(80)),
        };
        if host != "container" {
            self.malformed(old, "a probe asks the container itself, which is called `container`", form);
            return None;
        }
        let Some(port) = port else {
            self.malformed(old, "there is no port of 1 to 65535", form);
            return None;
        };
        let number = ("port", Value::Int(i64::from(port)));
        match scheme {
            "http" => {
                let fields = [number, ("path", Value::String(path.to_owned()))];
                let modern = format!("http: {{port: {port}, path: {path}}}");
                Some(("http", mapping(old.place, fields), modern))
            }
            "tcp" => Some(("tcp", mapping(old.place, [number]), format!("tcp: {{port: {port}}}"))),
            other => {
                self.malformed(old, &format!("`{other}` is neither `http` nor `tcp`"), form);
                None
            }
        }
    }

    fn probe_command(&mut self, old: &Old<'_>) -> Option<(&'static str, Value, String)> {
        if old.value.is_empty() {
            self.malformed(old, "the command is empty", "write the command, or remove the label");
            return None;
        }
        let check = mapping(old.place, [("command", Value::String(old.value.to_owned()))]);
        Some(("exec", check, format!("exec: {{command: {:?}}}", old.value)))
    }

    fn routes(&mut self, labels: &[Old<'_>]) {
        let find = |name: &str| labels.iter().find(|old| old.name == name);
        let (sticky, weight) = (find("aliyun.routing.session_sticky"), find("aliyun.routing.weight"));
        let is_route = |old: &&Old<'_>| old.name.starts_with("aliyun.routing.port_");
        if !labels.iter().any(|old| is_route(&old)) {
            for old in [sticky, weight].into_iter().flatten() {
                self.without(old, "`aliyun.routing.port_N`");
            }
            return;
        }
        let wants_cookie = sticky.and_then(|old| self.flag(old)) == Some(true);
        let share = weight.and_then(|old| self.whole(old, 0..=100));
        for old in labels.iter().filter(is_route) {
            let Some(port) = self.port_in_name(old, "aliyun.routing.port_") else { continue };
            if old.value.split(';').all(|one| one.trim().is_empty()) {
                self.malformed(old, "it names no domain", "write for example `app.example.com/api`");
            }
            for one in old.value.split(';').map(str::trim).filter(|one| !one.is_empty()) {
                let Some((mut fields, mut modern)) = self.route(old, one, port) else { continue };
                if wants_cookie {
                    fields.push(("sticky", Value::Bool(true)));
                    modern.push_str(", sticky: true");
                }
                if let Some(share) = share {
                    fields.push(("weight", Value::Int(share)));
                    modern.push_str(&format!(", weight: {share}"));
                }
                self.append(old, &["x-wharf", "routes"], mapping(old.place, fields));
                self.note(old, &format!("x-wharf: {{routes: [{{{modern}}}]}}"));
            }
        }
    }

    /// `[scheme://]domain-or-prefix[/path]`.
    fn route(
        &mut self,
        old: &Old<'_>,
        text: &str,
        port: u16,
    ) -> Option<(Vec<(&'static str, Value)>, String)> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let (host, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        if host.ends_with(".local") {
            let instead = format!(
                "write `networks: {{default: {{aliases: [{host}]}}}}`; others reach port {port} by that name"
            );
            self.unsupported(old, &format!("routes `{host}` within the cluster"), &instead);
            return None;
        }
        let mut fields = vec![("host", Value::String(host.to_owned()))];
        let mut modern = format!("host: {host}");
        if !path.is_empty() && path != "/" {
            fields.push(("path", Value::String(path.to_owned())));
            modern.push_str(&format!(", path: {path}"));
        }
        fields.push(("port", Value::Int(i64::from(port))));
        modern.push_str(&format!(", port: {port}"));
        match scheme {
            "http" | "ws" => {}
            "https" | "wss" => {
                fields.push(("tls", Value::String("auto".to_owned())));
                modern.push_str(", tls: auto");
            }
            "tcp" => {
                let instead = format!("write `ports: [\"{port}:{port}\"]`");
                self.unsupported(old, "routes TCP by a name, which TCP does not carry", &instead);
                return None;
            }
            other => {
                let hint = "write `http://`, `https://` or nothing before the domain";
                self.malformed(old, &format!("`{other}` is not a scheme of routes"), hint);
                return None;
            }
        }
        Some((fields, modern))
    }

    fn autoscale(&mut self, labels: &[Old<'_>]) {
        const METRICS: [(&str, &str); 4] = [
            ("cpu", "cpu"),
            ("memory", "memory"),
            ("internetInRate", "network_in"),
            ("internetOutRate", "network_out"),
        ];
        const PLAIN: [(&str, &str); 3] =
            [("min_instances", "min"), ("max_instances", "max"), ("step", "step")];
        let of = |name: &str| {
            labels.iter().find(|old| old.name.strip_prefix("aliyun.auto_scaling.") == Some(name))
        };
        let (mut metrics, mut metrics_text) = (Mapping::default(), Vec::new());
        let mut first = None;
        for (old_name, metric) in METRICS {
            let (mut bounds, mut text) = (Vec::new(), Vec::new());
            for (bound, field) in [("max", "above"), ("min", "below")] {
                let Some(old) = of(&format!("{bound}_{old_name}")) else { continue };
                first = first.or(Some(old));
                let most = if metric.starts_with("network") { i64::MAX } else { 100 };
                let Some(level) = self.whole(old, 1..=most) else { continue };
                bounds.push((field, Value::Int(level)));
                text.push(format!("{field}: {level}"));
            }
            if let Some(place) = first.map(|old| old.place).filter(|_| !bounds.is_empty()) {
                metrics.insert(metric, place, Node::new(place, mapping(place, bounds)));
                metrics_text.push(format!("{metric}: {{{}}}", text.join(", ")));
            }
        }
        let plain: Vec<_> = PLAIN.iter().filter_map(|(name, field)| Some((of(name)?, *field))).collect();
        let Some(first) = first else {
            for (old, _) in plain {
                self.without(old, "a bound such as `aliyun.auto_scaling.max_cpu`");
            }
            return;
        };
        let mut fields = vec![("metrics", Value::Mapping(metrics))];
        let mut modern = vec![format!("metrics: {{{}}}", metrics_text.join(", "))];
        for (old, field) in plain {
            if let Some(count) = self.whole(old, 0..=10_000) {
                fields.push((field, Value::Int(count)));
                modern.push(format!("{field}: {count}"));
            }
        }
        if !metrics_text.is_empty() {
            let modern = format!("x-wharf: {{autoscale: {{{}}}}}", modern.join(", "));
            self.say(first, &["x-wharf", "autoscale"], mapping(first.place, fields), &modern);
        }
    }

    fn logs(&mut self, labels: &[Old<'_>]) {
        let days_of =
            |name: &str| labels.iter().find(|old| old.name.strip_prefix("aliyun.log_ttl_") == Some(name));
        for old in labels {
            if let Some(name) = old.name.strip_prefix("aliyun.log_store_") {
                let stream = name.to_ascii_lowercase().replace(['_', '.'], "-");
                if stream.is_empty() {
                    self.malformed(
                        old,
                        "the stream has no name",
                        "write for example `aliyun.log_store_access`",
                    );
                    continue;
                }
                let mut fields = vec![("from", Value::String(old.value.to_owned()))];
                let mut modern = format!("from: {}", old.value);
                if let Some(days) = days_of(name).and_then(|old| self.whole(old, 1..=365)) {
                    fields.push(("keep", Value::String(format!("{days}d"))));
                    modern.push_str(&format!(", keep: {days}d"));
                }
                let modern = format!("x-wharf: {{logs: {{{stream}: {{{modern}}}}}}}");
                self.say(old, &["x-wharf", "logs", &stream], mapping(old.place, fields), &modern);
            } else if let Some(name) = old.name.strip_prefix("aliyun.log_ttl_")
                && !labels.iter().any(|other| other.name.strip_prefix("aliyun.log_store_") == Some(name))
            {
                self.without(old, &format!("`aliyun.log_store_{name}`"));
            }
        }
    }

    /// A label that means something only beside another.
    fn without(&mut self, old: &Old<'_>, other: &str) {
        let message = format!("`{}` has no effect without {other}", old.name);
        self.report.warn(Complaint::Obsolete, old.place, &old.key, message).hint("remove it");
    }

    // --- directives ---

    fn directive(&mut self, old: &Old<'_>) {
        let (kind, rest) = old.name.split_once(':').unwrap_or((old.name, ""));
        if kind == "reschedule" {
            match rest {
                "on-node-failure" => self.rescheduled(old),
                _ => self.malformed(old, "there is `on-node-failure` only", "remove it"),
            }
            return;
        }
        let compared = rest.split_once("==").map(|parts| (parts, true));
        let compared = compared.or_else(|| rest.split_once("!=").map(|parts| (parts, false)));
        let Some(((subject, value), equal)) = compared else {
            self.malformed(
                old,
                "it compares nothing with `==` or `!=`",
                "write for example `constraint:disk==ssd`",
            );
            return;
        };
        let (soft, value) = match value.strip_prefix('~') {
            Some(value) => (true, value),
            None => (false, value),
        };
        if subject.is_empty() || value.is_empty() {
            self.malformed(old, "there is nothing to compare", "write for example `constraint:disk==ssd`");
            return;
        }
        match kind {
            "constraint" => self.constraint(old, subject, equal, soft, value),
            "affinity" => self.affinity(old, subject, equal, soft, value),
            _ => self.availability(old, subject, equal, soft, value),
        }
    }

    fn constraint(&mut self, old: &Old<'_>, subject: &str, equal: bool, soft: bool, value: &str) {
        if soft {
            self.unsupported(
                old,
                "is a wish, and constraints of nodes are conditions",
                "write it without `~`, or spread tasks with `deploy.placement.preferences`",
            );
            return;
        }
        let alternatives = value.strip_prefix('(').and_then(|value| value.strip_suffix(')'));
        let values: Vec<&str> = alternatives.unwrap_or(value).split('|').map(str::trim).collect();
        let key = match subject {
            "node" => "node.hostname".to_owned(),
            "aliyun.node_index" => {
                let instead = format!(
                    "label the nodes: `wharf node label NODE pool={}`, and constrain `node.labels.pool`",
                    values[0]
                );
                self.unsupported(old, "counts nodes, which have names here", &instead);
                return;
            }
            label => format!("node.labels.{label}"),
        };
        if values.iter().any(|value| value.contains(['*', '/', '?']) || value.is_empty()) {
            self.unsupported(
                old,
                "compares with a pattern",
                "name the value, or give the nodes a label in common",
            );
            return;
        }
        if equal && values.len() > 1 {
            self.unsupported(
                old,
                "accepts one of several values",
                "give those nodes a label in common, and constrain that",
            );
            return;
        }
        for value in values {
            let text = format!("{key} {} {value}", if equal { "==" } else { "!=" });
            self.append(old, &["deploy", "placement", "constraints"], Value::String(text.clone()));
            self.note(old, &format!("deploy: {{placement: {{constraints: [\"{text}\"]}}}}"));
        }
    }

    fn affinity(&mut self, old: &Old<'_>, subject: &str, equal: bool, soft: bool, value: &str) {
        let field = match (subject, equal) {
            ("service", true) => "near",
            ("service", false) => "apart",
            ("image", true) => "near_image",
            ("image", false) => {
                let instead = "remove it, or write `x-wharf: {affinity: [{apart: SERVICE}]}`";
                self.unsupported(old, "avoids an image", instead);
                return;
            }
            ("container", _) => {
                let instead = "write `x-wharf: {affinity: [{near: SERVICE}]}` or `apart`";
                self.unsupported(old, "names containers, which come and go", instead);
                return;
            }
            _ => {
                let instead = "write `x-wharf: {affinity: [{near: SERVICE}]}` or `apart`";
                self.unsupported(old, "compares labels of containers", instead);
                return;
            }
        };
        let mut fields = vec![(field, Value::String(value.to_owned()))];
        let mut modern = format!("{field}: {value}");
        if soft {
            fields.push(("soft", Value::Bool(true)));
            modern.push_str(", soft: true");
        }
        self.append(old, &["x-wharf", "affinity"], mapping(old.place, fields));
        self.note(old, &format!("x-wharf: {{affinity: [{{{modern}}}]}}"));
    }

    fn availability(&mut self, old: &Old<'_>, subject: &str, equal: bool, soft: bool, value: &str) {
        let form = "write `availability:az==3`, or `availability:az==~3` as a wish";
        if subject != "az" || !equal {
            self.malformed(old, "it is about a number of zones (`az==`)", form);
            return;
        }
        let Some(zones) = value.parse::<i64>().ok().filter(|zones| (1..=1000).contains(zones)) else {
            self.malformed(old, &format!("`{value}` is not a number of zones"), form);
            return;
        };
        if zones == 1 {
            let message = format!("`{}` has no effect: every task is in one zone", old.name);
            self.report.warn(Complaint::Note, old.place, &old.key, message).hint("remove it");
            return;
        }
        let mut fields = vec![("at_least", Value::Int(zones))];
        let mut modern = format!("at_least: {zones}");
        if soft {
            fields.push(("soft", Value::Bool(true)));
            modern.push_str(", soft: true");
        }
        let modern = format!("x-wharf: {{availability: {{{modern}}}}}");
        self.say(old, &["x-wharf", "availability"], mapping(old.place, fields), &modern);
    }

    // --- values ---

    fn whole(&mut self, old: &Old<'_>, bounds: std::ops::RangeInclusive<i64>) -> Option<i64> {
        match old.value.parse::<i64>() {
            Ok(number) if bounds.contains(&number) => Some(number),
            Ok(_) if *bounds.end() == i64::MAX => {
                let least = bounds.start();
                let hint = format!("write for example `{least}`");
                self.malformed(old, &format!("it must be at least {least}"), &hint);
                None
            }
            Ok(_) | Err(_) => {
                let problem = format!("it must be a whole number of {} to {}", bounds.start(), bounds.end());
                let hint = format!("write for example `{}`", 2.clamp(*bounds.start(), *bounds.end()));
                self.malformed(old, &problem, &hint);
                None
            }
        }
    }

    fn flag(&mut self, old: &Old<'_>) -> Option<bool> {
        match old.value.to_ascii_lowercase().as_str() {
            "true" => Some(true),
            "false" => Some(false),
            _ => {
                self.malformed(old, "it must be `true` or `false`", "write one of the two");
                None
            }
        }
    }

    /// The port that a label's name ends in.
    fn port_in_name(&mut self, old: &Old<'_>, prefix: &str) -> Option<u16> {
        let port = old.name.strip_prefix(prefix).and_then(|port| port.parse::<u16>().ok());
        let port = port.filter(|port| *port > 0);
        if port.is_none() {
            let hint = format!("write for example `{prefix}80`");
            self.malformed(old, "its name ends in no port of 1 to 65535", &hint);
        }
        port
    }
}

/// Labels that are read with others.
fn is_read_together(name: &str) -> bool {
    const STARTS: [&str; 3] = ["aliyun.routing.port_", "aliyun.log_store_", "aliyun.log_ttl_"];
    KNOWN.contains(&name) || STARTS.iter().any(|start| name.starts_with(start))
}

fn mapping(place: Span, fields: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    let mut mapping = Mapping::default();
    for (name, value) in fields {
        mapping.insert(name, place, Node::new(place, value));
    }
    Value::Mapping(mapping)
}

/// The mapping a path leads to, made where there is none; `None` where something else stands.
fn mapping_at<'m>(mut mapping: &'m mut Mapping, path: &[&str], place: Span) -> Option<&'m mut Mapping> {
    for name in path {
        if mapping.get(name).is_none_or(Node::is_null) {
            mapping.insert(*name, place, Node::new(place, Value::Mapping(Mapping::default())));
        }
        mapping = mapping.get_mut(name)?.as_mapping_mut()?;
    }
    Some(mapping)
}
