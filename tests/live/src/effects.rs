//! The effects of handlers, in a file that all processes append to.
use foldstream::runner::EventContext;
use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    path::Path,
    sync::Arc,
};

/// The effects of all handlers of all processes, in the order in which they took place.
///
/// The kernel appends a short line as a whole, and keeps it when the process is killed. So the
/// order of the lines is that of the effects, also between processes.
#[derive(Clone, Debug)]
pub struct Effects(Arc<File>);

/// One effect of a handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    /// The name of the processor.
    pub processor: String,
    /// The stream of the event.
    pub stream: String,
    /// The version of the event.
    pub version: u64,
    /// The process that handled the event.
    pub process: u32,
}

impl Effects {
    /// Opens the effects in a folder, and creates the file if there is none.
    ///
    /// # Panics
    /// If the file cannot be opened.
    pub fn open(folder: &Path) -> Self {
        Self(Arc::new(append_to(&folder.join("effects"))))
    }

    /// Appends an effect.
    ///
    /// # Panics
    /// If the file cannot be written.
    pub fn add(&self, ctx: &EventContext) {
        let process = std::process::id();
        let (processor, stream) = (ctx.model().processor(), ctx.stream());
        add_line(
            &self.0,
            format!("{processor} {stream} {} {process}", ctx.version()),
        );
    }

    /// Reads all effects so far.
    ///
    /// # Panics
    /// If the file is not one of effects.
    pub fn read(folder: &Path) -> Vec<Effect> {
        Self::read_from(folder, &mut 0)
    }

    /// Reads the effects after a place in the file, and moves the place to the end of the file.
    ///
    /// # Panics
    /// If the file is not one of effects.
    pub fn read_from(folder: &Path, place: &mut u64) -> Vec<Effect> {
        let mut text = String::new();
        // No process may have opened it yet.
        if let Ok(mut file) = File::open(folder.join("effects")) {
            file.seek(SeekFrom::Start(*place)).unwrap();
            file.read_to_string(&mut text).unwrap();
        }
        *place += text.len() as u64;
        text.lines().map(Effect::parse).collect()
    }
}

impl Effect {
    fn parse(line: &str) -> Self {
        let parts: Vec<&str> = line.split(' ').collect();
        let [processor, stream, version, process] = parts[..] else {
            panic!("not an effect: {line:?}");
        };
        Self {
            processor: processor.into(),
            stream: stream.into(),
            version: version.parse().unwrap(),
            process: process.parse().unwrap(),
        }
    }
}

pub(crate) fn append_to(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.append(true).create(true).open(path).unwrap()
}

/// Appends a line by one write.
pub(crate) fn add_line(mut file: &File, mut line: String) {
    line.push('\n');
    file.write_all(line.as_bytes()).unwrap();
}
