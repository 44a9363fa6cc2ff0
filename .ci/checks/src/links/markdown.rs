//! The links and headings of a Markdown file.
use super::anchors::Anchors;
use pulldown_cmark::{BrokenLink, CowStr, Event, LinkType, Options, Parser, Tag, TagEnd};
use std::{cell::RefCell, collections::BTreeSet};

/// A link or an image.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// The number of the line, from 1.
    pub(super) line: usize,
    /// The destination, or `None` for a reference without a definition.
    pub(super) target: Option<String>,
    text: String,
}

impl Link {
    /// Returns the link as an error shows it.
    pub(super) fn shown(&self) -> &str {
        self.target.as_deref().unwrap_or(&self.text)
    }
}

/// The links and anchors of a Markdown file.
#[derive(Debug, Default)]
pub(super) struct Document {
    /// All links and images in order, and all references without a definition.
    pub(super) links: Vec<Link>,
    /// The names that `#anchor` may have.
    pub(super) anchors: BTreeSet<String>,
}

impl Document {
    /// Reads a file as GitHub does.
    pub(super) fn parse(text: &str) -> Self {
        let line = |offset: usize| text[..offset].matches('\n').count() + 1;
        let broken = RefCell::new(Vec::new());
        let mut remember = |link: BrokenLink<'_>| -> Option<(CowStr<'_>, CowStr<'_>)> {
            // Checkboxes and footnotes are not links, and neither is code in which the parser looks
            // for one.
            broken.borrow_mut().push(Link {
                line: line(link.span.start),
                target: None,
                text: text[link.span].to_owned(),
            });
            None
        };
        let options =
            Options::ENABLE_TABLES | Options::ENABLE_FOOTNOTES | Options::ENABLE_TASKLISTS;
        let parser = Parser::new_with_broken_link_callback(text, options, Some(&mut remember));
        let (mut document, mut anchors, mut heading) = (Self::default(), Anchors::default(), None);
        for (event, span) in parser.into_offset_iter() {
            match event {
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    document
                        .anchors
                        .insert(anchors.of(&heading.take().unwrap_or_default()));
                }
                Event::Text(part) | Event::Code(part) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&part);
                    }
                }
                Event::Start(Tag::Link {
                    link_type,
                    dest_url,
                    ..
                }) => {
                    let mail = if link_type == LinkType::Email {
                        "mailto:"
                    } else {
                        ""
                    };
                    document.links.push(Link {
                        line: line(span.start),
                        target: Some(format!("{mail}{dest_url}")),
                        text: String::new(),
                    });
                }
                Event::Start(Tag::Image { dest_url, .. }) => document.links.push(Link {
                    line: line(span.start),
                    target: Some(dest_url.into_string()),
                    text: String::new(),
                }),
                Event::Html(html) | Event::InlineHtml(html) => {
                    document.anchors.extend(html_anchors(&html));
                }
                _ => {}
            }
        }
        document.links.append(&mut broken.borrow_mut());
        document
    }
}

/// Returns the values of `id` and `name` in HTML.
fn html_anchors(html: &str) -> Vec<String> {
    let parts = ["id=\"", "name=\""]
        .into_iter()
        .flat_map(|key| html.split(key).skip(1));
    parts
        .filter_map(|part| part.split_once('"').map(|(value, _)| value.to_owned()))
        .collect()
}
