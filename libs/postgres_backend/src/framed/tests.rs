use tokio::io::{AsyncWriteExt, duplex};

use super::*;

fn query(text: &str) -> FrontendMessage {
    FrontendMessage::Query(text.to_owned())
}

fn encoded(messages: &[FrontendMessage]) -> Vec<u8> {
    let mut out = BytesMut::new();
    messages.iter().for_each(|message| message.encode(&mut out));
    out.to_vec()
}

#[tokio::test]
async fn any_chunking_gives_the_same_messages() {
    let big = FrontendMessage::CopyData(vec![7; 100_000].into());
    let messages = [query("one"), big, FrontendMessage::Sync, query("two")];
    let raw = encoded(&messages);
    for chunk in [1000, 4096, 33_333, raw.len()] {
        let (mut peer, ours) = duplex(chunk);
        let raw = raw.clone();
        let sender = tokio::spawn(async move {
            for piece in raw.chunks(chunk) {
                peer.write_all(piece).await.unwrap();
            }
        });
        let mut framed = Framed::new(ours);
        for expected in &messages {
            let got: Option<FrontendMessage> = framed.read_message().await.unwrap();
            assert_eq!(got.as_ref(), Some(expected), "chunks of {chunk}");
        }
        sender.await.unwrap();
        assert!(framed.read_message::<FrontendMessage>().await.unwrap().is_none());
    }
}

#[tokio::test]
async fn a_cancelled_read_loses_nothing() {
    let raw = encoded(&[query("split in two")]);
    let (mut peer, ours) = duplex(1024);
    let mut framed = Framed::new(ours);
    peer.write_all(&raw[..7]).await.unwrap();
    tokio::select! {
        biased;
        message = framed.read_message::<FrontendMessage>() => panic!("half a message gave {message:?}"),
        () = tokio::task::yield_now() => {}
    }
    peer.write_all(&raw[7..]).await.unwrap();
    assert_eq!(framed.read_message().await.unwrap(), Some(query("split in two")));
}

#[tokio::test]
async fn a_cancelled_flush_loses_nothing() {
    let (mut peer, ours) = duplex(100);
    let mut framed = Framed::new(ours);
    let payload: Vec<u8> = (0..=255).cycle().take(1000).collect();
    framed
        .writer()
        .put_copy_data(|out| out.extend_from_slice(&payload));
    tokio::select! {
        biased;
        result = framed.flush() => panic!("1000 bytes went into 100: {result:?}"),
        () = tokio::task::yield_now() => {}
    }
    let receiver = tokio::spawn(async move {
        let mut raw = vec![0; 1005];
        peer.read_exact(&mut raw).await.unwrap();
        raw
    });
    framed.flush().await.unwrap();
    assert_eq!(receiver.await.unwrap()[5..], payload);
}

#[tokio::test]
async fn split_and_join_keep_what_is_buffered() {
    let (peer, ours) = duplex(1024);
    let mut peer = Framed::new(peer);
    let mut framed = Framed::new(ours);
    for text in ["one", "two", "three"] {
        peer.writer().put_frontend(&query(text));
    }
    peer.flush().await.unwrap();
    assert_eq!(framed.read_message().await.unwrap(), Some(query("one")));
    framed.writer().put_frontend(&query("unsent"));
    let (mut reader, writer) = framed.split();
    assert_eq!(reader.buffered_message().unwrap(), Some(query("two")));
    let mut framed = Framed::join(reader, writer);
    assert_eq!(framed.read_message().await.unwrap(), Some(query("three")));
    framed.flush().await.unwrap();
    assert_eq!(peer.read_message().await.unwrap(), Some(query("unsent")));
}

#[tokio::test]
async fn the_end_of_the_stream_within_a_message_is_an_error() {
    let raw = encoded(&[query("truncated")]);
    for len in 0..raw.len() {
        let (mut peer, ours) = duplex(1024);
        peer.write_all(&raw[..len]).await.unwrap();
        drop(peer);
        let end = Framed::new(ours).read_message::<FrontendMessage>().await;
        match len {
            0 => assert!(matches!(end, Ok(None))),
            _ => assert!(end.unwrap_err().is_disconnect(), "{len} bytes"),
        }
    }
}

#[tokio::test]
async fn a_claimed_length_allocates_nothing() {
    let (mut peer, ours) = duplex(1024);
    let mut framed = Framed::new(ours);
    let mut raw = vec![b'd'];
    raw.extend((frame::MESSAGE_BYTES_MAX).to_be_bytes());
    peer.write_all(&raw).await.unwrap();
    tokio::select! {
        biased;
        _ = framed.read_message::<FrontendMessage>() => panic!("nothing was sent"),
        () = tokio::task::yield_now() => {}
    }
    assert!(framed.reader.buffer.capacity() <= 4 * READ_BYTES);
}

#[tokio::test]
async fn much_is_read_in_large_pieces_and_little_takes_little_memory() {
    let (mut peer, ours) = duplex(READ_BYTES_MAX);
    let mut framed = Framed::new(ours);
    let message = |len: usize| FrontendMessage::CopyData(vec![3; len].into());
    let much = encoded(&[message(READ_BYTES_MAX - 5)]);
    for _ in 0..20 {
        peer.write_all(&much).await.unwrap();
        assert_eq!(
            framed.read_message().await.unwrap(),
            Some(message(READ_BYTES_MAX - 5))
        );
    }
    assert_eq!(framed.reader.read_bytes, READ_BYTES_MAX);
    let capacity = framed.reader.buffer.capacity();
    assert!(capacity <= 4 * READ_BYTES_MAX, "{capacity} bytes");

    // What is kept of a few messages does not keep the memory from being used up and replaced by a small piece.
    let mut kept = Vec::new();
    for _ in 0..8 * READ_BYTES_MAX / 1000 {
        peer.write_all(&encoded(&[message(1000)])).await.unwrap();
        kept.push(framed.read_message::<FrontendMessage>().await.unwrap());
    }
    assert_eq!(framed.reader.read_bytes, READ_BYTES);
    let capacity = framed.reader.buffer.capacity();
    assert!(capacity <= 4 * READ_BYTES, "{capacity} bytes");
}
