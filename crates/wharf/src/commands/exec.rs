//! `exec`: a command run in a task, wherever the task is.
//!
//! The terminal is put back as it was however the command ends.

use std::{os::fd::AsFd as _, time::Duration};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http::Method;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    signal::unix::{SignalKind, signal},
};
use wharf_api::{
    transport::{
        Frame, FrameReader, FrameSender,
        frame::{SignalName, Size},
    },
    v1,
};

use super::progress::terminal_size;
use crate::{
    Exit,
    cli::{Files, Global},
    connect::{Cluster, app_path, is_not_found, query},
    hint,
    output::Output,
};

/// Run a command in a task
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exits as the command did. A service stands for its first running task.\n\nExamples:\n  wharf exec -it web sh\n  wharf exec --index 2 web cat /etc/hosts\n  wharf exec shop-db-1 mariadb-dump shop > shop.sql"
)]
pub(crate) struct Exec {
    #[command(flatten)]
    pub(crate) files: Files,
    /// Keep standard input open
    #[arg(long, short)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(long, short)]
    tty: bool,
    /// A variable: NAME=value; may be given several times
    #[arg(long = "variable", short = 'e', value_name = "NAME=VALUE")]
    variables: Vec<String>,
    /// As whom
    #[arg(long, short, value_name = "USER")]
    user: Option<String>,
    /// In which folder
    #[arg(long, short, value_name = "FOLDER")]
    workdir: Option<String>,
    /// With all capabilities
    #[arg(long)]
    privileged: bool,
    /// Which task of the service: its slot
    #[arg(long, value_name = "SLOT")]
    index: Option<u32>,
    /// A service of the app, or a task by name or id
    target: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(crate) async fn run(args: Exec, global: &Global, out: &Output) -> Result<Exit> {
    use std::io::IsTerminal as _;
    if args.tty && !std::io::stdin().is_terminal() && args.interactive {
        bail!(hint("standard input is no terminal", "leave `-t` out"));
    }
    let cluster = Cluster::dial(global).await?;
    let task = find(&cluster, &args, out).await?;
    let request = v1::ExecRequest {
        command: args.command,
        environment: args.variables,
        tty: args.tty,
        stdin: args.interactive,
        user: args.user,
        working_dir: args.workdir,
        privileged: args.privileged,
        size: if args.tty { terminal_size(1).or_else(|| terminal_size(0)) } else { None },
    };
    let (sender, body) = FrameSender::channel(cluster.client.timing().stream_keepalive);
    sender.send(Frame::Start(request)).await.context("cannot send what to run")?;
    let path = format!("/v1/tasks/{}/exec", query(&task.id));
    let response = cluster.client.open(Method::POST, &path, body).await?;
    let frames = FrameReader::new(response.into_body(), cluster.client.timing().stream_silence());
    let raw = if args.tty && args.interactive { Some(Raw::enter()?) } else { None };
    let outcome = exchange(frames, sender, args.interactive, args.tty).await;
    drop(raw);
    outcome
}

/// The task that is meant: one of that name or id, or a running one of that service.
async fn find(cluster: &Cluster, args: &Exec, out: &Output) -> Result<v1::Task> {
    let app = crate::project::app_name(&args.files, out);
    if let Ok(app) = &app {
        let path = app_path(&cluster.app(app.clone()), "");
        let status = match cluster.client.get::<v1::AppStatus>(&path).await {
            Ok(status) => Some(status),
            Err(error) if is_not_found(&error) => None,
            Err(error) => return Err(error.into()),
        };
        let service =
            status.into_iter().flat_map(|status| status.services).find(|service| service.name == args.target);
        if let Some(service) = service {
            let mut running: Vec<_> = service
                .tasks
                .into_iter()
                .filter(|task| task.status.phase == wharf_model::Phase::Running)
                .filter(|task| args.index.is_none_or(|slot| task.slot == slot))
                .collect();
            running.sort_by_key(|task| (!task.ready, task.slot));
            return running.into_iter().next().ok_or_else(|| {
                let which = args.index.map(|slot| format!(" in slot {slot}")).unwrap_or_default();
                hint(
                    format!("service {} has no running task{which}", args.target),
                    "`wharf ps` shows its tasks",
                )
            });
        }
    }
    match cluster.client.get::<v1::Task>(&format!("/v1/tasks/{}", query(&args.target))).await {
        Ok(task) => Ok(task),
        Err(error) if is_not_found(&error) => {
            // Why the service was not looked for says more than that there is no such task.
            app?;
            Err(error.into())
        }
        Err(error) => Err(error.into()),
    }
}

/// Passes input, output, sizes and signals on until the command has ended.
async fn exchange(
    mut frames: FrameReader,
    sender: FrameSender,
    interactive: bool,
    tty: bool,
) -> Result<Exit> {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    let mut resized = signal(SignalKind::window_change())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    let input = async {
        if !interactive {
            return std::future::pending::<()>().await;
        }
        let mut stdin = tokio::io::stdin();
        let mut buffer = vec![0; 32 * 1024];
        loop {
            match stdin.read(&mut buffer).await {
                Ok(0) | Err(_) => {
                    let _ = sender.send(Frame::StdinEnd).await;
                    return std::future::pending().await;
                }
                Ok(length) => {
                    if sender.send(Frame::Stdin(Bytes::copy_from_slice(&buffer[..length]))).await.is_err() {
                        return std::future::pending().await;
                    }
                }
            }
        }
    };
    tokio::pin!(input);
    loop {
        tokio::select! {
            // Cancel-safe: what has arrived of a frame stays with the reader.
            frame = frames.next() => match frame.context("the connection to the command was lost")? {
                Some(Frame::Stdout(data)) => {
                    stdout.write_all(&data).await.map_err(crate::GoneReader::or)?;
                    stdout.flush().await.map_err(crate::GoneReader::or)?;
                }
                Some(Frame::Stderr(data)) => {
                    stderr.write_all(&data).await?;
                    stderr.flush().await?;
                }
                Some(Frame::Exit(exit)) => return Ok(Exit::Code(u8::try_from(exit.code & 0xff).unwrap_or(255))),
                Some(Frame::Error(problem)) => {
                    return Err(match problem.hint {
                        Some(what) => hint(problem.message, what),
                        None => anyhow::anyhow!(problem.message),
                    });
                }
                Some(Frame::KeepAlive | Frame::Stdin(_) | Frame::StdinEnd | Frame::Resize(_) | Frame::Signal(_) | Frame::Start(_)) => {}
                None => bail!("the connection ended before the command did"),
            },
            // Not dropped: polled on in the next round.
            () = &mut input => {}
            _ = resized.recv(), if tty => {
                if let Some((columns, rows)) = terminal_size(1).or_else(|| terminal_size(0)) {
                    let _ = sender.send(Frame::Resize(Size { columns, rows })).await;
                }
            }
            // In a raw terminal Ctrl-C is a byte of the input; these are signals from elsewhere, or without a terminal.
            _ = interrupted.recv() => {
                let _ = sender.send(Frame::Signal(SignalName { signal: "SIGINT".into() })).await;
            }
            _ = terminated.recv() => {
                let _ = sender.send(Frame::Signal(SignalName { signal: "SIGTERM".into() })).await;
                // A command that does not end for it does not keep us.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// The terminal of standard input, passing every key on; as it was once this is dropped.
struct Raw {
    before: Termios,
}
impl Raw {
    fn enter() -> Result<Self> {
        let stdin = std::io::stdin();
        let before = tcgetattr(stdin.as_fd()).context("cannot ask the terminal how it is set")?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &raw).context("cannot set the terminal")?;
        Ok(Self { before })
    }
}
impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin().as_fd(), SetArg::TCSADRAIN, &self.before);
    }
}
