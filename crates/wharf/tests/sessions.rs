//! A server's listener and agents' sessions, over real sockets on loopback: joining, certificates, streams, and what happens when
//! either side goes away.

mod spine;

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use spine::{Cluster, LINES, MISSING, TASK, api_dialer, fast, hour, join_options, until, within};
use wharf_agent::session::{Home, JoinError, join};
use wharf_api::{
    transport::{
        CallError, DialError, Frame, FrameReader, FrameSender, PeerKind, Timing,
        client::Dialer,
        empty,
        error::Rejection,
        frame::ExitCode,
        node::{Have, LogsQuery, Report, ResolveImage},
        tls::{Anchor, Protocol, system_time},
        wire::{ServerEntry, Servers},
    },
    v1::{Code, ExecRequest},
};
use wharf_model::{AssignmentSet, NetworkId, NodeId, Revision, Timestamp};
use wharf_process::{Clock, ManualClock};
use wharf_server::{
    pki::{Authority, Lifetimes, Subject},
    records::TokenRole,
    sessions::{Pushed, Telling},
};

#[tokio::test]
async fn a_machine_joins_and_its_agent_is_called_over_the_connection_it_dialled() {
    let cluster = Cluster::start(Lifetimes::default(), fast()).await;
    let agent = cluster.agent("n1").await;
    let session = cluster.session(agent.id).await;

    let report = session.report().await.unwrap();
    assert_eq!(report.facts.hostname, "n1");
    let set = spine::set_for(agent.id, 5);
    assert_eq!(
        session.push_assignments(&set).await.unwrap(),
        Pushed::Accepted(Have { epoch: 1, revision: Revision(5) })
    );
    let older = session.push_assignments(&spine::set_for(agent.id, 4)).await.unwrap();
    assert_eq!(older, Pushed::Older(Have { epoch: 1, revision: Revision(5) }));
    let image = session
        .resolve_image(&ResolveImage { reference: "mariadb:11".to_owned(), refresh: false, offline: false })
        .await
        .unwrap();
    assert_eq!(image.reference, "mariadb:11");
    assert_eq!(session.stats(*TASK).await.unwrap().pids, 3);
    assert_eq!(session.inspect(*TASK).await.unwrap()["Id"], "abc");

    let missing = session.stats(*MISSING).await.unwrap_err();
    let problem = missing.problem().expect("the node refused");
    assert_eq!(
        (problem.code, problem.message.as_str()),
        (Code::NotFound, "there is no such task on this node")
    );
    cluster.stop().await;
}

/// A set with so many names that what changes is little of it; `web` leads to the revision's number.
fn large_set(node: NodeId, revision: u32) -> Arc<AssignmentSet> {
    let mut set = spine::set_for(node, revision.into());
    let names = set.dns.networks.entry(NetworkId::from_parts(1, [1; 10])).or_default();
    names.extend((0..200).map(|number| (format!("other{number}"), vec![Ipv4Addr::LOCALHOST])));
    names.insert("web".into(), vec![Ipv4Addr::from(revision)]);
    Arc::new(set)
}

#[tokio::test]
async fn a_node_is_sent_what_changes_and_takes_whole_sets() {
    let cluster = Cluster::start(Lifetimes::default(), fast()).await;
    let agent = cluster.agent("n1").await;
    let session = cluster.session(agent.id).await;
    let accepted = |revision: u32| Pushed::Accepted(Have { epoch: 1, revision: Revision(revision.into()) });
    let mut telling = Telling::default();
    for revision in 1..200 {
        let set = large_set(agent.id, revision);
        assert_eq!(telling.push(&session, &set).await.unwrap(), accepted(revision));
        assert_eq!(agent.node.held(), Some(set));
    }
    let (whole, differences) = telling.counts();
    // Whole once more whenever differences have come to as much.
    assert!(
        (2..10).contains(&whole) && whole + differences == 199,
        "{whole} of {differences} were sent whole"
    );

    // Somebody else sent this session a set in between: what the next difference starts from is not there, and all is sent.
    session.push_assignments(&large_set(agent.id, 300)).await.unwrap();
    assert_eq!(telling.push(&session, &large_set(agent.id, 301)).await.unwrap(), accepted(301));
    assert_eq!(agent.node.held(), Some(large_set(agent.id, 301)));
    assert_eq!(telling.counts(), (whole + 1, differences));
    assert_eq!(telling.push(&session, &large_set(agent.id, 302)).await.unwrap(), accepted(302));
    assert_eq!(agent.node.held(), Some(large_set(agent.id, 302)));
    assert_eq!(telling.counts(), (whole + 1, differences + 1), "and from there on what changes again");

    // An older one is refused, however it is sent; the next one is sent whole.
    let older = telling.push(&session, &large_set(agent.id, 7)).await.unwrap();
    assert_eq!(older, Pushed::Older(Have { epoch: 1, revision: Revision(302) }));
    assert_eq!(telling.push(&session, &large_set(agent.id, 303)).await.unwrap(), accepted(303));
    assert_eq!(agent.node.held(), Some(large_set(agent.id, 303)));
    cluster.stop().await;
}

