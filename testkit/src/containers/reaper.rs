//! The helper process that removes the containers of this process after it ends.
//!
//! It is a process because a `static` is never dropped, an exit handler would be `unsafe`, and
//! neither works after `SIGKILL`. The pipe to a helper process closes in every case.

/// The label with the process that owns a container.
pub(super) const OWNER_LABEL: &str = "foldstream.owner";

/// Starts the helper on the first call, and returns the value of [`OWNER_LABEL`] of this process.
///
/// This is called before a container is created, so that the helper also removes a container whose
/// start fails or is interrupted.
pub(super) fn owner() -> &'static str {
    use std::sync::LazyLock;

    static OWNER: LazyLock<String> = LazyLock::new(|| {
        // Process ids are reused, and the time distinguishes two processes with the same id.
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

    /// The end of the pipe that is open as long as this process lives.
    static PIPE: OnceLock<ChildStdin> = OnceLock::new();

    // Docker may still be creating a container while this process ends. The first round does not
    // see that container; the second, 5 s later, does.
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
        // If the helper kept the test's output open, a reader of that output would wait for the
        // helper.
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Ctrl-C signals the terminal's process group. The helper must survive it to do its work.
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
