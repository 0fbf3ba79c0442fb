//! `postgresql.conf`, as much of its syntax as settings need: `name = value` lines, quotes, comments.
//!
//! Not here: `include` directives and `postgresql.auto.conf`.

use std::collections::HashMap;

/// A line that PostgreSQL would refuse as well.
#[derive(Debug, Clone, Eq, PartialEq, thiserror::Error)]
#[error("syntax error in line {line}: {problem}")]
pub struct ConfError {
    /// Number of the line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// The settings of a file, names in lower case. Of several lines for one name the last one counts.
pub fn parse(text: &str) -> Result<HashMap<String, String>, ConfError> {
    let mut settings = HashMap::new();
    for (index, line) in text.lines().enumerate() {
        let at_line = |problem| ConfError {
            line: index + 1,
            problem,
        };
        if let Some((name, value)) = parse_line(line).map_err(at_line)? {
            settings.insert(name, value);
        }
    }
    Ok(settings)
}

fn parse_line(line: &str) -> Result<Option<(String, String)>, &'static str> {
    let line = line.trim_start();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '$' | '-');
    let name_len = line.find(|c| !is_name(c)).unwrap_or(line.len());
    let (name, rest) = line.split_at(name_len);
    if name.is_empty() {
        return Err("no name");
    }
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    let (value, rest) = match rest.strip_prefix('\'') {
        Some(quoted) => quoted_value(quoted)?,
        None => {
            let len = rest
                .find(|c: char| c == '#' || c.is_whitespace())
                .unwrap_or(rest.len());
            (rest[..len].to_owned(), &rest[len..])
        }
    };
    let rest = rest.trim_start();
    if !rest.is_empty() && !rest.starts_with('#') {
        return Err("more behind the value");
    }
    Ok(Some((name.to_ascii_lowercase(), value)))
}

/// The value in front of the closing quote, and what follows it.
fn quoted_value(text: &str) -> Result<(String, &str), &'static str> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\'' if text[at + 1..].starts_with('\'') => {
                chars.next();
                value.push('\'');
            }
            '\'' => return Ok((value, &text[at + 1..])),
            '\\' => {
                let (_, escaped) = chars.next().ok_or("a quote is not closed")?;
                value.push(match escaped {
                    'n' => '\n',
                    't' => '\t',
                    other => other,
                });
            }
            other => value.push(other),
        }
    }
    Err("a quote is not closed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        for (line, want) in [
            ("", None),
            ("  # port = 1", None),
            ("port = 55432", Some(("port", "55432"))),
            ("port 55432 # why", Some(("port", "55432"))),
            ("Neon.Tenant_ID='ab'", Some(("neon.tenant_id", "ab"))),
            (
                "a = 'it''s \\'x\\' # here' # not here",
                Some(("a", "it's 'x' # here")),
            ),
            ("a = ''", Some(("a", ""))),
        ] {
            let want = want.map(|(name, value)| (name.to_owned(), value.to_owned()));
            assert_eq!(parse_line(line), Ok(want), "{line}");
        }
        for bad in ["= 1", "a = 'x", "a = 'x\\", "a = 1 2", "'a' = 1"] {
            assert!(parse_line(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_last_line_counts() {
        let settings = parse("port = 1\nPORT = 2\n").unwrap();
        assert_eq!(settings["port"], "2");
        assert_eq!(parse("a=1\n\n=\n").unwrap_err().line, 3);
    }
}
