//! Looks for misspelled words in all tracked text files.
//!
//! The words are those of the dictionary of the tool [`typos`](https://github.com/crate-ci/typos),
//! which lists known misspellings. A word that it does not list is right, so that names need no
//! list of their own. `typos.toml` has the words that are right here although they are listed; the
//! tool reads the same file.
use crate::{error::CheckError, workspace::Workspace};
use std::collections::BTreeSet;
use unicase::UniCase;

/// The words that are right although the dictionary lists them.
const CONFIG: &str = "typos.toml";
/// Listings that programs write.
const GENERATED: [&str; 3] = ["Cargo.lock", ".ci/api/", ".ci/packages/"];

/// Checks the spelling of all tracked text files.
pub(crate) fn check(workspace: &Workspace) -> Result<(), CheckError> {
    let config = workspace.text(CONFIG)?.unwrap_or_default();
    let allowed = allowed(&config);
    let (mut files, mut problems) = (0, Vec::new());
    for path in &workspace.tracked {
        if GENERATED.iter().any(|start| path.starts_with(start)) || path == CONFIG {
            continue;
        }
        if let Some(text) = workspace.text(path)? {
            files += 1;
            problems.extend(misspelled(&text, &allowed).map(|found| format!("{path}:{found}")));
        }
    }
    println!("{files} files, {} words are allowed", allowed.len());
    if problems.is_empty() {
        return Ok(());
    }
    Err(CheckError::Failed(format!(
        "{}\n{} misspelled words; a word that is right belongs in {CONFIG}",
        problems.join("\n"),
        problems.len()
    )))
}

/// Reads the words of the section `[default.extend-words]`, in lower case.
fn allowed(config: &str) -> BTreeSet<String> {
    let section = config
        .lines()
        .skip_while(|line| line.trim() != "[default.extend-words]")
        .skip(1)
        .take_while(|line| !line.trim().starts_with('['));
    section
        .filter(|line| !line.trim().starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .map(|(word, _)| word.trim().trim_matches('"').to_lowercase())
        .collect()
}

/// Returns the misspelled words of a text, with their lines and corrections.
fn misspelled(text: &str, allowed: &BTreeSet<String>) -> impl Iterator<Item = String> {
    let of_line = |(number, line): (usize, &str)| {
        let wrong = words(line).filter(|word| !allowed.contains(&word.to_lowercase()));
        let wrong = wrong.filter_map(|word| {
            let right = typos_dict::WORD.find(&UniCase::new(word))?;
            let right = match right {
                [] => "another word".into(),
                right => right.join("` or `"),
            };
            Some(format!("{}: `{word}` should be `{right}`", number + 1))
        });
        wrong.collect::<Vec<_>>()
    };
    text.lines().enumerate().flat_map(of_line)
}

/// Splits a line into words: runs of letters, and the parts of names in camel case.
///
/// Runs with digits are left out, since they are ids, hashes and numbers with units.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '\'' || c == '_')
        .filter(|run| !run.chars().any(char::is_numeric))
        .flat_map(|run| run.split('\''))
        .flat_map(parts)
        .filter(|word| word.chars().count() > 2)
}

/// Splits a name in camel case before each capital that follows a small letter, and before the
/// last capital of several.
fn parts(name: &str) -> Vec<&str> {
    let letters: Vec<(usize, char)> = name.char_indices().collect();
    let mut starts = vec![0];
    for window in letters.windows(2) {
        let [(_, before), (at, letter)] = window else {
            continue;
        };
        let next = name[at + letter.len_utf8()..].chars().next();
        let ends_an_acronym = before.is_uppercase() && next.is_some_and(char::is_lowercase);
        if letter.is_uppercase() && (before.is_lowercase() || ends_an_acronym) {
            starts.push(*at);
        }
    }
    starts.push(name.len());
    starts
        .windows(2)
        .map(|pair| &name[pair[0]..pair[1]])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, config: &str) -> Vec<String> {
        misspelled(text, &allowed(config)).collect()
    }

    #[test]
    fn a_listed_misspelling_is_found_with_its_line_and_correction() {
        // In two halves each, so that this file itself is spelled right.
        let text = ["all is well\nit occ", "ured here"].concat();
        let wanted = ["2: `occ", "ured` should be `occurred`"].concat();
        assert_eq!(found(&text, ""), [wanted]);
    }

    #[test]
    fn parts_of_names_are_words() {
        for name in [
            "the_rec{}ed_offset",
            "theRec{}edOffset",
            "DDLRec{}ed",
            "Rec{}ed's",
        ] {
            let name = name.replace("{}", "iev");
            assert_eq!(found(&name, "").len(), 1, "{name}");
        }
        assert_eq!(
            words("HTTPServer the_größe a1b2c3").collect::<Vec<_>>(),
            ["HTTP", "Server", "the", "größe"]
        );
    }

    #[test]
    fn a_word_of_the_configuration_is_right() {
        let word = ["rec", "ieved"].concat();
        let config = format!("[default.extend-words]\n# a name\n{word} = \"{word}\"\n[files]\n");
        assert_eq!(found(&word.to_uppercase(), &config), [""; 0]);
        assert_eq!(found(&word, "[default]\n").len(), 1);
    }
}
