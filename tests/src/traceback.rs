//! Compares Python's tracebacks of one exception, taken at different places.
//!
//! On its way outwards an exception gathers frames, so that what was printed
//! further outside has more of them in front. What follows is the same.

use std::fmt::Write as _;

/// First line of every list of frames.
const START: &str = "Traceback (most recent call last):";
/// The same of a group of exceptions.
const GROUP_START: &str = "Exception Group Traceback (most recent call last):";

/// A line without the margin that the outermost group has. What belongs to its
/// members is further inside, and so a part of what follows its frames.
fn without_margin(line: &str) -> &str {
    let margins = ["  | ", "  + "];
    let inner = margins.iter().find_map(|margin| line.strip_prefix(margin));
    inner.unwrap_or(line)
}

/// One exception of a chain.
#[derive(Debug, Default, PartialEq, Eq)]
struct Section {
    /// Each with the lines of source that follow, outermost first.
    frames: Vec<String>,
    /// Type and message.
    exception: String,
    /// The sentence that joins it to the next section.
    link: String,
}

impl Section {
    fn mentions(&self, folder: &str) -> bool {
        self.frames.iter().any(|frame| frame.contains(folder))
    }
}

/// What differs between two tracebacks of one exception, in words; `None` if
/// nothing does. The shorter one may lack any frames: [`has_frame`] tells
/// whether it goes as far outside as it must. `folder` is a part of the application's paths: sections that
/// never came there are the framework's own and may be missing.
pub fn difference(found: &str, expected: &str, folder: &str) -> Option<String> {
    let own = |text: &str| -> Vec<Section> {
        let mut sections = parse(text);
        sections.retain(|section| section.mentions(folder));
        sections
    };
    let (found, expected) = (own(found), own(expected));
    if found.len() != expected.len() {
        return Some(format!(
            "{} exceptions of the application's instead of {}",
            found.len(),
            expected.len()
        ));
    }
    let mut differences = String::new();
    for (found, expected) in found.iter().zip(&expected) {
        for (name, found, expected) in [
            ("exception", &found.exception, &expected.exception),
            ("link", &found.link, &expected.link),
        ] {
            if found != expected {
                let _infallible = writeln!(differences, "{name} {found:?} not {expected:?}");
            }
        }
        let shared = found.frames.len().min(expected.frames.len());
        let tails = found.frames[found.frames.len() - shared..]
            .iter()
            .zip(&expected.frames[expected.frames.len() - shared..]);
        let mut wrong = tails.filter(|(found, expected)| !same(found, expected));
        if let Some((found, expected)) = wrong.next() {
            let more = wrong.count();
            let _infallible = writeln!(differences, "{found}not {expected}and {more} more");
        }
    }
    (!differences.is_empty()).then_some(differences)
}

/// The text without the frames of files in this folder.
pub fn without_frames_of(text: &str, folder: &str) -> String {
    let mut kept = String::new();
    let mut left_out = false;
    for line in text.lines() {
        if line.starts_with("  File ") {
            left_out = line.contains(folder);
        } else if !line.starts_with("  ") {
            left_out = false;
        }
        if !left_out {
            kept += line;
            kept.push('\n');
        }
    }
    kept
}

/// Whether two texts are of the same frame. Of code that was compiled from a
/// text, with a file name that is none, Python shows whatever line of the
/// module's file has that number (`linecache.lazycache`, as of Sanic's
/// handlers): nothing to hold anybody to.
fn same(found: &str, expected: &str) -> bool {
    if expected.starts_with("  File \"/") {
        return found == expected;
    }
    found.lines().next() == expected.lines().next()
}

/// Whether a traceback has a frame of this function.
pub fn has_frame(text: &str, file: &str, function: &str) -> bool {
    text.lines().map(without_margin).any(|line| {
        line.strip_prefix("  File ").is_some_and(|line| {
            line.starts_with(&format!("{file:?},")) && line.ends_with(&format!(", in {function}"))
        })
    })
}

fn parse(text: &str) -> Vec<Section> {
    let mut sections = Vec::new();
    let mut section = Section::default();
    let mut in_frames = false;
    for line in text.lines().map(without_margin) {
        if line == START || line == GROUP_START {
            if !section.frames.is_empty() {
                sections.push(std::mem::take(&mut section));
            }
            in_frames = true;
        } else if line.starts_with("  ") && in_frames {
            match section.frames.last_mut() {
                Some(frame) if !line.starts_with("  File ") => *frame += &format!("{line}\n"),
                _ => section.frames.push(format!("{line}\n")),
            }
        } else if line.ends_with("exception:") || line.ends_with("exception occurred:") {
            section.link = line.to_owned();
        } else if !line.is_empty() {
            in_frames = false;
            section.exception += &format!("{line}\n");
        }
    }
    sections.push(section);
    sections
}

