//! The rules for a subscription's CLI profile directory.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

/// A path as written in the file, made absolute: `~` is `home`, a relative path starts at `base`.
///
/// # Errors
///
/// Says which rule the text breaks.
pub(super) fn expand(text: &str, base: &Path, home: Option<&Path>) -> Result<PathBuf, String> {
    if text.is_empty() {
        return Err("must not be empty".to_owned());
    }
    if text.contains('\0') {
        return Err("must not contain a NUL character".to_owned());
    }
    let path = match text.strip_prefix('~') {
        None => base.join(text),
        Some(rest) if rest.is_empty() || rest.starts_with('/') => {
            let home = home.ok_or("begins with `~`, but the environment variable HOME is not set")?;
            home.join(rest.trim_start_matches('/'))
        }
        Some(_) => return Err("may begin with `~/`, but not with another user's `~name`".to_owned()),
    };
    // Leaves out what does not matter, such as `.` in the middle and a slash at the end.
    Ok(path.components().collect())
}

/// A profile directory as written in the file, made absolute, without looking at the disk.
///
/// # Errors
///
/// Says which rule the text breaks.
pub(super) fn resolve(text: &str, base: &Path, home: Option<&Path>) -> Result<PathBuf, String> {
    if text.contains("//") {
        return Err("must not contain `//`".to_owned());
    }
    if Path::new(text).components().any(|part| part == Component::ParentDir) {
        return Err("must not contain `..`".to_owned());
    }
    let path = expand(text, base, home)?;
    let is_profile =
        |part: Component<'_>| matches!(part, Component::Normal(name) if name.to_string_lossy().starts_with(".claude"));
    if !path.components().any(is_profile) {
        return Err("must be a CLI profile: a part of the path has to begin with `.claude`".to_owned());
    }
    Ok(path)
}

/// Looks at a profile directory; the text inside `Ok` is what is unwise about it.
///
/// # Errors
///
/// Says why it cannot be used.
pub(super) fn inspect(path: &Path) -> Result<Option<String>, String> {
    let shown = path.display();
    let found = fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            format!("{shown} does not exist; log in with `CLAUDE_CONFIG_DIR={shown} claude` to create it")
        }
        _ => format!("{shown} cannot be looked at: {error}"),
    })?;
    if !found.is_dir() {
        return Err(format!("{shown} is not a directory"));
    }
    fs::read_dir(path).map_err(|error| format!("{shown} cannot be read: {error}"))?;
    let mode = found.permissions().mode() & 0o777;
    let open_to_others = mode & 0o077 != 0;
    Ok(open_to_others
        .then(|| format!("{shown} is open to other users (mode {mode:03o}); `chmod 700 {shown}` closes it")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(text: &str) -> Result<PathBuf, String> {
        resolve(text, Path::new("/etc/auth-pool"), Some(Path::new("/home/u")))
    }

    #[test]
    fn home_and_relative_paths_become_absolute() {
        for (text, path) in [
            ("~/.claude-sub1", "/home/u/.claude-sub1"),
            ("~/.claude/", "/home/u/.claude"),
            ("/srv/.claude-a/profile", "/srv/.claude-a/profile"),
            ("./.claude-b", "/etc/auth-pool/.claude-b"),
        ] {
            assert_eq!(resolved(text).as_deref(), Ok(Path::new(path)), "{text}");
        }
    }

    #[test]
    fn each_rule_is_named() {
        for (text, rule) in [
            ("", "must not be empty"),
            ("~/.claude/../../etc", "must not contain `..`"),
            ("..", "must not contain `..`"),
            ("/home//.claude", "must not contain `//`"),
            ("~//.claude", "must not contain `//`"),
            ("/home/.claude\0x", "NUL"),
            ("/etc", "begin with `.claude`"),
            ("~/claude", "begin with `.claude`"),
            ("~root/.claude", "another user's"),
        ] {
            let message = resolved(text).err().unwrap_or_default();
            assert!(message.contains(rule), "{text:?}: {message:?}");
        }
        assert!(resolve("~/.claude", Path::new("/"), None).is_err_and(|message| message.contains("HOME")));
    }
}
