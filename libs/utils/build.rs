//! Puts the version of the build into the environment of the compiler.

use std::process::Command;

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn main() {
    println!("cargo:rerun-if-env-changed=GIT_VERSION");
    println!("cargo:rerun-if-changed=build.rs");
    // A development build would compile the whole workspace again after each commit for the sake of
    // a number nobody reads; a release build says exactly what it was made from.
    if std::env::var("PROFILE").as_deref() == Ok("release")
        && let Some(dir) = git(&["rev-parse", "--absolute-git-dir"])
    {
        println!("cargo:rerun-if-changed={dir}/logs/HEAD");
    }
    let version = match (std::env::var("GIT_VERSION"), git(&["rev-parse", "HEAD"])) {
        (Ok(given), _) => format!("git-env:{given}"),
        (Err(_), Some(hash)) => format!("git:{hash}"),
        (Err(_), None) => "git-env:unknown".to_owned(),
    };
    println!("cargo:rustc-env=BUILD_VERSION={version}");
}
