//! Texts of commands. They are case-sensitive, arguments separated by blanks.

use std::str::FromStr;

use utils::id::{TenantId, TenantTimelineId, TimelineId};
use utils::lsn::Lsn;

/// A command of a client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Command {
    /// `pagestream <tenant> <timeline>`
    PageStream(TenantTimelineId),
    /// `basebackup <tenant> <timeline> [<lsn>]` and `fullbackup <tenant> <timeline> [<lsn> [<prev_lsn>]]`
    BaseBackup(BackupRequest),
    /// `get_last_record_rlsn <tenant> <timeline>`
    LastRecordLsn(TenantTimelineId),
    /// `import basebackup <tenant> <timeline> <base_lsn> <end_lsn> <pg_version>`
    ImportBaseBackup(ImportBaseBackupRequest),
    /// `import wal <tenant> <timeline> <start_lsn> <end_lsn>`
    ImportWal(ImportWalRequest),
    /// `show <tenant>`
    Show(TenantId),
    /// `set ...` in any case: drivers send it on connect; it means nothing here.
    Set,
}

/// What a base backup is to hold.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BackupRequest {
    /// Of which timeline.
    pub id: TenantTimelineId,
    /// At which LSN; the last record's end if absent.
    pub lsn: Option<Lsn>,
    /// Start of the record before, as the client knows it.
    pub prev_lsn: Option<Lsn>,
    /// With relation data or without.
    pub kind: RequestedKind,
}

/// Kind of a base backup.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RequestedKind {
    /// `basebackup`
    Compute,
    /// `fullbackup`
    Full,
}

/// A cluster to be imported.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ImportBaseBackupRequest {
    /// The timeline to make.
    pub id: TenantTimelineId,
    /// LSN of the backup.
    pub base_lsn: Lsn,
    /// End of the WAL that belongs to it.
    pub end_lsn: Lsn,
    /// Major version of PostgreSQL.
    pub pg_version: u32,
}

/// WAL to be imported.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ImportWalRequest {
    /// Into which timeline.
    pub id: TenantTimelineId,
    /// Where it starts.
    pub start_lsn: Lsn,
    /// Where it must end.
    pub end_lsn: Lsn,
}

/// The text is not a command.
#[derive(Debug, Clone, Eq, PartialEq, thiserror::Error)]
pub enum CommandError {
    /// There is no such command.
    #[error("unknown command {0}")]
    Unknown(String),
    /// It has more or fewer arguments than it may have.
    #[error("invalid param number for {0} command")]
    Arity(&'static str),
    /// An argument is not what it must be.
    #[error("{command} command: {reason}")]
    Argument {
        /// The command.
        command: &'static str,
        /// What is wrong.
        reason: String,
    },
}

/// The arguments of one command, taken off one by one.
struct Arguments<'a> {
    command: &'static str,
    words: std::slice::Iter<'a, &'a str>,
}

impl<'a> Arguments<'a> {
    fn optional<T: FromStr>(&mut self) -> Result<Option<T>, CommandError>
    where
        T::Err: std::fmt::Display,
    {
        let value = self.words.next().map(|word| word.parse()).transpose();
        value.map_err(|error: T::Err| CommandError::Argument {
            command: self.command,
            reason: error.to_string(),
        })
    }

    fn required<T: FromStr>(&mut self) -> Result<T, CommandError>
    where
        T::Err: std::fmt::Display,
    {
        self.optional()?.ok_or(CommandError::Arity(self.command))
    }

    fn timeline(&mut self) -> Result<TenantTimelineId, CommandError> {
        let tenant: TenantId = self.required()?;
        let timeline: TimelineId = self.required()?;
        Ok(TenantTimelineId::new(tenant, timeline))
    }

    fn end(&self) -> Result<(), CommandError> {
        match self.words.len() {
            0 => Ok(()),
            _ => Err(CommandError::Arity(self.command)),
        }
    }
}

impl Command {
    /// Reads the text of a command.
    pub fn parse(text: &str) -> Result<Self, CommandError> {
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let unknown = || CommandError::Unknown(text.to_owned());
        let (name, taken) = match words[..] {
            ["pagestream", ..] => ("pagestream", 1),
            ["basebackup", ..] => ("basebackup", 1),
            ["fullbackup", ..] => ("fullbackup", 1),
            ["get_last_record_rlsn", ..] => ("get_last_record_rlsn", 1),
            ["show", ..] => ("show", 1),
            ["import", "basebackup", ..] => ("import basebackup", 2),
            ["import", "wal", ..] => ("import wal", 2),
            [first, ..] if first.eq_ignore_ascii_case("set") => return Ok(Command::Set),
            _ => return Err(unknown()),
        };
        let mut arguments = Arguments {
            command: name,
            words: words[taken..].iter(),
        };
        let command = Self::parse_arguments(name, &mut arguments)?;
        arguments.end()?;
        Ok(command)
    }