#[tokio::test]
async fn a_token_that_is_damaged_wrong_or_expired_lets_nobody_in_and_says_what_to_do() {
    let cluster = Cluster::start(Lifetimes::default(), fast()).await;
    let folder = tempfile::tempdir().unwrap();
    let home = Home::new(folder.path());
    let attempt = async |token: String| {
        let error =
            join(join_options(&cluster, "n1", token), &home, fast(), spine::clock()).await.unwrap_err();
        let hint = error.hint().expect("every refusal of a token has a hint");
        (wharf_process::errors::chain(&error), hint, error)
    };

    let good = cluster.token(TokenRole::Agent, hour());
    let mut mistyped = good.clone();
    let last = mistyped.pop().unwrap();
    mistyped.push(if last == '0' { '1' } else { '0' });
    let (text, _, error) = attempt(mistyped).await;
    assert!(matches!(error, JoinError::Token(_)), "{text}");

    let forgotten = cluster.token(TokenRole::Agent, hour());
    cluster.roster.forget_tokens();
    let (text, hint, _) = attempt(forgotten).await;
    assert!(text.contains("not known here"), "{text}");
    assert!(hint.contains("wharf token create"), "{hint}");

    let expired = cluster.token_made_at(TokenRole::Agent, Timestamp(cluster.now().0 - 7_200_000), hour());
    let (text, hint, _) = attempt(expired).await;
    assert!(text.contains("expired 60 minutes ago"), "{text}");
    assert!(hint.contains("wharf token create"), "{hint}");

    let for_servers = cluster.token(TokenRole::Server, hour());
    assert!(attempt(for_servers).await.0.contains("as server, not as agent"));
    assert!(cluster.roster.names().is_empty());
    assert!(home.read().is_err(), "nothing was written");
    cluster.stop().await;
}

#[tokio::test]
async fn a_token_of_another_cluster_is_not_even_shown_to_this_one() {
    let (cluster, other) = (
        Cluster::start(Lifetimes::default(), fast()).await,
        Cluster::start(Lifetimes::default(), fast()).await,
    );
    let folder = tempfile::tempdir().unwrap();
    let options = join_options(&cluster, "n1", other.token(TokenRole::Agent, hour()));
    let error = join(options, &Home::new(folder.path()), fast(), spine::clock()).await.unwrap_err();
    assert!(matches!(error, JoinError::Dial(DialError::OtherCluster { .. })), "{error:?}");
    assert!(error.hint().unwrap().contains("token is of another cluster"));
    assert_eq!(cluster.roster.lookups(), 0, "no token was ever sent");
    cluster.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn joining_again_changes_nothing_unless_forced_and_then_it_is_the_same_node() {
    let cluster = Cluster::start(Lifetimes::default(), fast()).await;
    let folder = tempfile::tempdir().unwrap();
    let home = Home::new(folder.path());
    let mut options = join_options(&cluster, "n1", cluster.token(TokenRole::Agent, hour()));
    let joined = join(options.clone(), &home, fast(), spine::clock()).await.unwrap();
    let before = home.read().unwrap();

    let error = join(options.clone(), &home, fast(), spine::clock()).await.unwrap_err();
    assert!(matches!(error, JoinError::Already { node, .. } if node == joined.node), "{error:?}");
    assert!(error.hint().unwrap().contains("--force"));
    assert_eq!(home.read().unwrap(), before);

    options.force = true;
    let again = join(options, &home, fast(), spine::clock()).await.unwrap();
    assert_eq!(again.node, joined.node);
    assert_ne!(home.read().unwrap().identity, before.identity);

    let elsewhere = tempfile::tempdir().unwrap();
    let options = join_options(&cluster, "n1", cluster.token(TokenRole::Agent, hour()));
    let error = join(options, &Home::new(elsewhere.path()), fast(), spine::clock()).await.unwrap_err();
    assert!(error.hint().unwrap().contains("--name"), "{error:?}");
    cluster.stop().await;
}

#[tokio::test]
async fn a_clock_that_is_off_is_said_with_both_times_whether_tls_or_the_server_notices() {
    let cluster = Cluster::start(Lifetimes::default(), fast()).await;
    let folder = tempfile::tempdir().unwrap();
    let home = Home::new(folder.path());
    let attempt = async |offset: i64| {
        let now = cluster.now().0.checked_add_signed(offset * 1000).unwrap();
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(wharf_process::Millis(now)));
        let options = join_options(&cluster, "n1", cluster.token(TokenRole::Agent, hour()));
        join(options, &home, fast(), clock).await.unwrap_err()
    };
    let ahead = attempt(3600).await;
    let text = wharf_process::errors::chain(&ahead);
    assert!(text.contains("minutes ahead of the server's"), "{text}");
    assert!(ahead.hint().unwrap().contains("timedatectl"));

    let behind = attempt(-3600).await;
    let text = wharf_process::errors::chain(&behind);
    assert!(text.contains("minutes behind the server's"), "{text}");
    assert!(behind.hint().unwrap().contains("timedatectl"));

    // Further behind than certificates are backdated, TLS is first to notice.
    let long_ago = attempt(-3 * 3600).await;
    let text = wharf_process::errors::chain(&long_ago);
    assert!(text.contains("is not valid yet: the clock says"), "{text}");
    assert!(long_ago.hint().unwrap().contains("timedatectl"));
    cluster.stop().await;
}

