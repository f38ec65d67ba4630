//! What is made of the command line's own definitions: man pages and shell completions.

use crate::support::program::trefoil;

/// Commands that the help lists.
fn commands() -> Vec<String> {
    let help = trefoil(&["--help"]).ok();
    let listed = help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
    let listed = listed.take_while(|line| !line.trim().is_empty());
    // Longer descriptions go on in lines that are indented further.
    let names = listed.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn every_command_has_a_man_page() {
    let commands = commands();
    assert!(commands.len() > 10 && commands.contains(&"serve".to_owned()), "{commands:?}");
    let page = trefoil(&["man"]).ok();
    assert!(page.contains(".TH trefoil 1"), "{page}");
    for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "SUBCOMMANDS", "VERSION"] {
        assert!(page.contains(&format!(".SH {section}")), "{section}");
    }
    let scratch = tempfile::tempdir().expect("a folder");
    let folder = scratch.path().join("man1");
    let path = folder.to_str().expect("a plain path");
    assert_eq!(trefoil(&["man", "--output", path]).ok(), "");
    let read = |name: &str| {
        let path = folder.join(format!("{name}.1"));
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    assert_eq!(read("trefoil"), page, "both ways write the same page");
    for command in &commands {
        assert!(read(&format!("trefoil-{command}")).contains(".SH OPTIONS"), "{command}");
    }
    assert!(read("trefoil-serve").contains("max\\-queue"));
    assert!(read("trefoil-config-show").contains("trefoil\\-config\\-show"));
    // A folder that cannot be is an error, not a panic.
    let under_a_file = folder.join("trefoil.1").join("x");
    trefoil(&["man", "-o", under_a_file.to_str().expect("a plain path")]).fails(1);
}

#[test]
fn completions_know_every_command() {
    let commands = commands();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = trefoil(&["completions", shell]).ok();
        for command in &commands {
            assert!(script.contains(command.as_str()), "{shell}: {command}");
        }
        assert!(script.contains("max-queue"), "{shell}");
    }
    trefoil(&["completions", "tcl"]).fails(2);
}
