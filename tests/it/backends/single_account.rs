//! `ANTHROPIC_API_KEY` and nothing else: no subscriptions, no CLI. (That no file is needed at all is shown from outside,
//! in an empty directory.)

use std::path::{Path, PathBuf};

use auth_pool::config::{self, Env, Kind, Overrides};

fn load(vars: &[(&str, &str)]) -> Result<config::Config, config::Problems> {
    let env: Env = vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let dir = tempfile::tempdir().unwrap();
    config::load(&env, &Overrides { config: Some(empty(dir.path())), listen: None })
}

fn empty(dir: &Path) -> PathBuf {
    let path = dir.join("auth-pool.json");
    std::fs::write(&path, "{}").unwrap();
    path
}

#[test]
fn the_key_alone_is_a_pool_of_one() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path().to_str().unwrap();
    for vars in [
        vec![("ANTHROPIC_API_KEY", "sk-x"), ("HOME", home)],
        vec![("ANTHROPIC_API_KEY", "sk-x"), ("HOME", home), ("PATH", "")],
    ] {
        let config = load(&vars).unwrap();
        assert_eq!(config.warnings, []);
        let [only] = config.subscriptions.as_slice() else { panic!("{config:?}") };
        assert_eq!((only.id.as_str(), only.kind), ("default", Kind::Api));
        assert_eq!(only.api.as_ref().unwrap().base_url, "https://api.anthropic.com");
        assert!(!format!("{config:?}").contains("sk-x"));
    }
    assert!(load(&[("HOME", home)]).unwrap_err().to_string().contains("ANTHROPIC_API_KEY"));
}

#[test]
fn where_there_is_a_profile_the_key_is_left_alone_and_that_is_said() {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join(".claude")).unwrap();
    let config = load(&[("ANTHROPIC_API_KEY", "sk-x"), ("HOME", home.path().to_str().unwrap())]).unwrap();
    assert_eq!(config.subscriptions[0].kind, Kind::ClaudePro);
    assert!(config.warnings.iter().any(|warning| warning.to_string().contains("ANTHROPIC_API_KEY: is not used")));
}

#[tokio::test]
async fn it_starts_and_serves_the_models_without_any_cli() {
    let home = tempfile::tempdir().unwrap();
    let vars = vec![("ANTHROPIC_API_KEY".to_owned(), "sk-x".to_owned()), ("PATH".to_owned(), "/nowhere".to_owned())];
    let path = empty(home.path());
    let proxy = super::Proxy::serve(home, path, vars).await;
    let models = proxy.get("/v1/models").await;
    assert!(models["data"].as_array().unwrap().iter().any(|model| model["id"] == "claude-sonnet-5"));
    assert_eq!(proxy.view("default").await["type"], "api");
    assert_eq!(proxy.get("/health").await["status"], "ok");
    proxy.app.stop().await;
}
