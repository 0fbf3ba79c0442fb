use proptest::prelude::*;

use super::*;
use crate::frame;

fn messages() -> impl Strategy<Value = BackendMessage> {
    let text = || "[a-z/é ]{0,20}";
    let raw = || proptest::collection::vec(any::<u8>(), 0..50).prop_map(Bytes::from);
    let column = ("[a-z]{0,9}", any::<u32>()).prop_map(|(name, oid)| Column {
        name,
        kind: match oid {
            23 => ColumnType::Int4,
            oid => ColumnType::Other(oid),
        },
    });
    let format = (0u8..2, 0u16..4).prop_map(|(format, columns)| CopyFormat { format, columns });
    let notice = (text(), text(), proptest::option::of(text())).prop_map(|(code, message, hint)| Notice {
        severity: "ERROR".into(),
        code,
        message,
        detail: hint.clone(),
        hint,
    });
    prop_oneof![
        Just(BackendMessage::Authentication(Authentication::Ok)),
        any::<[u8; 4]>().prop_map(|salt| BackendMessage::Authentication(Authentication::Md5Password(salt))),
        proptest::collection::vec("[A-Z-]{1,9}", 0..4)
            .prop_map(|names| BackendMessage::Authentication(Authentication::Sasl(names))),
        (text(), text()).prop_map(|(name, value)| BackendMessage::ParameterStatus { name, value }),
        any::<(i32, i32)>().prop_map(|(process_id, secret_key)| BackendMessage::BackendKeyData {
            process_id,
            secret_key
        }),
        Just(BackendMessage::ReadyForQuery(TransactionStatus::Failed)),
        proptest::collection::vec(column, 0..5).prop_map(BackendMessage::RowDescription),
        proptest::collection::vec(proptest::option::of(raw()), 0..5).prop_map(BackendMessage::DataRow),
        text().prop_map(BackendMessage::CommandComplete),
        notice.prop_map(BackendMessage::ErrorResponse),
        format.clone().prop_map(BackendMessage::CopyInResponse),
        format.prop_map(BackendMessage::CopyBothResponse),
        Just(BackendMessage::CopyDone),
        Just(BackendMessage::NoData),
        proptest::collection::vec(any::<u32>(), 0..4).prop_map(BackendMessage::ParameterDescription),
    ]
}

proptest! {
    #[test]
    fn round_trip_and_every_truncation(message in messages()) {
        let mut out = BytesMut::new();
        message.encode(&mut out);
        let (tag, body) = frame::take(&mut out);
        prop_assert!(out.is_empty());
        prop_assert_eq!(BackendMessage::parse(tag, body.clone()), Ok(message));
        for len in 0..body.len() {
            prop_assert!(BackendMessage::parse(tag, body.slice(..len)).is_err());
        }
    }

    #[test]
    fn random_bytes_never_panic(tag in any::<u8>(), body in proptest::collection::vec(any::<u8>(), 0..60)) {
        let _ = BackendMessage::parse(tag, Bytes::from(body));
    }
}

#[test]
fn a_nul_inside_a_text_does_not_corrupt_the_message() {
    let mut out = BytesMut::new();
    BackendMessage::ErrorResponse(Notice::error("XX000", "a\0b")).encode(&mut out);
    let (tag, body) = frame::take(&mut out);
    let BackendMessage::ErrorResponse(notice) = BackendMessage::parse(tag, body).unwrap() else {
        panic!("not an error");
    };
    assert_eq!(notice.message, "a?b");
}
