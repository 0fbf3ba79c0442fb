//! Reads pages of one relation over one `pagestream` connection and prints how long that took, as one JSON object:
//! latencies in microseconds, one request at a time, and pages per second with many requests on the way.
//!
//! Used by `test_runner/performance/test_getpage.py`.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Parser;
use pageserver_api::pagestream::{Query, Request, RequestLsn, Response};
use pageserver_api::reltag::{Fork, RelTag};
use postgres_client::{CopyBothReader, CopyBothWriter};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use utils::id::{TenantId, TimelineId};
use utils::lsn::Lsn;

/// Reads random pages of a relation and says how fast they came.
#[derive(Parser)]
struct Args {
    /// Connection string of the page service.
    #[arg(long)]
    connect: String,
    /// Tenant.
    #[arg(long)]
    tenant: TenantId,
    /// Timeline.
    #[arg(long)]
    timeline: TimelineId,
    /// Tablespace, database and relation number, separated by `/`.
    #[arg(long)]
    relation: String,
    /// Blocks the pages are taken from: 0 up to this number, exclusive.
    #[arg(long)]
    blocks: u32,
    /// Pages read one after the other.
    #[arg(long, default_value_t = 20_000)]
    requests: usize,
    /// Requests on the way at once in the second part.
    #[arg(long, default_value_t = 64)]
    depth: usize,
    /// Seed of the choice of pages.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

struct Stream {
    reader: CopyBothReader,
    writer: CopyBothWriter,
    rel: RelTag,
    blocks: u32,
    rng: StdRng,
}

impl Stream {
    async fn open(args: &Args) -> anyhow::Result<Self> {
        let numbers: Vec<u32> = args
            .relation
            .split('/')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .context("a relation is three numbers")?;
        let [spcnode, dbnode, relnode] = numbers[..] else {
            bail!("a relation is three numbers, not {}", args.relation);
        };
        let config: postgres_client::Config = args.connect.parse()?;
        let command = format!("pagestream {} {}", args.tenant, args.timeline);
        let (reader, writer) = config.connect().await?.copy_both(&command).await?;
        Ok(Stream {
            reader,
            writer,
            rel: RelTag {
                spcnode,
                dbnode,
                relnode,
                fork: Fork::Main,
            },
            blocks: args.blocks,
            rng: StdRng::seed_from_u64(args.seed),
        })
    }

    fn put_random(&mut self) {
        let request = Request {
            at: RequestLsn {
                latest: true,
                lsn: Lsn(0),
            },
            query: Query::GetPage {
                rel: self.rel,
                block: self.rng.random_range(0..self.blocks),
            },
        };
        self.writer.put(|out| request.encode(out));
    }

    async fn take_page(&mut self) -> anyhow::Result<()> {
        let raw = self.reader.next().await?.context("the stream ended")?;
        match Response::decode(raw)? {
            Response::GetPage(_) => Ok(()),
            other => bail!("no page: {other:?}"),
        }
    }

    /// Seconds each of `count` requests took, sorted.
    async fn one_by_one(&mut self, count: usize) -> anyhow::Result<Vec<Duration>> {
        let mut latencies = Vec::with_capacity(count);
        for _ in 0..count {
            let begin = Instant::now();
            self.put_random();
            self.writer.flush().await?;
            self.take_page().await?;
            latencies.push(begin.elapsed());
        }
        latencies.sort_unstable();
        Ok(latencies)
    }

    /// Pages per second with batches of `depth` requests.
    async fn pipelined(&mut self, count: usize, depth: usize) -> anyhow::Result<f64> {
        let begin = Instant::now();
        let batches = count.div_ceil(depth);
        for batch in 0..=batches {
            // One batch is on its way while the one before is taken.
            if batch < batches {
                (0..depth).for_each(|_| self.put_random());
                self.writer.flush().await?;
            }
            if batch > 0 {
                for _ in 0..depth {
                    self.take_page().await?;
                }
            }
        }
        Ok((batches * depth) as f64 / begin.elapsed().as_secs_f64())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    anyhow::ensure!(
        args.blocks > 0 && args.requests > 0 && args.depth > 0,
        "the numbers must be positive"
    );
    let mut stream = Stream::open(&args).await?;
    let latencies = stream.one_by_one(args.requests).await?;
    let pages_per_second = stream.pipelined(args.requests, args.depth).await?;
    let percentile =
        |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    println!(
        "{{\"p50_us\": {:.1}, \"p99_us\": {:.1}, \"pages_per_second\": {:.0}}}",
        percentile(0.5),
        percentile(0.99),
        pages_per_second
    );
    Ok(())
}
