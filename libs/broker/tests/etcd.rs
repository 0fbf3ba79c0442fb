//! Publishing and watching through a real etcd.

#![allow(clippy::unwrap_used)] // The helpers of a test may panic as the test itself may.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use broker::{Broker, BrokerConfig, Election, Leadership, Subscription, TimelineInfoKey, Update};
use safekeeper_api::timeline_info::SkTimelineInfo;
use utils::id::{NodeId, TenantId, TenantTimelineId, TimelineId};
use utils::lsn::Lsn;

struct Etcd {
    process: Child,
    port: u16,
    dir: tempfile::TempDir,
}

impl Etcd {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let process = Self::spawn(&dir, port);
        Etcd { process, port, dir }
    }

    fn spawn(dir: &tempfile::TempDir, port: u16) -> Child {
        let url = format!("http://127.0.0.1:{port}");
        Command::new("etcd")
            .arg(format!("--data-dir={}", dir.path().display()))
            .arg(format!("--listen-client-urls={url}"))
            .arg(format!("--advertise-client-urls={url}"))
            .arg(format!("--listen-peer-urls=http://127.0.0.1:{}", free_port()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd is installed")
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    async fn broker(&self) -> Broker {
        let endpoints = vec![format!("http://127.0.0.1:{}/", self.port)];
        Broker::connect(&BrokerConfig {
            endpoints,
            prefix: "neon".to_owned(),
        })
        .await
        .unwrap()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn info(commit: u64) -> SkTimelineInfo {
    SkTimelineInfo {
        commit_lsn: Lsn(commit),
        ..Default::default()
    }
}

async fn publish_until_ok(publisher: &mut broker::Publisher, key: TimelineInfoKey, info: &SkTimelineInfo) {
    let tries = async {
        while publisher.publish(key, info).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), tries)
        .await
        .expect("etcd answers");
}

async fn next(subscription: &mut Subscription) -> Update {
    tokio::time::timeout(Duration::from_secs(30), subscription.next())
        .await
        .expect("an update comes")
}

#[tokio::test]
async fn what_is_published_arrives_also_after_etcd_was_away() {
    let mut etcd = Etcd::start();
    let broker = etcd.broker().await;
    let mut publisher = broker.publisher();
    let timeline = TenantTimelineId::new(TenantId::generate(), TimelineId::generate());
    let other = TenantTimelineId::new(TenantId::generate(), TimelineId::generate());
    let key = TimelineInfoKey {
        timeline,
        node: NodeId(1),
    };
    publish_until_ok(&mut publisher, key, &info(1)).await;
    publish_until_ok(
        &mut publisher,
        TimelineInfoKey {
            timeline: other,
            node: NodeId(1),
        },
        &info(9),
    )
    .await;

    let mut subscription = broker.subscribe_timeline(timeline);
    assert_eq!(next(&mut subscription).await, Update { key, info: info(1) });
    publisher.publish(key, &info(2)).await.unwrap();
    assert_eq!(next(&mut subscription).await, Update { key, info: info(2) });
    let mut all = broker.subscribe_all();
    let seen = [
        next(&mut all).await.key.timeline,
        next(&mut all).await.key.timeline,
    ];
    assert!(seen.contains(&timeline) && seen.contains(&other));

    etcd.kill();
    assert!(publisher.publish(key, &info(3)).await.is_err());
    etcd.process = Etcd::spawn(&etcd.dir, etcd.port);
    publish_until_ok(&mut publisher, key, &info(4)).await;
    let arrived = async { while next(&mut subscription).await.info != info(4) {} };
    tokio::time::timeout(Duration::from_secs(30), arrived)
        .await
        .expect("the watch came back");
}

async fn number_of_leases(client: &mut etcd_client::Client) -> usize {
    client.leases().await.unwrap().leases().len()
}

#[tokio::test]
async fn one_lease_is_kept_for_all_timelines_and_a_forgotten_one_vanishes() {
    let etcd = Etcd::start();
    let broker = etcd.broker().await;
    let mut publisher = broker.publisher();
    let keys = [(); 3].map(|()| TimelineInfoKey {
        timeline: TenantTimelineId::new(TenantId::generate(), TimelineId::generate()),
        node: NodeId(1),
    });
    publish_until_ok(&mut publisher, keys[0], &info(1)).await;
    for key in &keys[1..] {
        publisher.publish(*key, &info(1)).await.unwrap();
    }
    let mut client = etcd_client::Client::connect([format!("http://127.0.0.1:{}", etcd.port)], None)
        .await
        .unwrap();
    assert_eq!(number_of_leases(&mut client).await, 1);
    let mut count = async || {
        let options = etcd_client::GetOptions::new().with_prefix().with_count_only();
        client.get("neon/", Some(options)).await.unwrap().count()
    };
    publisher.keep_only(|timeline| timeline != keys[1].timeline);
    let begin = std::time::Instant::now();
    while count().await == 3 && begin.elapsed() < Duration::from_secs(30) {
        publisher.tend().await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(
        begin.elapsed() >= Duration::from_secs(9),
        "it is remembered for a while"
    );
    // What is only kept lasts longer than the lease would have by itself.
    assert_eq!(count().await, 2);
    assert_eq!(number_of_leases(&mut client).await, 1);
}

fn won(election: Election) -> Leadership {
    match election {
        Election::Won(leadership) => *leadership,
        Election::Lost(leader) => panic!("lost to {leader:?}"),
    }
}

#[tokio::test]
async fn there_is_one_leader_until_it_resigns_or_its_lease_ends() {
    let etcd = Etcd::start();
    let broker = etcd.broker().await;
    let timeline = TenantTimelineId::new(TenantId::generate(), TimelineId::generate());
    let other = TenantTimelineId::new(TenantId::generate(), TimelineId::generate());
    let ttl = Duration::from_secs(2);
    let stand = |timeline, node| broker.stand_for_leader(timeline, NodeId(node), ttl);
    let ready = async {
        while broker.leader(timeline).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ready)
        .await
        .expect("etcd answers");

    let first = won(stand(timeline, 1).await.unwrap());
    assert!(matches!(
        stand(timeline, 2).await.unwrap(),
        Election::Lost(Some(NodeId(1)))
    ));
    assert!(first.keep().await.unwrap());
    won(stand(other, 2).await.unwrap());
    first.resign().await.unwrap();
    assert_eq!(broker.leader(timeline).await.unwrap(), None);

    // A leader that is not heard of again.
    let dead = won(stand(timeline, 3).await.unwrap());
    let taken_over = async {
        loop {
            if let Election::Won(leadership) = stand(timeline, 4).await.unwrap() {
                break *leadership;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let taken_over = tokio::time::timeout(Duration::from_secs(30), taken_over)
        .await
        .expect("the lease ends");
    assert!(!dead.keep().await.unwrap());
    assert!(taken_over.keep().await.unwrap());
}

#[tokio::test]
async fn only_one_of_many_that_stand_at_once_wins() {
    let etcd = Etcd::start();
    let broker = etcd.broker().await;
    let timeline = TenantTimelineId::new(TenantId::generate(), TimelineId::generate());
    let standing = (1..=8).map(|node| {
        let broker = broker.clone();
        tokio::spawn(async move {
            loop {
                let ttl = Duration::from_secs(60);
                match broker.stand_for_leader(timeline, NodeId(node), ttl).await {
                    Ok(Election::Won(_)) => return true,
                    Ok(Election::Lost(_)) => return false,
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        })
    });
    let mut winners = 0;
    for candidate in standing.collect::<Vec<_>>() {
        winners += usize::from(candidate.await.unwrap());
    }
    assert_eq!(winners, 1);
}
