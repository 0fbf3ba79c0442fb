//! Arbitrary bytes as one record, and as a stream of WAL. Both readers of a record agree on whether it is one, what is read
//! can be written again, and a stream ends.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use postgres_ffi::v15::decode::decode_record;
use postgres_ffi::v15::encode::encode_record;
use postgres_ffi::v15::record_ref::RecordRef;
use postgres_ffi::v15::stream::WalStreamDecoder;
use utils::lsn::Lsn;

fuzz_target!(|data: &[u8]| {
    let mut record = data.to_vec();
    if let Some(len) = record.first_chunk_mut::<4>() {
        // Hardly a guess would have the right length.
        *len = (data.len() as u32).to_le_bytes();
    }
    let owned = decode_record(Bytes::copy_from_slice(&record));
    match RecordRef::parse(&record) {
        Ok(parsed) => {
            let owned = owned.expect("one reader takes it, the other does not");
            assert_eq!(parsed.blocks.len(), owned.blocks.len());
            assert_eq!(parsed.main_data, &owned.main_data[..]);
            let again = encode_record(&owned).into();
            let again = decode_record(again).expect("what was read is written as a record");
            assert_eq!((again.blocks, again.main_data), (owned.blocks, owned.main_data));
        }
        Err(error) => assert_eq!(owned.err(), Some(error)),
    }

    let mut stream = WalStreamDecoder::new(Lsn(0x100_0028));
    stream.feed(data);
    let mut end = stream.decoded_lsn();
    while let Ok(Some(next)) = stream.seek_record() {
        assert!(next > end, "a record without length");
        end = next;
    }
});
