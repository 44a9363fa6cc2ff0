//! The helper process that removes this process's containers when it ends.
//!
//! Why a process: a `static` is never dropped, an exit handler would be `unsafe`, and neither survives
//! `SIGKILL`. A pipe that closes does.

/// The label that names the process a container belongs to.
pub(super) const OWNER_LABEL: &str = "foldstream.owner";

/// Starts the helper, once, and gives the value of [`OWNER_LABEL`] that it looks for.
///
/// Called before a container is made, so that one whose start fails or is cut short is removed as well.
pub(super) fn owner() -> &'static str {
    use std::sync::LazyLock;

    static OWNER: LazyLock<String> = LazyLock::new(|| {
        // Process ids come back; the time tells two processes of one id apart.
        let started = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |elapsed| elapsed.as_micros());
        let owner = format!("{}-{started}", std::process::id());
        if std::env::var("TESTCONTAINERS_COMMAND").as_deref() != Ok("keep") {
            start(&owner);
        }
        owner
    });
    &OWNER
}

#[cfg(unix)]
fn start(owner: &str) {
    use std::os::unix::process::CommandExt as _;
    use std::process::{ChildStdin, Command, Stdio};
    use std::sync::OnceLock;

    /// Our end of the pipe, open for as long as the process lives.
    static PIPE: OnceLock<ChildStdin> = OnceLock::new();

    // The second round is for a container that Docker was making while the process ended.
    const SCRIPT: &str = r#"
        cat >/dev/null
        for pause in 0 5; do
            sleep $pause
            ids=$(docker ps -aq --filter "label=$1") && [ -n "$ids" ] && docker rm -f -v $ids
        done
    "#;

    let on_path = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join("docker").is_file()));
    if !on_path {
        return stays("there is no docker command on the PATH");
    }
    let helper = Command::new("sh")
        .args(["-c", SCRIPT, "sh", &format!("{OWNER_LABEL}={owner}")])
        .stdin(Stdio::piped())
        // Holding the test's output open would make whoever reads it wait for the helper.
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Ctrl-C reaches the terminal's process group: the helper must outlive it.
        .process_group(0)
        .spawn();
    match helper {
        Ok(mut child) => {
            if let Some(pipe) = child.stdin.take() {
                let _ = PIPE.set(pipe);
            }
        }
        Err(error) => stays(&error.to_string()),
    }
}

#[cfg(not(unix))]
fn start(_owner: &str) {
    stays("the helper that removes them needs Unix");
}

fn stays(reason: &str) {
    super::engine::note(&format!(
        "containers of this process will stay when it ends ({reason}); remove them with docker rm"
    ));
}
