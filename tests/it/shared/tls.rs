//! Redis over TLS: a real server with a certificate of the test's own, and the real program.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::server::{PASSWORD, free_port};
use crate::program::{Program, run};

/// A server that speaks TLS only, and an authority that nobody but the test trusts.
struct TlsServer {
    process: Child,
    port: u16,
    folder: TempDir,
}

impl TlsServer {
    /// Its certificate is for `name`: `DNS:localhost`, `IP:127.0.0.1`.
    fn start(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        certify(folder.path(), name);
        // Between the choice of a port and its use somebody else may take it.
        for _ in 0..10 {
            let port = free_port();
            let mut process = spawn(port, folder.path());
            let deadline = Instant::now() + Duration::from_secs(20);
            while Instant::now() < deadline && process.try_wait().unwrap().is_none() {
                if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    return Self { process, port, folder };
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            process.kill().ok();
            process.wait().ok();
        }
        panic!("redis-server does not start with TLS")
    }

    fn url(&self, host: &str) -> String {
        format!("rediss://:{PASSWORD}@{host}:{}/0", self.port)
    }

    fn authority(&self) -> String {
        self.folder.path().join("ca.crt").display().to_string()
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

#[expect(clippy::disallowed_methods, reason = "a server that belongs to one test")]
fn spawn(port: u16, folder: &Path) -> Child {
    Command::new("redis-server")
        .args(["--port", "0", "--tls-port", &port.to_string(), "--bind", "127.0.0.1", "--requirepass", PASSWORD])
        .args(["--tls-cert-file", "server.crt", "--tls-key-file", "server.key", "--tls-ca-cert-file", "ca.crt"])
        .args(["--tls-auth-clients", "no", "--save", "", "--appendonly", "no", "--daemonize", "no"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is installed (Debian: apt-get install redis-server)")
}

/// Makes an authority, and a certificate for `name` by it.
#[expect(clippy::disallowed_methods, reason = "certificates for one test")]
fn certify(folder: &Path, name: &str) {
    let openssl = |args: &str| {
        let args = args.split(' ');
        let output = Command::new("openssl").args(args).current_dir(folder).output().expect("openssl is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    std::fs::write(folder.join("names"), format!("subjectAltName={name}\n")).unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 {key} -keyout ca.key -out ca.crt -days 2 -subj /CN=authority"));
    openssl(&format!("req {key} -keyout server.key -out server.csr -subj /CN=server"));
    openssl("x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.crt -days 2 -extfile names");
}

fn serve(url: &str, authority: Option<&str>) -> Program {
    let member = json!({ "id": "a", "type": "api", "apiKeyEnv": "KEY", "weeklyBudget": 10 });
    let file = json!({ "subscriptions": [member], "capacityTracking": { "redisTimeout": "20s" } });
    let mut vars = vec![("REDIS_URL", url), ("DATABASE_URL", "none"), ("KEY", "sk-ant-api03-fake-a")];
    vars.extend(authority.map(|path| ("SSL_CERT_FILE", path)));
    Program::serve(&file, &vars)
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_meet_over_tls() {
    let server = TlsServer::start("DNS:localhost,IP:127.0.0.1");
    let one = serve(&server.url("localhost"), Some(&server.authority()));
    let other = serve(&server.url("127.0.0.1"), Some(&server.authority()));
    for replica in [&one, &other] {
        let met = |health: &Value| health["state"] == "together" && health["replicas"] == 2;
        let health = replica.until("they meet", "/health/redis", met).await;
        assert_eq!(health["status"], "ok", "{health}");
        assert!(!replica.log().contains(PASSWORD));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_proves_nothing_is_refused_and_the_replica_counts_alone() {
    let server = TlsServer::start("DNS:elsewhere.example");
    let authority = server.authority();
    // For another name; by an authority that the machine does not know; and no TLS where there is only TLS.
    let plain = server.url("127.0.0.1").replace("rediss:", "redis:");
    for (url, authority) in
        [(server.url("127.0.0.1"), Some(&*authority)), (server.url("localhost"), None), (plain, Some(&*authority))]
    {
        let alone = serve(&url, authority);
        let health = alone.until("it gives up", "/health/redis", |health| health["state"] == "apart").await;
        assert_eq!(health["status"], "down", "{health}");
        assert!(!health["cause"].as_str().unwrap().is_empty());
        assert_eq!(alone.get("/health").await["status"], "ok");
        assert!(!alone.log().contains(PASSWORD) && !health.to_string().contains(PASSWORD));
    }
}

#[test]
fn an_address_that_is_none_is_named_and_not_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("auth-pool.json");
    let member = json!({ "id": "a", "type": "api", "apiKeyEnv": "KEY", "weeklyBudget": 10 });
    std::fs::write(&path, json!({ "subscriptions": [member] }).to_string()).unwrap();
    let path = path.display().to_string();
    for url in ["localhost:6379", "http://:s3cret@localhost", "rediss://host/#insecure", "redis://:s3cret@host:port"] {
        let vars = [("REDIS_URL", url), ("KEY", "sk-ant-api03-fake-a"), ("DATABASE_URL", "none")];
        let commands: [&[&str]; 2] =
            [&["config", "check", &path], &["serve", "--listen", "127.0.0.1:0", "--config", &path]];
        for command in commands {
            let (code, out, err) = run(command, &vars);
            assert_eq!(code, Some(1), "{url} {command:?}: {out}{err}");
            assert!(err.contains("REDIS_URL: must be `redis://"), "{url} {command:?}: {err}");
            assert!(!format!("{out}{err}").contains("s3cret") && !out.contains("listening"), "{out}{err}");
        }
    }
    // A good one is no problem, and nobody is asked.
    let vars =
        [("REDIS_URL", "rediss://:s3cret@localhost:1"), ("KEY", "sk-ant-api03-fake-a"), ("DATABASE_URL", "none")];
    let (code, out, err) = run(&["config", "check", &path], &vars);
    assert_eq!(code, Some(0), "{out}{err}");
}
