use super::*;

const L0: &str = "000000000000000000000000000000000000-FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF\
                  __0000000001696070-00000000016960E9";
const IMAGE: &str = "000000067F000032BE0000400000000020B6-000000067F000032BE0000400000000030B6\
                     __0000000001696070";

fn metadata() -> TimelineMetadata {
    TimelineMetadata {
        disk_consistent_lsn: Lsn(0x0169_60E8),
        prev_record_lsn: Some(Lsn(0x0169_6070)),
        ancestor: None,
        latest_gc_cutoff_lsn: Lsn(0x100),
        initdb_lsn: Lsn(0x100),
        pg_version: 15,
    }
}

fn index() -> IndexPart {
    IndexPart {
        layers: HashMap::from([(L0.parse().unwrap(), Some(8192)), (IMAGE.parse().unwrap(), None)]),
        metadata: metadata(),
        deleted_at: None,
    }
}

/// An index as another program writes it, with `change` applied.
fn foreign(change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    let mut value: serde_json::Value = serde_json::from_slice(&index().encode()).unwrap();
    value.as_object_mut().unwrap().remove("checksum");
    change(&mut value);
    serde_json::to_vec(&value).unwrap()
}

#[test]
fn round_trip_and_form() {
    let deleted = IndexPart {
        deleted_at: Some("2026-01-01T00:00:00Z".to_owned()),
        ..index()
    };
    for index in [index(), deleted, IndexPart::empty(metadata())] {
        assert_eq!(IndexPart::decode(&index.encode()).unwrap(), index);
    }
    let json: serde_json::Value = serde_json::from_slice(&index().encode()).unwrap();
    assert_eq!(json["version"], 1);
    assert_eq!(json["timeline_layers"], serde_json::json!([L0, IMAGE]));
    assert_eq!(json["layer_metadata"][L0]["file_size"], 8192);
    assert_eq!(json["disk_consistent_lsn"], "0/16960E8");
    assert_eq!(json["metadata_bytes"].as_array().unwrap().len(), 512);
}

#[test]
fn the_oldest_version_is_read() {
    let raw = foreign(|value| {
        let object = value.as_object_mut().unwrap();
        object.remove("version");
        object.remove("layer_metadata");
        object.insert("missing_layers".to_owned(), serde_json::json!([IMAGE]));
        object["timeline_layers"] = serde_json::json!([L0]);
    });
    let decoded = IndexPart::decode(&raw).unwrap();
    assert_eq!(decoded.layers, HashMap::from([(L0.parse().unwrap(), None)]));
    assert_eq!(decoded.metadata, metadata());
}

#[test]
fn historical_names_are_dropped_others_refused() {
    let with_name = |name: &str| {
        let name = name.to_owned();
        IndexPart::decode(&foreign(move |value| {
            value["timeline_layers"] = serde_json::json!([L0, name]);
            value["layer_metadata"][&name] = serde_json::json!({"file_size": 7});
        }))
    };
    for name in [&format!("{L0}.0.old"), "metadata_backup"] {
        assert_eq!(with_name(name).unwrap().layers.len(), 1, "{name}");
    }
    for name in ["metadata", "x", &L0.to_lowercase()] {
        assert!(
            matches!(with_name(name), Err(DecodeIndexError::LayerName(_))),
            "{name}"
        );
    }
}

#[test]
fn a_newer_version_and_parts_that_do_not_fit_are_refused() {
    let newer = foreign(|value| value["version"] = 2.into());
    assert!(matches!(
        IndexPart::decode(&newer),
        Err(DecodeIndexError::Version(2))
    ));
    let other_lsn = foreign(|value| value["disk_consistent_lsn"] = "0/8".into());
    assert!(matches!(
        IndexPart::decode(&other_lsn),
        Err(DecodeIndexError::Lsn { .. })
    ));
    let short = foreign(|value| {
        value["metadata_bytes"].as_array_mut().unwrap().pop();
    });
    assert!(matches!(
        IndexPart::decode(&short),
        Err(DecodeIndexError::Metadata(_))
    ));
}

#[test]
fn no_changed_bit_changes_the_meaning() {
    let (raw, want) = (index().encode(), index());
    for bit in 0..raw.len() * 8 {
        let mut bad = raw.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        if let Ok(decoded) = IndexPart::decode(&bad) {
            assert_eq!(decoded, want, "bit {bit}: {}", String::from_utf8_lossy(&bad));
        }
    }
}
