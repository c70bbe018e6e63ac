//! Has the routes of routed networks made where nodes do not share a segment: by a program, in a cloud's table or on a router.
//!
//! - Only the leader does it. The program is told every route there should be, whenever that changes and from time to time, and answers
//!   how many there are.
//! - What it could not do is known to [`State::route_standing`], and said by `wharf doctor`; it is tried again.
//! - The number of routes is limited before, by the engine: no task is placed that would need one more.

use std::{process::Stdio, time::Duration};

use async_trait::async_trait;
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;
use wharf_engine::wanted_routes;
use wharf_model::{RouteProgram, RouteSync, RouteSynced};

use super::Context;
use crate::state::State;

/// Between two calls that nothing brought about: others may have changed the table.
const REPEAT: Duration = Duration::from_secs(60);
/// After a call that failed.
const RETRY: Duration = Duration::from_secs(5);
/// What is needed together is told together.
const GATHER: Duration = Duration::from_millis(100);
/// A call that takes longer is given up.
const LONGEST_CALL: Duration = Duration::from_secs(60);
/// The end of what a program said before it failed.
const SAID: usize = 400;

/// Makes routes outside the nodes.
#[async_trait]
pub trait RouteProvider: Send + Sync {
    /// Makes these routes, and removes all others that it made.
    ///
    /// # Errors
    /// Why it could not be asked, in words for people.
    async fn sync(&self, program: &RouteProgram, wanted: &RouteSync) -> Result<RouteSynced, String>;
}

/// Calls the program: `COMMAND sync`, with [`RouteSync`] on its standard input and [`RouteSynced`] on its standard output, in JSON.
#[derive(Debug, Default, Clone, Copy)]
pub struct Call;

#[async_trait]
impl RouteProvider for Call {
    async fn sync(&self, program: &RouteProgram, wanted: &RouteSync) -> Result<RouteSynced, String> {
        let Some((name, arguments)) = program.command.split_first() else {
            return Err("the route program has no name".to_owned());
        };
        let called = call(name, arguments, wanted);
        match tokio::time::timeout(LONGEST_CALL, called).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("`{name} sync` took longer than {} s", LONGEST_CALL.as_secs())),
        }
    }
}

async fn call(name: &str, arguments: &[String], wanted: &RouteSync) -> Result<RouteSynced, String> {
    let mut command = tokio::process::Command::new(name);
    command.args(arguments).arg("sync").kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("cannot start `{name}`: {error}"))?;
    let text = serde_json::to_vec(wanted).map_err(|error| error.to_string())?;
    let mut input = child.stdin.take();
    let write = async {
        if let Some(mut input) = input.take() {
            // One that ends without reading says why by its exit.
            let _ = input.write_all(&text).await;
        }
    };
    let (output, ()) = tokio::join!(child.wait_with_output(), write);
    let output = output.map_err(|error| format!("cannot wait for `{name} sync`: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim();
    let from = said.char_indices().rev().nth(SAID).map_or(0, |(at, _)| at);
    let said = if said.is_empty() { String::new() } else { format!(": {}", &said[from..]) };
    if !output.status.success() {
        return Err(format!("`{name} sync` ended with {}{said}", output.status));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("`{name} sync` answered what is no answer ({error}){said}"))
}

/// How the routes outside the nodes stand.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RouteStanding {
    /// How many there should be.
    pub wanted: usize,
    /// How many there are, as the program said last.
    pub programmed: u32,
    /// Why there are not more.
    pub error: Option<String>,
}

/// Keeps the routes as they should be until `shutdown`, while this server leads.
pub async fn keep(mut context: Context, provider: impl RouteProvider, shutdown: CancellationToken) {
    let mut concerns = context.state.concerns();
    loop {
        concerns.borrow_and_update();
        let leads = context.lead.borrow_and_update().is_some();
        let mut pause = REPEAT;
        let wish = leads.then(|| wish(&context.state)).flatten();
        let told = match wish {
            None => {
                context.state.set_route_standing(None);
                None
            }
            Some(wish) => {
                // Dropped on shutdown only: the next leader begins anew.
                let synced = shutdown.run_until_cancelled(provider.sync(&wish.0, &wish.1)).await;
                let Some(synced) = synced else { return };
                let wanted = wish.1.routes.len();
                let standing = match synced {
                    Ok(answer) => {
                        RouteStanding { wanted, programmed: answer.routes_programmed, error: answer.error }
                    }
                    Err(error) => RouteStanding { wanted, programmed: 0, error: Some(error) },
                };
                if let Some(error) = &standing.error {
                    tracing::warn!(%error, routes = wanted, "routes outside the nodes were not made");
                    pause = RETRY;
                }
                context.state.set_route_standing(Some(standing));
                Some(wish)
            }
        };
        let repeat_at = context.clock.monotonic() + pause;
        loop {
            tokio::select! {
                // Cancel-safe, all of them: flags, counters and a timer.
                () = shutdown.cancelled() => return,
                _ = concerns.changed() => {}
                changed = context.lead.changed() => if changed.is_err() { return },
                () = context.clock.sleep(repeat_at.saturating_sub(context.clock.monotonic())) => break,
            }
            // Dropped on shutdown only.
            if shutdown.run_until_cancelled(context.clock.sleep(GATHER)).await.is_none() {
                return;
            }
            let leads = context.lead.borrow_and_update().is_some();
            concerns.borrow_and_update();
            if leads.then(|| self::wish(&context.state)).flatten() != told {
                break;
            }
        }
    }
}

/// Who makes which routes, if anybody does.
fn wish(state: &State) -> Option<(RouteProgram, RouteSync)> {
    let inner = state.read();
    let program = inner.cluster.as_ref()?.network.routes.clone()?;
    Some((program, RouteSync { routes: wanted_routes(&inner.world) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> RouteSync {
        let route = wharf_model::WantedRoute {
            destination: "10.192.0.0/26".parse().unwrap(),
            next_hop: "192.168.77.11".parse().unwrap(),
            node: "n1".parse().unwrap(),
        };
        RouteSync { routes: vec![route] }
    }
    async fn sync(script: &str) -> Result<RouteSynced, String> {
        let command = ["sh", "-c", script].map(str::to_owned).to_vec();
        Call.sync(&RouteProgram { command, limit: 50 }, &wanted()).await
    }

    #[tokio::test]
    async fn a_program_is_told_the_routes_and_answers_what_it_did() {
        let answer = sync(
            r#"[ "$0" = sync ] && grep -q '"destination":"10.192.0.0/26","next_hop":"192.168.77.11","node":"n1"' &&
            echo '{"routes_programmed":1}'"#,
        );
        assert_eq!(answer.await, Ok(RouteSynced { routes_programmed: 1, error: None }));
    }

    #[tokio::test]
    async fn a_program_that_fails_is_quoted() {
        let failed = sync("echo 'no credentials' >&2; exit 3").await.unwrap_err();
        assert!(failed.contains("exit status: 3") && failed.contains("no credentials"), "{failed}");
        let nonsense = sync("echo done").await.unwrap_err();
        assert!(nonsense.contains("no answer"), "{nonsense}");
        let absent = RouteProgram { command: vec!["/nowhere/routes".into()], limit: 1 };
        let absent = Call.sync(&absent, &wanted()).await.unwrap_err();
        assert!(absent.contains("cannot start `/nowhere/routes`"), "{absent}");
    }
}
