//! Where things are kept over restarts.

use super::*;

#[test]
fn the_store_is_in_the_state_directory_unless_somebody_says_otherwise() {
    let one = subscription(&json!({}));
    let place = |home: &Home, value: &Value| home.load(value).unwrap().store.place;
    let home = Home::new();
    let default = StorePlace::File(home.dir.path().join(".local/state/auth-pool/auth-pool.db"));
    assert_eq!(place(&home, &one), default);
    let home = home.with("XDG_STATE_HOME", "/state");
    assert_eq!(place(&home, &one), StorePlace::File("/state/auth-pool/auth-pool.db".into()));
    let home = home.with("STATE_DIRECTORY", "/var/lib/one:/var/lib/two");
    assert_eq!(place(&home, &one), StorePlace::File("/var/lib/one/auth-pool.db".into()));

    let home = home.with("AUTH_POOL_STATE_DIR", "/srv/pool");
    assert_eq!(place(&home, &one), StorePlace::File("/srv/pool/auth-pool.db".into()));

    let with = |section: Value| {
        let mut value = one.clone();
        value["store"] = section;
        value
    };
    let beside = StorePlace::File(home.dir.path().join("pool.db"));
    assert_eq!(place(&home, &with(json!({"path": "pool.db"}))), beside);
    assert_eq!(place(&home, &with(json!({"url": "sqlite:pool.db"}))), beside);
    assert_eq!(place(&home, &with(json!({"url": "none"}))), StorePlace::Nowhere);
    let url = "postgres://me:s3cret@localhost/pool";
    let config = home.load(&with(json!({"url": url, "usageRetention": "9days", "auditRetention": 86400}))).unwrap();
    assert_eq!(config.store.place, StorePlace::Postgres(url.to_owned()));
    assert!(!format!("{config:?}").contains("s3cret"));
    let days = |days: u64| Duration::from_hours(24 * days);
    assert_eq!((config.store.usage_retention, config.store.audit_retention), (days(9), days(1)));

    let home = home.with("DATABASE_URL", "sqlite:///elsewhere/pool.db");
    assert_eq!(place(&home, &with(json!({"url": url}))), StorePlace::File("/elsewhere/pool.db".into()));
    assert_eq!(place(&home.with("DATABASE_URL", "none"), &one), StorePlace::Nowhere);
}

#[test]
fn what_is_wrong_with_the_store_is_told_without_its_password() {
    let home = Home::new();
    let problems = |section: Value| {
        let mut value = subscription(&json!({}));
        value["store"] = section;
        home.problems(&value)
    };
    let scheme = "must be `none`, or begin with `sqlite:`, `postgres://` or `postgresql://`";
    assert_eq!(problems(json!({"url": "mysql://me:s3cret@host/x"})), [format!("store.url: {scheme}")]);
    let shape = "store.url: must look like `postgres://user:password@host:5432/database`";
    assert_eq!(problems(json!({"url": "postgres://me:s3cret@host:port/x"})), [shape]);
    assert_eq!(problems(json!({"url": "sqlite::memory:"})), ["store.url: must name a file: `sqlite:/path/to/file`"]);
    assert_eq!(problems(json!({"path": "."})), ["store.path: is a directory; name a file in it"]);
    let both = problems(json!({"url": "none", "path": "x"}));
    assert_eq!(both, ["store.path: means nothing beside `url`; leave one of them out"]);
    let short = problems(json!({"usageRetention": "7days"}));
    assert!(short[0].starts_with("store.usageRetention: must be between 8days"), "{short:?}");
    assert_eq!(problems(json!({"urll": "x"})), ["store.urll: unknown field; did you mean `url`?"]);
    let variable = Home::new().with("DATABASE_URL", "s3cret").problems(&subscription(&json!({})));
    assert_eq!(variable, [format!("environment variable DATABASE_URL: {scheme}")]);
}
