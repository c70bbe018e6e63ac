//! What is answered as a stream, and by nodes.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use serde_json::Value;
use wharf_api::{
    transport::{Frame, FrameReader, FrameSender, frame::ExitCode},
    v1::{self, Action, AppStatus, Code, ExecRequest, LogLine},
};

use crate::fixture::{Cluster, eventually, printed, problem, timing, up, web, within};

#[tokio::test]
async fn a_watch_shows_an_app_coming_up_and_ends_with_it() {
    let cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let node = cluster.node("n1").await;
    node.fake.stuck.send_replace(true);
    assert_eq!(problem(api.get::<Value>("/v1/apps/prod/shop/watch").await).code, Code::NotFound);
    api.act("shop", up("shop", web(1))).await.unwrap();
    let mut watch = api.lines::<AppStatus>("/v1/apps/prod/shop/watch").await;
    let first = within(watch.next()).await.unwrap().unwrap();
    assert_eq!((first.app.rollout.state.as_str(), first.app.ready), ("progressing", 0));
    node.fake.go_on();
    let done = within(async {
        loop {
            let status = watch.next().await.unwrap().unwrap();
            if status.app.rollout.state == "done" {
                return status;
            }
        }
    })
    .await;
    assert_eq!(done.app.ready, 1);
    api.act("shop", Action::Down { volumes: true }).await.unwrap();
    within(async { while watch.next().await.unwrap().is_some() {} }).await;
}

#[tokio::test]
async fn events_are_told_in_order_and_none_is_missed() {
    let cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let mut follow = api.lines::<v1::Event>("/v1/events?follow=true").await;
    let _node = cluster.node("n1").await;
    for version in 1..=3 {
        api.done("shop", up("shop", web(version))).await;
    }
    let all: Vec<v1::Event> = api.all("/v1/events").await;
    let mut followed = Vec::new();
    within(async {
        while followed.len() < all.len() {
            followed.push(follow.next().await.unwrap().unwrap());
        }
    })
    .await;
    let mut ids: Vec<_> = followed.iter().map(|event| event.id.clone()).collect();
    ids.sort();
    assert_eq!(ids, all.iter().map(|event| event.id.clone()).collect::<Vec<_>>());
    let messages: Vec<_> = all.iter().map(|event| event.message.as_str()).collect();
    assert!(messages.contains(&"node n1 is ready"), "{messages:?}");
    assert!(messages.contains(&"shop: release 2 was asked for"), "{messages:?}");
    assert!(messages.contains(&"shop: release 3 is done"), "{messages:?}");
    let asked = all.iter().find(|event| event.message.contains("was asked for")).unwrap();
    assert_eq!(asked.by.as_deref(), Some("ada@laptop"));
    let of_app: Vec<v1::Event> = api.all("/v1/events?app=prod/shop").await;
    assert!(!of_app.is_empty() && of_app.iter().all(|event| event.app.as_deref() == Some("prod/shop")));
    let none: Vec<v1::Event> = api.all("/v1/events?since=99999999999999").await;
    assert!(none.is_empty());
}

#[tokio::test]
async fn logs_of_several_nodes_are_one_stream_in_the_order_of_time() {
    let cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let nodes = [cluster.node("n1").await, cluster.node("n2").await];
    *nodes[0].fake.output.lock().unwrap() = vec![printed(10, "a"), printed(30, "c"), printed(50, "e")];
    *nodes[1].fake.output.lock().unwrap() = vec![printed(20, "b"), printed(40, "d")];
    api.done("shop", up("shop", web(1))).await;
    api.done("shop", Action::Scale { replicas: [("web".to_owned(), 2)].into() }).await;
    let text = |lines: &[LogLine]| lines.iter().map(|line| line.text.clone()).collect::<Vec<_>>().join("");
    let lines: Vec<LogLine> = api.all("/v1/apps/prod/shop/logs").await;
    assert_eq!(text(&lines), "abcde");
    assert_eq!((lines[0].service.as_str(), lines[0].stream.as_str()), ("web", "stdout"));
    assert_ne!(lines[0].node, lines[1].node);
    assert_eq!(text(&api.all("/v1/apps/prod/shop/logs?tail=1").await), "de");
    assert_eq!(text(&api.all("/v1/apps/prod/shop/logs?since=25").await), "cde");
    let task = &lines[1].task;
    assert_eq!(text(&api.all(&format!("/v1/apps/prod/shop/logs?task={task}")).await), "bd");
    let wrong = problem(api.get::<Value>("/v1/apps/prod/shop/logs?service=wbe").await);
    assert!(wrong.hint.unwrap().contains("did you mean `web`?"));

    // Followed: what there is, and what a task prints that comes later.
    let mut follow = api.lines::<LogLine>("/v1/apps/prod/shop/logs?follow=true").await;
    let mut seen = Vec::new();
    within(async {
        while seen.len() < 5 {
            seen.push(follow.next().await.unwrap().unwrap().text);
        }
    })
    .await;
    seen.sort();
    assert_eq!(seen.concat(), "abcde");
    api.done("shop", Action::Scale { replicas: [("web".to_owned(), 3)].into() }).await;
    let later = within(follow.next()).await.unwrap().unwrap();
    assert!(later.task.ends_with("-3"), "{later:?}");
}