    fn parse_arguments(name: &'static str, arguments: &mut Arguments<'_>) -> Result<Self, CommandError> {
        Ok(match name {
            "pagestream" => Command::PageStream(arguments.timeline()?),
            "basebackup" => Command::BaseBackup(BackupRequest {
                id: arguments.timeline()?,
                lsn: arguments.optional()?,
                prev_lsn: None,
                kind: RequestedKind::Compute,
            }),
            "fullbackup" => Command::BaseBackup(BackupRequest {
                id: arguments.timeline()?,
                lsn: arguments.optional()?,
                prev_lsn: arguments.optional()?,
                kind: RequestedKind::Full,
            }),
            "get_last_record_rlsn" => Command::LastRecordLsn(arguments.timeline()?),
            "show" => Command::Show(arguments.required()?),
            "import basebackup" => Command::ImportBaseBackup(ImportBaseBackupRequest {
                id: arguments.timeline()?,
                base_lsn: arguments.required()?,
                end_lsn: arguments.required()?,
                pg_version: arguments.required()?,
            }),
            _ => Command::ImportWal(ImportWalRequest {
                id: arguments.timeline()?,
                start_lsn: arguments.required()?,
                end_lsn: arguments.required()?,
            }),
        })
    }

    /// Whose data the command is about; `None` if nobody's.
    pub fn target(&self) -> Option<(TenantId, Option<TimelineId>)> {
        let id = match self {
            Command::PageStream(id) | Command::LastRecordLsn(id) => *id,
            Command::BaseBackup(request) => request.id,
            Command::ImportBaseBackup(request) => request.id,
            Command::ImportWal(request) => request.id,
            Command::Show(tenant) => return Some((*tenant, None)),
            Command::Set => return None,
        };
        Some((id.tenant_id, Some(id.timeline_id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: &str = "11223344556677881122334455667788";
    const TL: &str = "99999999999999999999999999999999";

    fn id() -> TenantTimelineId {
        TenantTimelineId::new(T.parse().unwrap(), TL.parse().unwrap())
    }

    #[test]
    fn commands() {
        let check =
            |text: String, expected: Command| assert_eq!(Command::parse(&text), Ok(expected), "{text}");
        check(format!("pagestream {T}  {TL} "), Command::PageStream(id()));
        check(
            format!("get_last_record_rlsn {T} {TL}"),
            Command::LastRecordLsn(id()),
        );
        check(format!("show {T}"), Command::Show(id().tenant_id));
        check("SET datestyle TO 'ISO'".into(), Command::Set);
        let request = BackupRequest {
            id: id(),
            lsn: None,
            prev_lsn: None,
            kind: RequestedKind::Compute,
        };
        check(format!("basebackup {T} {TL}"), Command::BaseBackup(request));
        let request = BackupRequest {
            lsn: Some(Lsn(16)),
            prev_lsn: Some(Lsn(8)),
            kind: RequestedKind::Full,
            ..request
        };
        check(
            format!("fullbackup {T} {TL} 0/10 0/8"),
            Command::BaseBackup(request),
        );
        let request = ImportWalRequest {
            id: id(),
            start_lsn: Lsn(8),
            end_lsn: Lsn(16),
        };
        check(
            format!("import wal {T} {TL} 0/8 0/10"),
            Command::ImportWal(request),
        );
    }

    #[test]
    fn errors() {
        let check = |text: String, expected: &str| {
            assert_eq!(Command::parse(&text).unwrap_err().to_string(), expected, "{text}");
        };
        check("do_gc".into(), "unknown command do_gc");
        check("import".into(), "unknown command import");
        check(
            format!("PAGESTREAM {T} {TL}"),
            &format!("unknown command PAGESTREAM {T} {TL}"),
        );
        check(
            format!("pagestream {T}"),
            "invalid param number for pagestream command",
        );
        check(
            format!("basebackup {T} {TL} 0/1 0/1"),
            "invalid param number for basebackup command",
        );
        check(
            format!("show {T}0"),
            &format!("show command: '{T}0' is not an id (expected 32 hexadecimal digits)"),
        );
    }
}