#[tokio::test]
async fn whoever_has_no_certificate_gets_no_further_than_joining() {
    let cluster = Cluster::start(Lifetimes::default(), fast()).await;
    let anonymous = api_dialer(&cluster, None).dial(&[cluster.address()]).await.unwrap();
    let error = anonymous.get::<serde_json::Value>("/v1/version").await.unwrap_err();
    assert_eq!(error.problem().expect("a refusal").code, Code::Forbidden);

    let user = api_dialer(&cluster, Some(&cluster.user("ada"))).dial(&[cluster.address()]).await.unwrap();
    let who: String = user.get("/v1/version").await.unwrap();
    assert_eq!(who, PeerKind::User("ada".to_owned()).to_string());

    // A user's certificate opens no session.
    let anchor = Anchor::Authority(cluster.authority.trust().clone());
    let dialer =
        Dialer::new(&anchor, Some(&cluster.user("ada")), Protocol::Node, fast(), system_time()).unwrap();
    let mut stream = dialer.connect(&cluster.address()).await.unwrap();
    let mut nothing = [0; 16];
    let read = tokio::io::AsyncReadExt::read(&mut stream, &mut nothing);
    assert!(matches!(within(read).await, Ok(0) | Err(_)), "the connection is closed");
    assert!(cluster.sessions.connected().is_empty());
    cluster.stop().await;
}

#[tokio::test]
async fn a_foreign_an_expired_and_a_revoked_certificate_get_nowhere_and_are_told_why() {
    let cluster = Cluster::start(Lifetimes::default(), fast()).await;
    let now = cluster.now();
    let attempt = async |identity: &wharf_api::transport::Identity| {
        let client = api_dialer(&cluster, Some(identity)).dial(&[cluster.address()]).await;
        let error = match client {
            Ok(client) => client.get::<String>("/v1/version").await.unwrap_err(),
            Err(error) => error.into(),
        };
        match error {
            CallError::Dial(DialError::Rejected { why, .. }) => why,
            other => panic!("not refused for its certificate: {other:?}"),
        }
    };
    let foreign = Authority::create("other", now, hour()).unwrap();
    let foreign = foreign.issue_here(&Subject::User("ada".to_owned()), now, hour()).unwrap();
    assert_eq!(attempt(&foreign).await, Rejection::Foreign);

    let yesterday = Timestamp(now.0 - 86_400_000);
    let expired = cluster.authority.issue_here(&Subject::User("ada".to_owned()), yesterday, hour()).unwrap();
    assert!(matches!(attempt(&expired).await, Rejection::Expired { .. }));

    let later = Timestamp(now.0 + 86_400_000);
    let early = cluster.authority.issue_here(&Subject::User("ada".to_owned()), later, hour()).unwrap();
    assert!(
        matches!(attempt(&early).await, Rejection::Clock { .. }),
        "by the server's clock it is not valid"
    );

    // Revoked after it was good, with the very same TLS configuration: no session is resumed past the question.
    let user = cluster.user("ada");
    let dialer = api_dialer(&cluster, Some(&user));
    let client = dialer.dial(&[cluster.address()]).await.unwrap();
    client.get::<String>("/v1/version").await.unwrap();
    cluster.revoke(&user.peer().unwrap().serial);
    let error = match dialer.dial(&[cluster.address()]).await {
        Ok(client) => client.get::<String>("/v1/version").await.unwrap_err(),
        Err(error) => error.into(),
    };
    assert!(
        matches!(error, CallError::Dial(DialError::Rejected { why: Rejection::Revoked, .. })),
        "{error:?}"
    );
    cluster.stop().await;
}