#[cfg(test)]
mod tests {
    use super::*;

    const INNER: &str = "  File \"/srv/apps/shop.py\", line 8, in total
    return price()
           ^^^^^^^
  File \"/srv/apps/shop.py\", line 3, in price
    raise ValueError(\"kaboom\")
ValueError: kaboom
";

    #[test]
    fn a_group_is_compared_with_its_members() {
        let group = |member: &str| {
            format!(
                "  + {GROUP_START}\n{}  | ExceptionGroup: two (1 sub-exception)\n  | a note\n  \
                 +-+---------------- 1 ----------------\n    | ValueError: {member}\n    \
                 +------------------------------------\n",
                INNER
                    .lines()
                    .take(3)
                    .map(|line| format!("  | {line}\n"))
                    .collect::<String>()
            )
        };
        let [one, other] = ["one", "other"].map(group);
        assert_eq!(difference(&one, &one, "/apps/"), None);
        assert!(difference(&one, &other, "/apps/").is_some());
        assert!(has_frame(&one, "/srv/apps/shop.py", "total"));
    }

    fn outer(line: u32) -> String {
        format!("  File \"/lib/server.py\", line {line}, in serve\n    call()\n")
    }

    fn traceback(frames: &[&str]) -> String {
        format!("{START}\n{}", frames.concat())
    }

    #[test]
    fn frames_further_outside_make_no_difference() {
        let (short, long) = (traceback(&[INNER]), traceback(&[&outer(5), INNER]));
        assert_eq!(difference(&short, &long, "/apps/"), None);
        assert_eq!(difference(&long, &short, "/apps/"), None);
    }

    #[test]
    fn frames_that_both_have_must_agree() {
        let (one, other) = (
            traceback(&[&outer(5), INNER]),
            traceback(&[&outer(6), INNER]),
        );
        assert!(difference(&one, &other, "/apps/").is_some());
        let changed = traceback(&[&INNER.replace("line 8", "line 9")]);
        assert!(difference(&changed, &one, "/apps/").is_some());
        let without = traceback(&[&INNER.replace("           ^^^^^^^\n", "")]);
        assert!(difference(&without, &one, "/apps/").is_some());
    }

    #[test]
    fn frames_of_a_folder_can_be_left_out() {
        let long = traceback(&[&outer(5), INNER]);
        assert_eq!(without_frames_of(&long, "/lib/"), traceback(&[INNER]));
        assert_eq!(without_frames_of(&long, "/other/"), long);
    }

    #[test]
    fn the_source_of_a_made_up_file_does_not_count() {
        let made = |source: &str| {
            traceback(&[
                &format!("  File \"made\", line 9, in made\n{source}"),
                INNER,
            ])
        };
        assert_eq!(difference(&made(""), &made("    x = 1\n"), "/apps/"), None);
        let other = made("").replace("line 9", "line 8");
        assert!(difference(&other, &made(""), "/apps/").is_some());
    }

    #[test]
    fn a_frame_of_the_applications_may_not_be_missing() {
        let from = INNER.find("  File \"/srv/apps/shop.py\", line 3").unwrap();
        let short = traceback(&[&INNER[from..]]);
        // The shorter is a tail of the longer: only the name of the function
        // that served the request tells that something is missing.
        assert!(!has_frame(&short, "/srv/apps/shop.py", "total"));
        assert!(has_frame(&short, "/srv/apps/shop.py", "price"));
    }

    #[test]
    fn causes_must_be_there_and_say_so() {
        let link = "\nThe above exception was the direct cause of the following exception:\n\n";
        let effect = INNER.replace("ValueError", "KeyError");
        let chained = traceback(&[INNER]) + link + &traceback(&[&effect]);
        assert_eq!(difference(&chained, &chained, "/apps/"), None);
        assert!(difference(&traceback(&[&effect]), &chained, "/apps/").is_some());
        let other = chained.replace("was the direct cause of", "led somehow to");
        assert!(difference(&other, &chained, "/apps/").is_some());
    }

    #[test]
    fn exceptions_that_are_the_frameworks_own_do_not_count() {
        let link = "\nDuring handling of the above exception, another exception occurred:\n\n";
        let found = traceback(&[INNER]);
        let own = traceback(&[&outer(5), "NotFound: no such view\n"]) + link + &found;
        assert_eq!(difference(&found, &own, "/apps/"), None);
    }
}
