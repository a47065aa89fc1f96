//! The patterns of KEYS and CONFIG GET, as of Redis: `*`, `?`, `[a-c]`, `[^a]` and a backslash.

/// Whether `text` matches `pattern`, in time proportional to the product of their lengths at most: a
/// star that matches too little is tried again alone, as what those before it match is settled by
/// then.
pub(crate) fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut rest, mut left) = (pattern, text);
    // Behind the latest star, and where what it does not match began.
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        if let [b'*', behind @ ..] = rest {
            (rest, retry) = (behind, Some((behind, left)));
            continue;
        }
        if let Some((byte, after)) = left.split_first()
            && let Some(behind) = match_one(rest, *byte)
        {
            (rest, left) = (behind, after);
            continue;
        }
        if left.is_empty() && rest.is_empty() {
            return true;
        }
        // The star takes one byte more.
        let Some((behind, [_, after @ ..])) = retry else { return false };
        (rest, left, retry) = (behind, after, Some((behind, after)));
    }
}

/// What is left of a pattern whose first part, which is no star, matches `byte`.
fn match_one(pattern: &[u8], byte: u8) -> Option<&[u8]> {
    match pattern {
        [] => None,
        [b'?', rest @ ..] => Some(rest),
        [b'[', class @ ..] => match_class(class, byte),
        [b'\\', literal, rest @ ..] | [literal, rest @ ..] => (*literal == byte).then_some(rest),
    }
}

/// As [`match_one`], behind a bracket. A class that does not end does so with the pattern.
fn match_class(class: &[u8], byte: u8) -> Option<&[u8]> {
    let is_negated = class.first() == Some(&b'^');
    let (mut rest, mut found) = (&class[usize::from(is_negated)..], false);
    loop {
        rest = match rest {
            [] => break,
            [b'\\', literal, rest @ ..] => {
                found |= *literal == byte;
                rest
            }
            [b']', behind @ ..] => {
                rest = behind;
                break;
            }
            [a, b'-', b, rest @ ..] => {
                found |= (*a.min(b)..=*a.max(b)).contains(&byte);
                rest
            }
            [literal, rest @ ..] => {
                found |= *literal == byte;
                rest
            }
        }
    }
    (found != is_negated).then_some(rest)
}