#[tokio::test]
async fn a_removed_node_is_cut_off_and_does_not_come_back() {
    let cluster = Cluster::start(Lifetimes::default(), fast()).await;
    let agent = cluster.agent("n1").await;
    let session = cluster.session(agent.id).await;
    cluster.revoke(session.serial());
    cluster.sessions.disconnect(agent.id);
    within(session.ended()).await;
    let refused = cluster.revocations_noticed();
    until(|| cluster.revocations_noticed() >= refused + 2).await;
    assert!(cluster.sessions.connected().is_empty());
    cluster.stop().await;
}

#[tokio::test]
async fn a_server_of_another_cluster_is_not_believed_and_neither_is_a_node_that_listens() {
    let (cluster, other) = (
        Cluster::start(Lifetimes::default(), fast()).await,
        Cluster::start(Lifetimes::default(), fast()).await,
    );
    let error = api_dialer(&cluster, Some(&cluster.user("ada"))).dial(&[other.address()]).await.unwrap_err();
    assert!(matches!(error, DialError::OtherCluster { .. }), "{error:?}");

    let impostor = cluster.listen_as(&Subject::Node(wharf_model::NodeId::from_parts(1, [1; 10]))).await;
    let error = api_dialer(&cluster, Some(&cluster.user("ada"))).dial(&[impostor]).await.unwrap_err();
    assert!(matches!(error, DialError::NotWharf { .. }), "{error:?}");
    cluster.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn nobody_there_is_said_with_a_hint() {
    let cluster = Cluster::start(Lifetimes::default(), fast()).await;
    let (dialer, address) = (api_dialer(&cluster, Some(&cluster.user("ada"))), cluster.address());
    cluster.stop().await;
    let error = dialer.dial(&[address]).await.unwrap_err();
    assert!(matches!(error, DialError::Refused { .. }), "{error:?}");
    assert_eq!(error.hint().unwrap(), "is `wharf server run` running on 127.0.0.1?");
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let error = dialer.dial(&[silent.local_addr().unwrap().into()]).await.unwrap_err();
    assert!(matches!(error, DialError::TimedOut { .. }), "{error:?}");
}

#[tokio::test]
async fn certificates_renew_themselves_and_interrupt_nothing() {
    let lifetimes =
        Lifetimes { node: Duration::from_secs(6), server: Duration::from_secs(6), ..Lifetimes::default() };
    let cluster = Cluster::start(lifetimes, fast()).await;
    let agent = cluster.agent("n1").await;
    let first = cluster.session(agent.id).await;
    let first_server = cluster.server_serial();

    // A stream that is open across the renewal.
    let (input, body) = FrameSender::channel(fast().stream_keepalive);
    input
        .send(Frame::Start(ExecRequest { command: vec!["cat".to_owned()], ..Default::default() }))
        .await
        .unwrap();
    let response = first.exec(*TASK, body).await.unwrap();
    let mut output = FrameReader::new(response.into_body(), fast().stream_silence());

    let renewed = async {
        loop {
            first.ended().await;
            let session = cluster.session(agent.id).await;
            if session.serial() != first.serial() {
                return session;
            }
        }
    };
    let second = within(renewed).await;
    assert!(second.number() > first.number());
    assert_eq!(second.report().await.unwrap().facts.hostname, "n1");
    assert_eq!(agent.home.read().unwrap().identity.peer().unwrap().serial, second.serial());
    until(|| cluster.server_serial() != first_server).await;

    input.send(Frame::Stdin(Bytes::from_static(b"still here"))).await.unwrap();
    assert_eq!(within(output.next()).await.unwrap(), Some(Frame::Stdout(Bytes::from_static(b"still here"))));
    input.send(Frame::StdinEnd).await.unwrap();
    assert_eq!(within(output.next()).await.unwrap(), Some(Frame::Exit(ExitCode { code: 0 })));

    // Past the life of the first certificates, everything goes on.
    let past = first_expiry(&first, &cluster);
    until(|| cluster.now() > past).await;
    let third = cluster.session(agent.id).await;
    assert_eq!(within(third.report()).await.unwrap().facts.hostname, "n1");
    cluster.stop().await;
}

fn first_expiry(first: &wharf_server::sessions::NodeSession, cluster: &Cluster) -> Timestamp {
    first.connected_at() + cluster.lifetimes.node
}

#[tokio::test]
async fn a_session_ends_when_its_certificate_does() {
    let cluster =
        Cluster::start(Lifetimes { node: Duration::from_secs(3), ..Lifetimes::default() }, fast()).await;
    let agent = cluster.agent_that_never_renews("n1").await;
    let session = cluster.session(agent.id).await;
    within(session.ended()).await;
    until(|| cluster.sessions.connected().is_empty()).await;
    assert!(cluster.now() >= session.connected_at() + Duration::from_secs(1), "not before");
    cluster.stop().await;
}

#[tokio::test]
async fn a_hundred_megabytes_stream_both_ways_while_other_requests_go_on() {
    const PIECE: usize = 1 << 16;
    const PIECES: usize = 1600;
    let cluster = Cluster::start(Lifetimes::default(), fast()).await;
    let agent = cluster.agent("n1").await;
    let session = cluster.session(agent.id).await;

    let (input, body) = FrameSender::channel(fast().stream_keepalive);
    input
        .send(Frame::Start(ExecRequest { command: vec!["cat".to_owned()], ..Default::default() }))
        .await
        .unwrap();
    let response = session.exec(*TASK, body).await.unwrap();
    let mut output = FrameReader::new(response.into_body(), fast().stream_silence());
    let piece = |n: usize| Bytes::from(vec![u8::try_from(n % 251).unwrap(); PIECE]);
    let writing = async {
        for n in 0..PIECES {
            input.send(Frame::Stdin(piece(n))).await.unwrap();
        }
        input.send(Frame::StdinEnd).await.unwrap();
    };
    let reading = async {
        let (mut received, mut sum) = (0_usize, 0_u64);
        loop {
            match output.next().await.unwrap() {
                Some(Frame::Stdout(data)) => {
                    received += data.len();
                    sum += data.iter().map(|byte| u64::from(*byte)).sum::<u64>();
                }
                Some(Frame::Exit(exit)) => return (received, sum, exit.code),
                other => panic!("unexpected: {other:?}"),
            }
        }
    };
    let asking = async {
        for _ in 0..50 {
            session.stats(*TASK).await.unwrap();
        }
    };
    let ((), (received, sum, code), ()) =
        tokio::time::timeout(Duration::from_secs(120), async { tokio::join!(writing, reading, asking) })
            .await
            .expect("the streams move");
    assert_eq!((received, code), (PIECE * PIECES, 0));
    let expected: u64 = (0..PIECES).map(|n| u64::try_from(n % 251 * PIECE).unwrap()).sum();
    assert_eq!(sum, expected);
    cluster.stop().await;
}

#[tokio::test]
async fn readers_that_stand_still_starve_nobody() {
    let cluster = Cluster::start(Lifetimes::default(), fast()).await;
    let agent = cluster.agent("n1").await;
    let session = cluster.session(agent.id).await;
    let mut stalled = Vec::new();
    for _ in 0..40 {
        // Endless output that nobody takes: each stream stops when its window is full.
        stalled.push(session.logs(*TASK, &LogsQuery { follow: true, ..Default::default() }).await.unwrap());
    }
    for _ in 0..20 {
        assert_eq!(within(session.stats(*TASK)).await.unwrap().pids, 3);
    }
    for reader in &mut stalled {
        assert!(within(reader.next()).await.unwrap().is_some());
    }
    cluster.stop().await;
}

#[tokio::test]
async fn logs_come_line_by_line_and_end() {
    let cluster = Cluster::start(Lifetimes::default(), fast()).await;
    let agent = cluster.agent("n1").await;
    let session = cluster.session(agent.id).await;
    let query = LogsQuery { tail: Some(LINES), ..Default::default() };
    let mut lines = session.logs(*TASK, &query).await.unwrap();
    let mut count = 0;
    while let Some(line) = within(lines.next()).await.unwrap() {
        assert_eq!(line.text, format!("line {count}"));
        count += 1;
    }
    assert_eq!(count, LINES);
    cluster.stop().await;
}

#[tokio::test]
async fn reports_begin_with_everything_and_go_on_with_heartbeats() {
    let cluster = Cluster::start(Lifetimes::default(), fast()).await;
    let agent = cluster.agent("n1").await;
    let session = cluster.session(agent.id).await;
    let mut reports = session.reports().await.unwrap();
    let mut seen = Vec::new();
    while !seen.contains(&Report::Synced) {
        seen.push(within(reports.next()).await.unwrap().unwrap());
    }
    assert!(seen.iter().any(|report| matches!(report, Report::Node(_))), "{seen:?}");
    for _ in 0..2 {
        assert_eq!(within(reports.next()).await.unwrap(), Some(Report::Heartbeat));
    }
    cluster.stop().await;
}

#[tokio::test]
async fn a_stream_that_is_silent_for_long_stays_alive() {
    let timing = Timing { stream_keepalive: Duration::from_millis(50), ..fast() };
    let cluster = Cluster::start(Lifetimes::default(), timing).await;
    let agent = cluster.agent("n1").await;
    let session = cluster.session(agent.id).await;
    let (input, body) = FrameSender::channel(timing.stream_keepalive);
    input
        .send(Frame::Start(ExecRequest { command: vec!["cat".to_owned()], ..Default::default() }))
        .await
        .unwrap();
    let response = session.exec(*TASK, body).await.unwrap();
    let mut output = FrameReader::new(response.into_body(), timing.stream_silence());
    let silence = tokio::time::timeout(timing.stream_silence() * 5, output.next()).await;
    assert!(silence.is_err(), "five times what would be taken for death: {silence:?}");
    input.send(Frame::Stdin(Bytes::from_static(b"x"))).await.unwrap();
    assert_eq!(within(output.next()).await.unwrap(), Some(Frame::Stdout(Bytes::from_static(b"x"))));
    cluster.stop().await;
}

#[tokio::test]
async fn an_exec_that_the_node_refuses_or_that_fails_says_why() {
    let cluster = Cluster::start(Lifetimes::default(), fast()).await;
    let agent = cluster.agent("n1").await;
    let session = cluster.session(agent.id).await;
    let start = async |command: &str| {
        let (input, body) = FrameSender::channel(fast().stream_keepalive);
        let request = ExecRequest { command: vec![command.to_owned()], ..Default::default() };
        input.send(Frame::Start(request)).await.unwrap();
        (session.exec(*TASK, body).await, input)
    };
    let (refused, _input) = start("no-such-program").await;
    let refused = refused.unwrap_err();
    assert!(refused.problem().unwrap().message.contains("no-such-program"), "{refused:?}");
    let (started, _input) = start("break").await;
    let mut output = FrameReader::new(started.unwrap().into_body(), fast().stream_silence());
    let Some(Frame::Error(problem)) = within(output.next()).await.unwrap() else {
        panic!("an error frame comes")
    };
    assert_eq!(problem.message, "the engine went away");
    assert_eq!(within(output.next()).await.unwrap(), None);
    cluster.stop().await;
}

#[tokio::test]
async fn a_client_that_hangs_up_ends_the_command_it_ran() {
    let cluster = Cluster::start(Lifetimes::default(), fast()).await;
    let agent = cluster.agent("n1").await;
    let session = cluster.session(agent.id).await;
    let (input, body) = FrameSender::channel(fast().stream_keepalive);
    input
        .send(Frame::Start(ExecRequest { command: vec!["sleep".to_owned()], ..Default::default() }))
        .await
        .unwrap();
    let response = session.exec(*TASK, body).await.unwrap();
    until(|| agent.node.running_execs() == 1).await;
    drop((input, response));
    until(|| agent.node.running_execs() == 0).await;
    cluster.stop().await;
}

#[tokio::test]
async fn an_agent_that_dies_is_missed_and_one_that_comes_back_is_found() {
    let cluster = Cluster::start(Lifetimes::default(), fast()).await;
    let mut agent = cluster.agent("n1").await;
    let session = cluster.session(agent.id).await;
    let mut changes = cluster.sessions.changes();
    agent.kill();
    within(session.ended()).await;
    within(changes.changed()).await.unwrap();
    until(|| cluster.sessions.connected().is_empty()).await;
    assert!(cluster.sessions.get(agent.id).is_err());
    assert!(session.stats(*TASK).await.unwrap_err().is_connection());

    agent.start(&cluster);
    let again = cluster.session(agent.id).await;
    assert!(again.number() > session.number());
    cluster.stop().await;
}

#[tokio::test]
async fn a_peer_that_falls_silent_is_given_up_by_both_sides() {
    let timing = Timing {
        keepalive_interval: Duration::from_millis(200),
        keepalive_timeout: Duration::from_millis(300),
        ..fast()
    };
    let cluster = Cluster::start(Lifetimes::default(), timing).await;
    let wire = spine::Wire::to(cluster.address()).await;
    let agent = cluster.agent_by("n1", vec![wire.address()]).await;
    let session = cluster.session(agent.id).await;
    let dialled = wire.connections();
    // Nothing is closed, nothing arrives any more: as when a cable is cut.
    wire.freeze();
    within(session.ended()).await;
    until(|| cluster.sessions.connected().is_empty()).await;
    until(|| wire.connections() > dialled).await;
    wire.thaw();
    cluster.session(agent.id).await;
    cluster.stop().await;
}

#[tokio::test]
async fn an_agent_finds_a_server_that_starts_late_and_servers_it_is_told_of() {
    let cluster = Cluster::start(Lifetimes::default(), fast()).await;
    let mut agent = cluster.agent("n1").await;
    let session = cluster.session(agent.id).await;
    let second = cluster.second_server().await;
    let mut servers = cluster.servers();
    servers.version += 1;
    servers.servers.push(second.entry());
    session.push_servers(&servers).await.unwrap();
    second.session(agent.id).await;
    // Remembered: an agent that starts again goes to both.
    agent.kill();
    until(|| second.sessions.connected().is_empty()).await;
    agent.start(&cluster);
    second.session(agent.id).await;
    let session = cluster.session(agent.id).await;

    // An older list changes nothing; a newer one without the second server ends that link.
    let older = Servers { version: 1, servers: vec![ServerEntry { addresses: vec![], ..second.entry() }] };
    session.push_servers(&older).await.unwrap();
    assert_eq!(agent.home.read_servers().unwrap(), servers);
    servers.version += 1;
    servers.servers.pop();
    session.push_servers(&servers).await.unwrap();
    until(|| second.sessions.connected().is_empty()).await;
    assert!(cluster.sessions.connected().contains(&agent.id));
    second.stop().await;
    cluster.stop().await;
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "a test's own tasks")]
async fn a_server_that_stops_finishes_its_requests_and_leaves_nothing_behind() {
    let cluster = Cluster::start(Lifetimes::default(), fast()).await;
    let _agent = cluster.agent("n1").await;
    let user = api_dialer(&cluster, Some(&cluster.user("ada"))).dial(&[cluster.address()]).await.unwrap();
    let slow = tokio::spawn(async move { user.get::<String>("/v1/slow").await });
    until(|| cluster.slow_requests() == 1).await;
    let stopping = tokio::spawn(cluster.stop());
    assert_eq!(within(slow).await.unwrap().unwrap(), "done", "a request that had begun is answered");
    within(stopping).await.unwrap();
}

#[tokio::test]
async fn an_answer_that_is_none_of_ours_is_quoted() {
    let cluster = Cluster::start(Lifetimes::default(), fast()).await;
    let user = api_dialer(&cluster, Some(&cluster.user("ada"))).dial(&[cluster.address()]).await.unwrap();
    let error = user.open(Method::GET, "/nowhere", empty()).await.unwrap_err();
    let CallError::Refused { status, problem } = error else { panic!("{error:?}") };
    assert_eq!((status, problem.code), (StatusCode::NOT_FOUND, Code::NotFound));
    let echoed = StreamBody::new(futures::stream::iter((0..10).map(|_| {
        Ok::<_, wharf_api::transport::BodyError>(http_body::Frame::data(Bytes::from_static(b"0123456789")))
    })));
    let response = user.open(Method::POST, "/v1/echo", echoed.boxed_unsync()).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes().len(), 100);
    cluster.stop().await;
}
