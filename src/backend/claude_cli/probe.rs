//! Asks the installed CLI what it is: which exact model each alias means.
//!
//! Aliases move with the CLI's version, so they are asked for instead of being built in. Asking needs no login and sends
//! nothing to the provider.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::timeout;

use super::input;
use super::launch::Launch;
use super::output::{self, Line};
use super::spares::Spares;

/// How long the CLI may take to start and answer.
const LIMIT: Duration = Duration::from_secs(10);

/// What the CLI says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CliFacts {
    /// Its version, where it tells.
    pub version: Option<String>,
    /// Exact model ids by alias, for example `sonnet`.
    pub aliases: BTreeMap<String, String>,
}

pub(super) async fn probe(spares: &Spares, launch: &Launch) -> anyhow::Result<CliFacts> {
    let ask = async {
        let mut process = spares.start(launch).await?;
        process.write(&input::probe()).await?;
        let mut facts = CliFacts::default();
        loop {
            let line = match process.read_line().await {
                Ok(line) => line,
                Err(error) => anyhow::bail!("{error}; it said: {}", process.stderr_tail()),
            };
            match output::parse(line)? {
                Line::Control { id, .. } if id == input::INITIALIZE => {
                    let models = serde_json::from_slice::<Initialized>(line)?.response.response.models;
                    let alias = |model: RawModel| Some((model.value, model.resolved_model?));
                    facts.aliases =
                        models.into_iter().filter_map(alias).filter(|(name, _)| name != "default").collect();
                }
                // Builds that do not know the request answer with an error: then the version stays unknown.
                Line::Control { id, .. } if id == input::VERSION => {
                    facts.version =
                        serde_json::from_slice::<Versioned>(line).ok().and_then(|line| line.response.response.version);
                    return Ok(facts);
                }
                _ => {}
            }
        }
    };
    timeout(LIMIT, ask)
        .await
        .unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {}", humantime::format_duration(LIMIT))))
}

#[derive(Deserialize)]
struct Initialized {
    response: InitializedResponse,
}

#[derive(Deserialize)]
struct InitializedResponse {
    response: Models,
}

#[derive(Deserialize)]
struct Models {
    #[serde(default)]
    models: Vec<RawModel>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawModel {
    value: String,
    #[serde(default)]
    resolved_model: Option<String>,
}

#[derive(Deserialize)]
struct Versioned {
    response: VersionedResponse,
}

#[derive(Deserialize)]
struct VersionedResponse {
    response: Version,
}

#[derive(Deserialize)]
struct Version {
    #[serde(default)]
    version: Option<String>,
}
