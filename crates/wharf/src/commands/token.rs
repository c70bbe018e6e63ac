//! `token …`: join tokens.

use anyhow::{Result, bail};
use http::Method;
use wharf_api::v1;

use crate::{
    Exit,
    cli::Global,
    commands::now,
    connect::Cluster,
    output::{Format, Output, rough},
};

/// Make and end join tokens
#[derive(Debug, clap::Args)]
pub(crate) struct Token {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Make a join token, and print the line to run on the new machine
    #[command(
        after_help = "Examples:\n  wharf token create                      a token for agents, good for a day\n  wharf token create --role server        for a further server (with etcd)\n  wharf token create --ttl 1h --rotate    end all other tokens of agents"
    )]
    Create {
        /// What may join with it: agent or server
        #[arg(long, default_value = "agent")]
        role: String,
        /// How long it is good for: 30m, 12h, 7d
        #[arg(long, default_value = "24h", value_parser = ttl)]
        ttl: u64,
        /// End every other token of that role
        #[arg(long)]
        rotate: bool,
    },
    /// List the tokens that are still good; their secrets are known to nobody
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  wharf token ls\n  wharf token ls --format json"
    )]
    Ls,
    /// End a token
    #[command(after_help = "Examples:\n  wharf token rm token_01a1fee7f6807071824726a4963ecb58")]
    Rm {
        /// Its id
        #[arg(required = true)]
        token: Vec<String>,
    },
}

/// A length of time, in seconds.
pub(crate) fn ttl(text: &str) -> Result<u64, String> {
    let (number, unit) = text.split_at(text.len() - text.chars().last().map_or(0, char::len_utf8));
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err("write a number and s, m, h or d: `12h`".into()),
    };
    let number: u64 = number.parse().map_err(|_| "write a number and s, m, h or d: `12h`".to_owned())?;
    number.checked_mul(factor).ok_or_else(|| "that is longer than time lasts".into())
}

pub(crate) async fn run(args: Token, global: &Global, out: &Output) -> Result<Exit> {
    let client = Cluster::dial(global).await?.client;
    match args.verb {
        Verb::Create { role, ttl, rotate } => {
            if !matches!(role.as_str(), "agent" | "server") {
                bail!(crate::Usage(format!("`{role}` is no role to join as: use agent or server")));
            }
            let wish = v1::TokenCreate { role, ttl_seconds: ttl, rotate };
            let created: v1::TokenCreated = client.call(Method::POST, "/v1/tokens", &wish).await?;
            match out.format {
                Format::Json => out.json(&created)?,
                Format::Table => {
                    out.say(&format!(
                        "good for {}; run this on the new machine:",
                        rough(std::time::Duration::from_secs(ttl))
                    ));
                    out.data(&created.command)?;
                }
            }
        }
        Verb::Ls => {
            let tokens: Vec<v1::Token> = client.get("/v1/tokens").await?;
            out.list(&tokens, &["ID", "ROLE", "EXPIRES IN", "CREATED BY"], |token| {
                let left = std::time::Duration::from_millis(token.expires_at.saturating_sub(now()));
                vec![token.id.clone(), token.role.clone(), rough(left), token.created_by.clone()]
            })?;
        }
        Verb::Rm { token } => {
            for id in token {
                let _nothing: Option<()> = client
                    .call(Method::DELETE, &format!("/v1/tokens/{}", crate::connect::query(&id)), &())
                    .await?;
                out.say(&format!("{id} has ended"));
            }
        }
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_to_live_have_units() {
        assert_eq!(super::ttl("12h"), Ok(43_200));
        assert_eq!(super::ttl("7d"), Ok(604_800));
        assert!(super::ttl("12").is_err());
        assert!(super::ttl("").is_err());
        assert!(super::ttl("ä").is_err());
    }
}