#[tokio::test]
async fn a_node_that_is_away_is_named_and_the_other_lines_come_all_the_same() {
    let cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let gone = cluster.node("n1").await;
    api.done("shop", up("shop", web(1))).await;
    let task = api.app("shop").await.services[0].tasks[0].name.clone();
    gone.cut().await;
    let lines = eventually(async || {
        let lines: Vec<LogLine> = api.all("/v1/apps/prod/shop/logs").await;
        lines.first().is_some_and(|line| line.stream == "wharf").then_some(lines)
    })
    .await;
    assert_eq!(lines[0].text, "lines are missing: node n1 is not connected to this server");
    let refused = problem(api.get::<Value>(&format!("/v1/tasks/{task}/inspect")).await);
    assert_eq!(refused.code, Code::NodeUnreachable);
    assert!(refused.message.contains("n1") && refused.hint.is_some(), "{refused:?}");
}

#[tokio::test]
async fn usage_inspect_and_exec_are_answered_by_the_tasks_node() {
    let cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let _node = cluster.node("n1").await;
    let status = api.done("shop", up("shop", web(1))).await;
    let id = &status.services[0].tasks[0].id;
    let inspected: Value = api.get("/v1/tasks/shop-web-1/inspect").await.unwrap();
    assert_eq!(inspected["Id"], format!("c-{id}"));
    let usage: Vec<v1::Usage> = api.get("/v1/usage?app=shop").await.unwrap();
    assert_eq!((usage.len(), usage[0].pids, usage[0].node.as_str()), (1, 3, "n1"));
    assert!(api.get::<Vec<v1::Usage>>("/v1/usage?app=other").await.unwrap().is_empty());

    let (input, body) = FrameSender::channel(timing().stream_keepalive);
    let command = ExecRequest { command: vec!["cat".into()], stdin: true, ..ExecRequest::default() };
    input.send(Frame::Start(command)).await.unwrap();
    let answer = within(api.0.open(Method::POST, "/v1/tasks/shop-web-1/exec", body)).await.unwrap();
    let mut output = FrameReader::new(answer.into_body(), timing().stream_silence());
    input.send(Frame::Stdin(Bytes::from_static(b"hello"))).await.unwrap();
    assert_eq!(within(output.next()).await.unwrap(), Some(Frame::Stdout(Bytes::from_static(b"hello"))));
    input.send(Frame::StdinEnd).await.unwrap();
    assert_eq!(within(output.next()).await.unwrap(), Some(Frame::Exit(ExitCode { code: 7 })));

    api.done("shop", Action::Stop { services: vec![] }).await;
    let stopped = eventually(async || {
        let (_, body) = FrameSender::channel(timing().stream_keepalive);
        let answer = within(api.0.open(Method::POST, &format!("/v1/tasks/{id}/exec"), body)).await;
        answer.err().and_then(|error| error.problem().cloned()).filter(|found| found.code == Code::Conflict)
    })
    .await;
    assert!(stopped.message.contains("not running"), "{stopped:?}");
}

#[tokio::test]
async fn a_server_that_stops_ends_its_streams_and_says_so() {
    let mut cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let _node = cluster.node("n1").await;
    api.done("shop", up("shop", web(1))).await;
    let mut watch = api.lines::<AppStatus>("/v1/apps/prod/shop/watch").await;
    let mut events = api.lines::<v1::Event>("/v1/events?follow=true").await;
    let mut logs = api.lines::<LogLine>("/v1/apps/prod/shop/logs?follow=true").await;
    within(watch.next()).await.unwrap().unwrap();
    within(events.next()).await.unwrap().unwrap();
    let took = cluster.stop().await;
    assert!(took < Duration::from_secs(5), "nothing was waited for: {took:?}");
    within(async { while watch.next().await.is_ok_and(|status| status.is_some()) {} }).await;
    within(async {
        while let Ok(event) = events.next().await {
            assert!(event.is_some(), "it broke off and did not end");
        }
    })
    .await;
    assert!(within(logs.next()).await.is_err());
}
