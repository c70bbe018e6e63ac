//! Fills in what a service's specification leaves to each task: `{{.Node.IP}}`, `{{.Task.Slot}}` and the like ([`wharf_model::template`]).
//!
//! - They may stand where Swarm knows them: in values of the environment, in the host name, and in sources and targets of mounts.
//! - They are filled in when an assignment is made: revisions keep them as they were written, so a task that moves replaces nothing else.
//! - The plan refuses what cannot be filled in; should some be stored all the same, it stays as it is.

use std::borrow::Cow;

use wharf_model::{
    MountSource, ServiceSpec, Slot, Task,
    template::{self, Placeholders, TemplateError},
};

use crate::World;

/// Fills in a task's specification.
pub(crate) fn fill(world: &World, task: &Task, spec: &mut ServiceSpec) {
    if !texts(spec).any(|(_, text)| text.contains("{{")) {
        return;
    }
    let labels = spec.labels.clone();
    let Some(with) = placeholders(world, task, &labels) else { return };
    let fill = |text: &mut String| {
        if let Ok(Cow::Owned(filled)) = template::fill(text, &with) {
            *text = filled;
        }
    };
    let container = &mut spec.container;
    container.environment.values_mut().flatten().for_each(fill);
    container.hostname.iter_mut().for_each(fill);
    for mount in &mut container.mounts {
        fill(&mut mount.target);
        match &mut mount.source {
            MountSource::Bind { path, .. } => fill(path),
            MountSource::Volume { subpath, .. } | MountSource::Image { subpath, .. } => {
                subpath.iter_mut().for_each(fill);
            }
            MountSource::Anonymous { .. } | MountSource::Tmpfs { .. } => {}
        }
    }
}

/// What cannot be filled in, and where it stands.
pub(crate) fn mistakes(spec: &ServiceSpec) -> Vec<(String, TemplateError)> {
    texts(spec).filter_map(|(place, text)| Some((place(), template::check(text).err()?))).collect()
}

/// Every text that may have placeholders, and what says where it stands.
fn texts(spec: &ServiceSpec) -> impl Iterator<Item = (Box<dyn Fn() -> String + '_>, &str)> {
    type Place<'s> = Box<dyn Fn() -> String + 's>;
    let container = &spec.container;
    let environment = container.environment.iter().filter_map(|(name, value)| {
        Some((Box::new(move || format!("environment.{name}")) as Place<'_>, value.as_deref()?))
    });
    let hostname = container
        .hostname
        .iter()
        .map(|name| (Box::new(|| "hostname".to_owned()) as Place<'_>, name.as_str()));
    let mounts = container.mounts.iter().flat_map(|mount| {
        let source = match &mount.source {
            MountSource::Bind { path, .. } => Some(path.as_str()),
            MountSource::Volume { subpath, .. } | MountSource::Image { subpath, .. } => subpath.as_deref(),
            MountSource::Anonymous { .. } | MountSource::Tmpfs { .. } => None,
        };
        [source, Some(mount.target.as_str())]
            .into_iter()
            .flatten()
            .map(|text| (Box::new(|| "volumes".to_owned()) as Place<'_>, text))
    });
    environment.chain(hostname).chain(mounts)
}

/// What a task's placeholders stand for; nothing as long as its node has said nothing of itself.
fn placeholders<'w>(
    world: &'w World,
    task: &'w Task,
    labels: &'w std::collections::BTreeMap<String, String>,
) -> Option<Placeholders<'w>> {
    let node = world.node(task.node?)?;
    let facts = node.facts()?;
    Some(Placeholders {
        node_id: node.record.id.to_string().into(),
        node_name: node.record.name.as_str().into(),
        node_ip: facts.address.to_string().into(),
        architecture: facts.platform.arch.as_str().into(),
        os: facts.platform.os.as_str().into(),
        service_id: task.service.to_string().into(),
        service_name: task.service.name.as_str().into(),
        labels: Cow::Borrowed(labels),
        task_id: task.id.to_string().into(),
        task_name: task.name().into(),
        slot: match task.slot {
            Slot(0) => node.record.id.to_string().into(),
            Slot(slot) => slot.to_string().into(),
        },
    })
}

#[cfg(test)]
mod tests {
    use wharf_model::{MountSpec, Recursion};

    use crate::{
        Assigner,
        fixtures::{Cluster, app, app_key, images, node_id, replicas, service},
    };

    fn bind(path: &str, target: &str) -> MountSpec {
        let source = wharf_model::MountSource::Bind {
            path: path.into(),
            create: false,
            propagation: None,
            selinux: None,
            recursive: Recursion::Enabled,
        };
        MountSpec { source, target: target.into(), read_only: false }
    }

    #[test]
    fn each_task_gets_its_own_and_the_revision_keeps_what_was_written() {
        let mut cluster = Cluster::of(2);
        let mut web = replicas(service("web"), 2);
        web.labels.insert("tier".into(), "front".into());
        web.container.hostname = Some("web-{{.Task.Slot}}".into());
        let variables = [
            ("WHERE", "{{.Node.Hostname}}/{{.Node.IP}}"),
            ("TIER", r#"{{index .Service.Labels "tier"}}"#),
            ("OTHER", "{{.Name}}"),
        ];
        web.container.environment =
            variables.map(|(name, value)| (name.to_owned(), Some(value.to_owned()))).into();
        web.container.mounts = vec![bind("/srv/{{.Task.Slot}}", "/data/{{.Service.Name}}")];
        cluster.up(&app(&[("web", web.clone())]));
        cluster.settle();
        let assigner = Assigner::new(&cluster.world);
        for task in cluster.ready("web") {
            let node = task.node.unwrap();
            let assigned = &assigner.for_node(node).tasks[&task.id].spec.container;
            let n = if node == node_id(1) { 1 } else { 2 };
            let slot = task.slot;
            assert_eq!(assigned.hostname, Some(format!("web-{slot}")));
            assert_eq!(assigned.environment["WHERE"], Some(format!("n{n}/10.0.0.{n}")));
            assert_eq!(assigned.environment["TIER"].as_deref(), Some("front"));
            assert_eq!(assigned.environment["OTHER"].as_deref(), Some("{{.Name}}"));
            assert_eq!(assigned.mounts, [bind(&format!("/srv/{slot}"), "/data/web")]);
            let revision = cluster.world.revision_of(&task.service, task.generation).unwrap();
            assert_eq!(revision.spec.container, web.container);
        }
    }

    #[test]
    fn a_plan_refuses_what_cannot_be_filled_in() {
        let cluster = Cluster::of(1);
        let mut web = service("web");
        web.container.environment.insert("A".into(), Some("{{.Node.Hostnme}}".into()));
        let spec = app(&[("web", web)]);
        let plan = crate::plan(&cluster.world, &app_key(), &spec, &images(&spec));
        let text = plan.refusals[0].to_string();
        assert!(text.starts_with("service web: environment.A: `{{.Node.Hostnme}}`: there is no"), "{text}");
    }
}
