//! Text that people read: which characters it may hold, and which names are taken for one another.

use unicode_normalization::UnicodeNormalization;
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};
use unicode_security::skeleton;

/// Whether a character is invisible or changes how the text around it is shown: control and format characters
/// (zero-width, bidirectional), line and paragraph separators, and letters that have no shape.
pub fn is_hidden(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_control();
    }
    matches!(
        c.general_category(),
        GeneralCategory::Control
            | GeneralCategory::Format
            | GeneralCategory::LineSeparator
            | GeneralCategory::ParagraphSeparator
    ) || matches!(
        c,
        '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{2800}' | '\u{3164}' | '\u{ffa0}'
    )
}

/// Whether a character is hidden and is no line break or tab either, which text of several lines has.
pub fn is_hidden_in_lines(c: char) -> bool {
    is_hidden(c) && !matches!(c, '\n' | '\r' | '\t')
}

/// The forms in which a name is compared with another: without regard to case, width, spaces around it, invisible
/// characters, and characters that look alike (Unicode Technical Standard 39 §4).
fn forms(name: &str) -> [String; 2] {
    let plain: String = name.trim().nfkc().filter(|c| !is_hidden(*c)).collect();
    let lower = plain.to_lowercase();
    // A capital letter may look like a letter that its small form does not look like.
    let alike = skeleton(&plain).collect::<String>().to_lowercase();
    [skeleton(&lower).collect(), skeleton(&alike).collect()]
}

/// Whether one name is taken for the other.
pub fn look_alike(a: &str, b: &str) -> bool {
    let (a, b) = (forms(a), forms(b));
    a.iter().any(|form| b.contains(form))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invisible_characters_are_hidden_and_letters_of_any_alphabet_are_not() {
        for c in [
            '\0',
            '\u{7f}',
            '\u{85}',
            '\u{ad}',
            '\u{200b}',
            '\u{200d}',
            '\u{202e}',
            '\u{2066}',
            '\u{2028}',
            '\u{feff}',
            '\u{e0041}',
            '\u{3164}',
        ] {
            assert!(is_hidden(c), "{c:?}");
        }
        for c in ['a', ' ', 'ü', 'д', '名', 'ع', '\u{a0}', '😀'] {
            assert!(!is_hidden(c), "{c:?}");
        }
        assert!(is_hidden('\n') && !is_hidden_in_lines('\n'));
    }

    #[test]
    fn names_that_look_alike_are_one_name() {
        for (a, b) in [
            ("system", "SYSTEM"),
            ("system", " system "),
            ("system", "sys\u{200b}tem"),
            ("system", "ѕуѕtem"),
            ("system", "ｓｙｓｔｅｍ"),
            ("api-key-user", "ΑPI-key-user"),
            ("api-key-user", "apΙ-key-user"),
        ] {
            assert!(look_alike(a, b), "{a} {b}");
        }
        for (a, b) in [("system", "systems"), ("ci", "cd"), ("ada", "Ida")] {
            assert!(!look_alike(a, b), "{a} {b}");
        }
    }
}
