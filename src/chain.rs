//! [`chain`]: an error and its sources as one line of text.
use crate::Rejection;
use std::error::Error;

/// Returns the messages of an error and of all its sources, from the outermost to the innermost,
/// joined by `": "`.
///
/// The errors of this crate do not repeat their source in their own message, so `%error` in a log
/// shows only the outermost one. A source that an error repeats at the end of its message, as
/// `#[error(transparent)]` does, is left out, and so is the [`Rejection`] under a refusal, which
/// says nothing that the refusal does not.
///
/// # Example
/// ```
/// use foldstream::{CodecError, chain};
/// let error = CodecError::Decode { source: "the text ends too early".into() };
/// assert_eq!(error.to_string(), "the payload cannot be decoded");
/// assert_eq!(chain(&error), "the payload cannot be decoded: the text ends too early");
/// ```
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let sources = std::iter::successors(error.source(), |source| (*source).source());
    for source in sources {
        // It tells the runner of a refusal, and is not a cause.
        if source.is::<Rejection>() {
            continue;
        }
        let source = source.to_string();
        if !text.ends_with(&source) {
            text.push_str(": ");
            text.push_str(&source);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::chain;
    use crate::ExecuteError;

    #[derive(Debug, thiserror::Error)]
    enum Failure {
        #[error("the disk is full")]
        Disk,
        #[error(transparent)]
        Passed(Box<Failure>),
        #[error("nothing was saved")]
        Save(#[source] Box<Failure>),
    }

    #[test]
    fn a_refusal_is_told_in_the_words_of_the_aggregate() {
        let refused = ExecuteError::Rejected("only 35 cents are left");
        assert_eq!(chain(&refused), "only 35 cents are left");
    }

    #[test]
    fn every_source_is_named_once_from_the_outside_in() {
        let disk = || Box::new(Failure::Disk);
        assert_eq!(chain(&Failure::Disk), "the disk is full");
        let text = "nothing was saved: the disk is full";
        assert_eq!(chain(&Failure::Save(disk())), text);
        let passed = Failure::Passed(Box::new(Failure::Save(disk())));
        assert_eq!(chain(&passed), text);
        let nested = Failure::Save(Box::new(Failure::Passed(disk())));
        assert_eq!(chain(&nested), text);
    }
}
