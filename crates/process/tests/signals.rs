//! Signals of a real process. One test, in a binary of its own: signals go to the whole process.

use std::time::Duration;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::timeout;
use wharf_process::{Shutdown, Tasks, shutdown::Signals};

const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn the_first_signal_asks_to_stop_and_the_second_stops_waiting() {
    let shutdown = Shutdown::new();
    let tasks = Tasks::staged(&shutdown);
    let signals = Signals::listen().unwrap();
    let forwarded = shutdown.clone();
    let forwarding = tasks.spawn("signals", async move { signals.forward(&forwarded).await });

    kill(Pid::this(), Signal::SIGTERM).unwrap();
    timeout(SOON, shutdown.requested()).await.expect("SIGTERM requests a shutdown");
    assert!(!shutdown.is_immediate());

    kill(Pid::this(), Signal::SIGINT).unwrap();
    timeout(SOON, shutdown.immediate()).await.expect("a second signal stops waiting");
    timeout(SOON, forwarding).await.expect("nothing is left to forward").unwrap();
}
